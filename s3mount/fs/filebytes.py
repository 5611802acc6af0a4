"""The bytes of one open file: old object below, staged bytes above, parts on their way."""

from __future__ import annotations

import errno
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import trio

from s3mount.attributes import Attributes, encode
from s3mount.cache.blocks import BLOCK_SIZE, ObjectVersion
from s3mount.cache.readahead import ReadAhead
from s3mount.content import content_type
from s3mount.errors import Changed, Corrupt, NotFound, PosixError, StoreError, disk_failed
from s3mount.fs.inodes import Inode
from s3mount.fs.status import without_set_id
from s3mount.fs.workshop import Workshop
from s3mount.s3.store import ALWAYS, Buffer, Precondition, Stored, expecting
from s3mount.write.staging import RunningChecksums, StagedFile
from s3mount.write.upload import Upload

log = logging.getLogger(__name__)

STREAM_AFTER = 2  # Whole cells: a smaller file is one PUT.
ABORT_PATIENCE = 10.0  # Seconds; after that the next mount aborts an upload.
MAX_WAITING_PARTS = 12  # More would only fill the staging disk; the writer waits instead.


class FileBytes(ABC):
    """One file that is open or unsaved; all its handles, and everything unsaved, share it.

    `base` is the object version that unstaged bytes come from, None when there are none.
    `stored_key` is where the store has an object of this file, empty when it has none, and
    `obsolete` are keys where it had one before a rename, which are to be deleted, each with the
    name of the record of that (empty: none).
    `stored_attributes` are those that the store got with the last save, if they are known, and
    `written` the moments by its clock between which that was.
    `condition` is when a new version may take effect; when it always may, `expected` is what it
    will probably replace.
    `attributes` and `size` are what stat(2) shows.  `kept` are the headers of the old object
    that a new version takes over, None when they are not known.  `record` names the record in
    the journal, empty when there is none.  `given_up` is set when the store has refused the bytes
    for good: they live on for open handles and for `s3mount recover`, under no name any more.
    State changes happen between checkpoints; `save` holds `lock`, and whoever changes bytes waits
    for it.
    """

    def __init__(
        self,
        workshop: Workshop,
        inode: Inode,
        attributes: Attributes,
        base: ObjectVersion | None,
        kept: Mapping[str, str] | None,
    ) -> None:
        self.inode = inode
        self.attributes = attributes
        self.base = base
        self.stored_key = base.key if base is not None else ""
        self.size = base.size if base is not None else 0
        self.kept = kept
        self.handles = 0
        self.readers = 0
        self.writers = 0
        self.obsolete: dict[str, str] = {}
        self.stored_attributes: Attributes | None = None
        self.written: tuple[int, int] | None = None
        self.lock = trio.Lock()
        self.condition: Precondition = ALWAYS
        self.expected: Precondition = ALWAYS
        self.unsaved_attributes = False
        self.error: StoreError | None = None
        self.unlinked = False
        self.condemned = False
        self.given_up = False
        self.changed_at = 0.0
        self._workshop = workshop
        self._staged: StagedFile | None = None
        self._upload: Upload | None = None
        self._running = RunningChecksums(workshop.checksum)
        self._generation = 0
        self._detached = False
        self.record = ""
        # What of us the journal has.
        self._recorded: tuple[int, Attributes, str, str, Precondition] | None = None
        self._superseded: list[Path] = []
        self._kept_generation = -1

    # -- what is known ---------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether there is anything that the store has not."""
        return not self.unlinked and (self.changed or self.unsaved_attributes)

    @property
    def changed(self) -> bool:
        """Whether bytes (or the mere existence) are not in the store."""
        if self._detached:
            return False
        return self._staged is not None or self.base is None

    @property
    def uploading(self) -> bool:
        """Whether bytes are on their way, or about to be."""
        return self.lock.locked() or self._upload is not None

    @property
    def upload_id(self) -> str:
        """The store's name of the upload that parts leave into; empty when there is none."""
        return self._upload.id if self._upload is not None else ""

    @property
    def unsaved_bytes(self) -> int:
        """How many bytes have to be sent, about."""
        return self._staged.extents.total if self._staged is not None else 0

    @property
    def sent_bytes(self) -> int:
        """How many of them the store has already, as parts of an upload."""
        return self._upload.sent_bytes if self._upload is not None else 0

    @property
    def may_wait(self) -> bool:
        """Whether a write might have to wait: for a save, or for parts to leave."""
        staged = self._staged
        if self.lock.locked() or (staged is not None and (staged.dropped or staged.secured)):
            return True
        return self._upload is not None and self._upload.waiting >= MAX_WAITING_PARTS - 1

    def reader(self) -> ReadAhead:
        """A new read-ahead for one handle."""
        return ReadAhead(self._workshop.blocks, self._workshop.max_window)

    # -- reading ---------------------------------------------------------------------------

    def read_now(self, reader: ReadAhead, start: int, size: int) -> Buffer | None:
        """What `read` returns, if that needs no wait; else None, and `read_rest` has to follow."""
        stop = min(start + size, self.size)
        if start >= stop:
            return b""
        if self._staged is not None or self.base is None or self.condemned:
            return None
        return reader.look(self.base, start, stop)

    async def read_rest(self, reader: ReadAhead, start: int, size: int) -> Buffer:
        """Return up to *size* bytes from *start* on, fewer only at the end of the file."""
        looked = True
        while True:
            base, stop = self.base, min(start + size, self.size)
            if start >= stop:
                return b""
            if self.condemned:
                raise Corrupt(f"{self.inode.key}: it was damaged on its way from the store")
            try:
                if self._staged is None:
                    return await self._old_bytes(reader, start, stop, looked=looked)
                found = await self._read_mixed(self._staged, reader, start, stop)
                if found is not None:
                    return found
            except Changed as error:
                await self._replaced_by_us(base, error)
            looked = False

    async def _replaced_by_us(self, base: ObjectVersion | None, error: Changed) -> None:
        """Return when a save of ours has replaced the object *base*; raises ESTALE otherwise."""
        if self.lock.locked():
            await self._saved()  # It hears of that later than the store does it.
        if self.base == base:
            log.info("%s", error)
            raise PosixError(errno.ESTALE) from error

    async def read(self, reader: ReadAhead, start: int, size: int) -> Buffer:
        """Return up to *size* bytes from *start* on, fewer only at the end of the file."""
        found = self.read_now(reader, start, size)
        return found if found is not None else await self.read_rest(reader, start, size)

    async def _old_bytes(
        self, reader: ReadAhead, start: int, stop: int, *, looked: bool = False
    ) -> memoryview:
        """Bytes of the old object, zeros after its end.  Raises `Changed` also when it is gone."""
        base = self.base
        end = start if base is None else min(stop, base.size)
        if base is None or end < stop:
            # A save has made it shorter since somebody began to read, who will look again.
            known = await self._old_bytes(reader, start, end) if start < end else b""
            return memoryview(bytes(known) + bytes(stop - max(start, end)))
        try:
            if looked:
                return await reader.fetch(base, start, stop)
            return await reader.read(base, start, stop)
        except (Changed, NotFound) as error:
            if self.base is not None and self.base.key != base.key:  # The tree was renamed.
                return await self._old_bytes(reader, start, stop)
            raise Changed(f"{base.key} changed in the store while it was open") from error

    async def _read_mixed(
        self, staged: StagedFile, reader: ReadAhead, start: int, stop: int
    ) -> bytes | None:
        """Staged bytes above old ones; None when a change meanwhile asks for a new look."""
        if staged.dropped.overlaps(start, stop):
            await self._bring_home()
            return None
        generation = self._generation
        result = bytearray(stop - start)
        # A copy: while we wait, a save may stage more (of the same bytes).
        for low, high, inside in list(staged.extents.pieces(start, stop)):
            if inside:
                result[low - start : high - start] = staged.read(low, high)
            elif low < staged.base_limit:
                await self._copy_base(reader, result, start, low, min(high, staged.base_limit))
            if self._generation != generation or staged.dropped.overlaps(start, stop):
                return None
        return bytes(result)

    async def _copy_base(
        self, reader: ReadAhead, result: bytearray, start: int, low: int, high: int
    ) -> None:
        while low < high:
            end = min(low + BLOCK_SIZE, high)
            result[low - start : end - start] = await self._old_bytes(reader, low, end)
            low = end

    # -- changing --------------------------------------------------------------------------

    async def write(self, offset: int, data: Buffer) -> None:
        """Write *data* at *offset*."""
        if self.lock.locked():
            await self._saved()
        if offset + len(data) > self._workshop.grid.max_size:
            raise PosixError(errno.EFBIG)
        end = offset + len(data)
        await self._make_writable(offset, end)
        staged = self._stage()
        self._put(staged, offset, data)
        self.size = max(self.size, end)
        self.touch_times()
        self._advance(staged, offset, end)
        if self._upload is not None and self._upload.waiting >= MAX_WAITING_PARTS:
            await self._upload.wait_below(MAX_WAITING_PARTS)

    async def truncate(self, size: int) -> None:
        """Make the file *size* bytes long; new bytes are zero."""
        if self.lock.locked():
            await self._saved()
        if size > self._workshop.grid.max_size:
            raise PosixError(errno.EFBIG)
        if size == 0 and not self._detached:
            async with self.lock:  # A save that begins meanwhile would send from what is dropped.
                await self._forget_base()
        await self._make_writable(size, 1 << 62)
        staged = self._stage()
        low, high = min(size, self.size), max(size, self.size)
        staged.truncate(size)
        self._spoil(low, high)
        self.size = size
        self._generation += 1
        self.touch_times()

    async def _make_writable(self, start: int, stop: int) -> None:
        """Return when these bytes are here, and the journal does not speak of them.

        While one is waited for, parts may leave and be dropped.
        """
        while True:
            if self._detached and self._staged is not None:
                self._staged.forfeit(start, stop)  # Nobody sends them any more.
            if self._would_miss(start, stop):
                await self._bring_home()
            elif self._is_secured(start, stop):
                await self._fork()
            else:
                return

    def _would_miss(self, start: int, stop: int) -> bool:
        """Whether a change of these bytes asks for some that were dropped.

        The cells that they are in will have to be sent again, as a whole.
        """
        staged, grid = self._staged, self._workshop.grid
        if staged is None or not staged.dropped or self._detached:
            return False
        first, last = grid.cell(grid.index(start)), grid.cell(grid.index(min(stop, self.size) - 1))
        return staged.dropped.overlaps(min(start, first.start), max(stop, last.stop))

    def _is_dropped(self, start: int, stop: int) -> bool:
        return self._staged is not None and self._staged.dropped.overlaps(start, stop)

    def _is_secured(self, start: int, stop: int) -> bool:
        return self._staged is not None and self._staged.secured.overlaps(start, stop)

    async def _fork(self) -> None:
        """What the journal has promised stays as it is until it has the new bytes, too."""
        async with self.lock:
            if self._staged is None or not self._staged.secured:
                return
            try:
                self._superseded.append(await self._staged.fork())
            except OSError as error:
                log.error("%s: staging failed: %s", self.inode.name, error)
                raise disk_failed(error) from error

    async def _bring_home(self) -> None:
        """A program goes back to bytes that have left and were dropped: save, and go on.

        As an fsync would: the object is the file as it is now, and its old bytes can be read
        and copied again.
        """
        if self._detached:
            raise PosixError(errno.ESTALE)  # Its upload has gone with its name.
        try:
            await self.save()
        except StoreError as error:
            if self.given_up:
                raise PosixError(errno.ESTALE) from error
            log.warning("%s: %s", self.inode.key, error)
            raise PosixError(errno.EIO) from error

    def _take_returned(self) -> bool:
        """Whether bytes had been dropped, which an object has now that was completed unheard."""
        if self._upload is None or self._staged is None or not self._staged.dropped:
            return False
        self._upload.let_go()
        self._upload = None
        self._staged.returned()
        return True

    async def _forget_base(self) -> None:
        """What is rewritten from empty replaces whatever is there: last close wins."""
        await self._drop_upload()
        if self._staged is not None:
            # The journal may have promised these bytes, and not heard of the new ones yet.
            self._staged.close(self._superseded.append if self.record else Path.unlink)
            self._staged = None
        if self.base is not None:
            self.expected = expecting(self.base.etag)
            self.base = None
            self.condition = ALWAYS
        self._running.clear()

    def set_attributes(self, attributes: Attributes) -> None:
        """Change what stat(2) shows; `save` writes it down."""
        self.attributes = attributes
        self.unsaved_attributes = True
        self.changed_at = trio.current_time()

    def drop_set_id(self) -> bool:
        """Take the setuid and setgid bits away; whether there were any."""
        mode = without_set_id(self.attributes.mode)
        if mode == self.attributes.mode:
            return False
        self.set_attributes(replace(self.attributes, mode=mode))
        return True

    def touch_times(self) -> None:
        """A change of the content moves mtime and ctime."""
        now = time.time_ns()
        self.attributes = replace(self.attributes, mtime_ns=now, ctime_ns=now)
        self.changed_at = trio.current_time()

    def _stage(self) -> StagedFile:
        if self._staged is None:
            limit = self.base.size if self.base is not None else 0
            self._staged = StagedFile(self._workshop.staging, self._workshop.budget, limit)
            if self.base is not None and self.condition is ALWAYS:
                # What is changed in part must not undo what somebody else did meanwhile.
                self.condition = Precondition(etag=self.base.etag)
        return self._staged

    def _put(self, staged: StagedFile, offset: int, data: Buffer) -> None:
        try:
            staged.write(offset, data)
        except OSError as error:
            log.error("%s: staging failed: %s", self.inode.name, error)
            raise disk_failed(error) from error
        self._generation += 1
        end = offset + len(data)
        if self._upload is not None:
            self._upload.touch(offset, end)
        self._checksum(offset, data)

    def _checksum(self, offset: int, data: Buffer) -> None:
        grid, view, done = self._workshop.grid, memoryview(data), 0
        while done < len(view):
            index = grid.index(offset + done)
            cell = grid.cell(index)
            count = min(cell.stop - offset - done, len(view) - done)
            self._running.add(index, cell.start, offset + done, view[done : done + count])
            done += count

    def _spoil(self, start: int, stop: int) -> None:
        if self._upload is not None:
            self._upload.touch(start, max(stop, start + 1))
        grid = self._workshop.grid
        for index in range(grid.index(start), grid.index(max(stop - 1, start)) + 1):
            self._running.spoil(index)

    def _advance(self, staged: StagedFile, start: int, end: int) -> None:
        """Let cells that were just completed leave."""
        grid = self._workshop.grid
        last = grid.index(end)
        first = grid.index(start)
        if last == first or last < STREAM_AFTER or self._detached or self.inode.gone:
            return
        if self._upload is None:
            if self._workshop.backlog.takes(staged.extents.total):
                return
            if not staged.extents.covers(
                grid.cell(last - STREAM_AFTER).start, grid.cell(last - 1).stop
            ):
                return
            first = last - STREAM_AFTER
            self._upload = self._new_upload(self.inode.key, self.headers())
        for index in range(first, last):
            cell = grid.cell(index)
            if not self._upload.has(cell) and staged.extents.covers(cell.start, cell.stop):
                crc = self._running.of(index, cell.stop)
                try:
                    body = staged.body(cell.start, cell.stop)
                except OSError as error:
                    # A save will need the room, too, and then somebody hears of it.
                    log.info("%s: a part does not leave early: %s", self.inode.key, error)
                    return
                self._upload.send_early(index + 1, cell, body, crc, staged.departed)

    # -- for whoever saves ---------------------------------------------------------------

    @abstractmethod
    async def save(self) -> Stored | None:
        """Make the store have everything; None when there was nothing to do."""

    def headers(self) -> dict[str, str]:
        """What a new version of the object says about itself."""
        headers = {**self._workshop.header_rules.headers(self.inode.key), **(self.kept or {})}
        headers.setdefault("content-type", content_type(self.inode.segment))
        if self._workshop.keep_attributes:
            headers.update(encode(self.attributes))
        return headers

    async def _saved(self) -> None:
        async with self.lock:
            pass

    async def _fill(self, staged: StagedFile, start: int, stop: int) -> None:
        """Stage the bytes between the changed ones, so that the range can be sent whole."""
        await staged.check(start, stop)
        reader = self.reader()
        for low, high, inside in list(staged.extents.pieces(start, stop)):
            position = low
            while not inside and position < high:
                end = min(position + BLOCK_SIZE, high)
                if position >= staged.base_limit:
                    self._put_fill(staged, high, b"", hole=position)
                    break
                end = min(end, staged.base_limit)
                self._put_fill(staged, position, await self._old_bytes(reader, position, end))
                position = end

    def _put_fill(
        self, staged: StagedFile, offset: int, data: Buffer, *, hole: int | None = None
    ) -> None:
        try:
            if hole is not None:
                staged.add_hole(hole, offset)
            else:
                staged.write(offset, data)
        except OSError as error:
            raise disk_failed(error) from error
        first = offset if hole is None else hole
        grid = self._workshop.grid
        for index in range(grid.index(first), grid.index(max(offset - 1, first)) + 1):
            self._running.spoil(index)

    def _new_upload(self, key: str, headers: Mapping[str, str]) -> Upload:
        copies = self.base is not None
        workshop = self._workshop
        return Upload(
            workshop.store,
            workshop.nursery,
            key,
            headers,
            workshop.journal,
            copies=copies,
            file=self.record,
        )

    async def _drop_upload(self) -> None:
        if self._upload is not None:
            upload, self._upload = self._upload, None
            with trio.move_on_after(ABORT_PATIENCE, shield=True):
                await upload.abort()
