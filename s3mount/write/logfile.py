"""The file of a journal: frames are appended, synchronised, and moved when few are live.

Blocks are written with zeros before they are used: to overwrite them and synchronise takes
0.1 to 0.2 ms where this was measured; to append, or to write into space that was only reserved,
takes up to 1 ms and often 4, because the file system's own journal has to be written, too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from s3mount.write.frames import HEADER_SIZE, Checksum, Framing

LOG = "log"
FILL_SIZE = 4 << 20  # Bytes of zeros at a time: 1 ms.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Place(NamedTuple):
    """Where a frame stands in the log."""

    offset: int
    size: int


class LogFile:
    """The log in the directory that *directory* is a descriptor of.  All methods may block."""

    def __init__(self, directory: int, checksum: Checksum) -> None:
        self._directory = directory
        self._checksum = checksum
        self._descriptor = -1
        self._framing = Framing(b"", checksum)
        self._filled = 0
        self.position = 0

    def create(self) -> None:
        """Make a new, empty log that is on the disk."""
        self._descriptor = os.open(LOG, _FLAGS | os.O_EXCL, 0o600, dir_fd=self._directory)
        self._begin(0)
        os.fsync(self._descriptor)
        os.fsync(self._directory)

    def _begin(self, durable: int) -> None:
        self._framing = Framing(secrets.token_bytes(16), self._checksum, durable)
        self._filled = self.position = 0
        self._write(self._framing.header())

    def append(self, number: int, durable: int, text: bytes, blob: bytes) -> Place:
        """Write a frame behind the last one, to the page cache only."""
        place = Place(self.position, 0)
        self._write(self._framing.encode(number, durable, text, blob))
        return place._replace(size=self.position - place.offset)

    def _write(self, data: bytes) -> None:
        while self.position + len(data) > self._filled:
            self._filled += os.pwrite(self._descriptor, bytes(FILL_SIZE), self._filled)
        written = 0
        while written < len(data):
            view = memoryview(data)[written:]
            written += os.pwrite(self._descriptor, view, self.position + written)
        self.position += len(data)

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        os.fdatasync(self._descriptor)

    def move(self, live: Sequence[Place], durable: int) -> Sequence[Place]:
        """Begin a new log of the *live* frames alone, in its place; say where they are there.

        *durable* is a number that no frame exceeds.  A crash leaves the one log or the other.
        """
        old = self._descriptor, self._framing, self._filled, self.position
        new = f"{LOG}.new"
        self._descriptor = os.open(new, _FLAGS | os.O_TRUNC, 0o600, dir_fd=self._directory)
        try:
            moved = self._copy(old[0], old[1], live, durable)
            os.fsync(self._descriptor)
            os.rename(new, LOG, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor, self._framing, self._filled, self.position = old
            raise
        os.close(old[0])
        return moved

    def _copy(
        self, source: int, framing: Framing, live: Sequence[Place], durable: int
    ) -> Sequence[Place]:
        self._begin(durable)
        moved = []
        for place in live:
            data = bytes(HEADER_SIZE) + os.pread(source, place.size, place.offset)
            (frame,) = framing.scan(data).frames
            moved.append(self.append(frame.number, durable, frame.text, frame.blob))
        return moved

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
