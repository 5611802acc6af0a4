"""Fetches the attributes of siblings, when a program looks at one file after the other."""

from __future__ import annotations

from collections.abc import Sequence

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
        self.last = trio.current_time()
        self.workers = 0
        self.wake = trio.lowlevel.ParkingLot()

    def reached(self, segment: str) -> None:
        """Somebody has come to a name: those after it are the next ones."""
        self.last = trio.current_time()
        position = self.positions.get(segment)
        if position is not None:
            self.limit = max(self.limit, position + AHEAD)
            self.wake.unpark_all()


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
        self._walked_last = ("", 0.0)

    def looked_up(self, prefix: str, segment: str) -> None:
        """Somebody looks at a name."""
        if not self._namespace.keep_attributes or not self._is_unknown(prefix, segment):
            return
        now = trio.current_time()
        before, self._asked_last = self._asked_last, (prefix, now)
        if before[0] != prefix or now - before[1] > PATIENCE:
            return
        self._walked_last = (prefix, now)
        walk = self._walks.get(prefix) or self._begin(prefix)
        if walk is not None:
            # Whoever asks is about to ask for this one: the workers begin with the next.
            walk.cursor = max(walk.cursor, walk.positions.get(segment, -1) + 1)
            walk.reached(segment)

    def is_walked(self, prefix: str) -> bool:
        """Whether somebody looks at one name of a directory after the other."""
        walked, moment = self._walked_last
        return walked == prefix and trio.current_time() - moment < PATIENCE

    async def learn(self, prefix: str, segments: Sequence[str]) -> None:
        """Ask for what is not known of some names, of which somebody is to hear next."""
        unknown = [segment for segment in segments if self._is_unknown(prefix, segment)]
        if not unknown:
            return
        walk = self._walks.get(prefix) or self._begin(prefix)
        if walk is not None:
            walk.reached(unknown[-1])
        remaining = iter(unknown)

        async def work() -> None:
            for segment in remaining:
                await self._learn(prefix, segment)

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL, len(unknown))):
                nursery.start_soon(work)
        self._walked_last = (prefix, trio.current_time())

    def _is_unknown(self, prefix: str, segment: str) -> bool:
        known = self._namespace.cache.get(prefix, segment)
        return isinstance(known, Entry) and known.attributes is None

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
