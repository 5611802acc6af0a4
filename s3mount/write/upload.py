"""One multipart upload: parts that leave while the program still writes, and the rest."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from s3mount.errors import PosixError, StoreError, Unavailable
from s3mount.s3.store import (
    Body,
    ObjectStore,
    PartDone,
    Precondition,
    Stored,
)
from s3mount.write.extents import ByteRange, Extents, Part, PartGrid, plan_parts
from s3mount.write.journal import Journal
from s3mount.write.notes import UploadNote, begin_upload
from s3mount.write.records import SentPart, UploadRecord
from s3mount.write.staging import StagedFile

log = logging.getLogger(__name__)

PARALLEL_PARTS = 8  # Per file: enough to fill 500 MB/s at 90 MB/s a connection.


@dataclass(frozen=True, slots=True)
class CopySource:
    """The old object, whose clean ranges become parts on the server."""

    key: str
    etag: str


PartBody = Callable[[ByteRange], Awaitable[tuple[Body, int | None]]]


class Upload:
    """A multipart upload of one file to one key.

    Early parts lie on the grid and have the number of their cell plus one.  Whether an early
    part still holds the bytes of the file is decided at `finish`: `touch` makes those stale
    whose bytes were changed after (or while) they left.  *copies* tells whether some parts will
    be copies; *file* names the record of the file in the journal, if it has one.
    """

    def __init__(
        self,
        store: ObjectStore,
        nursery: trio.Nursery,
        key: str,
        headers: Mapping[str, str],
        journal: Journal,
        *,
        copies: bool,
        file: str = "",
    ) -> None:
        self.key = key
        self.headers = headers
        self._copies = copies
        self._journal = journal
        self._file = file
        self._note: UploadNote | None = None
        self._store = store
        self._nursery = nursery
        self._id = ""
        self._beginning = trio.Lock()
        self._failures = 0  # Of attempts to begin it.
        self._slots = trio.CapacityLimiter(PARALLEL_PARTS)
        self._early: dict[ByteRange, PartDone | None] = {}  # None: under way
        # A part number must not be sent twice at once: the elder could arrive last.
        self._stale: set[ByteRange] = set()
        self._under_way = 0
        self._late_bytes = 0
        self._quiet = trio.lowlevel.ParkingLot()

    @property
    def id(self) -> str:
        """The store's name of the upload; empty until it was begun."""
        return self._id

    @property
    def waiting(self) -> int:
        """How many early parts are under way or queued."""
        return self._under_way

    @property
    def sent_bytes(self) -> int:
        """How many bytes the store has of this upload, not counting what it copied itself."""
        early = (cell for cell, part in self._early.items() if part is not None)
        return sum(cell.stop - cell.start for cell in early) + self._late_bytes

    def has(self, cell: ByteRange) -> bool:
        """Whether *cell* has left, or is leaving, or must wait for `finish`."""
        return cell in self._early or cell in self._stale

    def send_early(
        self,
        number: int,
        cell: ByteRange,
        body: Body,
        crc: int | None,
        departed: Callable[[int, int], None],
    ) -> None:
        """Let a finished cell leave in the background; *departed* hears when it is there."""
        self._early[cell] = None
        self._under_way += 1
        self._nursery.start_soon(self._send_early, number, cell, body, crc, departed)

    def touch(self, start: int, stop: int) -> None:
        """Bytes ``start <= i < stop`` have changed: early parts that hold some are stale."""
        for cell in [c for c in self._early if c.start < stop and start < c.stop]:
            del self._early[cell]
            self._stale.add(cell)

    async def wait_below(self, count: int) -> None:
        """Wait until fewer than *count* early parts are under way."""
        while self._under_way >= count:
            await self._quiet.park()

    def plan(self, size: int, staged: StagedFile, grid: PartGrid) -> list[Part]:
        """The parts of a file of *size* bytes; dropped bytes stay in those that have left."""
        return plan_parts(
            size,
            staged.base_limit,
            staged.extents,
            grid,
            lambda parts: self.keeps(parts, staged.dropped),
        )

    def keeps(self, parts: Sequence[Part], dropped: Extents) -> bool:
        """Whether *parts* leave all *dropped* bytes where they are: nobody can send them again."""
        for part, number in zip(parts, self._number(parts), strict=True):
            if not part.copied and dropped.overlaps(part.range.start, part.range.stop):
                early = self._early.get(part.range)
                if early is None or early.number != number:
                    return False
        return True

    async def finish(
        self,
        plan: Callable[[], Sequence[Part]],
        body: PartBody,
        source: CopySource | None,
        condition: Precondition,
    ) -> Stored:
        """Send or copy what has not left yet, and make the object of all parts.

        *plan* is asked for them when nothing is leaving any more, and so nothing dropped.
        """
        await self.wait_below(1)
        await self._begin()
        parts = plan()
        done: list[PartDone | None] = [None] * len(parts)
        numbers = self._number(parts)
        await self._run_all(parts, numbers, done, body, source)
        complete = [part for part in done if part is not None]
        stored = await self._store.complete_upload(
            self.key, self._id, complete, condition=condition
        )
        self.let_go()
        return stored

    def sent(self) -> list[SentPart]:
        """The early parts that the store has."""
        return [
            SentPart(cell.start, cell.stop, part.number, part.etag, part.crc)
            for cell, part in self._early.items()
            if part is not None
        ]

    def resume(self, upload: str, sent: Sequence[SentPart]) -> None:
        """Go on with an upload that was begun earlier, and has these parts."""
        self._id = upload
        record = UploadRecord(self.key, upload, self.headers, self._file)
        self._note = UploadNote(self._journal, record)
        for part in sent:
            self._early[ByteRange(part.start, part.stop)] = part.done()

    def let_go(self) -> None:
        """Nobody needs to abort this upload after a crash any more."""
        if self._note is not None:
            self._note.done()
            self._note = None

    async def abort(self) -> None:
        """Give the upload up; failures are only logged, since nobody can do more."""
        self._early.clear()
        await self.wait_below(1)
        if not self._id:
            return
        try:
            await self._store.abort_upload(self.key, self._id)
            self.let_go()
        except StoreError as error:
            log.info("%s: an upload could not be aborted: %s", self.key, error)

    async def _begin(self) -> None:
        failures = self._failures
        async with self._beginning:
            if self._id:
                return
            if self._failures > failures:  # While we waited: no use in waiting as long again.
                raise Unavailable(f"{self.key}: an upload could not be begun")
            try:
                self._id, self._note = await begin_upload(
                    self._store,
                    self._journal,
                    self.key,
                    self.headers,
                    copies=self._copies,
                    file=self._file,
                )
            except StoreError:
                self._failures += 1
                raise

    async def _send_early(
        self,
        number: int,
        cell: ByteRange,
        body: Body,
        crc: int | None,
        departed: Callable[[int, int], None],
    ) -> None:
        part: PartDone | None = None
        try:
            await self._begin()
            async with self._slots:
                if cell in self._early:  # Not changed while it queued.
                    part = await self._store.upload_part(self.key, self._id, number, body, crc=crc)
        except StoreError as error:
            # `finish` sends it again, and then the failure has a caller to belong to.
            log.debug("%s: part %d did not leave early: %s", self.key, number, error)
        finally:
            if part is None:
                self._early.pop(cell, None)
            elif cell in self._early:
                self._early[cell] = part
                departed(cell.start, cell.stop)
            self._under_way -= 1
            self._quiet.unpark_all()

    def _number(self, parts: Sequence[Part]) -> list[int]:
        """Number the parts in order; early ones keep theirs where the order allows it."""
        numbers: list[int] = [0] * len(parts)
        following = 1
        pending: list[int] = []
        for position, part in enumerate(parts):
            early = None if part.copied else self._early.get(part.range)
            if early is None or early.number - following < len(pending):
                pending.append(position)
                continue
            for offset, waiting in enumerate(pending):
                numbers[waiting] = following + offset
            numbers[position] = early.number
            following, pending = early.number + 1, []
        for offset, waiting in enumerate(pending):
            numbers[waiting] = following + offset
        return numbers

    async def _run_all(
        self,
        parts: Sequence[Part],
        numbers: Sequence[int],
        done: list[PartDone | None],
        body: PartBody,
        source: CopySource | None,
    ) -> None:
        errors: list[StoreError | PosixError | OSError] = []

        async def run(position: int) -> None:
            try:
                part = parts[position]
                done[position] = await self._run(part, numbers[position], body, source)
                if not part.copied:
                    self._late_bytes += part.range.stop - part.range.start
            except (StoreError, PosixError, OSError) as error:
                errors.append(error)
                nursery.cancel_scope.cancel()
            finally:
                slots.release()

        slots = trio.Semaphore(PARALLEL_PARTS)
        async with trio.open_nursery() as nursery:
            for position, part in enumerate(parts):
                early = None if part.copied else self._early.get(part.range)
                if early is not None and early.number == numbers[position]:
                    done[position] = early
                    continue
                await slots.acquire()
                nursery.start_soon(run, position)
        if errors:
            raise errors[0]

    async def _run(
        self, part: Part, number: int, body: PartBody, source: CopySource | None
    ) -> PartDone:
        if not part.copied:
            data, crc = await body(part.range)
            return await self._store.upload_part(self.key, self._id, number, data, crc=crc)
        if source is None:
            raise Unavailable(f"{self.key}: there is no old object to copy from")
        return await self._store.copy_part(
            self.key,
            self._id,
            number,
            source=source.key,
            start=part.range.start,
            stop=part.range.stop,
            source_etag=source.etag,
        )
