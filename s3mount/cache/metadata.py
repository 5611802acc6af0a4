"""What is where: names, sizes and attributes in the bucket, as far as they are known now."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import cachetools

from s3mount.attributes import Attributes
from s3mount.cache.freshness import Freshness, Hint


class Entry(NamedTuple):
    """What is known of one name.

    `etag` is empty for a directory, `size` that of its marker; `modified_ns` is Last-Modified
    (0: not known); `attributes` is None when only a listing has spoken; `checked` is when the
    store (or our own write) said so, on the clock of the cache; `marker` tells whether a
    directory is known to have a marker object of its own; `kept` are the headers that a new
    version takes over, None when only a listing has spoken.

    `written` is for our own write, whose answer did not tell Last-Modified: the moments, by the
    clock of the store, between which that lies.  `learnt` is when the attributes of a directory
    were learnt, where that was before `checked`: no listing tells whether they have changed.
    """

    directory: bool
    size: int
    etag: str
    modified_ns: int
    attributes: Attributes | None
    checked: float
    marker: bool = False
    kept: Mapping[str, str] | None = None
    written: tuple[int, int] | None = None
    learnt: float | None = None


class Absent(NamedTuple):
    """There is nothing of that name; `checked` as in `Entry`."""

    checked: float


class _Directory:
    """The known names under one prefix.

    `complete` is when a whole listing began that still holds, `listed` when the newest did.
    """

    __slots__ = ("complete", "listed", "names")

    def __init__(self) -> None:
        self.names: dict[str, Entry | Absent] = {}
        self.complete: float | None = None
        self.listed = -math.inf


class MetaCache:
    """Entries by directory prefix and segment, each with its age.

    Nothing is given out past its time to live (seconds); our own changes are visible at once
    and survive a listing that began before them.  At most *max_entries* names are kept: whole
    directories go, the least recently used first.
    """

    def __init__(
        self, ttl: float, negative_ttl: float, max_entries: int, clock: Callable[[], float]
    ) -> None:
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.clock = clock
        self.freshness = Freshness()
        self._max_entries = max_entries
        self._count = 0
        self._directories: cachetools.LRUCache[str, _Directory] = cachetools.LRUCache(1 << 40)

    def get(self, prefix: str, segment: str) -> Entry | Absent | None:
        """What is known of a name: an entry, its absence, or None."""
        directory = self._directories.get(prefix)
        if directory is None:
            return None
        now = self.clock()
        found = directory.names.get(segment)
        if found is None:
            complete = directory.complete
            if complete is not None and self._counts(complete, self.negative_ttl, now):
                return Absent(complete)
            return None
        if isinstance(found, Absent):
            return found if self._counts(found.checked, self.negative_ttl, now) else None
        if found.learnt is not None and now - found.learnt >= self.ttl:
            found = directory.names[segment] = found._replace(attributes=None, learnt=None)
        return found if self._counts(found.checked, self.ttl, now) else None

    def _counts(self, checked: float, ttl: float, now: float) -> bool:
        freshness = self.freshness
        return now - checked < freshness.lifetime(ttl, now) and checked >= freshness.floor

    def oldest(self, began: float) -> float:
        """Before when attributes were learnt that no listing from *began* can confirm."""
        return max(began - self.ttl, self.freshness.floor)

    def lifetime(self) -> float:
        """How long what is learnt of a name now may count, in seconds."""
        return self.freshness.lifetime(self.ttl, self.clock())

    def current_since(self, recent: float) -> float:
        """Since when the store has to have been asked about a file that is opened now.

        In the last *recent* seconds, or the time to live if somebody tells of changes.
        """
        now = self.clock()
        if self.freshness.lifetime(self.ttl, now) > self.ttl:
            return now - max(self.ttl, recent)
        return now - recent

    def changed(self, prefix: str, segment: str, hint: Hint | None = None) -> None:
        """Somebody else has changed a name: what is known, or about to be answered, is old."""
        self.freshness.changed(prefix, segment, self.clock(), hint)
        self._forget(prefix, segment)

    def is_outdated(self, prefix: str, segment: str, asked: float) -> bool:
        """Whether others have changed a name since the moment *asked*."""
        return self.freshness.is_outdated(prefix, segment, asked)

    def is_overtaken(self, prefix: str, segment: str, asked: float) -> bool:
        """Whether an answer to a question from the moment *asked* is not to be kept."""
        return self.freshness.is_overtaken(prefix, segment, asked)

    def peek(self, prefix: str, segment: str) -> Entry | None:
        """The last entry known of a name, however old."""
        directory = self._directories.get(prefix)
        found = None if directory is None else directory.names.get(segment)
        return found if isinstance(found, Entry) else None

    def names(self, prefix: str) -> Mapping[str, Entry | Absent]:
        """What was last known of the names under a prefix, however old, until the next change."""
        directory = self._directories.get(prefix)
        return {} if directory is None else directory.names

    def put(self, prefix: str, segment: str, entry: Entry | Absent) -> None:
        """Take note of a name."""
        directory = self._directories.get(prefix)
        if directory is None:
            directory = self._directories[prefix] = _Directory()
        if segment not in directory.names:
            self._count += 1
            self._shrink(prefix)
        directory.names[segment] = entry

    def put_own(self, prefix: str, segment: str, entry: Entry) -> None:
        """Take note of what we have written: a new name is missing in listings under way."""
        if self.peek(prefix, segment) is None:
            self.freshness.added(prefix, self.clock())
        self.put(prefix, segment, entry)

    def drop(self, prefix: str, segment: str) -> None:
        """Forget a name, so that the store is asked next time; what it was asked before is old."""
        self.freshness.dropped(prefix + segment, self.clock())
        self._forget(prefix, segment)

    def _forget(self, prefix: str, segment: str) -> None:
        directory = self._directories.get(prefix)
        if directory is not None:
            directory.complete = None
            if directory.names.pop(segment, None) is not None:
                self._count -= 1

    def drop_tree(self, prefix: str) -> None:
        """Forget everything under a prefix, and what the store is being asked about it."""
        self.freshness.dropped(prefix, self.clock())
        for other in [p for p in self._directories if p.startswith(prefix)]:
            self._count -= len(self._directories.pop(other).names)

    def clear(self) -> None:
        """Forget everything."""
        self._directories.clear()
        self._count = 0

    def listing(
        self, prefix: str, max_age: float = math.inf
    ) -> Mapping[str, Entry | Absent] | None:
        """All names under a prefix, if a fresh and complete listing is known."""
        directory = self._directories.get(prefix)
        if directory is None or directory.complete is None:
            return None
        now = self.clock()
        fresh = self._counts(directory.complete, self.ttl, now)
        return directory.names if fresh and now - directory.complete < max_age else None

    def put_page(self, prefix: str, rows: Iterable[tuple[str, Entry]], began: float) -> None:
        """Take note of some names of a listing that began at *began*, and is not complete yet."""
        outdated = self.freshness.outdated_under(prefix, began)
        if outdated is None or self._is_superseded(prefix, began):
            return
        directory = self._directories.get(prefix)
        if directory is None:
            directory = self._directories[prefix] = _Directory()
        names = directory.names
        before = len(names)
        for segment, entry in rows:
            known = names.get(segment)
            if (known is None or known.checked <= began) and segment not in outdated:
                names[segment] = entry
        self._count += len(names) - before
        self._shrink(prefix)

    def put_listing(self, prefix: str, names: dict[str, Entry], began: float) -> None:
        """Take note of a complete listing that began at *began*.

        What is known from later than that stays, and so do the attributes of objects that the
        listing shows unchanged.
        """
        outdated = self.freshness.outdated_under(prefix, began)
        if outdated is None or self._is_superseded(prefix, began):
            return
        old = self._directories.get(prefix)
        merged: dict[str, Entry | Absent] = dict(names)
        for segment in outdated:
            merged.pop(segment, None)
        if old is not None:
            for segment, known in old.names.items():
                if known.checked > began:
                    merged[segment] = known
                elif segment in outdated:
                    continue
                elif known is not names.get(segment, known) and isinstance(known, Entry):
                    merged[segment] = combine(names[segment], known, self.oldest(began))
            self._count -= len(old.names)
        directory = self._directories[prefix] = _Directory()
        directory.names = merged
        directory.complete = None if outdated else began
        directory.listed = began
        self._count += len(merged)
        self._shrink(prefix)

    def _is_superseded(self, prefix: str, began: float) -> bool:
        """Whether a newer listing is known: what we removed before that, an older one may show."""
        directory = self._directories.get(prefix)
        return directory is not None and began < directory.listed

    def _shrink_one(self, directory: _Directory) -> None:
        """Forget half of a directory that is larger than all that may be kept."""
        directory.complete = None
        for segment in list(itertools.islice(directory.names, len(directory.names) // 2)):
            del directory.names[segment]
            self._count -= 1

    def __len__(self) -> int:
        return self._count

    @property
    def max_entries(self) -> int:
        """How many names are kept at most."""
        return self._max_entries

    def _shrink(self, keep: str) -> None:
        if self._count > self._max_entries and len(self._directories) == 1:
            self._shrink_one(self._directories[keep])
        while self._count > self._max_entries and len(self._directories) > 1:
            prefix, directory = self._directories.popitem()
            if prefix == keep:
                self._directories[prefix] = directory
                prefix, directory = self._directories.popitem()
            self._count -= len(directory.names)


def combine(listed: Entry, known: Entry, oldest: float) -> Entry:
    """Keep what HEAD taught about a name that a listing shows unchanged.

    What was learnt of a directory before *oldest* does not count any more.
    """
    if listed.directory != known.directory:
        return listed
    if listed.directory:
        learnt = known.checked if known.learnt is None else known.learnt
        marker = known.marker or listed.marker
        if known.attributes is None or learnt <= oldest:
            return listed._replace(marker=marker)
        return known._replace(checked=listed.checked, marker=marker, learnt=learnt)
    if known.attributes is not None and is_same_version(listed, known):
        return listed._replace(attributes=known.attributes, kept=known.kept)
    return listed


def is_same_version(listed: Entry, known: Entry) -> bool:
    """Whether a listing shows an object as it is known, with the metadata that are known.

    A change of metadata is a copy onto itself: the same bytes and ETag, but Last-Modified moves.
    """
    if listed.etag != known.etag or listed.size != known.size:
        return False
    if known.written is not None:
        return known.written[0] <= listed.modified_ns <= known.written[1]
    return known.modified_ns == listed.modified_ns
