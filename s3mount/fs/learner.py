"""Fetches the attributes of siblings, when a program looks at one file after the other."""

from __future__ import annotations

import trio

from s3mount.cache.metadata import Entry
from s3mount.errors import StoreError
from s3mount.fs.namespace import Namespace

AHEAD = 512  # Names that are looked at before somebody has asked for them.
PARALLEL = 32  # HEAD requests under way.
PATIENCE = 1.0  # Seconds without a question after which nobody is walking any more.


class _Walk:
    """One directory that somebody walks through."""

    __slots__ = ("cursor", "last", "limit", "names", "positions", "wake", "workers")

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.positions = {name: position for position, name in enumerate(names)}
        self.cursor = 0
        self.limit = 0
        self.last = 0.0
        self.workers = 0
        self.wake = trio.lowlevel.ParkingLot()


class Learner:
    """Looks ahead of ``ls -l``: a listing has told the names, HEAD tells the rest.

    Only when two names of one directory have been asked for in a row, and never further
    ahead than `AHEAD`: whoever only lists pays for nothing.
    """

    def __init__(self, namespace: Namespace, nursery: trio.Nursery) -> None:
        self._namespace = namespace
        self._nursery = nursery
        self._walks: dict[str, _Walk] = {}
        self._asked_last = ("", 0.0)

    def looked_up(self, prefix: str, segment: str) -> None:
        """Somebody looks at a name."""
        if not self._namespace.keep_attributes:
            return
        known = self._namespace.cache.get(prefix, segment)
        if not isinstance(known, Entry) or known.attributes is not None:
            return
        now = trio.current_time()
        walk = self._walks.get(prefix)
        if walk is None:
            before, self._asked_last = self._asked_last, (prefix, now)
            if before[0] != prefix or now - before[1] > PATIENCE:
                return
            walk = self._begin(prefix)
            if walk is None:
                return
        walk.last = now
        position = walk.positions.get(segment)
        if position is not None:
            walk.cursor = max(walk.cursor, position + 1)
            walk.limit = max(walk.limit, position + AHEAD)
            walk.wake.unpark_all()

    def _begin(self, prefix: str) -> _Walk | None:
        listing = self._namespace.cache.listing(prefix)
        if listing is None:
            return None
        names = [
            segment
            for segment, entry in listing.items()
            if isinstance(entry, Entry) and entry.attributes is None
        ]
        walk = self._walks[prefix] = _Walk(names)
        walk.workers = PARALLEL
        for _ in range(PARALLEL):
            self._nursery.start_soon(self._work, prefix, walk)
        return walk

    async def _work(self, prefix: str, walk: _Walk) -> None:
        try:
            while walk.cursor < len(walk.names):
                if walk.cursor >= walk.limit:
                    with trio.move_on_after(PATIENCE) as scope:
                        await walk.wake.park()
                    if scope.cancelled_caught and trio.current_time() - walk.last > PATIENCE:
                        return
                    continue
                segment = walk.names[walk.cursor]
                walk.cursor += 1
                await self._learn(prefix, segment)
        finally:
            walk.workers -= 1
            if walk.workers == 0 and self._walks.get(prefix) is walk:
                del self._walks[prefix]

    async def _learn(self, prefix: str, segment: str) -> None:
        try:
            await self._namespace.find(prefix, segment, whole=False)
        except StoreError:
            # Nobody waits for this one.  Whoever looks at it asks again, and then the
            # failure has a request to belong to.
            return
