"""Read-ahead of one open handle: what its reads so far say about the next ones."""

from __future__ import annotations

import trio

from s3mount.cache.blocks import BLOCK_SIZE, BlockCache, ObjectVersion

MAX_SPAN = 8  # Blocks in one GET: 8 MiB pay for a round trip of 20 ms at 90 MB/s.
SLACK = 4 * BLOCK_SIZE  # The kernel reads ahead, too, and its requests overtake each other.
SMALL = 256 << 10  # A file up to this size is fetched whole with the first read.
# What was read in order of a large file is in the kernel's page cache.  To keep it here, too, costs
# a first touch of all the memory that the cache may have, and uses none of it while it is warm.
LARGE = 64 << 20
BEHIND = 16 * BLOCK_SIZE  # Of that so much is kept.
GAIN = 1.15  # A wider window has to be this much faster to be widened again.


class ReadAhead:
    """Follows one reader, and keeps the blocks that it will want next on their way.

    Reads in order (give or take what the kernel reorders) are a run: the window of blocks
    under way ahead of it doubles while that makes the run faster, up to *max_window* bytes.
    A run may go backwards.  Anything else is random, and fetches only what it reads.
    """

    __slots__ = (
        "_blocks",
        "_frontier",
        "_max_window",
        "_measured_at",
        "_measured_position",
        "_position",
        "_rate",
        "_retired",
        "_run",
        "_sequential",
        "_settled",
        "_window",
    )

    def __init__(self, blocks: BlockCache, max_window: int) -> None:
        self._blocks = blocks
        self._max_window = max(1, max_window // BLOCK_SIZE)
        self._position = 0
        self._run = 0
        self._sequential = False
        self._restart()

    def _restart(self) -> None:
        self._window = 1
        self._frontier = 0
        self._retired = -1
        self._settled = False
        self._rate = 0.0
        self._measured_at = 0.0
        self._measured_position = 0

    def look(self, version: ObjectVersion, start: int, stop: int) -> memoryview | None:
        """Take note of a read, fetch ahead of it, and return its bytes if they are here.

        The view is good until the caller's next checkpoint.  `fetch` gets what is not here.
        """
        self._sequential = self._follow(start, stop)
        if self._sequential and version.size > SMALL:
            self._fetch_ahead(version, start, stop)
            if version.size > LARGE:
                self._retire(version, start)
        return self._blocks.cached(version, start, stop)

    async def fetch(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Return the bytes ``start <= i < stop`` of *version* after `look` had none.

        The view is good until the caller's next checkpoint.  Raises `StoreError`.
        """
        if version.size <= SMALL:
            whole = await self._blocks.read_piece(version, 0, version.size)
            return whole[start:stop]
        if self._sequential or stop - start > BLOCK_SIZE // 2:
            return await self._blocks.read(version, start, stop)
        return await self._blocks.read_piece(version, start, stop)

    async def read(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """`look`, and `fetch` what is not here."""
        found = self.look(version, start, stop)
        return found if found is not None else await self.fetch(version, start, stop)

    def _follow(self, start: int, stop: int) -> bool:
        """Whether this read continues a run; the very first one counts, from the beginning."""
        ahead = start - self._position
        if -SLACK <= ahead <= SLACK and (self._run or start == 0):
            self._run += 1
            self._position = max(self._position, stop)
            return True
        self._restart()
        self._run = 1 if ahead == 0 else 0
        self._position = stop
        return False

    def _fetch_ahead(self, version: ObjectVersion, start: int, stop: int) -> None:
        if self._run < 2:
            return  # One read is not a run yet; it fetches its own block.
        self._measure()
        first = max(self._frontier, start // BLOCK_SIZE)
        last = min(-(-version.size // BLOCK_SIZE), stop // BLOCK_SIZE + 1 + self._window)
        span = max(1, min(MAX_SPAN, self._window // 4))
        while first < last:
            if self._blocks.has(version, first):
                first += 1
                continue
            # Whole spans only, unless the file ends: the tail of the window waits for its turn.
            if first + span > last and last * BLOCK_SIZE < version.size:
                break
            count = self._missing(version, first, min(span, last - first))
            if not self._blocks.prefetch(version, first, count):
                break
            first += count
        self._frontier = first

    def _retire(self, version: ObjectVersion, start: int) -> None:
        """Give up the blocks that this run has left behind."""
        limit = (self._position - BEHIND) // BLOCK_SIZE
        if self._retired < 0:
            self._retired = start // BLOCK_SIZE
        while self._retired < limit:
            self._blocks.retire(version, self._retired)
            self._retired += 1

    def _missing(self, version: ObjectVersion, first: int, most: int) -> int:
        """How many blocks from *first* on nobody has asked for: each is fetched once."""
        present = (n for n in range(most) if self._blocks.has(version, first + n))
        return next(present, most)

    def _measure(self) -> None:
        """Double the window once it has been consumed, unless doubling stopped to help."""
        consumed = self._position - self._measured_position
        if consumed < self._window * BLOCK_SIZE:
            return
        now = trio.current_time()
        rate = consumed / max(now - self._measured_at, 1e-6) if self._measured_at else 0.0
        if not self._settled and self._window < self._max_window:
            if self._rate and rate < self._rate * GAIN and self._window >= 4 * MAX_SPAN:
                self._settled = True
            else:
                self._window = min(2 * self._window, self._max_window)
        # That of the last window, not the best one: what had arrived before looks very fast.
        self._rate = rate
        self._measured_at = now
        self._measured_position = self._position
