"""Files that are open or unsaved: saves them, tries again, and lets go of them in the end."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import NamedTuple

import trio

from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import Entry, MetaCache
from s3mount.errors import (
    Changed,
    Denied,
    Exists,
    InvalidName,
    InvalidRequest,
    NotFound,
    PosixError,
    StoreError,
    TooLarge,
)
from s3mount.fs.inodes import Inode, InodeTable
from s3mount.fs.markers import ATTRIBUTE_DELAY
from s3mount.fs.openfile import CONFLICTS, OpenFile
from s3mount.fs.workshop import Workshop
from s3mount.fs.writeback import LOST_ERRORS, WriteBack
from s3mount.s3.store import ALWAYS, Precondition
from s3mount.write.notes import forget, intend_removal
from s3mount.write.records import over

log = logging.getLogger(__name__)

# Later attempts would fail in the same way; everything else may be over by then.
FINAL_ERRORS = (Changed, Exists, Denied, TooLarge, InvalidRequest, InvalidName, NotFound)
RETRY_FIRST, RETRY_MOST = 1.0, 4.0  # Seconds: saved within 5 s of the store's return.


class KeptFile(NamedTuple):
    """One file that only `s3mount recover` has, and why."""

    key: str
    size: int
    reason: str


class OpenFiles:
    """All files that somebody has open, or that the store does not have as they are.

    `by_inode` holds each of them once, and its inode is pinned for as long.
    """

    def __init__(
        self, workshop: Workshop, inodes: InodeTable, cache: MetaCache, index: AttributeIndex
    ) -> None:
        self.by_inode: dict[Inode, OpenFile] = {}
        self._index = index
        self._workshop = workshop
        self._inodes = inodes
        self._cache = cache
        self._retried: set[OpenFile] = set()
        self._keeping: set[OpenFile] = set()
        self._kept = trio.lowlevel.ParkingLot()
        self._for_people: dict[str, KeptFile] = {}  # By the names of their records.
        self._forget_name: Callable[[Inode], None] = lambda inode: None
        backlog = workshop.backlog
        self.writeback: WriteBack | None = None
        if backlog.max_size:
            self.writeback = WriteBack(backlog, workshop.nursery, self.save, self.settle)
            workshop.nursery.start_soon(self.writeback.run)

    def tell_stale_names_to(self, forget_name: Callable[[Inode], None]) -> None:
        """Whom to tell of an inode whose name stands for what somebody else has put there."""
        self._forget_name = forget_name

    def add(self, file: OpenFile) -> None:
        """Take a file in."""
        self.by_inode[file.inode] = file
        self._inodes.pin(file.inode)

    @contextmanager
    def held(self, file: OpenFile) -> Iterator[OpenFile]:
        """Keep a file here while somebody works on it, however long that has to wait.

        Else a save in the background might let go of it meanwhile, and its inode would get a
        second one.  No checkpoint may be between looking for the file and this.
        """
        file.handles += 1
        try:
            yield file
        finally:
            file.handles -= 1
            self.settle(file)

    async def save(self, file: OpenFile) -> None:
        """Save a file, and take note of what the store has now."""
        newer = bool(file.record) and not file.recorded_bytes
        try:
            async with self.giving_way(file) if newer else nullcontext():
                stored = await file.save()
        except CONFLICTS:
            self.lost(file)
            raise
        if stored is not None:
            self.saved(file)
            try:
                await self.remove_obsolete(file, ALWAYS)
            except StoreError as error:
                log.warning("%s: its old object is left: %s", file.inode.key, error)
                file.obsolete.clear()  # The next mount removes it, if the journal says so.
        if self.writeback is not None and not file.dirty:
            self.writeback.drop(file)

    async def remove_obsolete(self, file: OpenFile, condition: Precondition) -> None:
        """Delete what a file has left under names that it had before.  Raises `StoreError`.

        The journal hears of it first: after a crash it would bring back what was there before,
        or put what the file has replaced over it, and nothing would be left of the file.
        """
        if file.obsolete and (self.writeback is not None or any(file.obsolete.values())):
            await self.forgotten()
        while file.obsolete:
            key = next(iter(file.obsolete))
            await self._workshop.store.delete(key, condition=condition)
            if record := file.obsolete.pop(key, ""):
                forget(self._workshop.journal, record)

    def leave_obsolete(self, file: OpenFile) -> None:
        """Leave what a file has under names that it had before: others may use those by now."""
        for record in filter(None, file.obsolete.values()):
            forget(self._workshop.journal, record)
        file.obsolete.clear()

    @asynccontextmanager
    async def giving_way(self, file: OpenFile) -> AsyncIterator[None]:
        """Let something else be put at the name of *file* than what the journal has of it.

        After a crash that is brought back over whatever is there: nobody else has put it there.
        """
        journal, before = self._workshop.journal, file.recorded_condition
        if before == ALWAYS:
            yield
            return
        try:
            journal.change(file.record, {**over(ALWAYS), "time": time.time()})
            await journal.commit()
        except OSError as error:
            log.warning("%s: a crash leaves it to `s3mount recover`: %s", file.inode.key, error)
        try:
            yield
        except BaseException:
            if file.record:
                with suppress(OSError):
                    journal.change(file.record, over(before))
            raise

    async def learn_stored(self, file: OpenFile) -> None:
        """Have ``inode.shown`` tell what the store has of a file that the journal has, too.

        It may be another object than the one that was seen under its name: what a file was renamed
        over, before it was ever stored itself.  Raises `StoreError`.
        """
        if not file.record or not file.stored_key:
            return
        etag = _stored_etag(file)
        if not etag:
            with suppress(NotFound):
                etag = (await self._workshop.store.head(file.stored_key)).etag
        file.inode.shown = _stored_etag(file) or etag

    @asynccontextmanager
    async def removing(self, file: OpenFile) -> AsyncIterator[None]:
        """Let the object of a file be deleted inside the block; then its name is gone.

        The journal hears of it first: else its bytes would be those of a file that somebody has
        removed, after a crash.  Where the deletion fails it has them again.
        """
        with self.held(file):
            await file.keep_content()
            async with file.lock:  # What is saved meanwhile would bring the object back.
                noted = await self._intend_removal(file)
                try:
                    yield
                except BaseException:
                    if noted:
                        await self._take_removal_back(file, noted)
                    raise
                file.detach()
            await self.forgotten()
            if noted:
                forget(self._workshop.journal, noted)

    async def _intend_removal(self, file: OpenFile) -> str:
        """Replace the record of a file by that of its removal, whose name is returned."""
        if not file.recorded_bytes or not file.stored_key:
            return ""
        await self.learn_stored(file)
        if noted := intend_removal(self._workshop.journal, file.stored_key, file.inode.shown):
            file.forget_record()
            await self.forgotten()
        return noted

    async def _take_removal_back(self, file: OpenFile, noted: str) -> None:
        with trio.CancelScope(shield=True):
            try:
                await file.write_record()
                forget(self._workshop.journal, noted)
                await self._workshop.journal.commit()
            except OSError as error:
                log.warning("%s: a crash would lose it: %s", file.inode.key, error)
        if self.writeback is not None:
            self.writeback.add(file)  # Its turn may have come and gone meanwhile.

    async def make_safe(self, file: OpenFile) -> None:
        """What close(2) and fsync(2) promise: the store has it, or the journal."""
        writeback = self.writeback if file.dirty and file.changed else None
        if writeback is None or not writeback.takes(file) or not await writeback.acknowledge(file):
            await self.save(file)
            # What the journal had of the file, or of one that this replaces, is older.
            await self.forgotten()

    async def keep(self, file: OpenFile) -> None:
        """Return when what was given up of a file is on the disk, as far as it takes it."""
        self.settle(file)
        while file in self._keeping:
            await self._kept.park()

    async def _make_safe_later(self, file: OpenFile) -> None:
        try:
            await self.make_safe(file)
        except (StoreError, PosixError) as error:
            log.info("%s: not saved: %s", file.inode.key, error)
            self.settle(file)

    async def renamed(self, prefix: str) -> None:
        """Tell the journal of files that were closed while their directory became *prefix*."""
        for file in list(self.by_inode.values()):
            known = file.dirty and file.recorded_bytes and not file.acknowledged
            if known and not file.inode.gone and file.inode.key.startswith(prefix):
                try:
                    await self.make_safe(file)
                except (StoreError, PosixError) as error:
                    self._workshop.report(file.inode.key, error)
                    self.settle(file)

    async def forgotten(self) -> None:
        """Return when what the journal need not know of any more will not come back."""
        try:
            await self._workshop.journal.commit_removals()
        except OSError as error:
            log.warning("after a crash a removed or older file may come back: %s", error)

    def saved(self, file: OpenFile) -> None:
        """Take note of what the store has now."""
        inode = file.inode
        if inode.gone or inode.parent is None or file.base is None:
            return
        inode.shown = file.base.etag
        prefix, segment, now = inode.parent.prefix, inode.segment, self._cache.clock()
        entry = Entry(
            False,
            file.base.size,
            file.base.etag,
            0,
            file.attributes,
            now,
            kept=file.kept,
            written=file.written,
        )
        self._cache.put_own(prefix, segment, entry)
        if file.stored_attributes is not None:
            self._index.remember(prefix, segment, entry._replace(attributes=file.stored_attributes))

    def lost(self, file: OpenFile) -> None:
        """The object under an open file is not that any more: who opens the name next asks."""
        inode = file.inode
        if inode.parent is not None and not inode.gone and not file.dirty:
            self._drop_name(inode)

    def _drop_name(self, inode: Inode) -> None:
        if inode.parent is not None and not inode.gone:
            self._cache.drop(inode.parent.prefix, inode.segment)
            self._inodes.detach(inode)
            self._forget_name(inode)

    def settle(self, file: OpenFile) -> None:
        """Decide what becomes of a file that was given up, or may have lost its last handle."""
        if self.by_inode.get(file.inode) is not file or file in self._keeping:
            return
        if file.given_up and file.changed and not file.is_kept:
            self._give_up(file)
        if file.handles or file in self._keeping:
            self._try_while_read(file)
            return
        if file.dirty and file.changed:
            if not self._give_up(file):
                self._try_later(file)
            return
        if file.dirty:
            self._workshop.nursery.start_soon(self._save_attributes_later, file)
            return
        if self.writeback is not None:
            self.writeback.drop(file)
        del self.by_inode[file.inode]
        file.close()
        self._inodes.unpin(file.inode)

    def _try_while_read(self, file: OpenFile) -> None:
        """Whoever writes to a file saves it; whoever reads it may do so for days."""
        failed = file.dirty and file.changed and file.error is not None
        if failed and not file.writers and not _is_lost(file):
            self._try_later(file)

    def _try_later(self, file: OpenFile) -> None:
        if self.writeback is not None and file.record and file.is_here:
            if not file.acknowledged:  # An attribute was changed after the close.
                self._workshop.nursery.start_soon(self._make_safe_later, file)
            return
        if file not in self._retried:
            self._retried.add(file)
            self._workshop.nursery.start_soon(self._save_until_saved, file)

    def _give_up(self, file: OpenFile) -> bool:
        """Whether no later attempt can save a file; its bytes are kept for people, then."""
        if not _is_lost(file):
            return False
        file.given_up = True
        if self.writeback is not None:
            self.writeback.drop(file)
        self._keeping.add(file)
        self._workshop.nursery.start_soon(self._keep, file, file.kept_key, str(file.error))
        self._drop_name(file.inode)
        return True

    async def _keep(self, file: OpenFile, key: str, reason: str) -> None:
        """Keep a file as it is now; what is written later is kept by a later close.

        Nobody writes while the lock is held, so all that was written before a close that finds
        us here is kept when we are done.
        """
        with trio.CancelScope(shield=True):
            try:
                async with file.lock:
                    known = file.is_kept or file.unlinked
                    found = not known and await file.keep()
                if found:
                    self.note_kept(file.record, KeptFile(key, file.size, reason))
                if not known:
                    what = "`s3mount recover` has what was written" if found else "it was empty"
                    log.error("%s: %s; %s", key, reason, what)
            except OSError as error:
                log.error("%s: %s; and it cannot be kept: %s", key, reason, error)
            finally:
                self._keeping.discard(file)
                self._kept.unpark_all()
        if not file.handles:
            if file.is_kept:
                file.leave()
            file.detach()
            self.settle(file)

    def note_kept(self, record: str, file: KeptFile) -> None:
        """Take note of a record in the journal that only a person can decide about."""
        self._for_people[record] = file

    def for_people(self) -> Sequence[KeptFile]:
        """The files that `s3mount recover` has of this mount."""
        journal = self._workshop.journal
        self._for_people = {r: file for r, file in self._for_people.items() if r in journal}
        return list(self._for_people.values())

    async def all_kept(self) -> None:
        """Return when everything that was given up is on the disk."""
        while self._keeping:
            await self._kept.park()

    async def _save_until_saved(self, file: OpenFile) -> None:
        """The store did not answer in time: go on trying, for as long as nobody else does."""
        delay = RETRY_FIRST
        try:
            while file.dirty and not _is_lost(file):
                await trio.sleep(delay)
                delay = min(2 * delay, RETRY_MOST)
                if file.writers:
                    return  # Whoever has opened it will save it.
                try:
                    await self.save(file)
                except (StoreError, PosixError) as error:
                    log.info("%s: still not saved: %s", file.inode.name, error)
        finally:
            self._retried.discard(file)
        self.settle(file)

    async def _save_attributes_later(self, file: OpenFile) -> None:
        """Wait for the other half of ``chmod; chown; touch``, then write them once."""
        await trio.sleep(ATTRIBUTE_DELAY)
        if file.handles or not file.dirty:
            return
        try:
            await self.save(file)
        except CONFLICTS as error:
            log.warning("%s: its attributes could not be saved: %s", file.inode.key, error)
        except (StoreError, PosixError) as error:
            file.unsaved_attributes = False
            self._workshop.report(file.inode.key, error)
        self.settle(file)


def _stored_etag(file: OpenFile) -> str:
    """The ETag of what the store has at `stored_key`; empty where nobody has told us."""
    if file.base is not None and file.base.key == file.stored_key:
        return file.base.etag
    return file.condition.etag or file.expected.etag or ""


def _is_lost(file: OpenFile) -> bool:
    """Whether no later attempt can save a file.

    Where a program was told that the journal has it, there is hope for longer.
    """
    return isinstance(file.error, LOST_ERRORS if file.record else FINAL_ERRORS)
