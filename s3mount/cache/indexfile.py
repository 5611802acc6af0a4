"""The attribute index on disk: one sqlite3 file, rows by directory.  Blocking, for threads.

Whole pages go in and out as JSON, so that a page costs one step of sqlite3, in which it lets
the interpreter go; a step for each row would wait for it a thousand times.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3mount.cache.records import MAX_RECORD

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 50  # Another daemon writes for a few milliseconds at a time.
CACHE_KIB = 4096  # Memory of each connection.
MAX_JOURNAL_SIZE = 16 << 20
MAX_PAGE_ROWS = 4000  # A page lists 1000 names; a store that lists in no order spans more.
COUNT_AFTER = 10_000  # Rows that are written before they are counted again.
EVICT_BATCH = 2000
_BESIDE = ("-journal", "-wal", "-shm")  # What sqlite3 makes, and earlier versions had it make.
EVICTED_SHARE = 0.05  # Of the bound: so much is made free at once.

_TABLES = """
CREATE TABLE directories (
    id INTEGER PRIMARY KEY, prefix TEXT NOT NULL UNIQUE, used INTEGER NOT NULL);
CREATE INDEX directories_by_use ON directories (used);
CREATE TABLE names (
    directory INTEGER NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (directory, name)) WITHOUT ROWID;
"""
_PAGE = """
SELECT group_concat(record, char(10)) FROM (
    SELECT record FROM names
    WHERE directory = (SELECT id FROM directories WHERE prefix = ?)
        AND name BETWEEN ? AND ? AND length(record) <= ? LIMIT ?)
"""
# The first parameter is a JSON list of [prefix, name, record]; without a record, a row goes.
_ADD_DIRECTORIES = """
INSERT INTO directories (prefix, used)
    SELECT DISTINCT json_extract(value, '$[0]'), ?2 FROM json_each(?1)
    WHERE json_extract(value, '$[2]') IS NOT NULL
    ON CONFLICT (prefix) DO UPDATE SET used = excluded.used
"""
_PUT_NAMES = """
INSERT OR REPLACE INTO names (directory, name, record)
    SELECT directories.id, json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(?) JOIN directories ON prefix = json_extract(value, '$[0]')
    WHERE json_extract(value, '$[2]') IS NOT NULL
"""
_DROP_NAMES = """
DELETE FROM names WHERE (directory, name) IN (
    SELECT directories.id, json_extract(value, '$[1]')
    FROM json_each(?) JOIN directories ON prefix = json_extract(value, '$[0]')
    WHERE json_extract(value, '$[2]') IS NULL)
"""
_TOUCH = """
UPDATE directories SET used = ?2
    WHERE prefix IN (SELECT value FROM json_each(?1)) AND used < ?2 - 3600
"""
_UNDER = "prefix >= ?1 AND prefix < ?1 || char(1114111)"
_DROP_TREE = (
    f"DELETE FROM names WHERE directory IN (SELECT id FROM directories WHERE {_UNDER})",
    f"DELETE FROM directories WHERE {_UNDER}",
)
_DROP_FILES = f"""
DELETE FROM names WHERE substr(name, -1) <> '/'
    AND directory IN (SELECT id FROM directories WHERE {_UNDER})
"""
_MOVE = f"""
UPDATE directories SET prefix = ?2 || substr(prefix, length(?1) + 1) WHERE {_UNDER}
"""
_EVICT = """
DELETE FROM names WHERE directory = ?1 AND name IN (
    SELECT name FROM names WHERE directory = ?1 LIMIT ?2)
