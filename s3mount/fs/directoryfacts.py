"""Asks the store about single directories: whether they are there, and whose they are.

Listings may show a directory that is not there.  RustFS goes on with that for good when a request
was cut off that deleted something in it, and nothing that S3 offers removes such a name; so
what a listing has shown counts only together with a marker, or with something below it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import trio

from s3mount.attributes import Defaults, decode
from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import Entry, MetaCache
from s3mount.errors import Denied, InvalidName, NotFound, StoreError, Unrecognised
from s3mount.fs.names import FOLDER, key_size
from s3mount.s3.store import ListPage, ObjectStore

log = logging.getLogger(__name__)

MOST_GHOSTS = 10_000  # Directories that are remembered to be shown though they are not there.
LOOKS_AT_ONCE = 16


class DirectoryFacts:
    """What single directories are.  *max_key* is the most bytes that a key may have."""

    def __init__(
        self,
        store: ObjectStore,
        cache: MetaCache,
        index: AttributeIndex,
        defaults: Defaults,
        *,
        keep_attributes: bool,
        max_key: int,
    ) -> None:
        self._store = store
        self._cache = cache
        self._index = index
        self._defaults = defaults
        self._keep_attributes = keep_attributes
        self._max_key = max_key
        self._ghosts: dict[str, None] = {}  # The oldest one first.
        self._bare = False  # Whether the last directory that was listed had no marker.

    async def listed(self, key: str) -> Entry | None:
        """The directory *key* that a listing has shown; None where nothing is.

        That is one request: the marker tells that it is there, and where directories have
        none, a listing of it does.  Which comes first is what the last one suggests.
        """
        if not self._bare:
            entry = await self.of_marker(key)
            if entry.marker or not self._keep_attributes:
                return entry
        found = await self.of_prefix(key)
        self._bare = found is not None and not found.marker
        if found is None and (found := await self.of_folder(key.removesuffix("/"))) is None:
            self.doubt(key)
        return found

    async def of_prefix(self, key: str) -> Entry | None:
        """The directory *key*, if anything is under it."""
        if key_size(key) > self._max_key:
            return None
        page = await self._store.list_page(key, token=None, flat=True, limit=1)
        if not page.objects and not page.prefixes:
            return None
        later = page.token is not None and not self._store.capabilities.marker_objects
        marked = later or any(listed.key == key for listed in page.objects)
        return await self.of_marker(key, marked=marked)

    async def of_folder(self, key: str) -> Entry | None:
        """The directory that Hadoop's marker makes of *key*, where nothing is under it."""
        try:
            info = await self._store.head(key + FOLDER)
        except (NotFound, InvalidName):
            return None
        bare = self._defaults.directory(info.modified_ns)
        return Entry(True, 0, "", info.modified_ns, bare, self._cache.clock())

    async def of_marker_alone(self, key: str) -> Entry | None:
        """Where listing is not allowed, at least a directory that has a marker can be found."""
        try:
            await self._store.head(key)
        except Unrecognised:
            raise
        except (NotFound, Denied, InvalidName):
            return None
        return await self.of_marker(key)

    async def of_marker(self, key: str, *, marked: bool = True) -> Entry:
        """The directory *key*, which is there; `Entry.marker` tells whether it may have one.

        The store is not asked where it is known that it has none (*marked* is False).
        """
        now = self._cache.clock()
        if self._index.lasting and (known := await self._index.directory_at(key, now)) is not None:
            return known
        if marked and self._keep_attributes:
            try:
                info = await self._store.head(key)
            except StoreError as error:
                # A directory is there whether or not it can say who owns it.
                log.debug("%s: no marker: %s", key, error)
                marked = not isinstance(error, NotFound)
            else:
                attributes = decode(info.metadata, self._defaults.directory(info.modified_ns))
                return Entry(True, info.size, "", info.modified_ns, attributes, now, True)
        return Entry(True, 0, "", 0, self._defaults.directory(0), now, marked)

    async def is_empty(self, prefix: str) -> bool:
        """Whether the store has nothing under *prefix* but the marker itself; asks always."""
        token: str | None = None
        while True:
            page: ListPage = await self._store.list_page(prefix, token=token, flat=True, limit=2)
            if any(listed.key != prefix or listed.size for listed in page.objects):
                return False
            if page.token is None:
                return True
            token = page.token

    # -- directories that are only shown ---------------------------------------------------

    def doubt(self, key: str) -> None:
        """Take note of a directory that is not there: a listing may go on showing it."""
        above, slash, segment = key.removesuffix("/").rpartition("/")
        self._index.forget(above + slash, segment, directory=True)
        self._ghosts.pop(key, None)
        self._ghosts[key] = None
        if len(self._ghosts) > MOST_GHOSTS:
            del self._ghosts[next(iter(self._ghosts))]

    async def without_ghosts(self, page: ListPage) -> ListPage:
        """A page of a listing without the directories that were found not to be there before.

        Each of these is looked into again: it may have come back.
        """
        if not self._ghosts:
            return page
        doubtful = [prefix for prefix in page.prefixes if prefix in self._ghosts]
        if not doubtful:
            return page
        gone = await self._gone(doubtful)
        return replace(page, prefixes=[one for one in page.prefixes if one not in gone])

    async def _gone(self, prefixes: Sequence[str]) -> set[str]:
        gone: set[str] = set()
        waiting = iter(prefixes)

        async def look() -> None:
            for prefix in waiting:
                try:
                    page = await self._store.list_page(prefix, token=None, flat=True, limit=1)
                except StoreError:
                    continue  # Whoever opens it will hear why.
                if page.objects or page.token is not None:
                    self._ghosts.pop(prefix, None)
                else:
                    gone.add(prefix)

        async with trio.open_nursery() as nursery:
            for _ in range(min(LOOKS_AT_ONCE, len(prefixes))):
                nursery.start_soon(look)
        return gone
