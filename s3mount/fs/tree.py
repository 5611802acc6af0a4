"""Moving and removing whole trees of objects, many at a time."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

import trio

from s3mount.errors import InvalidRequest, NotFound, StoreError, Unavailable, disk_failed
from s3mount.fs.headers import kept_headers
from s3mount.s3.store import (
    ALWAYS,
    MAX_COPY_SIZE,
    ListedObject,
    ObjectStore,
    PartDone,
    Precondition,
    Stored,
)
from s3mount.storing import CLASS, STANDARD, lasting
from s3mount.write.extents import copy_part_size
from s3mount.write.journal import Journal
from s3mount.write.notes import begin_upload, forget
from s3mount.write.records import COPYING, DELETING, UNDOING, TreeRecord

log = logging.getLogger(__name__)

CLOCK_LEEWAY = 60.0  # Seconds.
RETRY_FIRST, RETRY_MOST = 1.0, 30.0  # Seconds.
PARALLEL_COPIES = 32
DELETE_BATCH = 1000  # S3's limit of DeleteObjects.


@dataclass(frozen=True, slots=True)
class CopiedTree:
    """A tree that stands under both names: `etags` are those of the copies, by key.

    `note` and `record` are what the journal knows of it, `objects` what is to be deleted.
    """

    note: str
    record: TreeRecord
    objects: Sequence[ListedObject]
    etags: Mapping[str, str]


@dataclass(slots=True)
class _Unfinished:
    """A renaming whose deletions have failed, and what was to be deleted."""

    record: TreeRecord
    objects: InitVar[Sequence[ListedObject]]
    versions: dict[str, tuple[str, int]] = field(init=False)
    lock: trio.Lock = field(default_factory=trio.Lock)

    def __post_init__(self, objects: Sequence[ListedObject]) -> None:
        self.versions = {listed.key: (listed.etag, listed.modified_ns) for listed in objects}

    def is_left(self, listed: ListedObject) -> bool:
        """Whether an object is still the one that was to be deleted."""
        return self.versions.get(listed.key) == (listed.etag, listed.modified_ns)


class TreeMover:
    """Copies all objects under a prefix to another one (`copy`), and then deletes them (`remove`).

    The journal hears of it first, so that after a crash the next mount brings it to its end
    (`finish`), and the tree is whole under one name.  Deletions that fail are tried again in
    *nursery* until they succeed.  `handled` counts the objects that were listed, copied or
    deleted so far.
    """

    def __init__(self, store: ObjectStore, journal: Journal, nursery: trio.Nursery) -> None:
        self._store = store
        self._journal = journal
        self._nursery = nursery
        self.handled = 0
        self._unfinished: dict[str, _Unfinished] = {}

    async def copy(self, old: str, new: str, *, replacing: bool) -> CopiedTree:
        """Copy everything under *old* to *new*, where with *replacing* an empty directory is.

        A failure leaves the old tree whole, and what was copied by then is removed again.  After
        a crash, from here on, the old tree goes.  Raises `StoreError`.
        """
        await self._finish_overlapping(old, new)
        objects = [listed async for page in self._pages(old) for listed in page]
        moved: dict[str, str] = {}
        note = await self._intend(TreeRecord(old, new, COPYING, time.time()))
        try:
            await self._copy_all(objects, old, new, moved)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                record = TreeRecord(old, new, UNDOING, time.time())
                await self._undo(note, record, list(moved), [new] if replacing else [])
            raise
        record = TreeRecord(old, new, DELETING, time.time())
        # Whoever is killed now would leave a record by which the old tree goes, and no new name.
        with trio.CancelScope(shield=True):
            await self._intend(record, note)
        return CopiedTree(note, record, objects, moved)

    async def remove(self, copied: CopiedTree) -> None:
        """Delete what was copied under its old name; what cannot be deleted now follows later.

        Raises `StoreError` when the store refuses it: then the tree stays under both names.
        """
        old = copied.record.old
        try:
            await self._delete_tree([listed.key for listed in copied.objects], old)
        except Unavailable as error:
            self._finish_later(copied)
            log.warning("%s: renamed, and not all of it is deleted yet: %s", old, error)
        except StoreError:
            # The program hears that it was not renamed; nothing may vanish after that.
            forget(self._journal, copied.note)
            raise
        except BaseException:
            self._finish_later(copied)
            raise
        else:
            forget(self._journal, copied.note)

    async def _intend(self, record: TreeRecord, name: str = "") -> str:
        """Write down what is about to be done, and return the name of the record."""
        name = name or secrets.token_hex(8)
        try:
            self._journal.put(name, record.fields())
            await self._journal.commit()
        except OSError as error:
            if record.phase == COPYING:
                forget(self._journal, name)
                log.error("%s is not renamed: the journal cannot be written: %s", record.old, error)
                raise disk_failed(error) from error
        return name

    async def _undo(
        self, note: str, record: TreeRecord, copies: Sequence[str], kept: Sequence[str]
    ) -> None:
        """Remove what was copied: the program hears that nothing was renamed, and so it stays."""
        await self._intend(record, note)
        try:
            await self._delete_tree(copies, record.new, kept)
        except StoreError as error:
            log.warning("%s: copies stay there until the next mount: %s", record.new, error)
            return
        forget(self._journal, note)

    # -- later -----------------------------------------------------------------------------

    def _finish_later(self, copied: CopiedTree) -> None:
        unfinished = self._unfinished[copied.note] = _Unfinished(copied.record, copied.objects)
        self._nursery.start_soon(self._finish_until_finished, copied.note, unfinished)

    async def _finish_until_finished(self, note: str, unfinished: _Unfinished) -> None:
        delay = RETRY_FIRST
        while note in self._unfinished:
            await trio.sleep(delay)
            delay = min(2 * delay, RETRY_MOST)
            try:
                await self._finish_now(note, unfinished)
            except StoreError as error:
                log.info("%s: still not deleted: %s", unfinished.record.old, error)

    async def _finish_now(self, note: str, unfinished: _Unfinished) -> None:
        async with unfinished.lock:
            if note not in self._unfinished:
                return
            old = unfinished.record.old
            here = [listed async for page in self._pages(old) for listed in page]
            await self._delete_some(here, unfinished.is_left, old)
            del self._unfinished[note]
            forget(self._journal, note)
            log.info("%s: deleted, as it is %s now", old, unfinished.record.new)

    async def _finish_overlapping(self, *prefixes: str) -> None:
        """What is still to be deleted must not be moved, or hold what is moved, by then."""
        for note, unfinished in list(self._unfinished.items()):
            ends = unfinished.record.old, unfinished.record.new
            if any(a.startswith(b) or b.startswith(a) for a in ends for b in prefixes):
                await self._finish_now(note, unfinished)

    # -- after a crash ---------------------------------------------------------------------

    async def finish(self, name: str, record: TreeRecord) -> None:
        """Bring a renaming to its end that a crash has interrupted.  Raises `StoreError`.

        What somebody has written under the old name after that stays there.
        """
        old, new = record.old, record.new
        there = {o.key: o async for page in self._pages(new) for o in page}
        here = [listed async for page in self._pages(old) for listed in page]
        if record.phase == UNDOING:
            await self._remove_copies(here, there, record)
            forget(self._journal, name)
            return
        if record.phase == COPYING:
            await self._copy_missing(here, there, old, new)
            record = TreeRecord(old, new, DELETING, time.time())
            await self._intend(record, name)
            left = here
        else:
            latest = _latest_ns(record)
            left = [o for o in here if o.modified_ns <= latest and new + o.key[len(old) :] in there]
        unfinished = _Unfinished(record, left)
        try:
            await self._delete_some(here, unfinished.is_left, old)
        except StoreError:
            self._finish_later(CopiedTree(name, record, left, {}))
            raise
        forget(self._journal, name)

    async def _remove_copies(
        self,
        here: Sequence[ListedObject],
        there: Mapping[str, ListedObject],
        record: TreeRecord,
    ) -> None:
        sizes = {record.new + listed.key[len(record.old) :]: listed.size for listed in here}

        def is_copy(listed: ListedObject) -> bool:
            early = listed.modified_ns <= _latest_ns(record)
            return early and sizes.get(listed.key) == listed.size

        await self._delete_some(list(there.values()), is_copy, record.new)

    async def _copy_missing(
        self,
        here: Sequence[ListedObject],
        there: Mapping[str, ListedObject],
        old: str,
        new: str,
    ) -> None:
        missing = []
        for listed in here:
            copy = there.get(new + listed.key[len(old) :])
            # A copy that is younger than its source has all that the source had.
            if copy is None or copy.modified_ns <= listed.modified_ns:
                missing.append(listed)
        await self._copy_all(missing, old, new, {})

    # -- deleting --------------------------------------------------------------------------

    async def _delete_some(
        self,
        here: Sequence[ListedObject],
        chosen: Callable[[ListedObject], bool],
        prefix: str,
    ) -> None:
        """Delete the chosen objects of a tree, and the directories in which none stays."""
        keys = [listed.key for listed in here if chosen(listed)]
        kept = [listed.key for listed in here if not chosen(listed)]
        await self._delete_tree(keys, prefix, kept)

    async def _delete_tree(
        self, keys: Sequence[str], prefix: str, kept: Sequence[str] = ()
    ) -> None:
        """Delete the objects of a tree, the directories last and from the inside out.

        Also those that have no marker: some stores (SeaweedFS) go on listing a directory
        after its last object has gone, and refuse to make a file of its name.
        """
        directories = {prefix}
        for key in keys:
            directories.update(_directories_of(key, prefix))
        for key in kept:
            directories.difference_update(_directories_of(key, prefix), (prefix, key))
        await self.delete([key for key in keys if not key.endswith("/")])
        await self.delete(sorted(directories, key=lambda name: (-name.count("/"), name)))

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects in batches; raises the first failure."""
        failures: list[StoreError] = []

        async def delete(batch: Sequence[str]) -> None:
            try:
                failures.extend((await self._store.delete_many(batch)).values())
                self.handled += len(batch)
            except StoreError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for start in range(0, len(keys), DELETE_BATCH):
                nursery.start_soon(delete, keys[start : start + DELETE_BATCH])
        if failures:
            raise failures[0]

    async def _pages(self, prefix: str) -> AsyncIterator[Sequence[ListedObject]]:
        token: str | None = None
        while True:
            page = await self._store.list_page(prefix, token=token, flat=True)
            self.handled += len(page.objects)
            yield page.objects
            token = page.token
            if token is None:
                return

    async def _copy_all(
        self, objects: Sequence[ListedObject], old: str, new: str, moved: dict[str, str]
    ) -> None:
        errors: list[StoreError] = []
        queue = iter(objects)

        async def work() -> None:
            for listed in queue:
                target = new + listed.key[len(old) :]
                try:
                    moved[target] = (
                        await copy_object(self._store, self._journal, listed, target)
                    ).etag
                    self.handled += 1
                except StoreError as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL_COPIES, len(objects))):
                nursery.start_soon(work)
        if errors:
            raise errors[0]