"""

Change = tuple[str, str, str | None]  # prefix, name, record (None: the row goes)
# prefix, the other one that it becomes (None: it goes; itself: all go but the directories)
Move = tuple[str, str | None]


class Damaged(Exception):
    """The file is not what we have written."""


class IndexFile:
    """One connection to the index of one bucket.  Raises `sqlite3.Error`."""

    def __init__(self, path: Path, max_rows: int, max_size: int) -> None:
        self._max_rows = max_rows
        self._max_size = max_size
        self._rows = 0
        self._uncounted = COUNT_AFTER  # So the first write counts.
        _make(path)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        run = self._database.execute
        run(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA cell_size_check = ON")
        run(f"PRAGMA cache_size = -{CACHE_KIB}")
        # Not WAL: it maps a file into our memory, and who makes that file unwritable, or
        # shorter, ends the daemon by a SIGBUS.
        (mode,) = run("PRAGMA journal_mode = TRUNCATE").fetchone()
        if mode != "truncate":
            raise sqlite3.OperationalError("a daemon of an earlier version has it open")
        # Only a cache: what a power loss damages is made anew.
        run("PRAGMA synchronous = OFF")
        run(f"PRAGMA journal_size_limit = {MAX_JOURNAL_SIZE}")
        (version,) = run("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            self._create()

    def _create(self) -> None:
        """Make the tables, unless another daemon is quicker; `Damaged` if it is not empty."""
        with self._transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == SCHEMA_VERSION:
                return
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version or tables:
                raise Damaged(f"it is of version {version}")
            for statement in _TABLES.split(";"):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def page(self, prefix: str, first: str, last: str) -> str:
        """The records of the names between two, both included, a line each."""
        parameters = (prefix, first, last, MAX_RECORD, MAX_PAGE_ROWS)
        (lines,) = self._database.execute(_PAGE, parameters).fetchone()
        return lines or ""

    def _move(self, old: str, new: str | None) -> None:
        if new is None:
            for statement in _DROP_TREE:
                self._database.execute(statement, (old,))
        elif new == old:
            self._database.execute(_DROP_FILES, (old,))
        else:
            self._database.execute(_MOVE, (old, new))

    def write(
        self,
        changes: Sequence[Change],
        moves: Sequence[Move],
        used: Sequence[str],
        now: int,
    ) -> None:
        """Move or drop whole trees, then put and drop rows; *used* prefixes were read at *now*."""
        text = json.dumps(changes)
        with self._transaction():
            for old, new in moves:
                self._move(old, new)
            if used:
                self._database.execute(_TOUCH, (json.dumps(used), now))
            self._database.execute(_ADD_DIRECTORIES, (text, now))
            self._database.execute(_PUT_NAMES, (text,))
            self._database.execute(_DROP_NAMES, (text,))
        self._uncounted += len(changes)
        self._shrink()

    def _shrink(self) -> None:
        """Keep to the bounds; the directories go that were used the longest ago."""
        if self._uncounted >= COUNT_AFTER or self._exceeds(1.0):
            (self._rows,) = self._database.execute("SELECT count(*) FROM names").fetchone()
            self._uncounted = 0
        if self._exceeds(1.0):
            while self._exceeds(1 - EVICTED_SHARE) and self._evict():
                pass

    def _exceeds(self, share: float) -> bool:
        """Whether there are more rows or bytes than a share of the bounds."""
        rows = self._rows + self._uncounted
        return rows > share * self._max_rows or self._size() > share * self._max_size

    def _size(self) -> int:
        """Bytes in use; what was made free is used again before the file grows."""
        names = ("page_count", "freelist_count", "page_size")
        values = [self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        return int((values[0] - values[1]) * values[2])

    def _evict(self) -> bool:
        """Drop some rows of the directory that was used the longest ago; False: there is none."""
        with self._transaction():
            run = self._database.execute
            found = run("SELECT id FROM directories ORDER BY used, id LIMIT 1").fetchone()
            if found is None:
                return False
            dropped = run(_EVICT, (found[0], EVICT_BATCH)).rowcount
            if dropped < EVICT_BATCH:
                run("DELETE FROM directories WHERE id = ?", found)
        self._rows -= dropped
        return True


def _make(path: Path) -> None:
    """Make an empty file that only we may read; one that is there is left alone.

    To open and close that would take the locks from the other connection to it.
    """
    with contextlib.suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o600))


def identity(path: Path) -> tuple[int, int] | None:
    """Which file is at *path*."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def prune(path: Path, keep: int) -> None:
    """Delete the files beside *path* that were written the longest ago, but for *keep*."""
    others = [other for other in path.parent.glob(f"*{path.suffix}") if other != path]
    ages: dict[Path, float] = {}
    for other in others:
        with contextlib.suppress(OSError):
            ages[other] = other.stat(follow_symlinks=False).st_mtime
    for old in sorted(ages, key=ages.__getitem__, reverse=True)[keep:]:
        for suffix in ("", *_BESIDE, ".damaged"):
            with contextlib.suppress(OSError):
                Path(f"{old}{suffix}").unlink()


def remove(path: Path, opened: tuple[int, int] | None) -> None:
    """Move a damaged file out of the way, unless another daemon has done so by now."""
    if identity(path) != opened:
        return
    with contextlib.suppress(OSError):
        path.replace(f"{path}.damaged")
    for suffix in _BESIDE:
        with contextlib.suppress(OSError):
            Path(f"{path}{suffix}").unlink()
