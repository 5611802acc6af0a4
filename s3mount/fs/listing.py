"""One listing of one directory, page by page, shared by all who read it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import trio

from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import Absent, Entry, MetaCache, combine, is_same_version
from s3mount.cache.records import Row
from s3mount.errors import StoreError
from s3mount.fs.names import BESIDE, FOLDER, folder_of, slot_name
from s3mount.s3.store import ListPage, ObjectInfo, ObjectStore
from s3mount.storing import CLASS, STANDARD

INDEX_DELAY = 5.0  # Seconds in which the index may still have what it was told to forget.
FIRST_PAGE, PAGE = (
    100,
    1000,
)  # Names that the store is asked for: for the first ones soon, and else.
AHEAD = 3  # Pages that are fetched before anybody has asked for them.


class Listed(NamedTuple):
    """One name of a directory: as the kernel sees it, the slot that it is in, and what it is."""

    name: bytes
    segment: str
    entry: Entry


class LeftBehind(Exception):
    """A row was dropped, because somebody else is far ahead of whoever asks for it."""


class _Page(NamedTuple):
    """Where a page begins: its *first* row, and what it takes to fetch it once more."""

    first: int
    token: str | None
    waiting: Mapping[str, Entry]
    near: frozenset[str]


_FIRST = attrgetter("first")


class Listing:
    """The names under a prefix, in the order in which they came.

    `run` fetches a few pages ahead of the reader who has come furthest.  A directory that is
    larger than the metadata cache is not kept: its pages go when that reader has read them, and
    nothing more is fetched when all readers have left.  `began` is when it did, on the clock of
    the cache.
    `folders` tells whether there are markers of Hadoop's kind.  With *entry_of*, which makes an
    entry of what HEAD would say, the store is asked for the metadata of files, too.
    *first_page* is how many names are asked for at first.  *without_ghosts* takes directories
    from a page that are not there.
    """

    def __init__(
        self,
        prefix: str,
        store: ObjectStore,
        cache: MetaCache,
        index: AttributeIndex,
        without_ghosts: Callable[[ListPage], Awaitable[ListPage]],
        entry_of: Callable[[ObjectInfo], Entry] | None = None,
        first_page: int = PAGE,
    ) -> None:
        self._prefix = prefix
        self._store = store
        self._cache = cache
        self._index = index
        self._without_ghosts = without_ghosts
        self._entry_of = entry_of
        self._first_page = first_page
        self._indexed: set[str] = set()
        self.began = cache.clock()
        self._rows: list[Listed] = []
        self._dropped = 0  # Rows that came before the first one in `_rows`.
        self._seen: dict[str, Entry] | None = {}  # by slot
        self._known: Mapping[str, Entry | Absent] = {}  # While a page is added.
        self._waiting: dict[str, Entry] = {}  # Objects whose slot the next page decides.
        self._near: set[str] = set()  # Directories that the next page may list once more.
        self._pages: list[_Page] = []  # 0.5 KB for 1000 rows.
        self._token: str | None = None
        self._readers = 0
        self.folders = False
        self._wanted = 0
        self._done = False
        self._error: StoreError | None = None
        self._changed = trio.lowlevel.ParkingLot()

    def fill(self, known: Mapping[str, Entry | Absent]) -> Listing:
        """Be a listing of what the cache has; nothing is fetched."""
        self._rows = [
            Listed(slot_name(segment), segment, entry)
            for segment, entry in known.items()
            if isinstance(entry, Entry)
        ]
        self._done = True
        return self

    @property
    def usable(self) -> bool:
        """Whether a new reader can start from the first row."""
        return self._dropped == 0 and self._error is None and not self._abandoned

    @property
    def _abandoned(self) -> bool:
        return self._seen is None and self._readers == 0

    def join(self) -> None:
        """Somebody reads this; `leave` ends that."""
        self._readers += 1

    def leave(self) -> None:
        """Who has joined reads no more."""
        self._readers -= 1
        self._changed.unpark_all()

    async def row(self, index: int) -> Listed | None:
        """Row *index*, waiting for its page; None after the last.

        Raises `StoreError` and `LeftBehind`.
        """
        while True:
            position = index - self._dropped
            if 0 <= position < len(self._rows):
                return self._rows[position]
            if position < 0:
                raise LeftBehind
            if self._error is not None:
                raise self._error
            if self._done:
                return None
            self._wanted = max(self._wanted, index)
            self._changed.unpark_all()
            await self._changed.park()

    async def rows(self, index: int, limit: int) -> Sequence[Listed]:
        """Up to *limit* rows from *index* on: what is here, or what comes next; none at the end.

        Raises `StoreError` and `LeftBehind`.
        """
        if await self.row(index) is None:
            return ()
        self._wanted = max(self._wanted, index)
        self._changed.unpark_all()
        position = index - self._dropped
        return self._rows[position : position + limit]

    async def finished(self, limit: int) -> int:
        """Wait for the end, or for more than *limit* rows; return how many there are.

        More than are kept are more than the limit: the rest comes only as it is read.
        """
        while not self._done and self._seen is not None and len(self._rows) <= limit:
            await self._changed.park()
        if self._error is not None:
            raise self._error
        count = self._dropped + len(self._rows)
        return count if self._seen is not None else max(count, limit + 1)

    def page_before(self, index: int, count: int) -> tuple[int, Sequence[Listed]]:
        """The page that row *index* is in, up to *count* rows from there: its first row, and all.

        Nothing where no row is ever dropped.
        """
        if not self._pages:
            return index, ()
        first = self._page_of(index).first
        return first, self._rows[first - self._dropped : index + count - self._dropped]

    def _page_of(self, index: int) -> _Page:
        return self._pages[bisect_right(self._pages, index, key=_FIRST) - 1]

    def alone(self, index: int, first: int, rows: Sequence[Listed]) -> tuple[Listing, set[str]]:
        """A listing for one reader who was left behind: it has row *index*, and those after it.

        *rows*, from the one numbered *first* on, are those that the reader had.  Names that were
        among them may come again, and are the second thing returned: the page that they were in
        is fetched once more, and may have others by now.
        """
        page = self._page_of(index)
        known = first <= page.first and index <= first + len(rows)
        passed = {row.segment for row in rows[page.first - first : index - first] if known}
        other = Listing(
            self._prefix,
            self._store,
            self._cache,
            self._index,
            self._without_ghosts,
            self._entry_of,
            self._first_page,
        )
        other._seen = None
        other._dropped = other._wanted = index if known else page.first
        other._pages = self._pages[: self._pages.index(page) + 1]
        other._token, other._waiting, other._near = page.token, {**page.waiting}, {*page.near}
        return other, passed

    async def run(self) -> None:
        """Fetch all pages; the next one is under way while one is turned into rows."""
        sender, receiver = trio.open_memory_channel[tuple[str | None, ListPage]](0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fetch, sender)
                async for token, page in receiver:
                    known = await self._index.page(self._prefix, self._names(page))
                    before = len(self._rows)
                    near = frozenset(self._near)
                    self._pages.append(
                        _Page(self._dropped + before, token, {**self._waiting}, near)
                    )
                    self._add(page, known)
                    if self._seen is not None:
                        rows = [(row.segment, row.entry) for row in self._rows[before:]]
                        self._cache.put_page(self._prefix, rows, self.began)
                    self._changed.unpark_all()
            if self._error is None and self._seen is not None:
                self._cache.put_listing(self._prefix, self._seen, self.began)
                self._forget_gone()
        finally:
            self._done = True
            self._changed.unpark_all()

    async def _fetch(self, sender: trio.MemorySendChannel[tuple[str | None, ListPage]]) -> None:
        token = self._token
        async with sender:
            while True:
                try:
                    page = await self._store.list_page(
                        self._prefix,
                        token=token,
                        limit=self._first_page if token is None else PAGE,
                        metadata=self._entry_of is not None,
                    )
                    page = await self._without_ghosts(page)
                except StoreError as error:
                    self._error = error
                    return
                await sender.send((token, page))
                token = page.token
                if token is None:
                    return
                await self._wait_for_readers(len(page.objects) + len(page.prefixes))
                if self._abandoned:
                    return

    async def _wait_for_readers(self, page_size: int) -> None:
        """Directories that will be kept are fetched at once, larger ones as they are read."""
        while self._seen is None and self._readers:
            self._drop(self._wanted - 2 * page_size)
            if self._dropped + len(self._rows) <= self._wanted + AHEAD * page_size:
                return
            await self._changed.park()

    def _drop(self, read: int) -> None:
        """Let go of rows that come before the one numbered *read*.

        Pages go as a whole: whoever is in the middle of one may need all of it.
        """
        if read > self._dropped:
            first = max(self._page_of(read).first, self._dropped)
            del self._rows[: first - self._dropped]
            self._dropped = first

    def _names(self, page: ListPage) -> list[str]:
        """What the names of a page are called in the index."""
        start = len(self._prefix)
        names = [listed[0][start:] for listed in page.objects]
        names += [prefix[start:] for prefix in page.prefixes]
        return names

    def _forget_gone(self) -> None:
        """Drop what the index knows of names that are not there any more."""
        for name in self._indexed:
            segment, directory = name.removesuffix("/"), name.endswith("/")
            known = self._cache.peek(self._prefix, segment)
            if not directory and (known is None or known.directory):
                known = self._cache.peek(self._prefix, BESIDE + segment)
            if known is None or known.directory != directory:
                self._index.forget(self._prefix, segment, directory=directory)

    def _known_file(self, segment: str, listed: Entry, rows: dict[str, Row]) -> Entry:
        """What a listing shows of an object, with the attributes if they are known."""
        known = self._known.get(segment)
        if not isinstance(known, Entry) or known.attributes is None or known.etag != listed.etag:
            known = self._index.file(rows, segment, self.began)
            changed = self._cache.freshness.changed_at(self._prefix, segment)
            if known is None or self.began < changed + INDEX_DELAY:
                return listed
            if known.written is None and is_same_version(listed, known):
                return known
        entry = combine(listed, known, 0.0)
        if known.written is not None and entry.attributes is not None:
            self._index.remember(self._prefix, segment, entry)  # Now Last-Modified is known.
        return entry

    def _known_directory(self, segment: str, rows: dict[str, Row]) -> Entry:
        listed = Entry(True, 0, "", 0, None, self.began)
        known = self._known.get(segment)
        if not isinstance(known, Entry) or not known.directory or known.attributes is None:
            known = self._index.directory(rows, segment, self.began)
            learnt = None if known is None else known.learnt
            if learnt is not None and self._cache.is_outdated(self._prefix, segment, learnt):
                known = None
        return listed if known is None else combine(listed, known, self._cache.oldest(self.began))

    def _add(self, page: ListPage, rows: dict[str, Row]) -> None:
        """Turn a page into rows; what the next one may make something else of waits for it.

        ``a/`` and ``a_$folder$`` come later than ``a``, perhaps by pages.  Stores that list in
        no order (SeaweedFS) tell even later: then a row becomes another one where it stands.
        """
        files, self._waiting = self._waiting, {}
        self._known = self._cache.names(self._prefix)
        if self._seen is not None:
            self._indexed.update(rows)
        start = len(self._prefix)
        directories = [prefix[start:-1] for prefix in page.prefixes]
        directories += self._sort(page, files, rows)
        for segment in directories:
            self._add_directory(segment, rows)
        end = _end_of(page, start)
        for segment, entry in files.items():
            if end is not None and segment + FOLDER >= end:
                self._waiting[segment] = entry
            else:
                self._add_file(segment, entry)
        self._near = {one for one in self._near if end is not None and one + FOLDER >= end}
        if self._seen is not None and len(self._seen) > self._cache.max_entries // 2:
            self._seen = None
            self._indexed.clear()

    def _sort(self, page: ListPage, files: dict[str, Entry], rows: dict[str, Row]) -> list[str]:
        """Put the objects of a page into *files*; returns the directories that some only mark."""
        marked: list[str] = []
        start, began = len(self._prefix), self.began
        for key, size, etag, modified_ns, storage_class in page.objects:
            segment = key[start:]
            folder = folder_of(segment)
            if key and (size or (segment and folder is None)):
                info = page.described.get(key)
                if info is not None and self._entry_of is not None:
                    files[segment] = self._entry_of(info)._replace(checked=began)
                    self._index.remember(self._prefix, segment, files[segment])
                    continue
                listed = Entry(False, size, etag, modified_ns, None, began)
                entry = self._known_file(segment, listed, rows)
                if storage_class not in ("", STANDARD):
                    entry = _in_class(entry, storage_class)
                files[segment] = entry
            elif folder is not None:
                self.folders = True
                marked.append(folder)
        return marked

    def _add_directory(self, segment: str, rows: dict[str, Row]) -> None:
        known = None if self._seen is None else self._seen.get(segment)
        if segment in self._near or (known is not None and known.directory):
            return
        self._near.add(segment)
        entry = self._known_directory(segment, rows)
        if known is None:
            self._add_row(segment, entry)
            return
        assert self._seen is not None
        self._seen[segment] = entry
        self._rows = [
            row if row.segment != segment else Listed(row.name, segment, entry)
            for row in self._rows
        ]
        self._add_row(BESIDE + segment, known)

    def _add_file(self, segment: str, entry: Entry) -> None:
        known = None if self._seen is None else self._seen.get(segment)
        beside = segment in self._near or (known is not None and known.directory)
        self._add_row(BESIDE + segment if beside else segment, entry)

    def _add_row(self, slot: str, entry: Entry) -> None:
        if self._seen is not None:
            if slot in self._seen:
                return
            self._seen[slot] = entry
        self._rows.append(Listed(slot_name(slot), slot, entry))


class Reader:
    """One who reads a listing, and goes on alone where others are too far ahead.

    `passed` are names that may come again then.  *start* has a listing run.  The reader is to be
    closed.
    """

    def __init__(self, listing: Listing, start: Callable[[Listing], None]) -> None:
        self._listing = listing
        self._start = start
        self._had: tuple[int, Sequence[Listed]] = 0, ()
        self.passed: set[str] = set()
        listing.join()

    def close(self) -> None:
        """Read no more."""
        self._listing.leave()

    async def rows(self, index: int, limit: int) -> Sequence[Listed]:
        """Up to *limit* rows from *index* on, none at the end.  Raises `StoreError`."""
        try:
            rows = await self._listing.rows(index, limit)
        except LeftBehind:
            self._go_on_alone(index)
            rows = await self._listing.rows(index, limit)
        if rows:
            self._had = self._listing.page_before(index, len(rows))
        return rows

    async def finished(self, limit: int) -> int:
        """See `Listing.finished`.  Raises `StoreError`."""
        return await self._listing.finished(limit)

    def _go_on_alone(self, index: int) -> None:
        listing, self.passed = self._listing.alone(index, *self._had)
        listing.join()
        self._listing.leave()
        self._listing = listing
        self._start(listing)


def _in_class(entry: Entry, storage_class: str) -> Entry:
    """An entry that is stored as the listing says: a rule of the bucket may have moved it."""
    if entry.kept is None or entry.kept.get(CLASS) == storage_class:
        return entry
    return entry._replace(kept={**entry.kept, CLASS: storage_class})


def _end_of(page: ListPage, start: int) -> str | None:
    """The last name of a page, None when nothing follows it."""
    if page.token is None:
        return None
    last = [page.objects[-1].key] if page.objects else []
    return max([*last, *page.prefixes[-1:]], default="")[start:]
