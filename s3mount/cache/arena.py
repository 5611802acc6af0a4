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
        self._warm: list[Room] = []
        self._cold: list[Room] = []

    def take(self) -> Room:
        """Memory for one block."""
        if self._warm:
            return self._warm.pop()
        if not self._cold:
            self._grow()
        return self._cold.pop()

    def give(self, room: Room) -> None:
        """Take back what `take` has handed out; nobody may look at it any more."""
        if len(self._warm) < WARM:
            self._warm.append(room)
            return
        room.chunk.madvise(mmap.MADV_DONTNEED, room.offset, self._size)
        self._cold.append(room)

    def cool(self) -> None:
        """Give the memory of all unused blocks back to the system."""
        for room in self._warm:
            room.chunk.madvise(mmap.MADV_DONTNEED, room.offset, self._size)
        self._cold += self._warm
        self._warm.clear()

    def _grow(self) -> None:
        chunk = mmap.mmap(-1, CHUNK_BLOCKS * self._size, flags=mmap.MAP_PRIVATE)
        view = memoryview(chunk)
        for offset in range((CHUNK_BLOCKS - 1) * self._size, -1, -self._size):
            self._cold.append(Room(chunk, offset, view[offset : offset + self._size]))
