"""One TCP or TLS connection: bytes in and out on a non-blocking socket, nothing of HTTP.

Every transfer tries the system call first and waits only when it would block; a long one
yields to other tasks at least once a MiB.
"""

import fcntl
import os
import socket
import ssl
import sys
import termios
from collections.abc import Callable, Sequence

import trio

from s3mount.errors import StoreError
from s3mount.s3.store import MIB, Buffer, FileSlice

STALL_SECONDS = 15.0
SHORT_BODY = 16 << 10  # The kernel takes so much at once, together with the head.
MAX_HEAD = 64 << 10
_RECEIVE_SIZE = 64 << 10
_FILE_CHUNK = 256 << 10
_PLENTY = 256 << 10
_FAST_RATE = 1 << 20
_MAX_BUFFERS = 1024  # IOV_MAX: sendmsg() takes no more.
_INFORMAL = b"HTTP/1.1 1"  # A second 100 Continue, as some servers send, is no answer.
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError)


class Broken(Exception):
    """The connection is of no more use: it was reset, ended early, or spoke no HTTP."""


class Untrusted(Broken):
    """TLS could not be agreed on, or the certificate is not to be trusted: no use to try again."""


class Pulse:
    """When bytes moved last on any connection: who waits for a turn sees that there is life."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0.0


class Watch:
    """Ends an attempt that shows no sign of life for *stall* seconds.

    `moving` sums up the seconds of body transfer: those do not count as waiting.
    """

    __slots__ = ("_pulse", "_renewed", "_scope", "_stall", "moving")

    def __init__(self, scope: trio.CancelScope, pulse: Pulse, stall: float) -> None:
        self._scope = scope
        self._pulse = pulse
        self._stall = stall
        self._renewed = 0.0
        self.moving = 0.0

    def allow(self, seconds: float) -> None:
        """Give the next step *seconds* from now."""
        self._scope.deadline = trio.current_time() + seconds

    def alive(self) -> None:
        """Take note that bytes have moved."""
        now = trio.current_time()
        # Moving a deadline costs more than reading the clock, and half a second is no matter.
        if now - self._renewed > 0.5:
            self._renewed = self._pulse.last = now
            self._scope.deadline = now + self._stall


class Connection:
    """A connected socket.  `watch` belongs to the request that uses it at the moment.

    `requests` counts those begun on it.  Of the present one, `sent` and `received` are its
    bytes, `heard` whether any byte of the answer has arrived, `timed_out` whether it was given
    up, `spoiled` whether bytes of its answer were left on the connection.
    """

    __slots__ = (
        "_demanded",
        "_descriptor",
        "_rest",
        "_socket",
        "heard",
        "idle_since",
        "received",
        "requests",
        "secure",
        "sent",
        "spoiled",
        "timed_out",
        "watch",
    )

    def __init__(self, plain_or_tls: socket.socket, watch: Watch) -> None:
        self._socket = plain_or_tls
        self._descriptor = plain_or_tls.fileno()
        self._rest = b""
        self._demanded = 1
        self.secure = isinstance(plain_or_tls, ssl.SSLSocket)
        self.watch = watch
        self.idle_since = 0.0
        self.requests = self.sent = self.received = 0
        self.heard = self.timed_out = self.spoiled = False

    def begin(self, watch: Watch) -> None:
        """Take the connection for a new request."""
        self.watch = watch
        self.requests += 1
        self.sent = self.received = 0
        self.heard = self.timed_out = False

    def close(self) -> None:
        """Drop the connection; nothing is said to the peer."""
        self._socket.close()

    @property
    def clean(self) -> bool:
        """Whether nothing but silence is on the idle connection, so that it can be reused.

        A TLS connection may hold session tickets, which only the TLS layer can tell from
        the end, so there it is asked to read: it has no bytes to give, or is at its end.
        """
        if self._rest:
            return False
        try:
            if self.secure:
                self._socket.recv(1)
            else:
                self._socket.recv(1, socket.MSG_PEEK)
        except _WOULD_BLOCK:
            return True
        except OSError:
            return False
        return False

    # ------------------------------------------------------------------ sending

    @property
    def unsent(self) -> int:
        """Bytes that were sent and that the peer's machine has not confirmed yet."""
        answer = fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    async def send(self, head: bytes, body: Sequence[Buffer]) -> bool:
        """Send a request's head and body; False when the peer answered before the end."""
        if self.secure:
            return await self._send_secure(head, body)
        if sum([memoryview(part).nbytes for part in body]) <= SHORT_BODY:
            whole = b"".join([head, *body]) if body else head
            try:
                count = self._socket.send(whole)
            except BlockingIOError:
                count = 0
            except OSError as error:
                return self._refused(error)
            self.sent += count
            return count == len(whole) or await self._send_all([memoryview(whole)[count:]])
        return await self._send_all([memoryview(head), *(_octets(part) for part in body)])

    async def _send_all(self, pending: list[memoryview]) -> bool:
        unyielded = 0
        while pending:
            try:
                count = self._socket.sendmsg(pending[:_MAX_BUFFERS])
            except BlockingIOError:
                if await self._answered_early():
                    return False
                unyielded = 0
                continue
            except OSError as error:
                return self._refused(error)
            self._note_sent(count)
            unyielded += count
            if unyielded >= MIB:
                await trio.lowlevel.checkpoint()
                unyielded = 0
            pending = _after(pending, count)
        return True

    async def _send_secure(self, head: bytes, body: Sequence[Buffer]) -> bool:
        if sum(len(part) for part in body) < _RECEIVE_SIZE // 4:
            return await self._send_record(memoryview(b"".join([head, *body])))
        for part in (memoryview(head), *(_octets(part) for part in body)):
            if not await self._send_record(part):
                return False
        return True

    async def _send_record(self, view: memoryview) -> bool:
        position, unyielded = 0, 0
        while position < len(view):
            try:
                count = self._socket.send(view[position:])
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._descriptor)
                continue
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._descriptor)
                continue
            except OSError as error:
                return self._refused(error)
            position += count
            unyielded += count
            self._note_sent(count)
            if unyielded >= MIB:
                await trio.lowlevel.checkpoint()
                unyielded = 0
        return True

    async def send_file(self, part: FileSlice) -> bool:
        """Send a slice of a local file; False when the peer answered before the end.

        The pages were written a moment ago, so reading them does not wait for a disk.
        """
        position, unyielded = part.start, 0
        while position < part.stop:
            if self.secure:
                data = os.pread(part.descriptor, min(_FILE_CHUNK, part.stop - position), position)
                count = len(data)
                if count and not await self._send_record(memoryview(data)):
                    return False
            else:
                sent = await self._send_from_file(part, position)
                if sent is None:
                    return False
                count = sent
            if not count:
                raise StoreError(f"the local file ends before byte {part.stop}")
            position += count
            unyielded += count
            if unyielded >= MIB:
                await trio.lowlevel.checkpoint()
                unyielded = 0
        return True

    async def _send_from_file(self, part: FileSlice, position: int) -> int | None:
        while True:
            try:
                count = os.sendfile(
                    self._descriptor, part.descriptor, position, min(MIB, part.stop - position)
                )
            except BlockingIOError:
                if await self._answered_early():
                    return None
            except (ConnectionError, TimeoutError) as error:
                self._refused(error)
                return None
            else:
                self._note_sent(count)
                return count

    def _note_sent(self, count: int) -> None:
        self.sent += count
        self.watch.alive()

    async def _answered_early(self) -> bool:
        """Wait until more can be sent; True when the peer has begun to answer instead."""
        try:
            begun = self._socket.recv(len(_INFORMAL), socket.MSG_PEEK)
        except BlockingIOError:
            begun = _INFORMAL
        except OSError as error:
            raise Broken(f"the connection broke: {error}") from error
        if begun[-1:] != _INFORMAL[-1:]:
            return True
        await trio.lowlevel.wait_writable(self._descriptor)
        return False

    def _refused(self, error: OSError) -> bool:
        """Judge a failed send: a peer that hung up may have said why, so look for its answer."""
        if isinstance(error, BrokenPipeError | ConnectionResetError) and self.sent:
            return False
        raise Broken(f"the connection broke: {error}") from error

    # ---------------------------------------------------------------- receiving

    async def wait_readable(self) -> None:
        """Wait until the peer says something."""
        if not self._rest:
            await trio.lowlevel.wait_readable(self._descriptor)

    async def read_head(self) -> bytes:
        """Read up to the empty line that ends a head, and return what is before it."""
        data, self._rest = self._rest, b""
        if not data and not self.secure:
            # The answer takes a round trip: trying first would only fail.
            await trio.lowlevel.wait_readable(self._descriptor)
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > MAX_HEAD:
                raise Broken("the head of the answer does not end")
            data += await self._receive()
        if end > MAX_HEAD:
            raise Broken("the head of the answer does not end")
        self._rest = data[end + 4 :]
        return data[:end]

    async def read_line(self) -> bytes:
        """Read one short line, and return it without its end."""
        while (end := self._rest.find(b"\r\n")) < 0:
            if len(self._rest) > 4096:
                raise Broken("a line of a chunked body does not end")
            self._rest += await self._receive()
        line, self._rest = self._rest[:end], self._rest[end + 2 :]
        return line

    async def read_some(self, limit: int) -> bytes:
        """Read at most *limit* bytes of a body; empty only at the end of the connection."""
        if not self._rest:
            self._rest = await self._receive(at_end=b"")
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    async def _receive(self, at_end: bytes | None = None) -> bytes:
        while True:
            try:
                data = self._socket.recv(_RECEIVE_SIZE)
            except _WOULD_BLOCK:
                await trio.lowlevel.wait_readable(self._descriptor)
                continue
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._descriptor)
                continue
            except OSError as error:
                raise Broken(f"the connection broke: {error}") from error
            if not data:
                if at_end is None:
                    raise Broken("the connection was closed before the answer was complete")
                return at_end
            self.heard = True
            self.received += len(data)
            return data

    async def fill(self, view: memoryview, progress: Callable[[int], None] | None) -> None:
        """Receive exactly ``len(view)`` bytes in place.

        *progress* hears how many new bytes are there, each time before a wait and at the end.
        """
        size = len(view)
        done = min(len(self._rest), size)
        if done:
            view[:done] = self._rest[:done]
            self._rest = self._rest[done:]
        told = yielded = 0
        begun = trio.current_time()
        receive = self._socket.recv_into
        while done < size:
            try:
                count = receive(view[done:])
            except _WOULD_BLOCK:
                self._tell(progress, done - told)
                told = yielded = done
                self.watch.alive()
                self._demand(done, size - done, begun)
                await trio.lowlevel.wait_readable(self._descriptor)
                continue
            except OSError as error:
                self._tell(progress, done - told)
                raise Broken(f"the connection broke: {error}") from error
            if not count:
                self._tell(progress, done - told)
                raise Broken("the connection was closed in the middle of a body")
            self.received += count
            done += count
            if done - yielded >= MIB:
                yielded = done
                self.watch.alive()
                await trio.lowlevel.checkpoint()
        self._tell(progress, done - told)
        if self._demanded > 1:
            self._demand(0, 0, begun)

    def _demand(self, done: int, left: int, begun: float) -> None:
        """Ask to be woken for plenty of bytes only, while they come fast and more are to come.

        A wake-up costs more than copying what it is for: a fifth of the CPU of a download.
        """
        fast = done >= 2 * _PLENTY and trio.current_time() - begun < done / _FAST_RATE
        demanded = _PLENTY if fast and left >= 2 * _PLENTY else 1
        if demanded != self._demanded:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, demanded)
            self._demanded = demanded

    @staticmethod
    def _tell(progress: Callable[[int], None] | None, count: int) -> None:
        if progress is not None and count:
            progress(count)


def _octets(part: Buffer) -> memoryview:
    view = memoryview(part)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _after(pending: list[memoryview], count: int) -> list[memoryview]:
    """What is left of *pending* when its first *count* bytes are gone."""
    for index, view in enumerate(pending):
        if count < len(view):
            return [view[count:], *pending[index + 1 :]]
        count -= len(view)
    return []
