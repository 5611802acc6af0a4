"""Handles: what an open file descriptor is to us, and what programs do through it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import NamedTuple

import trio

from s3mount.cache.readahead import ReadAhead
from s3mount.errors import Changed, NotFound, PosixError, StoreError, Unavailable
from s3mount.fs.openfile import CONFLICTS, OpenFile
from s3mount.fs.unsaved import OpenFiles
from s3mount.fs.workshop import Workshop
from s3mount.s3.store import Buffer


class Opener(NamedTuple):
    """Who has opened a file: its thread, and whether it is root."""

    process_id: int
    unprivileged: bool


# The kernel asks again at once for what could not be read ahead, and its program would wait for
# the time limit of the store twice.
REPEAT_SECONDS = 0.25

NOBODY = Opener(0, unprivileged=False)


class Failure(NamedTuple):
    """Why the store could not be read from, and until when nobody asks it again."""

    error: Unavailable
    until: float


@dataclass(slots=True)
class Handle:
    """One open file: who reads ahead for it, what it may do, and how its last read failed."""

    file: OpenFile
    reader: ReadAhead
    writable: bool
    readable: bool
    opener: Opener
    failure: Failure | None = None


class Handles:
    """All handles by number: reads, writes and closes through them."""

    def __init__(self, files: OpenFiles, workshop: Workshop) -> None:
        self._files = files
        self._workshop = workshop
        self._handles: dict[int, Handle] = {}
        self._last_handle = 0
        self._closed = trio.lowlevel.ParkingLot()

    def file(self, handle_number: int) -> OpenFile:
        """The file of a handle."""
        return self._handles[handle_number].file

    def discard(self, handle_number: int) -> None:
        """Forget a handle that the kernel never got."""
        handle = self._handles.pop(handle_number)
        handle.file.readers -= handle.readable
        handle.file.writers -= handle.writable
        handle.file.handles -= 1

    def new(self, file: OpenFile, flags: int, opener: Opener = NOBODY) -> int:
        """Give a file a handle."""
        self._last_handle += 1
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        readable = flags & os.O_ACCMODE != os.O_WRONLY
        self._handles[self._last_handle] = Handle(file, file.reader(), writable, readable, opener)
        file.handles += 1
        file.readers += readable
        file.writers += writable
        return self._last_handle

    @property
    def in_use(self) -> bool:
        """Whether any file is open."""
        return bool(self._handles)

    async def wait_closed(self, timeout: float) -> None:
        """Wait until no file is open, at most *timeout* seconds."""
        with trio.move_on_after(timeout):
            while self._handles:
                await self._closed.park()

    def opener(self, handle_number: int) -> int:
        """The thread that has opened a file; the kernel does not tell who reads or writes."""
        return self._handles[handle_number].opener.process_id

    def writer(self, handle_number: int) -> int:
        """The thread that a write might keep waiting, 0 if it will not."""
        handle = self._handles[handle_number]
        return handle.opener.process_id if handle.file.may_wait else 0

    def closer(self, handle_number: int) -> int:
        """The thread that a close might keep waiting, 0 if it will not."""
        handle = self._handles[handle_number]
        needed = handle.writable or handle.file.changed
        return handle.opener.process_id if needed else 0

    def read_now(self, handle_number: int, offset: int, size: int) -> Buffer | None:
        """What `read` returns, if that needs no wait; else None, and `read` has to follow."""
        handle = self._handles[handle_number]
        return handle.file.read_now(handle.reader, offset, size)

    async def read(self, handle_number: int, offset: int, size: int) -> Buffer:
        """Read what `read_now` could not; the buffer is good until the next checkpoint."""
        handle = self._handles[handle_number]
        failure, handle.failure = handle.failure, None
        if failure is not None and trio.current_time() < failure.until:
            raise failure.error
        try:
            return await handle.file.read_rest(handle.reader, offset, size)
        except Unavailable as error:
            handle.failure = Failure(error, trio.current_time() + REPEAT_SECONDS)
            raise
        except PosixError as error:
            if error.errno == errno.ESTALE:
                self._files.lost(handle.file)
            self._files.settle(handle.file)
            raise

    async def write(self, handle_number: int, offset: int, data: bytes) -> int:
        """Write *data* at *offset*."""
        file = self._handles[handle_number].file
        try:
            await file.write(offset, data)
        except PosixError:
            self._files.settle(file)
            raise
        return len(data)

    async def flush(self, handle_number: int) -> None:
        """close(2): when it returns, the file is safe, or those who write hear that it is not."""
        handle = self._handles[handle_number]
        if not handle.writable and not handle.file.changed:
            return
        try:
            await self._make_safe(handle.file)
        except CONFLICTS:
            if handle.writable:
                raise

    async def fsync(self, handle_number: int) -> None:
        """fsync(2): when it returns, the file is safe."""
        await self._make_safe(self._handles[handle_number].file)

    async def _make_safe(self, file: OpenFile) -> None:
        try:
            await self._files.make_safe(file)
        except CONFLICTS as error:
            await self._files.keep(file)
            if isinstance(error, NotFound):  # Somebody has deleted what it was to be made from.
                raise Changed(str(error), code=error.code, status=error.status) from error
            raise

    async def release(self, handle_number: int) -> None:
        """The last reference to a handle is gone."""
        handle = self._handles.pop(handle_number)
        file = handle.file
        try:
            if file.handles == 1 and file.changed and not file.unlinked and file.error is None:
                # Pages of a mapping may come after the last close.
                await self._files.make_safe(file)
        except (StoreError, PosixError) as error:
            self._workshop.report(file.inode.key, error)
        finally:
            file.handles -= 1
            file.readers -= handle.readable
            file.writers -= handle.writable
            self._files.settle(file)
            if not self._handles:
                self._closed.unpark_all()

    def drop_set_id(self, handle_number: int) -> int | None:
        """Take setuid and setgid from what a plain user writes to; the inode if it had any."""
        handle = self._handles[handle_number]
        if handle.opener.unprivileged and handle.file.drop_set_id():
            return handle.file.inode.number
        return None
