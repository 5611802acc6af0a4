"""Fetches the attributes of siblings, when a program looks at one file after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from s3mount.cache.metadata import Entry
from s3mount.errors import StoreError
from s3mount.fs.namespace import Namespace

WORTH_A_LISTING = 8  # Names: so many are cheaper by a listing that tells metadata.
MAX_AHEAD = 10_000  # Names that such a listing may be ahead of who walks.
NEAR = 2000  # Names: a listing so near will soon tell what is asked for, or has just done so.
IDLE_PATIENCE = 30.0  # Seconds that it waits for who has stopped walking.
AHEAD = 512  # Names that are looked at before somebody has asked for them.
PARALLEL = 32  # HEAD requests under way.
TREE_PATIENCE = 30.0  # Seconds that one directory speaks for those beside and below it.
PATIENCE = 1.0  # Seconds without a question after which nobody is walking any more.


class _Walk:
    """One directory that somebody walks through.

    `places` tells where in the directory the names stand that are not known.  `seen` is the place
    that somebody has come to, `told` the one that a listing has come to, both counted from the
    first name of the directory, known or not.
    """

    __slots__ = (
        "cursor",
        "last",
        "limit",
        "listing",
        "names",
        "places",
        "positions",
        "seen",
        "told",
        "wake",
        "workers",
    )

    def __init__(self, places: Mapping[str, int]) -> None:
        self.names = list(places)
        self.places = places
        self.positions = {name: position for position, name in enumerate(self.names)}
        self.cursor = 0
        self.limit = 0
        self.last = trio.current_time()
        self.workers = 0
        self.listing = False
        self.seen = 0
        self.told = 0
        self.wake = trio.lowlevel.ParkingLot()

    def reached(self, segment: str, place: int) -> None:
        """Somebody has come to a name, about at *place*: those after it are the next ones."""
        self.last = trio.current_time()
        self.seen = max(self.seen + 1, place)
        self.wake.unpark_all()
        position = self.positions.get(segment)
        if position is not None:
            self.limit = max(self.limit, position + AHEAD)

    def will_tell(self, place: int) -> bool:
        """Whether the listing is worth a wait for a name that stands before *place*."""
        return self.listing and abs(self.told - place) <= NEAR


class Learner:
    """Looks ahead of ``ls -l``: a listing has told the names, HEAD tells the rest.

    Only when two names of one directory have been asked for in a row, and never further
    ahead than `AHEAD`: whoever only lists pays for nothing.  Where a second listing can tell
    metadata, that does most of the work.  Directories of which *is_read* says that their files
    are read are left alone: there the bytes come along.
    """

    def __init__(
        self, namespace: Namespace, nursery: trio.Nursery, is_read: Callable[[str], bool]
    ) -> None:
        self._namespace = namespace
        self._nursery = nursery
        self._is_read = is_read
        self._walks: dict[str, _Walk] = {}
        self._asked_last = ("", 0.0)
        self._walked_last = ("", 0.0)
        self._described: dict[str, float] = {}
        self._tree = ("", -TREE_PATIENCE)
        namespace.expects_attributes = self.expects_attributes

    def looked_up(self, prefix: str, segment: str) -> None:
        """Somebody looks at a name."""
        now = trio.current_time()
        before, self._asked_last = self._asked_last, (prefix, now)
        if before[0] != prefix or now - before[1] > PATIENCE or self._is_read(prefix):
            return
        self._walked_last = (prefix, now)
        if not self._namespace.keep_attributes or not self._is_unknown(prefix, segment):
            return
        walk = self._walks.get(prefix) or self._begin(prefix)
        if walk is not None:
            # Whoever asks is about to ask for this one: the workers begin with the next.
            walk.cursor = max(walk.cursor, walk.positions.get(segment, -1) + 1)
            walk.reached(segment, walk.places.get(segment, 0))

    def is_walked(self, prefix: str) -> bool:
        """Whether somebody looks at one name of a directory after the other."""
        walked, moment = self._walked_last
        return walked == prefix and trio.current_time() - moment < PATIENCE

    async def learn(self, prefix: str, segments: Sequence[str], place: int) -> None:
        """Ask for what is not known of some names, of which somebody is to hear next.

        *place* is how many names of the directory come before the one after them.
        """
        unknown = [segment for segment in segments if self._is_unknown(prefix, segment)]
        if not unknown:
            return
        walk = self._walks.get(prefix) or self._begin(prefix)
        if walk is not None:
            walk.reached(unknown[-1], place)
        remaining = iter(unknown)

        async def work() -> None:
            for segment in remaining:
                while walk and walk.will_tell(place) and self._is_unknown(prefix, segment):
                    await walk.wake.park()
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
        unknown: dict[str, int] = {}
        files = 0
        for place, (segment, entry) in enumerate((listing or {}).items(), start=1):
            if isinstance(entry, Entry) and entry.attributes is None:
                unknown[segment] = place
                files += not entry.directory
        if (listing is None or files >= WORTH_A_LISTING) and self._may_describe(prefix):
            walk = self._walks[prefix] = _Walk(unknown)
            walk.listing = True
            self._nursery.start_soon(self._describe, prefix, walk)
            return walk
        if listing is None:
            return None
        walk = self._walks[prefix] = _Walk(unknown)
        walk.workers = PARALLEL
        for _ in range(PARALLEL):
            self._nursery.start_soon(self._work, prefix, walk)
        return walk

    def _may_describe(self, prefix: str) -> bool:
        """Whether a directory may be listed with metadata; once in the time that this is good."""
        namespace, now = self._namespace, trio.current_time()
        if not namespace.describes or now - self._described.get(prefix, -1e9) < namespace.cache.ttl:
            return False
        if len(self._described) > 10_000:
            self._described.clear()
        self._described[prefix] = now
        self._tree = (prefix[: prefix.rstrip("/").rfind("/") + 1], now)
        return True

    def expects_attributes(self, prefix: str) -> bool:
        """Whether a directory had better be listed with metadata from the start.

        It is so where another one of the same tree was, a moment ago: ``ls -lR`` and ``rm -r``
        go from one to the next.
        """
        tree, moment = self._tree
        namespace = self._namespace
        return (
            namespace.describes
            and namespace.keep_attributes
            and prefix.startswith(tree)
            and trio.current_time() - moment < TREE_PATIENCE
        )

    async def _describe(self, prefix: str, walk: _Walk) -> None:
        """List a directory with the metadata of its files, a bit ahead of who walks."""
        token: str | None = None
        try:
            while True:
                token, more = await self._namespace.describe(prefix, token)
                walk.told += more
                walk.wake.unpark_all()
                if token is None or not more or not await self._caught_up(walk):
                    return
        except StoreError:
            return  # The single questions will say what is wrong.
        finally:
            walk.listing = False
            walk.wake.unpark_all()
            if self._walks.get(prefix) is walk:
                del self._walks[prefix]

    async def _caught_up(self, walk: _Walk) -> bool:
        """Wait until who walks has come near; False when nobody walks any more."""
        while walk.told > walk.seen + MAX_AHEAD:
            with trio.move_on_after(IDLE_PATIENCE) as scope:
                await walk.wake.park()
            if scope.cancelled_caught:
                return False
        return True

    async def _work(self, prefix: str, walk: _Walk) -> None:
        try:
            while walk.cursor < len(walk.names) and not self._is_read(prefix):
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
