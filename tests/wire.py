"""HTTP as it is on the wire, for the fault proxy: heads, bodies, and the ends of connections."""

import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

PIECE = 256 << 10  # bytes
MAX_HEAD = 64 << 10  # bytes
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Pieces of a body, each with whether it is content; the others are the frame of a chunked body.
Body = Iterator[tuple[bytes, bool]]


class Disconnect(Exception):
    """This exchange ends here: both connections are closed, or *reset*."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a message: its first line split at blanks, its headers, its own bytes."""

    words: Sequence[str]
    headers: Mapping[str, str]
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a head that ends in an empty line."""
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return cls(first.split(" ", 2), headers, raw)

    @property
    def status(self) -> int:
        """The status of an answer."""
        return int(self.words[1])

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may carry another message."""
        return self.headers.get("connection", "").lower() != "close" and "1.0" not in (
            self.words[0].removeprefix("HTTP/"),
            self.words[-1].removeprefix("HTTP/"),
        )

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends the body."""
        return self.headers.get("expect", "").lower() == "100-continue"

    def without(self, name: str) -> bytes:
        """Return the head without the header *name*."""
        lines = self.raw.split(b"\r\n")
        mark = name.lower().encode() + b":"
        return b"\r\n".join(line for line in lines if not line.lower().startswith(mark))


class Stream:
    """A socket, and what was read from it too early."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._early = b""

    def read_head(self) -> Head | None:
        """Return the next head; None when the other side has closed before it began."""
        while b"\r\n\r\n" not in self._early:
            piece = self.socket.recv(PIECE)
            if not piece or len(self._early) > MAX_HEAD:
                if not self._early:
                    return None
                raise Disconnect(reset=False)
            self._early += piece
        raw, _, self._early = self._early.partition(b"\r\n\r\n")
        return Head.parse(raw + b"\r\n\r\n")

    def body(self, head: Head, *, until_close: bool = False) -> Body:
        """Yield the body of the message as it comes."""
        if "chunked" in head.headers.get("transfer-encoding", "").lower():
            yield from self._chunks()
        elif "content-length" in head.headers:
            yield from self._counted(int(head.headers["content-length"]))
        elif until_close:
            while piece := self._read(PIECE):
                yield piece, True

    def _read(self, limit: int) -> bytes:
        if self._early:
            piece, self._early = self._early[:limit], self._early[limit:]
            return piece
        return self.socket.recv(min(limit, PIECE))

    def _counted(self, size: int) -> Body:
        while size:
            piece = self._read(size)
            if not piece:
                raise Disconnect(reset=False)
            size -= len(piece)
            yield piece, True

    def _chunks(self) -> Body:
        while True:
            line = self._line()
            yield line, False
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            yield from self._counted(size)
            yield self._line(), False
        while True:
            line = self._line()
            yield line, False
            if line == b"\r\n":
                return

    def _line(self) -> bytes:
        while b"\r\n" not in self._early:
            piece = self.socket.recv(PIECE)
            if not piece:
                raise Disconnect(reset=False)
            self._early += piece
        line, _, self._early = self._early.partition(b"\r\n")
        return line + b"\r\n"

    def is_stale(self) -> bool:
        """Say whether the other side has closed, or said something that nobody asked for."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def linger(self, seconds: float) -> None:
        """Say no more, and take what still comes, so that closing does not reset."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            self.socket.settimeout(seconds)
            while self.socket.recv(PIECE):
                pass

    def close(self, *, reset: bool = False) -> None:
        """Close, in the polite way or not."""
        with suppress(OSError):
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.socket.close()


def parts(piece: bytes, rate: float | None) -> Iterator[bytes]:
    """Cut *piece* so that at *rate* each part takes a tenth of a second."""
    step = len(piece) if rate is None else max(1, int(rate / 10))
    for start in range(0, len(piece), step or 1):
        yield piece[start : start + step]


def flipped(piece: bytes, offsets: Sequence[int]) -> bytes:
    """Return *piece* with the lowest bit of the bytes at *offsets* changed, where it has them."""
    inside = [offset for offset in offsets if 0 <= offset < len(piece)]
    if not inside:
        return piece
    changed = bytearray(piece)
    for offset in inside:
        changed[offset] ^= 1
    return bytes(changed)
