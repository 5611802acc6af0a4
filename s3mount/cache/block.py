"""One block of an object version in memory, and who waits for it."""

from __future__ import annotations

import trio

from s3mount.cache.arena import Room
from s3mount.errors import StoreError


class Block:
    """A block that is filled from its beginning; `ready` bytes of it are in place."""

    __slots__ = ("buffer", "error", "held", "progress", "ready", "room", "size")

    def __init__(self, room: Room, size: int) -> None:
        self.room = room
        self.buffer = room.view
        self.size = size
        self.ready = 0
        self.held = 0  # Who needs the buffer to stay as it is, beside the cache.
        self.error: StoreError | None = None
        self.progress = trio.lowlevel.ParkingLot()

    @property
    def filled(self) -> memoryview:
        """The buffer as far as the block goes; its last part may not be in place yet."""
        return self.buffer[: self.size]

    def fill(self, ready: int) -> None:
        """Take note that *ready* bytes are in place."""
        self.ready = ready
        if self.progress:
            self.progress.unpark_all()

    def fail(self, error: StoreError | None) -> None:
        """Wake whoever waits: the rest will not come (None: look again)."""
        self.error = error
        self.progress.unpark_all()
