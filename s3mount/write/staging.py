"""Dirty bytes of one file: in memory while they are few, then in a sparse local file."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from s3mount.memory import MemoryBudget
from s3mount.s3.store import Buffer, FileSlice
from s3mount.write.extents import Extents

SPILL = 1 << 20  # A file larger than this is staged on disk.

Checksum = Callable[[Buffer, int], int]


class StagingDirectory:
    """The directory of staged files: made 0700, files 0600 with names that tell nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create(self) -> tuple[int, Path]:
        """Open a new empty file."""
        path = self.path / secrets.token_hex(12)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600), path

    def keep(self, data: Path, record: str) -> Path:
        """Move a staged file to where nobody removes it, with *record* beside it."""
        kept = self.path.parent / "kept"
        kept.mkdir(mode=0o700, exist_ok=True)
        target = kept / data.name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(f"{target}.json", flags, 0o600), "w") as file:
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        data.rename(target)
        return target


class StagedFile:
    """What was written into a file since it was last whole in the store.

    A byte of the file is the staged one where `extents` has it, else the old object's below
    `base_limit`, else zero.  All methods are synchronous: a page cache write of the kernel's
    largest request (1 MiB) takes about 0.15 ms, no more than handing it to a thread.
    """

    def __init__(self, directory: StagingDirectory, budget: MemoryBudget, base_limit: int) -> None:
        self._directory = directory
        self._budget = budget
        self._memory = bytearray()
        self._taken = 0
        self._descriptor = -1
        self.path: Path | None = None
        self.extents = Extents()
        self.base_limit = base_limit

    def write(self, offset: int, data: Buffer) -> None:
        """Put *data* at *offset*.  Raises `OSError` (ENOSPC, EIO) of the staging directory."""
        end = offset + len(data)
        if self._descriptor < 0 and not self._fits(end):
            self._spill()
        if self._descriptor >= 0:
            self._write_file(offset, data)
        else:
            if offset > len(self._memory):
                self._memory.extend(bytes(offset - len(self._memory)))
            self._memory[offset:end] = data
        self.extents.add(offset, end)

    def add_hole(self, start: int, stop: int) -> None:
        """Make ``start <= i < stop``, which was never written, zeros that can be sent."""
        if self._descriptor < 0 and not self._fits(stop):
            self._spill()
        if self._descriptor >= 0:
            if os.fstat(self._descriptor).st_size < stop:
                os.ftruncate(self._descriptor, stop)
        elif stop > len(self._memory):
            self._memory.extend(bytes(stop - len(self._memory)))
        self.extents.add(start, stop)

    def truncate(self, size: int) -> None:
        """Cut the file off at *size*; nothing appears when it was shorter."""
        self.base_limit = min(self.base_limit, size)
        self.extents.remove(size, 1 << 63)
        if self._descriptor >= 0:
            if os.fstat(self._descriptor).st_size > size:
                os.ftruncate(self._descriptor, size)
        else:
            del self._memory[size:]

    def read(self, start: int, stop: int) -> bytes:
        """The staged bytes of ``start <= i < stop``, which are all in `extents`."""
        if self._descriptor < 0:
            return bytes(memoryview(self._memory)[start:stop])
        data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            raise OSError(errno.EIO, "a staged file is shorter than what was written to it")
        return data

    def slice(self, start: int, stop: int) -> FileSlice | list[Buffer]:
        """The staged bytes as the body of a request."""
        if self._descriptor < 0:
            return [bytes(memoryview(self._memory)[start:stop])]
        return FileSlice(self._descriptor, start, stop)

    def close(self) -> None:
        """Drop the staged bytes."""
        self._budget.give(self._taken)
        self._taken = 0
        self._memory = bytearray()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def persist(self) -> Path:
        """Make sure that the staged bytes are in a file, synced, and return its path."""
        if self._descriptor < 0:
            self._spill()
        os.fsync(self._descriptor)
        assert self.path is not None
        return self.path

    def keep(self, record: Mapping[str, object]) -> Path:
        """Leave the bytes on disk with a *record* (JSON) of what they are; return its path.

        The data file is sparse: only ``extents`` (pairs of start and stop) hold bytes.
        """
        path = self.persist()
        extents = [[extent.start, extent.stop] for extent in self.extents]
        text = json.dumps({**record, "extents": extents, "base_limit": self.base_limit})
        target = self._directory.keep(path, text)
        os.close(self._descriptor)
        self._descriptor = -1
        self.path = None
        return target

    def _fits(self, end: int) -> bool:
        if end > SPILL:
            return False
        if end > self._taken:
            if not self._budget.try_take(end - self._taken):
                return False
            self._taken = end
        return True

    def _spill(self) -> None:
        self._descriptor, self.path = self._directory.create()
        for extent in self.extents:
            self._write_file(extent.start, memoryview(self._memory)[extent.start : extent.stop])
        self._memory = bytearray()
        self._budget.give(self._taken)
        self._taken = 0

    def _write_file(self, offset: int, data: Buffer) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)


class RunningChecksums:
    """Checksums of grid cells that are being written in order, so that nobody reads them again.

    A cell that was written in any other way has no running checksum.
    """

    def __init__(self, checksum: Checksum) -> None:
        self._checksum = checksum
        self._cells: dict[int, tuple[int, int]] = {}  # cell -> (next offset, checksum)

    def add(self, cell: int, cell_start: int, offset: int, data: Buffer) -> None:
        """Take note of *data* at *offset*, all within one *cell*."""
        following, checksum = self._cells.get(cell, (cell_start, 0))
        if offset == following:
            self._cells[cell] = offset + len(data), self._checksum(data, checksum)
        else:
            self._cells[cell] = -1, 0

    def spoil(self, cell: int) -> None:
        """The cell was changed in a way that cannot be followed."""
        self._cells[cell] = -1, 0

    def of(self, cell: int, stop: int) -> int | None:
        """The checksum of *cell* up to *stop*, if it was followed just so far."""
        following, checksum = self._cells.get(cell, (-1, 0))
        return checksum if following == stop else None

    def clear(self) -> None:
        """Forget all."""
        self._cells.clear()
