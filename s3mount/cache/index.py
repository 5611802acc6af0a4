"""The attribute index: what HEAD has taught about objects, kept over the end of the daemon.

A listing tells key, ETag and Last-Modified; where the index knows just these, the attributes
need not be asked for.  Only a cache: whatever is wrong with it costs requests, and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from s3mount.cache.indexfile import Change, Damaged, IndexFile, Move, identity, prune, remove
from s3mount.cache.metadata import Entry
from s3mount.cache.records import (
    Row,
    decode_directory,
    decode_file,
    encode,
    parse,
    row_name,
)
from s3mount.errors import MountError
from s3mount.private import open_private

log = logging.getLogger(__name__)

MAX_ROWS = 1_000_000
MAX_SIZE = 256 << 20  # bytes
MAX_FILES = 32  # Buckets, and sets of default attributes.
MAX_PENDING = 20_000  # Rows that wait to be written; what comes faster is forgotten.
BATCH = 1000
FLUSH_DELAY = 0.5  # Seconds in which writes gather.
READ_PATIENCE = 0.5  # Seconds after which a listing goes on without.
CLOSE_PATIENCE = 5.0
MAX_REBUILDS = 3  # A disk that damages it again and again gets no more.

_TRANSIENT = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT}
_DISK = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOMEM,
}


class AttributeIndex:
    """The index of one bucket; *root* is the prefix that is mounted.

    All mounts of a bucket share one file in *directory*, which knows full keys.  Unless
    *lasting*, what is known of directories counts for the time to live of the names, since no
    listing tells whether it has changed; a store that keeps no metadata of markers cannot
    change it.  Nothing here raises, and nothing waits for long.
    """

    def __init__(
        self,
        directory: Path | None,
        bucket: str,
        root: str,
        *,
        lasting: bool,
        clock: Callable[[], float],
        max_rows: int = MAX_ROWS,
        max_size: int = MAX_SIZE,
    ) -> None:
        name = hashlib.sha256(bucket.encode()).hexdigest()[:32]
        self._path = None if directory is None else directory / f"{name}.sqlite3"
        self._root = root
        self._clock = clock
        self._bounds = (max_rows, max_size)
        self.lasting = lasting
        self._reader: IndexFile | None = None
        self._writer: IndexFile | None = None
        self._reading = trio.CapacityLimiter(1)
        self._writing = trio.CapacityLimiter(1)
        self._pending: dict[tuple[str, str], Entry | None] = {}
        self._moves: list[Move] = []
        self._moving: list[Move] = []  # On their way into the file.
        self._used: set[str] = set()
        self._wake = trio.Event()
        self._broken: Exception | None = None
        self._rebuilds = 0
        self._identity: tuple[int, int] | None = None

    # -- asking ----------------------------------------------------------------------------

    async def page(
        self, prefix: str, names: Sequence[str], *, directories: bool = False
    ) -> dict[str, Row]:
        """The rows of *names* (see `row_name`) under *prefix*, and perhaps some between them.

        Those who look for *directories* only get them also while the files are being dropped.
        """
        reader, full = self._reader, self._root + prefix
        if reader is None or not names:
            return {}
        lines, moving = "", self._is_moving(full, directories)
        try:
            with trio.move_on_after(READ_PATIENCE):
                lines = await trio.to_thread.run_sync(
                    reader.page,
                    full,
                    min(names),
                    max(names),
                    abandon_on_cancel=True,
                    limiter=self._reading,
                )
        except sqlite3.Error as error:
            if reader is self._reader:
                self._failed(error)
        except UnicodeError:
            return {}  # Half a surrogate pair: no object of S3 has it in its key.
        if not lines or moving or self._is_moving(full, directories):
            return {}
        self._used.add(full)
        return parse(lines)

    def _is_moving(self, prefix: str, directories: bool) -> bool:
        """Whether the rows under *prefix* are to be moved or dropped, but stand there still.

        Those of *directories* stay in a move of a tree to itself, which drops files.
        """
        moves = [
            move for move in (*self._moves, *self._moving) if not directories or move[0] != move[1]
        ]
        return any(prefix.startswith(one) for move in moves for one in move if one is not None)

    def file(self, rows: dict[str, Row], segment: str, checked: float) -> Entry | None:
        """What *rows* say of an object, as of *checked*; whether it is that one is not said."""
        row = rows.get(segment)
        return None if row is None else decode_file(row, checked)

    def directory(self, rows: dict[str, Row], segment: str, checked: float) -> Entry | None:
        """What *rows* say of a directory, with the moment when that was learnt."""
        row = rows.get(row_name(segment, directory=True))
        found = None if row is None else decode_directory(row, checked)
        if found is None:
            return None
        entry, learnt_ns = found
        if not learnt_ns:
            return entry._replace(learnt=math.inf) if self.lasting else None
        age = (time.time_ns() - learnt_ns) / 1e9
        return None if age < 0 else entry._replace(learnt=self._clock() - age)

    async def directory_at(self, key: str, checked: float) -> Entry | None:
        """What is known of the directory *key* (it ends in a slash), as of *checked*."""
        prefix, slash, segment = key[:-1].rpartition("/")
        name = row_name(segment, directory=True)
        pending = self._pending.get((self._root + prefix + slash, name))
        if pending is not None:
            return pending._replace(checked=checked)
        rows = await self.page(prefix + slash, [name], directories=True)
        return self.directory(rows, segment, checked)

    # -- learning --------------------------------------------------------------------------

    def remember(self, prefix: str, segment: str, entry: Entry) -> None:
        """Take note of what the store says, or what we have written there."""
        if self._writer is not None and entry.attributes is not None:
            self._change(prefix, row_name(segment, directory=entry.directory), entry)

    def forget(self, prefix: str, segment: str, *, directory: bool) -> None:
        """Take note that a name is gone."""
        if self._writer is not None:
            self._change(prefix, row_name(segment, directory=directory), None)

    def _change(self, prefix: str, name: str, entry: Entry | None) -> None:
        key = (self._root + prefix, name)
        if len(self._pending) < MAX_PENDING or key in self._pending:
            self._pending[key] = entry
            self._wake.set()

    def forget_key(self, key: str) -> None:
        """Ask again about an object, whatever a listing says."""
        prefix, slash, segment = key.rpartition("/")
        self.forget(prefix + slash, segment, directory=False)

    def forget_tree(self, prefix: str) -> None:
        """Ask again about everything under *prefix*, where there is somebody to ask.

        Nobody else knows of directories what only the index remembers.
        """
        self._move(prefix, prefix if self.lasting else None)

    def moved(self, old: str, new: str) -> None:
        """Take note that a whole tree has another prefix now."""
        self._move(new, None)
        self._move(old, new)

    def _move(self, old: str, new: str | None) -> None:
        if self._writer is None:
            return
        old, new = self._root + old, None if new is None else self._root + new
        self._moves.append((old, new))
        for key in [key for key in self._pending if key[0].startswith(old)]:
            if new == old and key[1].endswith("/"):
                continue
            entry = self._pending.pop(key)
            if new is not None and new != old:
                self._pending[new + key[0][len(old) :], key[1]] = entry
        self._wake.set()

    # -- life ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, or make it."""
        if self._path is None:
            return
        try:
            await trio.to_thread.run_sync(self._open, limiter=self._writing)
        except (sqlite3.Error, Damaged, OSError, MountError) as error:
            self._failed(error)
            await self._rebuild()

    def _open(self) -> None:
        assert self._path is not None
        os.close(open_private(self._path.parent))
        self._identity = identity(self._path)
        prune(self._path, MAX_FILES)
        self._writer = IndexFile(self._path, *self._bounds)
        self._reader = IndexFile(self._path, *self._bounds)

    async def run(self) -> None:
        """Write what was learnt, as long as the mount lives."""
        while True:
            await self._wake.wait()
            if len(self._pending) < BATCH:
                await trio.sleep(FLUSH_DELAY)
            await self._rebuild()
            await self._flush()

    async def close(self) -> None:
        """Write what is left, and close the file."""
        with trio.move_on_after(CLOSE_PATIENCE, shield=True):
            while self._pending or self._moves or self._used:
                await self._flush()
        self._turn_off()

    async def _flush(self) -> None:
        """Write one batch; it is lost when it cannot be written."""
        keys = list(self._pending)[:BATCH]
        batch = [(key, self._pending.pop(key)) for key in keys]
        moves, self._moves = self._moves, []
        self._moving = moves
        used, self._used = self._used, set()
        if not self._pending:
            self._wake = trio.Event()
        writer = self._writer
        if writer is None:
            return

        now, now_ns = self._clock(), time.time_ns()

        def write() -> None:
            changes = [_change(key, entry, now, now_ns) for key, entry in batch]
            writer.write(changes, moves, sorted(used), now_ns // 1_000_000_000)

        try:
            await trio.to_thread.run_sync(write, limiter=self._writing)
        except (sqlite3.Error, UnicodeError) as error:
            if writer is self._writer:
                self._failed(error)
        finally:
            self._moving = []

    # -- what goes wrong -------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _TRANSIENT:
            log.debug("the attribute index is busy: %s", error)
        elif code in _DISK or isinstance(error, OSError | MountError):
            log.warning("the attribute index is off: %s: %s", self._path, error)
            self._turn_off()
        elif self._broken is None:
            self._broken = error
            self._wake.set()

    def _turn_off(self) -> None:
        """Go on without; a connection that a thread still uses is closed by its collection."""
        for file, limiter in ((self._reader, self._reading), (self._writer, self._writing)):
            if file is not None and not limiter.borrowed_tokens:
                file.close()
        self._reader = self._writer = None
        self._pending.clear()
        self._moves.clear()

    async def _rebuild(self) -> None:
        """Begin anew where the file has turned out to be damaged."""
        error, self._broken = self._broken, None
        if error is None or self._path is None:
            return
        self._turn_off()
        self._rebuilds += 1
        if self._rebuilds > MAX_REBUILDS:
            log.warning("the attribute index is off: %s is damaged again: %s", self._path, error)
            return
        level = logging.INFO if isinstance(error, Damaged) else logging.WARNING
        log.log(level, "the attribute index is made anew: %s: %s", self._path, error)
        try:
            await trio.to_thread.run_sync(remove, self._path, self._identity, limiter=self._writing)
            await trio.to_thread.run_sync(self._open, limiter=self._writing)
        except (sqlite3.Error, Damaged, OSError, MountError) as again:
            self._turn_off()
            log.warning("the attribute index is off: %s: %s", self._path, again)


def _change(key: tuple[str, str], entry: Entry | None, now: float, now_ns: int) -> Change:
    """What is to be written of a name; *now* and *now_ns* are one moment on the two clocks."""
    if entry is None:
        return (*key, None)
    age = now - (entry.checked if entry.learnt is None else entry.learnt)
    learnt_ns = 0 if math.isinf(age) else now_ns - int(age * 1e9)
    return (*key, encode(key[1].removesuffix("/"), entry, learnt_ns))
