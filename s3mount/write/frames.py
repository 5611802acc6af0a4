"""The framing of the journal: records with checksums, and what is left of them after a crash.

Pure.  A log is a header of `HEADER_SIZE` bytes, frames one after the other, and zeros.  A frame
has a number that only grows and tells up to which number all were known to be on the disk when
it was written.  So what was never acknowledged (a torn tail, also one with holes) is told from
damage to what was.  The checksums begin from a secret number of the log: no bytes of a user
that lie in a frame can pass for one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from s3mount.s3.store import Buffer

Checksum = Callable[[Buffer, int], int]

LOG_MAGIC = b"s3mlog1\n"
FRAME_MAGIC = b"s3jF"
_LOG = struct.Struct("<8s16sQI")  # magic, seed, durable, CRC32 of what stands before
_FRAME = struct.Struct("<4sIIQQQI")  # magic, sizes of text and blob, number, durable, CRC64, CRC32
_SEALED = struct.Struct("<I")
_COPY = 512  # Where the second copy of the log's header is: in another sector.
HEADER_SIZE = 4096
MAX_TEXT_SIZE = 64 << 20
MAX_BLOB_SIZE = 1 << 20


class Frame(NamedTuple):
    """One record: where it stands in the log, its number, and what it says."""

    offset: int
    size: int
    number: int
    durable: int
    text: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class Scan:
    """What a log holds.

    `gaps` are the numbers of the last good frame before each place where acknowledged frames
    are damaged: what was said up to there may have been taken back in what is lost.  `torn`
    says that something begins after the last frame that is no frame.
    """

    frames: Sequence[Frame]
    gaps: Sequence[int]
    torn: bool


class Framing:
    """Writes and reads the frames of one log; *seed* are 16 secret bytes."""

    def __init__(self, seed: bytes, checksum: Checksum, durable: int = 0) -> None:
        self.seed = seed
        self._checksum = checksum
        self._start = checksum(seed, 0)
        self._durable = durable

    def header(self) -> bytes:
        """The first `HEADER_SIZE` bytes of the log: twice the same, in two sectors."""
        sealed = _LOG.pack(LOG_MAGIC, self.seed, self._durable, 0)[: -_SEALED.size]
        header = sealed + _SEALED.pack(zlib.crc32(sealed))
        return (header.ljust(_COPY, b"\0") + header).ljust(HEADER_SIZE, b"\0")

    @classmethod
    def of_log(cls, data: Buffer, checksum: Checksum) -> Framing | None:
        """The framing of an existing log; None when neither copy of its header is good."""
        view = memoryview(data)
        for start in (0, _COPY):
            header = bytes(view[start : start + _LOG.size])
            if len(header) < _LOG.size:
                continue
            magic, seed, durable, crc = _LOG.unpack(header)
            if magic == LOG_MAGIC and crc == zlib.crc32(header[: -_SEALED.size]):
                return cls(seed, checksum, durable)
        return None

    def encode(self, number: int, durable: int, text: bytes, blob: bytes = b"") -> bytes:
        """One frame."""
        crc = self._payload_crc(number, text, blob)
        head = _FRAME.pack(FRAME_MAGIC, len(text), len(blob), number, durable, crc, 0)
        head = head[: -_SEALED.size]
        return head + _SEALED.pack(zlib.crc32(head)) + text + blob

    def _payload_crc(self, number: int, text: Buffer, blob: Buffer) -> int:
        crc = self._checksum(number.to_bytes(8, "little"), self._start)
        return self._checksum(blob, self._checksum(text, crc))

    def scan(self, data: Buffer) -> Scan:
        """Read all good frames of a log."""
        view, position, last = memoryview(data), HEADER_SIZE, 0
        frames: list[Frame] = []
        gaps: list[tuple[int, int]] = []  # index of the first frame after, last number before
        while True:
            frame = self._parse(view, position, last)
            if frame is None:
                frame = self._resume(view, position, last)
                if frame is None:
                    break
                gaps.append((len(frames), last))
            frames.append(frame)
            position, last = frame.offset + frame.size, frame.number
        durable = max((frame.durable for frame in frames), default=0)
        durable = max(durable, self._durable)
        for index, before in gaps:
            if before >= durable:
                # Nobody was told that what is lost here, or comes after, is safe.
                good = [number for first, number in gaps if first < index]
                return Scan(frames[:index], good, True)
        torn = any(view[position : position + len(FRAME_MAGIC)])
        return Scan(frames, [before for _, before in gaps], torn)

    def _parse(self, view: memoryview, position: int, last: int) -> Frame | None:
        head = bytes(view[position : position + _FRAME.size])
        if len(head) < _FRAME.size:
            return None
        magic, text_size, blob_size, number, durable, crc, sealed = _FRAME.unpack(head)
        if magic != FRAME_MAGIC or sealed != zlib.crc32(head[: -_SEALED.size]) or number <= last:
            return None
        start = position + _FRAME.size
        middle, stop = start + text_size, start + text_size + blob_size
        if text_size > MAX_TEXT_SIZE or blob_size > MAX_BLOB_SIZE or stop > len(view):
            return None
        text, blob = bytes(view[start:middle]), bytes(view[middle:stop])
        if crc != self._payload_crc(number, text, blob):
            return None
        return Frame(position, stop - position, number, durable, text, blob)

    def _resume(self, view: memoryview, position: int, last: int) -> Frame | None:
        """The first good frame after a place where there is none."""
        rest = bytes(view[position:])
        found = rest.find(FRAME_MAGIC, 1)
        while found >= 0:
            frame = self._parse(view, position + found, last)
            if frame is not None:
                return frame
            found = rest.find(FRAME_MAGIC, found + 1)
        return None
