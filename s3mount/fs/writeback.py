"""Writeback mode: a closed file waits in the journal, and is uploaded in the background."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from s3mount.errors import (
    Changed,
    Corrupt,
    Denied,
    Exists,
    InvalidName,
    InvalidRequest,
    NoSpace,
    NotFound,
    PosixError,
    StoreError,
    TooLarge,
)
from s3mount.fs.openfile import OpenFile
from s3mount.write.backlog import Backlog

log = logging.getLogger(__name__)

# No later attempt can save what has failed in such a way.  Credentials are renewed, though, and
# quotas raised.
LOST_ERRORS = (Changed, Exists, TooLarge, InvalidRequest, InvalidName, NotFound, Corrupt)

# Seconds.  A file that was just closed is often renamed, changed or removed at once; and while
# programs are busy, their requests come first, but not for ever.
MIN_AGE, MAX_AGE = 1.0, 5.0
QUIET = 0.25
LOOK = 0.1
RETRY_FIRST, RETRY_MOST = 1.0, 4.0
RETRY_REFUSED = 30.0  # Until a person has changed what the store refuses.

SMALL = 1 << 20  # Bytes: smaller files are sent first, and more at a time.
SMALL_AT_ONCE, LARGE_AT_ONCE = 24, 4
BUSY_AT_ONCE = 2  # While programs are busy and there is room for more: they wait for us.


class WriteBack:
    """The files that wait to be uploaded, and the tasks that do so.

    *save* makes the store have a file, *settle* decides what becomes of it then.
    """

    def __init__(
        self,
        backlog: Backlog,
        nursery: trio.Nursery,
        save: Callable[[OpenFile], Awaitable[None]],
        settle: Callable[[OpenFile], None],
    ) -> None:
        self._backlog = backlog
        self._nursery = nursery
        self._save = save
        self._settle = settle
        self._sizes: dict[OpenFile, int] = {}  # All that wait or are being sent.
        self._small: dict[OpenFile, float] = {}  # Since when; the eldest first.
        self._large: dict[OpenFile, float] = {}
        self._sending_small = self._sending_large = 0
        self._failures: dict[OpenFile, int] = {}
        self._last_change = 0.0
        self._wake = trio.lowlevel.ParkingLot()

    def takes(self, file: OpenFile) -> bool:
        """Whether a file may wait here; else its close uploads it."""
        if not file.is_here:
            return False
        known = self._sizes.get(file)
        if known is None:
            return self._backlog.takes(file.unsaved_bytes)
        return known >= file.unsaved_bytes or self._backlog.takes(file.unsaved_bytes - known)

    async def acknowledge(self, file: OpenFile) -> bool:
        """Return True when the journal has the file; False when the store must have it."""
        known = file.acknowledged and file in self._sizes
        try:
            await file.acknowledge()
        except OSError as error:
            log.error("%s: the journal does not take it: %s", file.inode.key, error)
            return False
        if not known:
            self.add(file)
        return True

    def add(self, file: OpenFile) -> None:
        """Upload a file that the journal has, soon; it counts from its last change."""
        if not file.dirty:
            return
        self._count(file, file.unsaved_bytes)
        self._small.pop(file, None)
        self._large.pop(file, None)
        queue = self._small if file.unsaved_bytes < SMALL else self._large
        queue[file] = self._last_change = trio.current_time()
        self._wake.unpark_all()

    def drop(self, file: OpenFile) -> None:
        """A file needs no upload any more."""
        self._small.pop(file, None)
        self._large.pop(file, None)
        self._failures.pop(file, None)
        self._count(file, None)

    def _count(self, file: OpenFile, size: int | None) -> None:
        known = self._sizes.pop(file, None)
        if known is not None:
            self._backlog.size -= known
            self._backlog.files -= 1
        if size is not None:
            self._sizes[file] = size
            self._backlog.size += size
            self._backlog.files += 1

    async def run(self) -> None:
        """Upload what waits, until cancelled."""
        while True:
            if not self._small and not self._large:
                await self._wake.park()
            while self._start_next():
                pass
            await trio.sleep(LOOK)

    def _start_next(self) -> bool:
        now = trio.current_time()
        if self._sending_small < self._at_once(SMALL_AT_ONCE, now) and (
            file := self._due(self._small, now)
        ):
            self._sending_small += 1
            self._nursery.start_soon(self._send, file, True)
            return True
        if self._sending_large < self._at_once(LARGE_AT_ONCE, now) and (
            file := self._due(self._large, now)
        ):
            self._sending_large += 1
            self._nursery.start_soon(self._send, file, False)
            return True
        return False

    def _at_once(self, most: int, now: float) -> int:
        quiet = now - self._last_change >= QUIET
        return most if quiet or self._backlog.crowded else BUSY_AT_ONCE

    def _due(self, queue: dict[OpenFile, float], now: float) -> OpenFile | None:
        """Take the eldest file, if its time has come."""
        for file, since in queue.items():
            quiet = now - self._last_change >= QUIET
            age = now - since
            if age >= MAX_AGE or self._backlog.crowded or (quiet and age >= MIN_AGE):
                del queue[file]
                return file
            return None
        return None

    async def _send(self, file: OpenFile, small: bool) -> None:
        following: OpenFile | None = file
        queue = self._small if small else self._large
        while following is not None:
            await self._upload(following)
            now = trio.current_time()
            sending, most = (
                (self._sending_small, SMALL_AT_ONCE)
                if small
                else (self._sending_large, LARGE_AT_ONCE)
            )
            following = self._due(queue, now) if sending <= self._at_once(most, now) else None
        if small:
            self._sending_small -= 1
        else:
            self._sending_large -= 1

    async def _upload(self, file: OpenFile) -> None:
        if not file.dirty:
            self.drop(file)
            self._settle(file)
            return
        if not file.recorded_bytes:
            return  # Somebody is writing; the next close or fsync brings it back.
        try:
            await self._save(file)
        except LOST_ERRORS as error:
            log.debug("%s: %s", file.inode.key, error)  # `settle` keeps it, and says so.
        except (StoreError, PosixError) as error:
            self._nursery.start_soon(self._again, file, error)
        self._settle(file)

    async def _again(self, file: OpenFile, error: Exception) -> None:
        """Try a file once more after a while."""
        failures = self._failures[file] = self._failures.get(file, 0) + 1
        level = logging.WARNING if failures == 1 else logging.INFO
        log.log(level, "%s: not uploaded yet: %s", file.inode.key, error)
        refused = isinstance(error, (Denied, NoSpace))
        delay = min(RETRY_FIRST * 2**failures, RETRY_REFUSED if refused else RETRY_MOST)
        await trio.sleep(delay)
        if file.dirty and file in self._sizes and file.recorded_bytes:
            self.add(file)
