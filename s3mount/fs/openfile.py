"""One file that is open or not saved yet: what becomes of its bytes and attributes."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from s3mount.attributes import Attributes
from s3mount.cache.blocks import ObjectVersion
from s3mount.errors import (
    Changed,
    Exists,
    NotFound,
    PosixError,
    StoreError,
    Unavailable,
    disk_failed,
)
from s3mount.fs.filebytes import STREAM_AFTER, FileBytes
from s3mount.fs.headers import differs, kept_headers
from s3mount.s3.store import (
    ABSENT,
    ALWAYS,
    MAX_COPY_SIZE,
    Body,
    Precondition,
    Stored,
    expecting,
)
from s3mount.storing import renewed
from s3mount.write.extents import ByteRange, Extents, Part, plan_parts
from s3mount.write.notes import forget, intend_removal
from s3mount.write.records import (
    FAILED,
    INLINE_SIZE,
    PENDING,
    Base,
    FileRecord,
    Piece,
    SentPart,
    UploadRecord,
)
from s3mount.write.staging import StagedFile
from s3mount.write.upload import CopySource, Upload

log = logging.getLogger(__name__)

# Somebody else was faster: what a change began from is not there any more, or a name is taken.
CONFLICTS = (Changed, Exists, NotFound)


class OpenFile(FileBytes):
    """One file that is open or unsaved; all its handles, and everything unsaved, share it."""

    # -- saving ----------------------------------------------------------------------------

    async def save(self) -> Stored | None:
        """Make the store have everything; None when there was nothing to do.

        Raises `StoreError`; what could not be saved stays, and is tried again next time, unless
        it was given up.
        """
        async with self._workshop.trees.changing(lambda: self.inode.key), self.lock:
            return await self._save() if self.dirty else None

    async def save_as_renamed(self, expected: Precondition) -> Stored:
        """Make the store have the file under the key that its inode has by now.

        *expected* is what it replaces there.  The object under the old key, if there is one, is for
        the caller to delete.
        """
        async with self.lock:
            self.condition = ALWAYS  # It was about the old key, and rename(2) replaces.
            self.expected = expected
            return await self._save()

    def refuse(self, error: StoreError) -> None:
        """Take note of why the store did not take it, and whether it ever will."""
        self.error = error
        if isinstance(error, CONFLICTS):
            self.given_up = self.changed
            if not self.changed:  # They are about a version that is not there any more.
                self.unsaved_attributes = False

    async def _save(self) -> Stored:
        if self.given_up and self.error is not None:
            raise self.error
        began_ns = time.time_ns()
        try:
            try:
                stored = await self._save_what_changed()
            except CONFLICTS:
                if not await self._is_no_conflict():
                    raise
                stored = await self._save_what_changed()
        except StoreError as error:
            self.refuse(error)
            raise
        except OSError as error:
            log.error("%s: staging failed: %s", self.inode.key, error)
            raise disk_failed(error) from error
        self.error = None
        self.written = stored.between(began_ns)
        return stored

    async def _save_what_changed(self) -> Stored:
        return await (self._save_bytes() if self.changed else self._save_attributes())

    async def _is_no_conflict(self) -> bool:
        """Whether nobody else was faster after all; then the next attempt goes on from there.

        An earlier attempt of ours may have been done though nobody heard of it.
        """
        own = await self._workshop.store.own_version(self.inode.key)
        if own is not None:
            log.info("%s: it had been saved though that seemed to fail", self.inode.key)
            returned = self._take_returned()
            if self.base is not None or returned:
                # Bytes that are not staged are the same in both.
                self.base = ObjectVersion(self.inode.key, own.etag, own.size)
            self.stored_key = self.inode.key
            if self.changed:
                self.condition = Precondition(etag=own.etag)
            return True
        if self.condition.absent:
            try:
                await self._workshop.store.head(self.inode.key)
            except NotFound:
                # SeaweedFS takes a directory that has lost its last object for one of its name.
                self.condition = ALWAYS
                return True
        return False

    def _wanted(self) -> Precondition:
        """What a new version is put over."""
        return self.expected if self.condition == ALWAYS else self.condition

    async def _save_bytes(self) -> Stored:
        key, headers, attributes = self.inode.key, self.headers(), self.attributes
        if self._upload is not None and self._upload.key != key:
            if self._is_dropped(0, 1 << 62):
                return await self._save_elsewhere(self._upload.key, key)
            await self._drop_upload()
        size = self.size
        if self._upload is None and size < STREAM_AFTER * self._workshop.grid.base_size:
            stored = await self._put_whole(key, headers, size)
        else:
            stored = await self._put_parts(key, headers, size, self._wanted())
        # No checkpoint from here on: the store has it, so must we.
        self._adopt(key, stored, size, attributes)
        return stored

    async def _save_elsewhere(self, began: str, key: str) -> Stored:
        """Complete what began under another name, because its bytes are not here any more."""
        size, attributes = self.size, self.attributes
        condition = ALWAYS if self.stored_key == began else ABSENT  # What is there may be ours.
        if self.base is not None and self.base.key == began:
            condition = Precondition(etag=self.base.etag)
        stored = await self._put_parts(began, self.headers(), size, condition)
        self._adopt(began, stored, size, attributes)
        self.unsaved_attributes = True  # Until the copy is where it belongs.
        return await self._save_attributes()

    def _adopt(self, key: str, stored: Stored, size: int, attributes: Attributes) -> None:
        declared = self._upload.headers if self._upload is not None else None
        self.base = ObjectVersion(key, stored.etag, size)
        self._stored_at(key)
        self._kept_as(stored)
        self._kept_by_rule(key)
        self.condition = self.expected = ALWAYS
        self._upload = None
        self._running.clear()
        self._generation += 1
        self.forget_record()
        self._drop_staged()
        self.stored_attributes = attributes if declared is None else None
        self.unsaved_attributes = self.attributes != attributes or (
            declared is not None and differs(self.headers(), declared, self.attributes.mtime_ns)
        )

    def _kept_as(self, stored: Stored) -> None:
        """Take note of how the object is stored now: its next copy has to say so."""
        if self.kept is not None and stored.stored_as is not None:
            self.kept = renewed(self.kept, stored.stored_as)

    def _kept_by_rule(self, key: str) -> None:
        """What a rule made the object say of itself goes with it, whatever it is called later."""
        said = self._workshop.header_rules.headers(key)
        if said and self.kept is not None:
            self.kept = {**said, **self.kept}

    def _stored_at(self, key: str) -> None:
        if self.stored_key not in ("", key):
            journal, old = self._workshop.journal, self.stored_key
            noted = intend_removal(journal, old, self.inode.shown) if self.record else ""
            self.obsolete[old] = noted
        if record := self.obsolete.pop(key, ""):  # It is where it was before, again.
            forget(self._workshop.journal, record)
        self.stored_key = key

    async def _put_whole(self, key: str, headers: Mapping[str, str], size: int) -> Stored:
        body: Body = []
        crc = None
        if size:
            staged = self._stage()
            await self._fill(staged, 0, size)
            body = staged.body(0, size)
            crc = self._running.of(0, size)
        return await self._workshop.store.put(
            key, body, headers=headers, condition=self._wanted(), crc=crc
        )

    async def _put_parts(
        self, key: str, headers: Mapping[str, str], size: int, condition: Precondition
    ) -> Stored:
        if self._upload is None:
            self._upload = self._new_upload(key, headers)
        staged, upload = self._stage(), self._upload
        source = CopySource(self.base.key, self.base.etag) if self.base is not None else None
        try:
            return await upload.finish(
                lambda: self._plan(staged, size, upload), self._part_body, source, condition
            )
        except (StoreError, PosixError, OSError) as error:
            if staged.dropped:
                raise
            await self._drop_upload()
            if isinstance(error, NotFound) and error.code == "NoSuchUpload":
                # Somebody has aborted it; everything is still here for another one.
                raise Unavailable(str(error), code=error.code, status=error.status) from error
            raise

    def _plan(self, staged: StagedFile, size: int, upload: Upload) -> Sequence[Part]:
        if self._workshop.store.capabilities.copy_part:
            return upload.plan(size, staged, self._workshop.grid)
        everything = Extents()
        everything.add(0, size)
        return plan_parts(size, 0, everything, self._workshop.grid)

    async def _part_body(self, part: ByteRange) -> tuple[Body, int | None]:
        staged = self._stage()
        await self._fill(staged, part.start, part.stop)
        index = self._workshop.grid.index(part.start)
        aligned = self._workshop.grid.cell(index).start == part.start
        crc = self._running.of(index, part.stop) if aligned else None
        return staged.body(part.start, part.stop), crc

    async def _save_attributes(self) -> Stored:
        assert self.base is not None
        key, attributes = self.inode.key, self.attributes
        source = self.base
        if self.kept is None and source.key == key:
            # Nobody has asked yet what the object says about itself, and a copy onto itself
            # has to say all of it anew.
            self.kept = kept_headers(await self._workshop.store.head(key))
        if source.size > MAX_COPY_SIZE:
            headers: Mapping[str, str] | None = self.headers()
            stored = await self._copy_large(source, key, self.headers())
        else:
            # Where nobody has asked what the object says about itself, it keeps saying it.
            headers = None if self.kept is None else self.headers()
            stored = await self._workshop.store.copy(
                source.key, key, headers=headers, source_etag=source.etag, size=source.size
            )
        self.base = ObjectVersion(key, stored.etag, source.size)
        self._stored_at(key)
        self._kept_as(stored)
        self.stored_attributes = None if headers is None else attributes
        self.unsaved_attributes = self.attributes != attributes
        return stored

    async def _copy_large(
        self, source: ObjectVersion, key: str, headers: Mapping[str, str]
    ) -> Stored:
        upload = self._new_upload(key, headers)
        parts = plan_parts(source.size, source.size, Extents(), self._workshop.grid)
        try:
            return await upload.finish(
                lambda: parts, self._part_body, CopySource(source.key, source.etag), ALWAYS
            )
        except StoreError:
            await upload.abort()
            raise

    # -- other fates -----------------------------------------------------------------------

    async def keep_content(self) -> None:
        """Stage all bytes: the object is about to go, but open handles still need them."""
        if self.readers and self._is_dropped(0, 1 << 62):
            try:
                await self._bring_home()
            except PosixError:
                if not self.given_up:
                    raise
        async with self.lock:
            if self.base is None or self.readers == 0:
                return
            staged = self._stage()
            try:
                await self._fill(staged, 0, min(self.size, staged.base_limit))
            except (StoreError, PosixError) as error:
                log.warning("%s: cannot be kept for its readers: %s", self.base.key, error)

    def detach(self) -> None:
        """The name is gone: the bytes live on for open handles, and nothing is saved."""
        self.unlinked = True
        self._detached = True
        self.forget_record()
        if self._upload is not None:
            self._workshop.nursery.start_soon(self._drop_upload)

    def close(self) -> None:
        """Drop the staged bytes."""
        self._drop_staged()

    def _drop_staged(self) -> None:
        if self._staged is not None:
            # What the journal speaks of is removed when it does so no more, on the disk.
            secured = bool(self._staged.secured)
            self._staged.close(self._workshop.journal.discard if secured else Path.unlink)
            self._staged = None

    # -- the journal -----------------------------------------------------------------------

    @property
    def acknowledged(self) -> bool:
        """Whether the journal has the file as it is."""
        return self._recorded is not None and self._recorded == self._mark()

    @property
    def recorded_bytes(self) -> bool:
        """Whether the journal has the bytes as they are; the attributes may have changed since."""
        return self._recorded is not None and self._recorded[0] == self._generation

    @property
    def is_kept(self) -> bool:
        """Whether people can have the bytes as they are, since they were given up."""
        return self._kept_generation == self._generation

    @property
    def is_here(self) -> bool:
        """Whether all that is unsaved is here, so that the journal can have it."""
        return self._upload is None and not (self._staged is not None and self._staged.dropped)

    @property
    def recorded_condition(self) -> Precondition:
        """Over what a crash would have it uploaded."""
        return ALWAYS if self._recorded is None else self._recorded[-1]

    def _mark(self) -> tuple[int, Attributes, str, str, Precondition]:
        return (self._generation, self.attributes, self.inode.key, self.stored_key, self.condition)

    async def acknowledge(self) -> None:
        """Return when the journal has everything, on the disk.

        Raises `OSError`, and `StoreError` when the file was given up.
        """
        async with self.lock:
            if self.given_up and self.error is not None:
                raise self.error
            if self.dirty and not self.acknowledged:
                if self.recorded_bytes:
                    self.note()
                else:
                    await self.write_record()
        await self._workshop.journal.commit()

    def note(self) -> None:
        """Tell the journal what has changed beside the bytes.  Raises `OSError`."""
        fields = self._describe().fields()
        for name in ("pieces", "staged", "size", "base_limit"):
            del fields[name]
        self._workshop.journal.change(self.record, fields)
        self._recorded = self._mark()

    async def write_record(self, state: str = PENDING) -> None:
        """Tell the journal of everything; for who holds the lock.  Raises `OSError`."""
        staged, pieces, blob = self._staged, [], b""
        if staged is not None and (staged.extents.total > INLINE_SIZE or staged.dropped):
            pieces = list(await staged.secure())
        elif staged is not None:
            pieces = [Piece(extent.start, extent.stop, 0) for extent in staged.extents]
            blob = b"".join(staged.read(piece.start, piece.stop) for piece in pieces)
        # No checkpoint from here on: what is described is what is recorded.
        where = "" if staged is None or staged.path is None or blob else staged.path.name
        record = self._describe(pieces, where, state)
        self.record = self.record or secrets.token_hex(8)
        self._workshop.journal.put(self.record, record.fields(), blob)
        self._recorded = self._mark()
        for path in self._superseded:
            self._workshop.journal.discard(path)
        self._superseded.clear()

    def _describe(
        self, pieces: Sequence[Piece] = (), staged: str = "", state: str = PENDING
    ) -> FileRecord:
        base = self.base
        return FileRecord(
            key=self.inode.key,
            size=self.size,
            attributes=self.attributes,
            kept=self.kept,
            base=None if base is None else Base(base.key, base.etag, base.size),
            base_limit=self._staged.base_limit if self._staged is not None else 0,
            condition=self.condition,
            expected=self.expected.etag or "",
            stored_key=self.stored_key,
            pieces=pieces,
            staged=staged,
            state=state,
            reason=str(self.error or ""),
            time=time.time(),
        )

    def forget_record(self) -> None:
        """The journal need not know of this file any more."""
        if self.record:
            forget(self._workshop.journal, self.record)
            for path in self._superseded:
                self._workshop.journal.discard(path)
            self._superseded.clear()
            self.record, self._recorded = "", None

    @property
    def kept_key(self) -> str:
        """What people find it under: parts that have left belong to one key for ever."""
        upload = self._upload
        return upload.key if upload and self._is_dropped(0, 1 << 62) else self.inode.key

    async def keep(self) -> bool:
        """Have people find unsaved bytes by ``s3mount recover``; False when there are none.

        Nobody may write meanwhile.  Raises `OSError` when the disk does not take them.
        """
        if self._staged is None and not self.record:
            self._kept_generation = self._generation
            return False
        journal = self._workshop.journal
        with trio.CancelScope(shield=True):
            taken = bool(self.record) and self.record not in journal  # By a person, meanwhile.
            if not self.recorded_bytes:
                if taken and self._staged is not None and self._staged.path is not None:
                    await self._staged.fork()  # The file on the disk went with the record.
                await self.write_record(FAILED)
            elif not taken:
                journal.change(self.record, {"state": FAILED, "reason": str(self.error or "")})
            if self._upload is not None and self._is_dropped(0, 1 << 62):
                sent = {"upload": self._upload.id, "sent": self._upload.sent()}
                journal.change(self.record, {"key": self.kept_key, **sent})
                self._upload.let_go()
                self._upload = None
            await journal.commit()
        self._kept_generation = self._generation
        return True

    def leave(self) -> None:
        """Let go of the bytes, which the journal names."""
        if self._staged is not None:
            self._staged.close(lambda path: None)
            self._staged = None
        self.record, self._recorded = "", None

    def restore(self, name: str, record: FileRecord, staged: StagedFile) -> None:
        """Be as an earlier daemon left this file in its journal."""
        self._staged = staged
        self.record = name
        self.size = record.size
        self.condition = record.condition
        # The dead daemon may have uploaded it, or be heard only now.
        self.stored_key = record.stored_key or record.key
        self._recorded = self._mark()

    def found(self, etag: str) -> None:
        """The store has it already: only that was not written down any more."""
        self._adopt(self.inode.key, Stored(etag), self.size, self.attributes)

    def resume(self, upload: UploadRecord, sent: Sequence[SentPart]) -> None:
        """Go on with the upload of this file that an earlier daemon began."""
        self._upload = self._new_upload(upload.key, upload.headers)
        self._upload.resume(upload.upload, sent)

    def rebase(self, key: str, etag: str) -> None:
        """The object has been copied to *key*, with the tree that it is in."""
        self.stored_key = key
        if self.base is not None:
            self.base = ObjectVersion(key, etag, self.base.size)
        if self.condition.etag is not None:
            self.condition = Precondition(etag=etag)
        if self.expected.etag is not None:
            self.expected = expecting(etag)
