"""One listing of one directory, page by page, shared by all who read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import trio

from s3mount.cache.metadata import Absent, Entry, MetaCache
from s3mount.errors import StoreError
from s3mount.fs.names import file_beside_directory, to_name
from s3mount.s3.store import ListPage, ObjectStore

AHEAD = 3  # Pages that are fetched before anybody has asked for them.


class Listed(NamedTuple):
    """One name of a directory: as the kernel sees it, as the key has it, and what it is."""

    name: bytes
    segment: str
    entry: Entry


class Listing:
    """The names under a prefix, in the order in which they came.

    `run` fetches a few pages ahead of the reader who has come furthest.  A directory that is
    larger than the metadata cache is not kept: its pages go when all have read them.
    """

    def __init__(self, prefix: str, store: ObjectStore, cache: MetaCache) -> None:
        self._prefix = prefix
        self._store = store
        self._cache = cache
        self._began = cache.clock()
        self._rows: list[Listed] = []
        self._dropped = 0  # Rows that came before the first one in `_rows`.
        self._seen: dict[str, Entry] | None = {}
        self._wanted = 0
        self._done = False
        self._error: StoreError | None = None
        self._changed = trio.lowlevel.ParkingLot()

    @classmethod
    def of_known(cls, prefix: str, known: Mapping[str, Entry | Absent]) -> Listing:
        """A listing of what the cache has."""
        listing = cls.__new__(cls)
        listing._rows = [
            Listed(to_name(segment), segment, entry)
            for segment, entry in known.items()
            if isinstance(entry, Entry)
        ]
        listing._prefix = prefix
        listing._dropped = 0
        listing._done = True
        listing._error = None
        return listing

    @property
    def usable(self) -> bool:
        """Whether a new reader can start from the first row."""
        return self._dropped == 0 and self._error is None

    async def row(self, index: int) -> Listed | None:
        """Row *index*, waiting for its page; None after the last.  Raises `StoreError`."""
        while True:
            position = index - self._dropped
            if 0 <= position < len(self._rows):
                return self._rows[position]
            if self._error is not None:
                raise self._error
            if self._done or position < 0:
                return None
            self._wanted = max(self._wanted, index)
            self._changed.unpark_all()
            await self._changed.park()

    async def finished(self, limit: int) -> int:
        """Wait for the end, or for more than *limit* rows; return how many there are."""
        while not self._done and len(self._rows) <= limit:
            await self._changed.park()
        if self._error is not None:
            raise self._error
        return self._dropped + len(self._rows)

    def peek(self, index: int) -> Listed | None:
        """Row *index* if it is here."""
        position = index - self._dropped
        return self._rows[position] if 0 <= position < len(self._rows) else None

    async def run(self) -> None:
        """Fetch all pages."""
        token: str | None = None
        try:
            while True:
                page = await self._store.list_page(self._prefix, token=token)
                self._add(page)
                token = page.token
                if token is None:
                    break
                self._changed.unpark_all()
                await self._wait_for_readers(len(page.objects) + len(page.prefixes))
        except StoreError as error:
            self._error = error
        else:
            if self._seen is not None:
                self._cache.put_listing(self._prefix, self._seen, self._began)
        finally:
            self._done = True
            self._changed.unpark_all()

    async def _wait_for_readers(self, page_size: int) -> None:
        """Directories that will be kept are fetched at once, larger ones as they are read."""
        if self._seen is not None:
            return
        while self._dropped + len(self._rows) > self._wanted + AHEAD * page_size:
            surplus = self._wanted - 2 * page_size - self._dropped
            if surplus > 0:
                del self._rows[:surplus]
                self._dropped += surplus
            await self._changed.park()

    def _add(self, page: ListPage) -> None:
        now = self._began
        start = len(self._prefix)
        for prefix in page.prefixes:
            segment = prefix[start:-1]
            self._add_row(segment, Entry(True, 0, "", 0, None, now), beside=False)
        for key, size, etag, modified_ns, _storage_class in page.objects:
            segment = key[start:]
            if segment:  # The marker of the directory itself is no entry of it.
                self._add_row(
                    segment, Entry(False, size, etag, modified_ns, None, now), beside=True
                )
        if self._seen is not None and len(self._seen) > self._cache.max_entries // 2:
            self._seen = None

    def _add_row(self, segment: str, entry: Entry, *, beside: bool) -> None:
        known = None if self._seen is None else self._seen.get(segment)
        if known is not None and known.directory != entry.directory:
            self._add_beside(segment, entry if beside else known)
            if beside:
                return
        if self._seen is not None:
            self._seen[segment] = entry
        self._rows.append(Listed(to_name(segment), segment, entry))

    def _add_beside(self, segment: str, entry: Entry) -> None:
        """An object has the name of a directory: it is shown by its other name."""
        name = file_beside_directory(segment)
        self._rows = [row for row in self._rows if row.segment != segment or row.entry.directory]
        self._rows.append(Listed(name, segment, entry))
