"""The file of a journal: frames are appended, synchronised, and moved when few are live.

Blocks are written with zeros before they are used, and then overwritten by O_DIRECT and O_DSYNC
where the file system has them: that takes 0.1 ms where this was measured, also while others
write; fdatasync(2) takes 0.1 to 0.2 ms, and 1 to 5 ms while others write; to append to a file takes
1 to 4 ms, because the file system's own journal has to be written, too.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from s3mount.write.frames import HEADER_SIZE, Checksum, Framing

LOG = "log"
BLOCK = 4096  # Bytes: what O_DIRECT writes, and where.
FILL_SIZE = 4 << 20  # Bytes of zeros at a time.
FILL_AHEAD = 1 << 20
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Place(NamedTuple):
    """Where a frame stands in the log."""

    offset: int
    size: int


class LogFile:
    """The log in the directory that *directory* is a descriptor of.

    `append` only remembers; all other methods may block.  `position` is where the log ends.
    """

    def __init__(self, directory: int, checksum: Checksum) -> None:
        self._directory = directory
        self._checksum = checksum
        self._descriptor = -1
        self._direct = False
        self._framing = Framing(b"", checksum)
        self._filled = 0
        self._tail = bytearray()  # What is to be written, from a border of blocks on.
        self._tail_start = 0
        self.position = 0

    def create(self) -> None:
        """Make a new, empty log that is on the disk."""
        self._open(LOG, os.O_EXCL)
        self._begin(0)
        self.sync()
        os.fsync(self._directory)

    def _open(self, name: str, flags: int) -> None:
        flags |= _FLAGS
        try:
            direct = flags | os.O_DIRECT | os.O_DSYNC
            self._descriptor = os.open(name, direct, 0o600, dir_fd=self._directory)
            self._direct = True
        except OSError:
            # Some file systems (tmpfs) make the file before they refuse.
            flags &= ~os.O_EXCL
            self._descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
            self._direct = False

    def _begin(self, durable: int) -> None:
        self._framing = Framing(secrets.token_bytes(16), self._checksum, durable)
        self._filled = self._tail_start = 0
        self._tail = bytearray(self._framing.header())
        self.position = len(self._tail)

    def append(self, number: int, durable: int, text: bytes, blob: bytes) -> Place:
        """Put a frame behind the last one; `sync` writes it."""
        frame = self._framing.encode(number, durable, text, blob)
        place = Place(self.position, len(frame))
        self._tail += frame
        self.position += len(frame)
        return place

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        start, data = self._tail_start, bytes(self._tail)
        if not data:
            return
        if self.needs_fill:
            self.fill()
        with mmap.mmap(-1, -(-len(data) // BLOCK) * BLOCK) as buffer:  # Aligned to a page.
            buffer[: len(data)] = data
            self._write(buffer, start)
        whole = len(data) // BLOCK * BLOCK
        self._tail_start = start + whole
        del self._tail[:whole]

    @property
    def waiting(self) -> int:
        """How many bytes were appended and are not on the disk."""
        return len(self._tail)

    @property
    def needs_fill(self) -> bool:
        """Whether the next `sync` will take longer, unless `fill` is called before."""
        return self.position + FILL_AHEAD > self._filled

    def fill(self) -> None:
        """Write zeros where frames will be."""
        with mmap.mmap(-1, FILL_SIZE) as zeros:
            while self.needs_fill:
                self._write(zeros, self._filled)
                self._filled += FILL_SIZE

    def _write(self, data: mmap.mmap, offset: int) -> None:
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                with view[written:] as rest:
                    written += os.pwrite(self._descriptor, rest, offset + written)
        if not self._direct:
            os.fdatasync(self._descriptor)

    def move(self, live: Sequence[Place], durable: int) -> Sequence[Place]:
        """Begin a new log of the *live* frames alone, in its place; say where they are there.

        *durable* is a number that no frame exceeds.  A crash leaves the one log or the other.
        """
        self.sync()
        old = self._descriptor, self._direct, self._framing, self._filled
        ending = self._tail, self._tail_start, self.position
        new = f"{LOG}.new"
        try:
            self._open(new, os.O_TRUNC)
            moved = self._copy(old[2], live, durable)
            self.sync()
            os.rename(new, LOG, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except BaseException:
            if self._descriptor != old[0]:
                os.close(self._descriptor)
            self._descriptor, self._direct, self._framing, self._filled = old
            self._tail, self._tail_start, self.position = ending
            raise
        os.close(old[0])
        return moved

    def _copy(self, framing: Framing, live: Sequence[Place], durable: int) -> Sequence[Place]:
        self._begin(durable)
        source = os.open(LOG, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            moved = []
            for place in live:
                data = bytes(HEADER_SIZE) + os.pread(source, place.size, place.offset)
                found = framing.scan(data).frames
                if len(found) != 1:
                    raise OSError(errno.EIO, f"a frame at {place.offset} is damaged on the disk")
                frame = found[0]
                moved.append(self.append(frame.number, durable, frame.text, frame.blob))
        finally:
            os.close(source)
        return moved

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
