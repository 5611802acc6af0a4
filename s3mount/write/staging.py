"""Dirty bytes of one file: in memory while the budget allows it, then in a local file."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import trio

from s3mount.memory import MemoryBudget
from s3mount.s3.store import Buffer, FileSlice
from s3mount.write.extents import Extents
from s3mount.write.pieces import BLOCK_SIZE, Checksum, PieceSums, Unverified, cut, sum_pieces
from s3mount.write.records import Piece
from s3mount.write.stagedblock import StagedBlock


class StagingDirectory:
    """The directory of staged files: made 0700, files 0600 with names that tell nothing.

    *checksum* is what the journal keeps of staged bytes (CRC64NVME).  With *follow* it is
    computed while they are written, because files will be journaled often.
    """

    def __init__(self, path: Path, checksum: Checksum, *, follow: bool = False) -> None:
        self.path = path
        self.checksum = checksum
        self.follow = follow
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create(self) -> tuple[int, Path]:
        """Open a new empty file."""
        path = self.path / secrets.token_hex(12)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600), path

    def sync(self) -> None:
        """Return when the names of the files are on the disk.  Blocks."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StagedFile:
    """What was written into a file since it was last whole in the store.

    A byte of the file is the staged one where `extents` has it, else the old object's below
    `base_limit`, else zero.  Staged bytes are kept in blocks of 1 MiB in memory while the
    budget allows it (the buffers that the kernel wrote are kept as they came), then in a sparse
    local file.  What has left as a part of an upload may be dropped: it is in `dropped`, and
    can be read again only from the store, after the upload is completed.  What is `secured`
    is on the disk because the journal speaks of it, and must not be changed there (`fork`).
    """

    def __init__(self, directory: StagingDirectory, budget: MemoryBudget, base_limit: int) -> None:
        self._directory = directory
        self._budget = budget
        self._blocks: dict[int, StagedBlock] = {}
        self._spilled: set[int] = set()
        self._descriptor = -1
        self.path: Path | None = None
        self.extents = Extents()
        self.dropped = Extents()
        self.secured = Extents()
        self.base_limit = base_limit
        self._sums = PieceSums(directory.checksum)
        self._unverified = Unverified(directory.checksum)

    @classmethod
    def restore(
        cls,
        directory: StagingDirectory,
        budget: MemoryBudget,
        base_limit: int,
        path: Path,
        pieces: Sequence[Piece],
    ) -> StagedFile:
        """The staged file that an earlier daemon left at *path*; raises `OSError`.

        Each block is verified when it is used first; `Corrupt` is raised when it is damaged.
        """
        file = cls(directory, budget, base_limit)
        file._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        file.path = path
        for piece in pieces:
            file.extents.add(piece.start, piece.stop)
            file.secured.add(piece.start, piece.stop)
            file._spilled.add(piece.start // BLOCK_SIZE)
            file._unverified.add(piece)
        return file

    def write(self, offset: int, data: Buffer) -> None:
        """Put *data* at *offset*.  Raises `OSError` (ENOSPC, EIO) of the staging directory."""
        if not isinstance(data, bytes):
            # A view of a clean block: that may be dropped by our own taking of memory.
            data = bytes(data)
        view, done = memoryview(data), 0
        while done < len(view):
            index, low = divmod(offset + done, BLOCK_SIZE)
            count = min(BLOCK_SIZE - low, len(view) - done)
            self._write_block(index, low, view[done : done + count])
            done += count
        self.extents.add(offset, offset + len(view))

    def _write_block(self, index: int, low: int, data: memoryview) -> None:
        if self._unverified:
            self._unverified.verify(self._descriptor, index)
        if self._directory.follow:
            self._sums.written(index, index * BLOCK_SIZE + low, data)
        if index not in self._spilled:
            block = self._blocks.get(index)
            known = len(block) if block is not None else 0
            if self._budget.try_take(max(0, low + len(data) - known), self._budget.limit // 4):
                if block is None:
                    block = self._blocks[index] = StagedBlock()
                block.write(low, data)
                return
            self._spill(index)
        self._write_file(index * BLOCK_SIZE + low, data)

    def add_hole(self, start: int, stop: int) -> None:
        """Make ``start <= i < stop``, which was never written, zeros that can be sent."""
        self.extents.add(start, stop)

    def truncate(self, size: int) -> None:
        """Cut the file off at *size*; nothing appears when it was shorter."""
        if self._unverified:
            self._unverified.truncate(self._descriptor, size)
        self._sums.truncate(size)
        self.base_limit = min(self.base_limit, size)
        self.extents.remove(size, 1 << 63)
        self.dropped.remove(size, 1 << 63)
        for index in [i for i in self._blocks if (i + 1) * BLOCK_SIZE > size]:
            block = self._blocks[index]
            before = len(block)
            block.cut(max(0, size - index * BLOCK_SIZE))
            self._budget.give(before - len(block))
        if self._descriptor >= 0 and os.fstat(self._descriptor).st_size > size:
            os.ftruncate(self._descriptor, size)

    def read(self, start: int, stop: int) -> bytes:
        """The staged bytes of ``start <= i < stop``.  Raises `OSError` when some were dropped."""
        self._require(start, stop)
        return b"".join(self._pieces(start, stop))

    def body(self, start: int, stop: int) -> FileSlice | list[Buffer]:
        """The staged bytes as the body of a request: from memory, or wholly from the file.

        Raises `OSError` when some were dropped.
        """
        self._require(start, stop)
        first, last = start // BLOCK_SIZE, (stop - 1) // BLOCK_SIZE
        if not any(index in self._spilled for index in range(first, last + 1)):
            return list(self._pieces(start, stop))
        for index in range(first, last + 1):
            if index not in self._spilled:
                self._spill(index)
        if os.fstat(self._descriptor).st_size < stop:
            os.ftruncate(self._descriptor, stop)
        return FileSlice(self._descriptor, start, stop)

    def _require(self, start: int, stop: int) -> None:
        if self.dropped.overlaps(start, stop):
            raise OSError(errno.EIO, "these bytes are in the store only")

    def _pieces(self, start: int, stop: int) -> Iterator[Buffer]:
        while start < stop:
            index, low = divmod(start, BLOCK_SIZE)
            count = min(BLOCK_SIZE - low, stop - start)
            if index in self._spilled:
                if self._unverified:
                    self._unverified.verify(self._descriptor, index)
                data: Sequence[Buffer] = [os.pread(self._descriptor, count, start)]
            else:
                block = self._blocks.get(index)
                data = list(block.views(low, low + count)) if block is not None else []
            yield from data
            if (missing := count - sum(map(len, data))) > 0:
                yield bytes(missing)  # A hole: blocks end with their last byte.
            start += count

    def departed(self, start: int, stop: int) -> None:
        """The store has these bytes as a part of an upload: drop them if memory is scarce.

        The beginning of a file stays: that is what programs go back to (headers).  So does a
        block that holds bytes of a neighbour: that part may have to be sent again.
        """
        if start == 0 or 4 * self._budget.used < self._budget.limit:
            return
        for index in range(-(-start // BLOCK_SIZE), stop // BLOCK_SIZE):
            block = self._blocks.pop(index, None)
            if block is not None:
                self._budget.give(len(block))
                self.dropped.add(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE)

    def returned(self) -> None:
        """Take the dropped bytes for ones of the old object, which has them by now."""
        for gone in self.dropped:
            self.extents.remove(gone.start, gone.stop)
            self.base_limit = max(self.base_limit, gone.stop)
        self.dropped = Extents()

    def forfeit(self, start: int, stop: int) -> None:
        """Let dropped bytes go for good, as they are about to be replaced."""
        self.dropped.remove(start, stop)

    def close(self, discard: Callable[[Path], None] = Path.unlink) -> None:
        """Drop the staged bytes; *discard* removes the file, if there is one."""
        self._budget.give(sum(map(len, self._blocks.values())))
        self._blocks.clear()
        path = self.leave()
        if path is not None:
            discard(path)

    def leave(self) -> Path | None:
        """Let go of the local file, but leave it where it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        path, self.path = self.path, None
        return path

    # -- for the journal -------------------------------------------------------------------

    async def secure(self) -> Sequence[Piece]:
        """Return when all staged bytes are on the disk: which, and their checksums.

        Nobody may write meanwhile.  Raises `OSError`.
        """
        new = self._descriptor < 0
        if new:
            self._open()
        for index in list(self._blocks):
            self._spill(index)
            await trio.lowlevel.checkpoint()
        here = Extents()
        for extent in self.extents:
            here.add(extent.start, extent.stop)
        for gone in self.dropped:
            here.remove(gone.start, gone.stop)
        wanted = [(start, stop, self._known_sum(start, stop)) for start, stop in cut(here)]
        pieces = await trio.to_thread.run_sync(self._sync, wanted, new)
        if self._directory.follow:  # Else nobody hears of what is written later.
            self._sums.take(pieces)
        self.secured = here
        return pieces

    def _known_sum(self, start: int, stop: int) -> int | None:
        crc = self._sums.of(start, stop)
        return crc if crc is not None else self._unverified.of(start, stop)

    def _sync(self, wanted: Sequence[tuple[int, int, int | None]], new: bool) -> list[Piece]:
        end = max((stop for _, stop, _ in wanted), default=0)
        if os.fstat(self._descriptor).st_size < end:
            os.ftruncate(self._descriptor, end)
        pieces = sum_pieces(self._descriptor, wanted, self._directory.checksum)
        os.fsync(self._descriptor)
        if new:
            self._directory.sync()
        return pieces

    async def fork(self) -> Path:
        """Go on in a copy of the local file; return the path of the old one, which stays."""
        descriptor, path = self._directory.create()
        try:
            ranges = [(extent.start, extent.stop) for extent in self.extents]
            await trio.to_thread.run_sync(_copy, self._descriptor, descriptor, ranges)
            # The same number: parts that are just being sent go on from the copy.
            os.dup2(descriptor, self._descriptor, inheritable=False)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        assert self.path is not None
        old, self.path = self.path, path
        self.secured = Extents()
        return old

    async def check(self, start: int, stop: int) -> None:
        """Verify what an earlier daemon left between two offsets; raises `Corrupt`."""
        blocks = range(start // BLOCK_SIZE, -(-stop // BLOCK_SIZE))
        if self._unverified.any(blocks):
            await trio.to_thread.run_sync(self._unverified.verify_all, self._descriptor, blocks)

    def _open(self) -> None:
        self._descriptor, self.path = self._directory.create()

    def _spill(self, index: int) -> None:
        """Move a block to the file, where its later bytes go, too."""
        if self._descriptor < 0:
            self._open()
        block, offset = self._blocks.get(index), index * BLOCK_SIZE
        if block is not None:
            for view in block.views(0, len(block)):
                self._write_file(offset, view)
                offset += len(view)
            del self._blocks[index]
            self._budget.give(len(block))
        self._spilled.add(index)

    def _write_file(self, offset: int, data: Buffer) -> None:
        # A write of 1 MiB to the page cache takes 0.2 ms (2 ms on a machine that has to find
        # the memory first): no more than handing it to a thread would cost in all.
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)


def _copy(source: int, target: int, ranges: Sequence[tuple[int, int]]) -> None:
    for start, stop in ranges:
        position = start
        while position < stop:
            count = os.copy_file_range(source, target, stop - position, position, position)
            if count == 0:
                break  # The file ends before the zeros that a hole was filled with.
            position += count


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
