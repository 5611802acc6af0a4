"""The memory budget: one count of bytes over blocks, staged data and bodies under way."""

from collections.abc import Callable

import trio


class MemoryBudget:
    """Counts the bytes that buffers hold, and asks the caches to give way when it is full.

    Sizes are in bytes.  Clean blocks are the only thing that can be dropped at once, so their
    owner registers a *reclaim* function; everybody else takes and gives.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._reclaim: Callable[[int], None] | None = None
        self._freed = trio.lowlevel.ParkingLot()

    def reclaim_with(self, reclaim: Callable[[int], None]) -> None:
        """Let *reclaim* drop about so many bytes (it calls `give`) when others need them."""
        self._reclaim = reclaim

    def try_take(self, size: int, leave: int = 0) -> bool:
        """Take *size* bytes if they are there, or can be made free at once.

        *leave* bytes are left to others: whoever holds what only its own progress can free
        must not be able to starve the readers that this progress may depend on.
        """
        missing = self.used + size - (self.limit - leave)
        if missing > 0 and self._reclaim is not None:
            self._reclaim(missing)
        if self.used + size > self.limit - leave:
            return False
        self.used += size
        return True

    async def take(self, size: int) -> None:
        """Take *size* bytes, waiting for others to give some back.

        A request that is larger than the whole budget is granted once nothing else is held.
        """
        while not self.try_take(size):
            if self.used == 0:
                self.used = size
                return
            await self._freed.park()

    def give(self, size: int) -> None:
        """Give *size* bytes back."""
        self.used -= size
        if self._freed:
            self._freed.unpark_all()
