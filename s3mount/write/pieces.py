"""Checksums of staged bytes, block by block: followed while they are written, verified later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from s3mount.errors import Corrupt
from s3mount.s3.store import MIB, Buffer
from s3mount.write.extents import Extents
from s3mount.write.records import Piece

BLOCK_SIZE = MIB  # The largest write of the kernel: a whole block is kept without a copy.

Checksum = Callable[[Buffer, int], int]


def cut(extents: Extents) -> Iterator[tuple[int, int]]:
    """Cut ranges at the borders of blocks."""
    for extent in extents:
        start = extent.start
        while start < extent.stop:
            stop = min(extent.stop, (start // BLOCK_SIZE + 1) * BLOCK_SIZE)
            yield start, stop
            start = stop


def sum_pieces(
    descriptor: int, wanted: Iterable[tuple[int, int, int | None]], checksum: Checksum
) -> list[Piece]:
    """Compute the checksums that are not known.  Blocks."""
    pieces = []
    for start, stop, crc in wanted:
        if crc is None:
            crc = checksum(os.pread(descriptor, stop - start, start), 0)
        pieces.append(Piece(start, stop, crc))
    return pieces


class PieceSums:
    """The checksum of one run of bytes in each block, kept up while the run grows at its end."""

    def __init__(self, checksum: Checksum) -> None:
        self._checksum = checksum
        self._runs: dict[int, Piece] = {}

    def written(self, index: int, start: int, data: Buffer) -> None:
        """Take note of *data* at *start*, all within block *index*."""
        stop = start + memoryview(data).nbytes
        run = self._runs.get(index)
        if run is not None and run.stop == start:
            self._runs[index] = Piece(run.start, stop, self._checksum(data, run.crc))
        elif run is None or (start < run.stop and run.start < stop):
            self._runs[index] = Piece(start, stop, self._checksum(data, 0))

    def truncate(self, size: int) -> None:
        """The file ends at *size* now."""
        for index in [i for i, run in self._runs.items() if run.stop > size]:
            del self._runs[index]

    def of(self, start: int, stop: int) -> int | None:
        """The checksum of ``start <= i < stop``, if just that is known."""
        run = self._runs.get(start // BLOCK_SIZE)
        return run.crc if run is not None and (run.start, run.stop) == (start, stop) else None

    def take(self, pieces: Sequence[Piece]) -> None:
        """Take note of what was computed otherwise."""
        for piece in pieces:
            self._runs[piece.start // BLOCK_SIZE] = piece


class Unverified:
    """Pieces that an earlier daemon left, and that nobody has looked at yet."""

    def __init__(self, checksum: Checksum) -> None:
        self._checksum = checksum
        self._blocks: dict[int, list[Piece]] = {}

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, piece: Piece) -> None:
        """Take note of a piece, which lies within one block."""
        self._blocks.setdefault(piece.start // BLOCK_SIZE, []).append(piece)

    def of(self, start: int, stop: int) -> int | None:
        """The checksum that was journaled for just this piece, if there is one."""
        for piece in self._blocks.get(start // BLOCK_SIZE, ()):
            if (piece.start, piece.stop) == (start, stop):
                return piece.crc
        return None

    def any(self, blocks: Iterable[int]) -> bool:
        """Whether one of *blocks* is still to be verified."""
        return any(index in self._blocks for index in blocks)

    def verify(self, descriptor: int, index: int) -> None:
        """Raise `Corrupt` when what is left of a block is not what was staged."""
        for piece in self._blocks.get(index, ()):
            data = os.pread(descriptor, piece.stop - piece.start, piece.start)
            if len(data) < piece.stop - piece.start or self._checksum(data, 0) != piece.crc:
                raise Corrupt(f"staged bytes {piece.start} to {piece.stop} are damaged on the disk")
        self._blocks.pop(index, None)

    def verify_all(self, descriptor: int, blocks: Iterable[int]) -> None:
        """Verify several blocks."""
        for index in blocks:
            self.verify(descriptor, index)

    def truncate(self, descriptor: int, size: int) -> None:
        """The file ends at *size* now."""
        for index in [i for i in self._blocks if (i + 1) * BLOCK_SIZE > size]:
            if index * BLOCK_SIZE < size:
                self.verify(descriptor, index)
            else:
                del self._blocks[index]
