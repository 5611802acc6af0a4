"""Names in the bucket: asks the store what a name is, and lists directories, once each."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial

import trio

from s3mount.attributes import Defaults, decode
from s3mount.cache.blocks import BlockCache, ObjectVersion
from s3mount.cache.freshness import Hint
from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import Absent, Entry, MetaCache
from s3mount.errors import (
    Archived,
    Changed,
    Denied,
    InvalidName,
    InvalidRange,
    NotFound,
    PosixError,
    StoreError,
    Unavailable,
    Unrecognised,
)
from s3mount.fs.directoryfacts import DirectoryFacts
from s3mount.fs.headers import OURS, kept_headers
from s3mount.fs.history import is_own, oldest
from s3mount.fs.listing import FIRST_PAGE, PAGE, Listing, Reader
from s3mount.fs.longnames import LongNames
from s3mount.fs.names import (
    BESIDE,
    ESCAPE,
    check_key,
    folder_of,
    is_beside,
    is_long,
    key_of,
    slot_name,
    split_file,
    to_segment,
)
from s3mount.s3.store import VERSIONS, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

WORTH_LISTING = 5000  # Names: so many come in five pages, cheaper than asking for three.
ALONE = 1.0  # Seconds since the last listing after which somebody waits for the next one.
OUTAGE_PATIENCE = 3.0  # Seconds for the store to say whether a file is still the same.
MAX_ROUNDS = 3  # Questions about a name that others go on changing.
HEAD_SIZE = 128 << 10  # Bytes that come along when a file that will be read is looked up.


class Namespace:
    """Answers "what is *segment* under *prefix*?" from the cache or the store.

    Each question is under way once, however many ask it.  A *segment* here is a slot, see
    `s3mount.fs.names`.  `folders` tells whether markers of Hadoop's kind have been seen, which
    cost a question more; *max_key* is the most bytes that a key may have.  `expects_attributes`
    says of a directory that is to be listed whether its files will be looked at.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: MetaCache,
        index: AttributeIndex,
        blocks: BlockCache,
        defaults: Defaults,
        nursery: trio.Nursery,
        *,
        keep_attributes: bool,
        max_key: int,
    ) -> None:
        self.cache = cache
        self.index = index
        self.defaults = defaults
        self.keep_attributes = keep_attributes
        self.folders = False
        self.expects_attributes: Callable[[str], bool] = lambda _prefix: False
        self._max_key = max_key
        self._store = store
        self._blocks = blocks
        self._nursery = nursery
        self._asking: dict[tuple[str, str], trio.Event] = {}
        self._listings: dict[str, Listing] = {}
        self._listed_at = -math.inf
        self._listing_denied = False
        self._missed = ("", 0.0)
        self._sizes: dict[str, int] = {}
        self._long_names = LongNames(self.read)
        self.directories = DirectoryFacts(
            store, cache, index, defaults, keep_attributes=keep_attributes, max_key=max_key
        )
        self._kept: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    # -- names and slots -------------------------------------------------------------------

    async def place_of(
        self, prefix: str, name: bytes, missing: int = errno.ENOENT
    ) -> tuple[bytes, str]:
        """The slot that a file name stands for, and the name that it is known by.

        That is another one where the directory is gone that an object stood beside: whoever
        removes a tree has read the old names before.  Raises `PosixError`: ENAMETOOLONG, and
        *missing* for a name that looks like an escape of something that is not there.
        """
        plain = split_file(name)
        shown = name if plain is None else plain
        segment = (
            await self._long_names.segment(prefix, shown) if is_long(shown) else to_segment(shown)
        )
        if segment is None:
            raise PosixError(missing)
        slot = segment if plain is None else BESIDE + segment
        if name.startswith(ESCAPE) and slot_name(slot) != name:
            raise PosixError(missing)
        self.check_key(key_of(prefix, slot))
        if is_beside(slot) and await self.find(prefix, slot, attributes=False) is None:
            alone = await self.find(prefix, slot[1:], attributes=False)
            if alone is not None and not alone.directory:
                return slot_name(slot[1:]), slot[1:]
        return name, slot

    def check_key(self, key: str) -> None:
        """Raise `PosixError` ENAMETOOLONG for a key that no store takes."""
        check_key(key, self._max_key)

    async def check_new(self, prefix: str, slot: str, *, directory: bool) -> None:
        """Raise `PosixError` EINVAL where nothing can be made: the name only shows what is."""
        if is_beside(slot):
            other = await self.find(prefix, slot[1:], attributes=False)
            if directory or other is None or not other.directory:
                raise PosixError(errno.EINVAL)
        elif not slot and not directory:
            raise PosixError(errno.EINVAL)

    # -- one name --------------------------------------------------------------------------

    async def find(
        self,
        prefix: str,
        segment: str,
        *,
        fresh: float = 0.0,
        attributes: bool = True,
        whole: bool = True,
    ) -> Entry | None:
        """What is there, or None.

        Knowledge older than *fresh* (a moment of the cache's clock) does not count.  Without
        *attributes* an entry that only a listing has shown will do.  With *whole* a small file
        may come along with its metadata.
        """
        if is_own(prefix, segment):
            return Entry(True, 0, "", 0, self.defaults.directory(0), self.cache.clock())
        while True:
            known = self.cache.get(prefix, segment)
            if known is not None and known.checked >= oldest(prefix, known, fresh, self.cache):
                if isinstance(known, Absent):
                    return None
                if known.attributes is not None or not (attributes and self.keep_attributes):
                    return known
            key = (prefix, segment)
            if key in self._asking:
                await self._asking[key].wait()
                fresh = min(fresh, self.cache.clock())
                if self.cache.get(prefix, segment) is None:
                    return await self._ask_once(key, known, whole)
                continue
            return await self._ask_once(key, known, whole)

    async def find_current(self, prefix: str, segment: str, since: float) -> Entry | None:
        """What is there, as the store said after *since*.

        While the store cannot be reached, what may still be believed of a file has to do: it is
        better than no answer, and than one after a minute.
        """
        known = self.cache.get(prefix, segment)
        if not isinstance(known, Entry) or known.attributes is None:
            return await self.find(prefix, segment, fresh=since)
        with trio.move_on_after(OUTAGE_PATIENCE):
            try:
                return await self.find(prefix, segment, fresh=since)
            except Unavailable as error:
                log.debug("%s is not looked at again: %s", segment, error)
        return known

    async def _ask_once(
        self, key: tuple[str, str], known: Entry | Absent | None, whole: bool
    ) -> Entry | None:
        mine = self._asking.setdefault(key, trio.Event())
        try:
            for _ in range(MAX_ROUNDS):
                began = self.cache.clock()
                entry = await self._ask(*key, known, whole)
                if not self.cache.is_overtaken(*key, began):
                    return entry
                known = self.cache.get(*key)  # Somebody else was faster than the answer.
            return None if entry is None else entry._replace(checked=-math.inf)
        finally:
            if self._asking.get(key) is mine:
                del self._asking[key]
            mine.set()

    async def _ask(
        self, prefix: str, segment: str, known: Entry | Absent | None, whole: bool
    ) -> Entry | None:
        began = self.cache.clock()
        listed = isinstance(known, Entry) and self.cache.get(prefix, segment) is known
        if known is None and (hint := self.cache.freshness.hint(prefix, segment)) is not None:
            known, listed = Entry(False, hint.size, hint.etag, 0, None, began), True
        elif known is None and await self._list_instead(prefix):
            known = self.cache.get(prefix, segment)
            if isinstance(known, Absent):
                return None
            listed = known is not None
        if listed and isinstance(known, Entry) and not known.directory:
            wanted = whole and not self._has(key_of(prefix, segment), known)
            entry = await self.look(key_of(prefix, segment), inside=known if wanted else None)
            if entry is None:  # The listing was older than we thought.
                entry = await self._ask_both(prefix, segment)
        elif listed and isinstance(known, Entry):
            entry = await self.directories.listed(prefix + segment + "/")
            if entry is None:
                entry = await self._ask_both(prefix, segment)
        else:
            entry = await self._ask_both(prefix, segment)
        return self._note(prefix, segment, entry, began)

    def _has(self, key: str, known: Entry) -> bool:
        """Whether the bytes of a small file are here, if it has not changed."""
        version = ObjectVersion(key, known.etag, known.size)
        return self._blocks.cached(version, 0, known.size) is not None

    async def _list_instead(self, prefix: str) -> bool:
        """Whether one listing has answered what many single questions would have asked.

        The second unknown name within a second is worth it, unless the directory is known to
        be large, or not to be listed.
        """
        now = self.cache.clock()
        before, self._missed = self._missed, (prefix, now)
        if before[0] != prefix or now - before[1] > 1.0 or self._listing_denied:
            return False
        if self._sizes.get(prefix, 0) > WORTH_LISTING or prefix.startswith(VERSIONS):
            return False
        try:
            with closing(self.read(prefix, self.cache.negative_ttl)) as reader:
                count = await reader.finished(WORTH_LISTING)
        except StoreError:
            return False  # The single questions will say what is wrong.
        if len(self._sizes) > 10_000:
            self._sizes.clear()
        self._sizes[prefix] = count
        return self.cache.listing(prefix) is not None

    def _note(self, prefix: str, segment: str, entry: Entry | None, began: float) -> Entry | None:
        """Keep an answer, unless we or others have changed the name since the question."""
        if self.cache.is_overtaken(prefix, segment, began):
            return entry
        later = self.cache.get(prefix, segment)
        if later is not None and later.checked > began:
            listed = isinstance(later, Entry) and later.attributes is None
            if not listed:
                return later if isinstance(later, Entry) else None
            if entry is None:
                return None  # It is younger than our answer: who asks again will find it.
        before = self.cache.peek(prefix, segment)
        if entry is None and before is not None and before.directory:
            self.directories.doubt(key_of(prefix, segment) + "/")
        self.cache.put(prefix, segment, Absent(began) if entry is None else entry)
        if entry is not None and self.keep_attributes:
            self.index.remember(prefix, segment.removeprefix(BESIDE), entry)
        return entry

    async def _ask_both(self, prefix: str, slot: str) -> Entry | None:
        """A name that nothing is known of: an object, a directory, both, or nothing."""
        key, began = key_of(prefix, slot), self.cache.clock()
        answers: dict[str, Entry | None] = {}
        failures: dict[str, StoreError] = {}

        async def ask(what: str, question: Callable[[], Awaitable[Entry | None]]) -> None:
            try:
                answers[what] = await question()
            except StoreError as error:
                failures[what] = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "object", lambda: self.look(key))
            nursery.start_soon(ask, "directory", lambda: self.directories.of_prefix(key + "/"))
            if self.folders:
                nursery.start_soon(ask, "folder", lambda: self.directories.of_folder(key))
        directory, file = answers.get("directory") or answers.get("folder"), answers.get("object")
        found = directory or file
        if directory is not None and file is not None:
            plain = slot.removeprefix(BESIDE)
            self._note(prefix, plain, directory, began)
            self._note(prefix, BESIDE + plain, file, began)
        if is_beside(slot):
            found = file if directory is not None else None
        if found is None:
            self._judge(failures)
        if found is None and self._listing_denied and not is_beside(slot):
            return await self.directories.of_marker_alone(key + "/")
        return found

    def _judge(self, failures: Mapping[str, StoreError]) -> None:
        """Raise what stands in the way of saying "there is nothing".

        Where listing is not allowed, AWS answers 403 for an object that is not there; saying
        "nothing" is safe then, because a creation carries If-None-Match.
        """
        for error in failures.values():
            if isinstance(error, Unrecognised):
                raise error
        listing = failures.get("directory")
        if isinstance(listing, Denied):
            self._listing_denied = True
            failed = failures.get("object")
            if failed is not None and not isinstance(failed, Denied):
                raise failed
            return
        for error in failures.values():
            raise error

    @property
    def listing_denied(self) -> bool:
        """Whether the credentials may not list, so that absence is not certain."""
        return self._listing_denied

    async def look(self, key: str, *, inside: Entry | None = None) -> Entry | None:
        """What HEAD says of an object, or None.

        Where a listing has shown *inside*, and it is small, its bytes come along.
        """
        if not key:
            return None  # That would be the bucket.
        try:
            if inside is not None and 0 < inside.size <= HEAD_SIZE:
                return await self._look_inside(key, inside)
            entry = self.entry(await self._store.head(key))
        except (NotFound, InvalidName):
            return None
        marks = key.endswith("/") or folder_of(key) is not None
        return None if marks and entry.size == 0 else entry

    async def _look_inside(self, key: str, listed: Entry) -> Entry:
        buffer = memoryview(bytearray(listed.size))
        version = ObjectVersion(key, listed.etag, listed.size)
        try:
            # Whole, for its checksum; whoever reads it meanwhile waits for these bytes.
            with self._blocks.arriving(version, 0):
                info = await self._store.get(
                    key, 0, [buffer], etag=listed.etag or None, size=listed.size
                )
                if info.size == listed.size:
                    self._blocks.put(ObjectVersion(key, info.etag, info.size), buffer)
        except (Archived, Changed, InvalidRange):  # Or it is another one since it was listed.
            return self.entry(await self._store.head(key))
        return self.entry(info)

    def entry(self, info: ObjectInfo) -> Entry:
        """The entry for a file that HEAD or GET has described."""
        bare = self.defaults.file(info.modified_ns)
        attributes = decode(info.metadata, bare, info.size) if self.keep_attributes else bare
        now = self.cache.clock()
        kept = self.kept_headers(info)
        return Entry(False, info.size, info.etag, info.modified_ns, attributes, now, False, kept)

    def kept_headers(self, info: ObjectInfo) -> Mapping[str, str]:
        """The headers of an object that a new version of the same file keeps."""
        return self._shared(kept_headers(info, OURS if self.keep_attributes else ()))

    def _shared(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """One mapping for all objects with the same headers: most files of a tree have."""
        if len(self._kept) > 1000:
            self._kept.clear()
        return self._kept.setdefault(tuple(headers.items()), headers)

    # -- directories -----------------------------------------------------------------------

    def read(self, prefix: str, max_age: float = math.inf) -> Reader:
        """Read a directory: from the cache, or a listing that is (now) under way."""
        listing = self._under_way(prefix, max_age) or self._listing(prefix, max_age)
        return Reader(listing, partial(self._start_listing, prefix))

    def _under_way(self, prefix: str, max_age: float) -> Listing | None:
        """A listing that shows a new reader our own names, and none older than the cache does."""
        listing = self._listings.get(prefix)
        if listing is None or not listing.usable:
            return None
        if max_age < math.inf:  # What becomes of single names, the cache will judge.
            return listing
        old = self.cache.clock() - listing.began >= self.cache.ttl
        return None if old or listing.began <= self.cache.freshness.added_at(prefix) else listing

    def _listing(self, prefix: str, max_age: float) -> Listing:
        known = self.cache.listing(prefix, 0.0 if prefix.startswith(VERSIONS) else max_age)
        entry_of = self.entry if known is None and self.expects_attributes(prefix) else None
        # A store may take 100 ms for 1000 names, and 20 for 100: whoever lists one directory sees
        # the first ones sooner.  Whoever walks a tree is better off with fewer requests.
        now = self.cache.clock()
        first = FIRST_PAGE if max_age == math.inf and now - self._listed_at > ALONE else PAGE
        listing = Listing(
            prefix,
            self._store,
            self.cache,
            self.index,
            self.directories.without_ghosts,
            entry_of,
            first,
        )
        if known is not None:
            return listing.fill(known)
        self._listed_at = now
        self._listings[prefix] = listing
        self._start_listing(prefix, listing)
        return listing

    def _start_listing(self, prefix: str, listing: Listing) -> None:
        self._nursery.start_soon(self._run_listing, prefix, listing)

    async def describe(self, prefix: str, token: str | None) -> tuple[str | None, int]:
        """List a page with the metadata of its files; the next token, and how many names it has.

        That is 0 where the store told the metadata of no file.  Raises `StoreError`.
        """
        began = self.cache.clock()
        page = await self._store.list_page(prefix, token=token, metadata=True)
        for key, info in page.described.items():
            segment = key[len(prefix) :]
            if not segment or (not info.size and folder_of(segment) is not None):
                continue
            known = self.cache.get(prefix, segment)
            beside = isinstance(known, Entry) and known.directory
            self._note(prefix, BESIDE + segment if beside else segment, self.entry(info), began)
        return page.token, len(page.objects) + len(page.prefixes) if page.described else 0

    @property
    def describes(self) -> bool:
        """Whether a listing can tell the metadata of files."""
        return self._store.capabilities.list_metadata

    async def _run_listing(self, prefix: str, listing: Listing) -> None:
        try:
            await listing.run()
        finally:
            self.folders = self.folders or listing.folders
            if self._listings.get(prefix) is listing:
                del self._listings[prefix]

    def changed(self, prefix: str, segment: str, hint: Hint | None) -> None:
        """Somebody else has changed a name: answers that are under way are too old."""
        self.cache.changed(prefix, segment, hint)
        self._listings.pop(prefix, None)

    def forget_listings(self) -> None:
        """Who reads a directory from now on is not shown a listing that is under way."""
        self._listings.clear()

    def forget_tree(self, prefix: str) -> None:
        """Ask the store for everything under *prefix* when it is wanted again."""
        self.cache.drop_tree(prefix)
        self.index.forget_tree(prefix)
        self.forget_blocks(prefix, tree=True)
        for under_way in [one for one in self._listings if one.startswith(prefix)]:
            del self._listings[under_way]

    def forget_name(self, prefix: str, segment: str) -> None:
        """Ask the store for one name when it is wanted again, whatever a listing says by now."""
        self.cache.drop(prefix, segment)
        self._listings.pop(prefix, None)

    def forget_blocks(self, key: str, *, tree: bool) -> None:
        """Drop the bytes in memory of an object, or of all whose keys begin with *key*."""
        self._blocks.forget(key, tree=tree)
