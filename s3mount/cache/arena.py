"""Memory for blocks: used again while it is warm, given back to the system when there is plenty."""

from __future__ import annotations

import mmap
from typing import NamedTuple

CHUNK_BLOCKS = 16  # Blocks that are taken from the system at once.
WARM = 16  # Unused blocks that keep their memory: the first touch of new memory is slow.


class Room(NamedTuple):
    """The memory of one block: `view` is all of it, at `offset` in `chunk`."""

    chunk: mmap.mmap
    offset: int
    view: memoryview


class Arena:
    """Hands out memory for blocks of *size* bytes, whose content is left over from before.

    `bytearray` would clear it first, which costs 0.09 s of CPU for each GiB that is read into
    new memory; large pages were tried and cost 0.15 s more.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._unused: list[Room] = []
        self._cold: list[Room] = []

    def take(self) -> Room:
        """Memory for one block."""
        if self._unused:
            return self._unused.pop()
        if not self._cold:
            self._grow()
        return self._cold.pop()

    def give(self, room: Room) -> bool:
        """Take back what `take` has handed out; returns whether there is now plenty to `cool`.

        Until then, or until somebody takes it, the content stays: whoever made room for a copy
        of these very bytes may be about to copy them.
        """
        self._unused.append(room)
        return len(self._unused) > WARM

    def cool(self, keep: int = WARM) -> None:
        """Give the memory of unused blocks back to the system, but for *keep* of them."""
        while len(self._unused) > keep:
            room = self._unused.pop(0)
            room.chunk.madvise(mmap.MADV_DONTNEED, room.offset, self._size)
            self._cold.append(room)

    def _grow(self) -> None:
        chunk = mmap.mmap(-1, CHUNK_BLOCKS * self._size, flags=mmap.MAP_PRIVATE)
        view = memoryview(chunk)
        for offset in range((CHUNK_BLOCKS - 1) * self._size, -1, -self._size):
            self._cold.append(Room(chunk, offset, view[offset : offset + self._size]))
