"""The small database beside the blocks of a cache on disk: whose they are, how large, last used.

Blocking, and used by one thread at a time; several processes share one file.  A block that is
not in it may be on the disk all the same, for a moment; one that is in it may be gone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

FILE = "index.sqlite3"
SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (name BLOB PRIMARY KEY, size INTEGER NOT NULL,
                                   used REAL NOT NULL,
                                   store INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON blocks (used);
CREATE TABLE IF NOT EXISTS stores (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE);
"""
ABANDONED = 3600.0  # Seconds, after which nobody writes any more to a temporary file.


class Share(NamedTuple):
    """What one store has in a cache: how many blocks, bytes in all, and when one was used last.

    `store` is empty where an earlier version, which did not write it down, kept them; `used` is
    in seconds since 1970.
    """

    store: bytes
    blocks: int
    bytes: int
    used: float

    def described(self) -> dict[str, object]:
        """The same, with the parts of the store's name: endpoint, bucket and prefix."""
        names = self.store.decode(errors="replace").split("\0")
        endpoint, bucket, prefix = [*names, "", "", ""][:3]
        return {
            "endpoint": endpoint,
            "bucket": bucket,
            "prefix": prefix,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "used": round(self.used, 3),
        }


def connect(directory: int, patience: float = 1.0) -> sqlite3.Connection:
    """Open or make the database in a directory; waits *patience* seconds for other processes.

    Raises `sqlite3.Error`.
    """
    path = f"/proc/self/fd/{directory}/{FILE}"
    with contextlib.suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(FILE, flags, 0o600, dir_fd=directory))
    database = sqlite3.connect(path, timeout=patience, check_same_thread=False)
    try:
        # Not WAL: it maps a file into our memory, and who makes that file unwritable, or
        # shorter, ends the daemon by a SIGBUS.
        database.execute("PRAGMA journal_mode = TRUNCATE")
        # Only a cache: what a power loss takes is fetched again.
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(SCHEMA)
        _add_stores(database)
    except BaseException:
        database.close()
        raise
    return database


def _add_stores(database: sqlite3.Connection) -> None:
    """Take over what an earlier version has made, which had no stores."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(blocks)")}
    if "store" not in columns:
        database.execute("ALTER TABLE blocks ADD COLUMN store INTEGER NOT NULL DEFAULT 0")


def number_of(database: sqlite3.Connection, store: bytes) -> int:
    """The number of a store, which is given one when it is new."""
    database.execute("INSERT OR IGNORE INTO stores (name) VALUES (?)", (store,))
    row = database.execute("SELECT number FROM stores WHERE name = ?", (store,)).fetchone()
    return int(row[0])


def note(database: sqlite3.Connection, store: bytes, written: Iterable[tuple[bytes, int]]) -> None:
    """Write down that a store has these blocks now: their names, and their sizes on the disk."""
    now, number = time.time(), number_of(database, store)
    rows = [(name, size, now, number) for name, size in written]
    database.executemany(
        "INSERT OR REPLACE INTO blocks (name, size, used, store) VALUES (?, ?, ?, ?)", rows
    )


def total(database: sqlite3.Connection) -> int:
    """How many bytes all stores have together."""
    row = database.execute("SELECT coalesce(sum(size), 0) FROM blocks").fetchone()
    return int(row[0])


def shares(database: sqlite3.Connection) -> Sequence[Share]:
    """What each store has, the largest share first."""
    rows = database.execute(
        "SELECT coalesce(stores.name, x''), count(*), sum(size), max(used) FROM blocks "
        "LEFT JOIN stores ON stores.number = blocks.store GROUP BY 1 ORDER BY 3 DESC"
    )
    return [Share(bytes(name), blocks, size, used) for name, blocks, size, used in rows]


def clear_store(database: sqlite3.Connection, directory: int, store: bytes) -> int:
    """Remove all blocks of one store; returns how many bytes that were.

    Safe while others use them: a block that is gone is fetched again.
    """
    freed = 0
    known = database.execute("SELECT number FROM stores WHERE name = ?", (store,)).fetchone()
    number = known[0] if known is not None else 0
    if known is None and store:
        return 0
    found = database.execute("SELECT name, size FROM blocks WHERE store = ?", (number,))
    for name, size in found.fetchall():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place(name), dir_fd=directory)
            freed += size
    database.execute("DELETE FROM blocks WHERE store = ?", (number,))
    database.commit()
    return freed


def clear_all(database: sqlite3.Connection, directory: int) -> int:
    """Remove all blocks, also those that nobody has written down; returns their bytes.

    Safe while others use them; what is just being written stays.
    """
    database.execute("DELETE FROM blocks")
    freed = sum(_remove(folder, name, status) for folder, name, status in _files(directory))
    database.commit()
    return freed


def _remove(folder: int, name: str, status: os.stat_result) -> int:
    if name.startswith(".") and time.time() - status.st_mtime < ABANDONED:
        return 0
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return status.st_size


def _files(directory: int) -> Iterator[tuple[int, str, os.stat_result]]:
    """All files in the folders of blocks, each with a descriptor of its folder."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for above in os.listdir(directory):
        if len(above) != 2:
            continue
        try:
            folder = os.open(above, flags, dir_fd=directory)
        except OSError:
            continue  # No folder of ours.
        try:
            for name in os.listdir(folder):  # noqa: PTH208  # a descriptor is no path
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield folder, name, status
        finally:
            os.close(folder)


def place(name: bytes) -> str:
    """Where the block *name* is, from the directory of the cache on."""
    text = name.hex()
    return f"{text[:2]}/{text[2:]}"