def _directories_of(key: str, prefix: str) -> Iterator[str]:
    """The directories below *prefix* that *key* is in, or is the marker of."""
    end = key.rfind("/", len(prefix))
    while end >= 0:
        yield key[: end + 1]
        end = key.rfind("/", len(prefix), end)


def _latest_ns(record: TreeRecord) -> int:
    # The clocks of the store and of this machine may differ by a little.
    return int((record.time + CLOCK_LEEWAY) * 1e9)


async def copy_object(
    store: ObjectStore,
    journal: Journal,
    source: ListedObject,
    target: str,
    condition: Precondition = ALWAYS,
) -> Stored:
    """Copy one object with its metadata, in parts where it is too large for one request."""
    if source.size <= MAX_COPY_SIZE:
        try:
            return await store.copy(
                source.key,
                target,
                headers=None,
                source_etag=source.etag,
                condition=condition,
                size=source.size,
                stored_as=lasting({CLASS: source.storage_class or STANDARD}),
            )
        except (NotFound, InvalidRequest):
            if source.size or not source.key.endswith("/"):
                raise
            # SeaweedFS shows the marker of a directory everywhere, and cannot copy it; versitygw
            # copies none.
            headers = await _headers(store, source.key)
            return await store.put(target, [], headers=headers, condition=condition)
    headers = await _headers(store, source.key)
    upload_id, note = await begin_upload(store, journal, target, headers)
    try:
        parts = await _copy_parts(store, source, target, upload_id)
        stored = await store.complete_upload(target, upload_id, parts, condition=condition)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await store.abort_upload(target, upload_id)
            note.done()
        raise
    note.done()
    return stored


async def _copy_parts(
    store: ObjectStore, source: ListedObject, target: str, upload_id: str
) -> Sequence[PartDone]:
    """Copy an object part by part, many at a time."""
    done: dict[int, PartDone] = {}
    failures: list[StoreError] = []
    step = copy_part_size(source.size)
    slots = trio.CapacityLimiter(PARALLEL_COPIES)

    async def copy(number: int, start: int) -> None:
        stop = min(start + step, source.size)
        try:
            async with slots:
                done[number] = await store.copy_part(
                    target,
                    upload_id,
                    number,
                    source=source.key,
                    start=start,
                    stop=stop,
                    source_etag=source.etag,
                )
        except StoreError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number, start in enumerate(range(0, source.size, step), 1):
            nursery.start_soon(copy, number, start)
    if failures:
        raise failures[0]
    return [done[number] for number in sorted(done)]


async def _headers(store: ObjectStore, key: str) -> dict[str, str]:
    """What an object says about itself, as a new one is told it."""
    headers = dict(kept_headers(await store.head(key), ours=()))
    headers.setdefault("content-type", "application/octet-stream")
    return headers
