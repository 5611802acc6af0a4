"""After a crash: shows what was acknowledged, and finishes what was begun."""

from __future__ import annotations

import logging

import trio

from s3mount.attributes import META, encode
from s3mount.cache.blocks import ObjectVersion
from s3mount.errors import Changed, NotFound, PosixError, StoreError
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode
from s3mount.fs.names import to_name
from s3mount.fs.openfile import OpenFile
from s3mount.fs.tree import CLOCK_LEEWAY, TreeMover
from s3mount.fs.unsaved import KeptFile
from s3mount.fs.workshop import Workshop
from s3mount.s3.store import ALWAYS, EXPECTING_NOTHING, ObjectInfo, expecting
from s3mount.write.keeper import restored
from s3mount.write.notes import forget
from s3mount.write.orphans import abort_unnamed
from s3mount.write.records import PENDING, UNDOING, FileRecord, RemovalRecord, UploadRecord
from s3mount.write.resuming import verified_parts
from s3mount.write.takeover import Left

log = logging.getLogger(__name__)

PARALLEL = 16


class Recovery:
    """Brings what dead daemons left back into a `FileSystem`.

    The journal of this mount has it all already.
    """

    def __init__(
        self, filesystem: FileSystem, workshop: Workshop, left: Left, mover: TreeMover
    ) -> None:
        self._fs = filesystem
        self._workshop = workshop
        self._store = workshop.store
        self._left = left
        self._mover = mover
        self._files: list[tuple[OpenFile, FileRecord]] = []

    async def prepare(self) -> None:
        """Make names and bytes right, before anybody looks."""
        for name, tree in self._left.trees.items():
            undone = tree.phase == UNDOING
            end = "undone" if undone else "brought to its end"
            log.warning("%s: its renaming to %s is %s", tree.old, tree.new, end)
            try:
                await self._mover.finish(name, tree)
                self._fs.namespace.directories.doubt(tree.new if undone else tree.old)
            except (StoreError, PosixError) as error:
                log.error("%s and %s: this has to wait: %s", tree.old, tree.new, error)
        for name, removal in self._left.removals.items():
            await self._remove(name, removal)
        for name, record in self._left.files.items():
            if record.state == PENDING:
                self._restore(name, record, self._left.blobs[name])
            else:
                kept = KeptFile(record.key, record.size, record.reason)
                self._fs.open_files.note_kept(name, kept)
                log.warning(
                    "%s: not uploaded (%s); see `s3mount recover`", record.key, record.reason
                )
        if self._files:
            log.warning("%d files of an earlier mount are uploaded now", len(self._files))

    async def _remove(self, name: str, removal: RemovalRecord) -> None:
        """Delete the old object of a file that had been changed and was then being renamed."""
        try:
            info = await self._store.head(removal.key)
            latest = (removal.time + CLOCK_LEEWAY) * 1e9
            if info.etag == removal.etag and info.modified_ns <= latest:
                await self._store.delete(removal.key, condition=expecting(info.etag))
        except (NotFound, Changed):
            pass  # It is gone, or somebody has another one there.
        except StoreError as error:
            log.error("%s was renamed, and its old object has to wait: %s", removal.key, error)
            return
        forget(self._workshop.journal, name)

    def _restore(self, name: str, record: FileRecord, blob: bytes) -> None:
        workshop = self._workshop
        try:
            staged = restored(workshop.staging, workshop.budget, record, blob)
        except OSError as error:
            log.error("%s: its staged bytes cannot be read: %s", record.key, error)
            return  # The record stays, for the next mount, or for a person.
        inode = self._inode_of(record.key)
        base = None
        if record.base is not None:
            base = ObjectVersion(record.base.key, record.base.etag, record.base.size)
        file = OpenFile(workshop, inode, record.attributes, base, record.kept)
        file.restore(name, record, staged)
        self._fs.open_files.add(file)
        self._files.append((file, record))

    def _inode_of(self, key: str) -> Inode:
        inodes = self._fs.inodes
        node = inodes.root
        *above, last = key.split("/")
        for segment in above:
            node = inodes.obtain(node, to_name(segment), segment, directory=True)
        return inodes.obtain(node, to_name(last), last, directory=False)

    async def run(self) -> None:
        """Upload what was acknowledged, and abort uploads that nobody will complete."""
        slots = trio.CapacityLimiter(PARALLEL)
        resumed = {record.file: name for name, record in self._left.uploads.items() if record.file}
        async with trio.open_nursery() as nursery:
            for file, record in self._files:
                upload = resumed.pop(file.record, None)
                nursery.start_soon(self._finish, file, record, upload, slots)
            kept = {file.record for file, _ in self._files}
            for name, orphan in self._left.uploads.items():
                if not orphan.upload:
                    nursery.start_soon(self._abort_unnamed, name, orphan, slots)
                elif orphan.file not in kept:
                    nursery.start_soon(self._abort, name, orphan, slots)

    async def _finish(
        self, file: OpenFile, record: FileRecord, upload: str | None, slots: trio.CapacityLimiter
    ) -> None:
        async with slots:
            try:
                await self._look(file, record)
                if upload is not None:
                    await self._resume(file, record, upload)
            except StoreError as error:
                log.info("%s: %s", record.key, error)  # The upload will say so, too.
        open_files = self._fs.open_files
        if file.dirty and file.error is None:
            if open_files.writeback is not None:
                open_files.writeback.add(file)
                return
            try:
                await open_files.save(file)
            except (StoreError, PosixError) as error:
                log.warning("%s: not uploaded yet: %s", record.key, error)
        open_files.settle(file)

    async def _look(self, file: OpenFile, record: FileRecord) -> None:
        """Find out whether the store has a file already, or a later one of somebody else."""
        try:
            info = await self._store.head(record.key)
        except NotFound:
            file.expected = EXPECTING_NOTHING
            return
        file.expected = expecting(info.etag)
        if not _is_as_left(file):
            return
        if self._is_ours(info, record):
            file.found(info.etag)
            self._fs.open_files.saved(file)
        elif record.condition == ALWAYS and is_later(info, record):
            file.refuse(Changed("somebody else has written it after it was closed here"))

    def _is_ours(self, info: ObjectInfo, record: FileRecord) -> bool:
        """Whether an object is what the record says, to the nanosecond of its last change."""
        wanted = encode(record.attributes)
        same = all(info.metadata.get(n.removeprefix(META)) == wanted[n] for n in wanted)
        return same and info.size == record.size and self._workshop.keep_attributes

    async def _resume(self, file: OpenFile, record: FileRecord, name: str) -> None:
        """Go on with a multipart upload, as far as its parts hold the bytes that are here."""
        upload = self._left.uploads[name]
        if file.dirty and upload.key == record.key and record.staged:
            path = self._workshop.staging.path / record.staged
            workshop = self._workshop
            sent = await verified_parts(
                self._store, workshop.grid, upload, record, path, workshop.checksum
            )
            if sent and _is_as_left(file):
                file.resume(upload, sent)
                log.info("%s: %d parts of it are in the store already", record.key, len(sent))
                forget(self._workshop.journal, name)  # The upload has a record of its own now.
                return
        await self._abort(name, upload, None)

    async def _abort_unnamed(
        self, name: str, intended: UploadRecord, slots: trio.CapacityLimiter
    ) -> None:
        async with slots:
            if await abort_unnamed(self._store, intended, self._named_uploads):
                forget(self._workshop.journal, name)

    def _named_uploads(self) -> set[str]:
        """Uploads that have a record, or are being made by now."""
        recorded = {record.upload for record in self._left.uploads.values()}
        return recorded | {file.upload_id for file in self._fs.files.values()}

    async def _abort(
        self, name: str, upload: UploadRecord, slots: trio.CapacityLimiter | None
    ) -> None:
        async with slots or trio.CapacityLimiter(1):
            try:
                await self._store.abort_upload(upload.key, upload.upload)
            except StoreError as error:
                log.warning("%s: an old upload cannot be aborted yet: %s", upload.key, error)
                return
        forget(self._workshop.journal, name)
        log.info("%s: an upload of an earlier mount was aborted", upload.key)


def is_later(info: ObjectInfo, record: FileRecord) -> bool:
    """Whether somebody has written an object after a file of its name was closed here.

    What is still the one that was to be replaced is not later, however the clocks differ.
    """
    known = {record.expected, record.base.etag if record.base is not None else ""}
    if info.etag and info.etag in known:
        return False
    return info.modified_ns > (record.time + CLOCK_LEEWAY) * 1e9


def _is_as_left(file: OpenFile) -> bool:
    """Whether nobody has changed, renamed or removed a file, or begun to save it, since."""
    return file.dirty and file.acknowledged and not file.uploading
