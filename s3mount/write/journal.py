"""The journal of one mount: what must survive a crash, as records with a name each.

A record is put, changed in some fields, and removed; the last state counts.  `commit` returns
when all that was said before is on the disk, and many callers share one synchronisation.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from s3mount.write.frames import MAX_BLOB_SIZE, MAX_TEXT_SIZE, Checksum, Framing, Scan
from s3mount.write.logfile import LogFile, Place

log = logging.getLogger(__name__)

Fields = Mapping[str, object]

NAME, CHANGE, REMOVE = "id", "change", "remove"
LAZY = 0.01  # Seconds until what nobody waits for is on the disk, too.
# Seconds.  A disk that answers sooner in the mean is waited for in place: a thread takes longer.
SLOW = 0.0005
WEIGHT = 0.1  # Of the latest synchronisation in that mean.
FULL_PAUSE = 1.0  # Seconds between looks at a disk that is full.
FULL_SIZE = 4 << 20  # Bytes that may wait for room.
COMPACT_SIZE = 32 << 20  # A log below this is never worth moving.


@dataclass(slots=True)
class Record:
    """One record as a log tells it; `first` is the number of the oldest frame it is made of."""

    name: str
    first: int
    last: int
    fields: dict[str, object]
    blob: bytes = b""


@dataclass(slots=True)
class Contents:
    """What a log holds: the live records by name, and what is wrong with it.

    `uncertain` are the names of records that may have been taken back in frames that are
    damaged.
    """

    records: dict[str, Record] = field(default_factory=dict)
    uncertain: set[str] = field(default_factory=set)
    damaged: bool = False
    torn: bool = False


def read_log(data: bytes, checksum: Checksum) -> Contents:
    """Make sense of the bytes of a log."""
    framing = Framing.of_log(data, checksum)
    if framing is None:
        return Contents(damaged=any(data))
    return replay(framing.scan(data))


def replay(scan: Scan) -> Contents:
    """Put the frames of a log together to records."""
    contents = Contents(damaged=bool(scan.gaps), torn=scan.torn)
    records = contents.records
    for frame in scan.frames:
        try:
            said = json.loads(frame.text)
            name = str(said.pop(NAME))
        except (ValueError, KeyError, AttributeError, RecursionError):
            contents.damaged = True  # A checksum over nonsense: a bug, or a later version.
            continue
        if said.pop(REMOVE, False):
            records.pop(name, None)
        elif CHANGE not in said:
            records[name] = Record(name, frame.number, frame.number, said, frame.blob)
        elif name in records:
            records[name].fields.update(said[CHANGE])
            records[name].last = frame.number
        else:
            contents.damaged = True
    lost = max(scan.gaps, default=-1)
    contents.uncertain = {record.name for record in records.values() if record.first <= lost}
    return contents


class Journal:
    """The records of this mount, in a log of its own.

    What `put`, `change` and `remove` say is on the disk soon; whoever promises something waits for
    `commit`.  They raise `OSError` when the disk has failed: what it has by then is not known.
    While it is full, `commit` raises, too, but what was said follows when there is room.
    """

    def __init__(
        self, directory: int, checksum: Checksum, compact_size: int = COMPACT_SIZE
    ) -> None:
        self._log = LogFile(directory, checksum)
        self._live: dict[str, list[Place]] = {}
        self._live_size = 0
        self._number = 0
        self._durable = 0
        self._removed = 0  # The number of the last removal.
        self._syncing: trio.Event | None = None
        self._held: list[tuple[str, bytes, bytes, str]] | None = None
        self._discarded: deque[tuple[int, Path]] = deque()
        self._failure: OSError | None = None
        self._full: OSError | None = None
        self._lazy = trio.lowlevel.ParkingLot()
        self._compact_size = compact_size
        self._mean = 2 * SLOW
        self.commits = 0
        self.syncs = 0

    def create(self) -> None:
        """Make the log.  Blocks; raises `OSError`."""
        self._log.create()

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    @property
    def empty(self) -> bool:
        """Whether no record is left."""
        return not self._live

    def __contains__(self, name: str) -> bool:
        """Whether there is a record of this name."""
        return name in self._live

    @property
    def size(self) -> int:
        """Bytes of the log that are written."""
        return self._log.position

    def put(self, name: str, fields: Fields, blob: bytes = b"") -> None:
        """Make *fields* and *blob* the state of a record, whatever it was."""
        self._say(name, {NAME: name, **fields}, blob, "put")

    def change(self, name: str, fields: Fields) -> None:
        """Change some fields of a record."""
        self._say(name, {NAME: name, CHANGE: fields}, b"", CHANGE)

    def remove(self, name: str) -> None:
        """Forget a record."""
        if name in self._live or self._held is not None:
            self._say(name, {NAME: name, REMOVE: True}, b"", REMOVE)

    def discard(self, path: Path) -> None:
        """Remove a local file as soon as what was said so far is on the disk."""
        self._discarded.append((self._number, path))
        self._lazy.unpark_all()

    def _say(self, name: str, said: Fields, blob: bytes, what: str) -> None:
        if self._failure is not None:
            raise _again(self._failure)
        if self._full is not None and what != REMOVE and self._log.waiting > FULL_SIZE:
            raise _again(self._full)
        text = json.dumps(said, separators=(",", ":")).encode()
        if len(text) > MAX_TEXT_SIZE or len(blob) > MAX_BLOB_SIZE:  # Nobody would read it back.
            raise OSError(errno.EFBIG, f"a record of {len(text) + len(blob)} bytes is too long")
        self._number += 1
        if what == REMOVE:
            self._removed = self._number
        if self._held is not None:  # The log is being moved.
            self._held.append((name, text, blob, what))
            return
        self._append(self._number, name, text, blob, what)
        self._lazy.unpark_all()

    def _append(self, number: int, name: str, text: bytes, blob: bytes, what: str) -> None:
        place = self._log.append(number, self._durable, text, blob)
        if what != CHANGE:
            self._live_size -= sum(old.size for old in self._live.pop(name, ()))
        if what != REMOVE:
            self._live.setdefault(name, []).append(place)
            self._live_size += place.size

    async def commit(self) -> None:
        """Return when all that was said before is on the disk; raises `OSError`."""
        await self._commit(self._number)

    async def commit_removals(self) -> None:
        """Return when no record that was removed can come back; raises `OSError`."""
        if self._durable < self._removed:
            await self._commit(self._removed)

    async def _commit(self, target: int) -> None:
        self.commits += 1
        while self._durable < target:
            if self._failure is not None:
                raise _again(self._failure)
            if self._syncing is not None:
                await self._syncing.wait()
                continue
            await self._sync()
            if self._full is not None:
                raise _again(self._full)

    async def _sync(self) -> None:
        self._syncing = trio.Event()
        try:
            # Whoever is ready to say something, too, shares this synchronisation.
            await trio.lowlevel.checkpoint()
            if self._log.position > max(self._compact_size, 2 * self._live_size):
                await self._compact()
            reached = self._number
            self.syncs += 1
            if self._log.needs_fill:
                await trio.to_thread.run_sync(self._log.fill)
            if self._mean < SLOW:
                seconds = self._timed_sync()
            else:
                seconds = await trio.to_thread.run_sync(self._timed_sync)
            self._durable, self._full = reached, None
            self._mean += WEIGHT * (min(seconds, LAZY) - self._mean)
        except OSError as error:
            self._failed(error)
        finally:
            self._syncing.set()
            self._syncing = None
        self._unlink_discarded()

    def _failed(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            self._failure = error
            log.error("the journal cannot be written: %s", error)
        elif self._full is None:
            self._full = error
            log.error("the journal has to wait for room on its disk: %s", error)

    def _timed_sync(self) -> float:
        began = time.perf_counter()
        self._log.sync()
        return time.perf_counter() - began

    def _unlink_discarded(self) -> None:
        while self._discarded and self._discarded[0][0] <= self._durable:
            path = self._discarded.popleft()[1]
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.info("%s stays until the end: %s", path, error.strerror)

    async def _compact(self) -> None:
        """Leave behind the frames that count no more."""
        live = sorted((place, name) for name, places in self._live.items() for place in places)
        reached, self._held = self._number, []
        try:
            places = [place for place, _ in live]
            moved = await trio.to_thread.run_sync(self._log.move, places, reached)
            self._take_places([name for _, name in live], moved)
        except OSError as error:
            log.warning("the journal goes on in its old file: %s", error)
            self._compact_size = 2 * self._log.position
        finally:
            held, self._held = self._held, None
            for number, (name, text, blob, what) in enumerate(held, reached + 1):
                self._append(number, name, text, blob, what)

    def _take_places(self, names: Sequence[str], moved: Sequence[Place]) -> None:
        self._live = {}
        for name, place in zip(names, moved, strict=True):
            self._live.setdefault(name, []).append(place)
        self._live_size = sum(place.size for place in moved)

    async def run(self) -> None:
        """Bring to the disk what nobody waits for, until cancelled."""
        while True:
            while self._number <= self._durable and not self._discarded:
                await self._lazy.park()
            await trio.sleep(LAZY)
            try:
                await self.commit()
            except OSError:
                if self._failure is not None:
                    return  # It was told; whoever needs the journal hears of it.
                await trio.sleep(FULL_PAUSE)
            self._unlink_discarded()


def _again(error: OSError) -> OSError:
    """The same error for somebody else: one that is raised often would collect tracebacks."""
    return OSError(error.errno, error.strerror)


def read_file(path: Path) -> bytes:
    """The bytes of a log; empty when there is none.  Blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
