"""Files that could not be uploaded, and what a person wants done with them."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from s3mount.attributes import encode
from s3mount.content import content_type
from s3mount.errors import NotFound, StoreError
from s3mount.memory import MemoryBudget
from s3mount.s3.store import ALWAYS, MIB, Body, ObjectStore
from s3mount.write.extents import ByteRange, PartGrid
from s3mount.write.mountjournal import MountJournal
from s3mount.write.records import FileRecord
from s3mount.write.staging import StagedFile, StagingDirectory
from s3mount.write.upload import CopySource, Upload

WHOLE_SIZE = 16 * MIB  # Up to here one PUT is as good as parts.


def restored(
    directory: StagingDirectory, budget: MemoryBudget, record: FileRecord, blob: bytes
) -> StagedFile:
    """The staged bytes that a record speaks of; raises `OSError`."""
    if record.staged:
        path = directory.path / record.staged
        return StagedFile.restore(directory, budget, record.base_limit, path, record.pieces)
    staged = StagedFile(directory, budget, record.base_limit)
    position = 0
    for piece in record.pieces:
        size = piece.stop - piece.start
        staged.write(piece.start, blob[position : position + size])
        position += size
    return staged


class Keeper:
    """Uploads or discards files by the names of their records in our journal."""

    def __init__(
        self, store: ObjectStore, mine: MountJournal, grid: PartGrid, *, attributes: bool
    ) -> None:
        self._store = store
        self._mine = mine
        self._grid = grid
        self._attributes = attributes

    async def _find(self, name: str) -> tuple[FileRecord, bytes]:
        contents = await trio.to_thread.run_sync(self._mine.slot.read, self._mine.checksum)
        found = contents.records.get(name)
        if found is None:
            raise NotFound("nothing of that name is kept any more")
        return FileRecord.parse(found.fields), found.blob

    async def discard(self, name: str) -> str:
        """Throw a file away, and return its key.  Raises `StoreError` and `OSError`."""
        record, _ = await self._find(name)
        if record.upload:
            await self._store.abort_upload(record.key, record.upload)
        await self._forget(name, record)
        return record.key

    async def upload(self, name: str) -> str:
        """Make a file the object of its key, whatever is there, and return the key.

        Raises `StoreError` and `OSError`; then nothing is lost.
        """
        record, blob = await self._find(name)
        directory = StagingDirectory(self._mine.slot.staged, self._mine.checksum)
        staged = restored(directory, MemoryBudget(4 * MIB), record, blob)
        try:
            await self._send(record, staged)
        finally:
            staged.close(lambda path: None)
        await self._forget(name, record)
        return record.key

    async def _forget(self, name: str, record: FileRecord) -> None:
        journal = self._mine.journal
        journal.remove(name)
        if record.staged:
            journal.discard(self._mine.slot.staged / record.staged)
        await journal.commit()

    async def _send(self, record: FileRecord, staged: StagedFile) -> None:
        headers = dict(record.kept or {})
        headers.setdefault("content-type", content_type(record.key))
        if self._attributes:
            headers.update(encode(record.attributes))

        async def body(part: ByteRange) -> tuple[Body, int | None]:
            await staged.check(part.start, part.stop)
            await self._fill(record, staged, part)
            return staged.body(part.start, part.stop), None

        if record.size <= WHOLE_SIZE and not record.upload:
            whole = ByteRange(0, record.size) if record.size else None
            sent: Body = (await body(whole))[0] if whole is not None else []
            await self._store.put(record.key, sent, headers=headers)
            return
        failure: StoreError | OSError | None = None
        async with trio.open_nursery() as nursery:
            upload = Upload(
                self._store, nursery, record.key, headers, self._mine.journal, copies=True
            )
            if record.upload:
                upload.resume(record.upload, record.sent)
                _take_sent(staged, record)
            source = None
            if record.base is not None:
                source = CopySource(record.base.key, record.base.etag)
            try:
                await upload.finish(
                    lambda: upload.plan(record.size, staged, self._grid), body, source, ALWAYS
                )
            except (StoreError, OSError) as error:
                failure = error  # Not in a group, as a nursery would raise it.
        if failure is not None:
            raise failure

    async def _fill(self, record: FileRecord, staged: StagedFile, part: ByteRange) -> None:
        """Fetch what lies between the changed bytes of a part."""
        for start, stop, inside in list(staged.extents.pieces(part.start, part.stop)):
            middle = min(stop, max(start, record.base_limit))
            if inside:
                continue
            if start < middle and record.base is not None:
                buffer = memoryview(bytearray(middle - start))
                await self._store.get(record.base.key, start, [buffer], etag=record.base.etag)
                staged.write(start, buffer)
            staged.add_hole(middle, stop)


def _take_sent(staged: StagedFile, record: FileRecord) -> None:
    """Take note of bytes that the upload has; most of them are nowhere else."""
    for part in record.sent:
        staged.extents.add(part.start, part.stop)
        staged.dropped.add(part.start, part.stop)
    for piece in record.pieces:
        staged.dropped.remove(piece.start, piece.stop)


async def act(keeper: Keeper, action: str, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """Do *action* (``upload`` or ``discard``) to files, and tell the keys done and the failures."""
    work = keeper.upload if action == "upload" else keeper.discard
    done: list[str] = []
    failed: list[str] = []
    for name in names:
        try:
            done.append(await work(name))
        except (StoreError, OSError, ValueError) as error:
            failed.append(str(error))
    return {"done": done, "failed": failed}
