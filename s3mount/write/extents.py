"""Sets of byte ranges, and the plan that cuts a changed file into parts.  Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from s3mount.s3.store import MAX_PARTS, MIB, MIN_PART_SIZE

MAX_CELL_SIZE = 4096 * MIB  # S3 takes 5 GiB; two joined pieces must stay below that.
COPY_PART_SIZE = 128 * MIB  # Stores copy a part with one thread: many at once take less time.
MANY_COPIES = 1000  # Of a very large object larger parts are copied, but no more requests made.


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """The bytes ``start <= i < stop`` of a file or an object; never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"not a byte range: {self.start}..{self.stop}")

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


class Extents:
    """A set of bytes, kept as sorted ranges that neither touch nor overlap."""

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __iter__(self) -> Iterator[ByteRange]:
        return (ByteRange(*pair) for pair in zip(self._starts, self._stops, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Put the bytes ``start <= i < stop`` into the set; an empty range adds nothing."""
        starts, stops = self._starts, self._stops
        if start >= stop:
            return
        if stops and start == stops[-1]:  # Sequential writing: the last range grows.
            stops[-1] = stop
            return
        first = bisect_left(stops, start)
        last = bisect_right(starts, stop)
        if first < last:
            start = min(start, starts[first])
            stop = max(stop, stops[last - 1])
        starts[first:last] = [start]
        stops[first:last] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Take the bytes ``start <= i < stop`` out of the set."""
        starts, stops = self._starts, self._stops
        if start >= stop:
            return
        first = bisect_right(stops, start)
        last = bisect_left(starts, stop)
        if first >= last:
            return
        kept = [
            (low, high)
            for low, high in ((starts[first], start), (stop, stops[last - 1]))
            if low < high
        ]
        starts[first:last] = [low for low, _ in kept]
        stops[first:last] = [high for _, high in kept]

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of ``start <= i < stop`` is in the set."""
        if start >= stop:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._stops[index] >= stop

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any byte of ``start <= i < stop`` is in the set."""
        index = bisect_right(self._stops, start)
        return start < stop and index < len(self._starts) and self._starts[index] < stop

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Cut ``start <= i < stop`` into runs that are wholly inside (True) or outside."""
        index = bisect_right(self._stops, start)
        while start < stop:
            if index == len(self._starts) or self._starts[index] >= stop:
                yield start, stop, False
                return
            if start < self._starts[index]:
                yield start, self._starts[index], False
                start = self._starts[index]
            end = min(self._stops[index], stop)
            yield start, end, True
            start, index = end, index + 1


# Parts lie on a grid that depends on nothing but the option: the first 4000 parts have the
# base size, then each of three steps is 8 times as large, so that 10,000 parts of 8 MiB at the
# beginning reach 9 TiB, beyond the 5 TiB that most stores take, and a file of less than
# 31 GiB has parts of one size, which some stores insist on.
GRID_STEPS = ((4000, 1), (2000, 8), (2000, 64), (2000, 512))


class PartGrid:
    """Where parts begin and end, for files of any size."""

    __slots__ = ("base_size",)

    def __init__(self, base_size: int) -> None:
        if not MIN_PART_SIZE <= base_size <= MAX_CELL_SIZE:
            raise ValueError(f"a part has 5 MiB to 4 GiB, not {base_size} bytes")
        self.base_size = base_size

    def cell(self, index: int) -> ByteRange:
        """The bytes of part *index* (from 0)."""
        start, begin = 0, 0
        for count, factor in GRID_STEPS:
            size = min(self.base_size * factor, MAX_CELL_SIZE)
            if index < begin + count:
                low = start + (index - begin) * size
                return ByteRange(low, low + size)
            start += count * size
            begin += count
        raise OverflowError("a file needs more than 10,000 parts")

    def index(self, offset: int) -> int:
        """The part (from 0) that holds byte *offset*."""
        start, begin = 0, 0
        for count, factor in GRID_STEPS:
            size = min(self.base_size * factor, MAX_CELL_SIZE)
            if offset < start + count * size:
                return begin + (offset - start) // size
            start += count * size
            begin += count
        raise OverflowError("a file needs more than 10,000 parts")

    @property
    def max_size(self) -> int:
        """The largest file, in bytes, that the grid can cut."""
        return self.cell(sum(count for count, _ in GRID_STEPS) - 1).stop


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a plan: bytes that are sent, or (*copied*) taken from the old object."""

    range: ByteRange
    copied: bool


def copy_part_size(size: int) -> int:
    """How much of an object of *size* bytes to copy with one request; at most 5 GiB."""
    return max(COPY_PART_SIZE, -(-size // (MANY_COPIES * MIB)) * MIB)


def plan_parts(
    size: int,
    base_size: int,
    dirty: Extents,
    grid: PartGrid,
    fits: Callable[[Sequence[Part]], bool] = lambda parts: True,
) -> list[Part]:
    """Cut a changed file of *size* bytes into parts that send little more than what changed.

    Bytes below *base_size* that are not *dirty* equal those of the old object and are copied
    on the server.  Parts tile the file; all but the last have at least 5 MiB.  A cell of *grid*
    that is wholly dirty is always a part of its own, so that what left while the program was
    still writing is used as it is.  More is sent, in fewer parts, until *fits* says that those will
    do: at last each cell has the number of its place.
    """
    changed = [(extent.start, min(extent.stop, size)) for extent in dirty if extent.start < size]
    if size > base_size:
        changed.append((base_size, size))
    changed.sort()
    gap = MIN_PART_SIZE
    while True:
        most = max(copy_part_size(size), min(gap, MAX_CELL_SIZE))
        parts = _tile(size, _join(changed, size, gap, grid), grid, most)
        if len(parts) <= MAX_PARTS and fits(parts):
            return parts
        if gap > size:
            # From the beginning of a cell on there is one part for each.
            first = grid.cell(grid.index(changed[0][0])).start
            last = max(stop for _, stop in changed)
            return _tile(size, [_widen(first, last, size, grid)], grid, most)
        gap *= 2  # Many scattered changes: send what lies between them, too.


def _tile(size: int, sent: list[tuple[int, int]], grid: PartGrid, most: int) -> list[Part]:
    parts: list[Part] = []
    position = 0
    for start, stop in sent:
        parts.extend(_copies(position, start, most))
        parts.extend(_pieces(start, stop, grid))
        position = stop
    parts.extend(_copies(position, size, most))
    return parts


def _join(
    changed: list[tuple[int, int]], size: int, gap: int, grid: PartGrid
) -> list[tuple[int, int]]:
    """Join changes until what is between and within them is large enough to be parts."""
    sent: list[tuple[int, int]] = []
    for begin, end in changed:
        start, stop = _widen(begin, end, size, grid)
        if sent and start - sent[-1][1] < gap:
            sent[-1] = (min(start, sent[-1][0]), max(stop, sent[-1][1]))
        else:
            sent.append((start, stop))
    return sent


def _widen(begin: int, end: int, size: int, grid: PartGrid) -> tuple[int, int]:
    """Widen a change until each piece that *grid* cuts it into has the minimum."""
    start = begin
    cell = grid.cell(grid.index(start))
    if cell.stop - start < MIN_PART_SIZE and cell.stop < size:
        start = cell.stop - MIN_PART_SIZE
    if start < MIN_PART_SIZE:
        start = 0
    stop = max(end, start + MIN_PART_SIZE)
    last = grid.cell(grid.index(stop - 1)).start
    if start < last and stop - last < MIN_PART_SIZE:
        stop = last + MIN_PART_SIZE
    return start, min(stop, size)


def _copies(start: int, stop: int, most: int) -> Iterator[Part]:
    """Cut a clean stretch into copies: many run at once, and none takes minutes by itself."""
    while start < stop:
        end = stop if stop - start < most + MIN_PART_SIZE else start + most
        yield Part(ByteRange(start, end), copied=True)
        start = end


def _pieces(start: int, stop: int, grid: PartGrid) -> Iterator[Part]:
    """Cut a stretch that is sent at the borders of *grid*."""
    while start < stop:
        end = min(grid.cell(grid.index(start)).stop, stop)
        yield Part(ByteRange(start, end), copied=False)
        start = end
