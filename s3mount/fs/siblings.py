"""Fetches small files before they are opened, when a program reads one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import trio

from s3mount.cache.blocks import BlockCache, ObjectVersion
from s3mount.cache.metadata import Absent, Entry
from s3mount.errors import PosixError, StoreError
from s3mount.fs.inodes import Inode, InodeTable
from s3mount.fs.names import key_of, slot_name
from s3mount.fs.namespace import HEAD_SIZE, Namespace

RUN = 3  # Files opened in order before the next ones are fetched.
REACH = 64  # Names that an open may be away from the one before, and still be in order.
AHEAD = 64  # Files that are fetched and not opened yet; those that are passed over count.
PARALLEL = 32  # Requests under way: at 20 ms each, 1,600 files a second.
PATIENCE = 1.0  # Seconds without an open after which nobody is reading any more.
WALKS = 16  # Directories that are read at once.


class _Walk:
    """One directory whose files somebody opens in the order of its listing."""

    __slots__ = ("ahead", "frontier", "last", "names", "position", "positions", "queue", "run",
                 "workers")  # fmt: skip

    def __init__(self, listing: Mapping[str, Entry | Absent], now: float) -> None:
        self.names = list(listing)
        self.positions = {name: position for position, name in enumerate(self.names)}
        self.position = 0
        self.frontier = 0
        self.run = 0
        self.last = now
        self.ahead: set[str] = set()
        self.queue: deque[str] = deque()
        self.workers = 0

    def follow(self, segment: str, now: float) -> None:
        """Somebody opens a file."""
        self.last = now
        self.ahead.discard(segment)
        position = self.positions.get(segment)
        if position is None:
            return
        if abs(position - self.position) <= REACH:
            self.run += 1
            self.position = max(self.position, position)
        else:
            self.run = 0
            self.position = position
            self.frontier = 0
        self.frontier = max(self.frontier, self.position + 1)

    def next(self) -> str | None:
        """The next name that is worth a look, if it is time for it."""
        if len(self.ahead) >= min(AHEAD, 2 * self.run) or self.frontier >= len(self.names):
            return None
        self.frontier += 1
        return self.names[self.frontier - 1]


class Siblings:
    """Looks ahead of ``cat *`` and ``tar c``: the next small files come before they are wanted.

    Each costs the one request that it would have cost anyway, but nobody waits for it.  What
    was fetched and is passed over counts against what may be fetched further, so a program
    that picks a few files of a directory wastes little.
    """

    def __init__(
        self,
        namespace: Namespace,
        blocks: BlockCache,
        inodes: InodeTable,
        nursery: trio.Nursery,
    ) -> None:
        self._namespace = namespace
        self._blocks = blocks
        self._inodes = inodes
        self._nursery = nursery
        self._walks: dict[str, _Walk] = {}
        self._opened_last = ("", 0.0)

    def is_read(self, prefix: str) -> bool:
        """Whether somebody reads the files of a directory one after the other."""
        walk = self._walks.get(prefix)
        return walk is not None and walk.run >= RUN and trio.current_time() - walk.last < PATIENCE

    def opened(self, directory: Inode, segment: str) -> None:
        """Somebody opens a small file to read it."""
        now, prefix = trio.current_time(), directory.prefix
        walk = self._walks.get(prefix)
        if walk is None or now - walk.last > PATIENCE:
            before, self._opened_last = self._opened_last, (prefix, now)
            if before[0] != prefix or now - before[1] > PATIENCE:
                return
            walk = self._begin(prefix, now)
            if walk is None:
                return
        walk.follow(segment, now)
        if walk.run >= RUN:
            self._go_ahead(directory, prefix, walk)

    def _begin(self, prefix: str, now: float) -> _Walk | None:
        self._walks.pop(prefix, None)
        listing = self._namespace.cache.listing(prefix)
        if listing is None:
            return None
        if len(self._walks) >= WALKS:
            del self._walks[next(iter(self._walks))]
        walk = self._walks[prefix] = _Walk(listing, now)
        return walk

    def _go_ahead(self, directory: Inode, prefix: str, walk: _Walk) -> None:
        while (segment := walk.next()) is not None:
            entry = self._namespace.cache.get(prefix, segment)
            known = self._inodes.find(directory, slot_name(segment))
            # What has been open is in the kernel's own cache, most likely.
            if (known is None or not known.opened) and _is_small(entry):
                walk.ahead.add(segment)
                walk.queue.append(segment)
        while walk.workers < min(PARALLEL, len(walk.queue)):
            walk.workers += 1
            self._nursery.start_soon(self._work, prefix, walk)

    async def _work(self, prefix: str, walk: _Walk) -> None:
        try:
            while walk.queue:
                await self._fetch(prefix, walk.queue.popleft())
        finally:
            walk.workers -= 1

    async def _fetch(self, prefix: str, segment: str) -> None:
        fresh = self._namespace.cache.clock() - PATIENCE / 2
        try:
            entry = await self._namespace.find(prefix, segment, fresh=fresh)
            if entry is not None and _is_small(entry):
                version = ObjectVersion(key_of(prefix, segment), entry.etag, entry.size)
                await self._blocks.read_piece(version, 0, entry.size)
        except (StoreError, PosixError):
            return  # Whoever opens it asks again, and then the failure belongs to a request.


def _is_small(entry: Entry | Absent | None) -> bool:
    return isinstance(entry, Entry) and not entry.directory and 0 < entry.size <= HEAD_SIZE
