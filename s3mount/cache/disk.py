"""Clean blocks on disk: they outlive the daemon, and several mounts share them.

One file a block, in directories by the first digits of its name, written whole and renamed
into place; its header names what it is and holds a checksum, so a block that was damaged, or
is another's, is never served.  A small database knows sizes and last uses, for the bound.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import sqlite3
import stat
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from s3mount.cache import ledger
from s3mount.private import open_private

log = logging.getLogger(__name__)

Checksum = Callable[[memoryview, int], int]

MAGIC = b"s3mblk1\n"
HEADER = struct.Struct("<8s32sQQ")  # magic, identity, size of the data, checksum
MAX_WAITING = 128  # Blocks that wait to be written; a faster reader leaves gaps in the cache.
MANY_WAITING = 48  # From here on whoever fetches ahead waits: what is under way comes on top.
BATCH = 16
SLOW = 100e6  # A disk that writes fewer bytes a second is not waited for,
PATIENCE = 0.25  # nor one that writes nothing for so many seconds.
MEASURED = 4 << 20  # Bytes in one batch that say something about its pace.
DROP_AGAIN_AFTER = 5.0  # Seconds, if what is to be dropped could not be removed.
RETRY_AFTER = 60.0  # Seconds without writing after the disk has failed.


class Wanted(NamedTuple):
    """One block to be read: its name, and the buffer that it fills exactly."""

    name: bytes
    buffer: memoryview


class _Waiting(NamedTuple):
    name: bytes
    data: memoryview
    done: Callable[[], None]


class BlockDisk:
    """A bounded store of blocks in one directory.  Sizes in bytes.

    Names come from `name`; whoever keeps a block holds its buffer still until *done* is called.
    Nothing here ever fails a reader: what cannot be read was never kept.
    """

    def __init__(
        self, path: Path, store: str, max_size: int, min_free: int, checksum: Checksum
    ) -> None:
        self._path = path
        self._store = store.encode()
        self._max_size = max_size
        self._min_free = min_free
        self._checksum = checksum
        self._directory = -1
        self._database: sqlite3.Connection | None = None
        self._waiting: list[_Waiting] = []
        self._wake = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._pace = 2 * SLOW  # Bytes a second, lately.
        self._writing = trio.Lock()
        self._used: set[bytes] = set()
        self._dropped: set[bytes] = set()
        self._quiet_until = 0.0
        self.hits = 0
        self.misses = 0
        self.hit_bytes = 0
        self.written_bytes = 0
        self.damaged = 0
        self.skipped = 0
        self.held_bytes = 0  # Of all stores in the directory, when it was looked at last.

    def open(self) -> None:
        """Open or make the directory.  Blocks; raises `MountError`."""
        self._directory = open_private(self._path)
        try:
            self._database = ledger.connect(self._directory)
            self.held_bytes = ledger.total(self._database)
        except sqlite3.Error:
            self._start_anew()

    def close(self) -> None:
        """Let go of the directory.  Blocks."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._note_uses(self._database)
                self._database.commit()
            self._database.close()
            self._database = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def name(self, key: str, etag: str, size: int, unit: int, number: int) -> bytes:
        """The name of a block: *number* counts blocks of *unit* bytes of an object version."""
        text = f"\0{key}\0{etag}\0{size}\0{unit}\0{number}"
        digest = hashlib.blake2b(self._store, digest_size=32)
        digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.digest()

    def has(self, name: bytes) -> bool:
        """Whether a block seems to be here: a look into the kernel's name cache, 3 us."""
        if name in self._dropped:
            return False
        try:
            os.stat(ledger.place(name), dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    async def read(self, wanted: Sequence[Wanted]) -> list[bool]:
        """Fill the buffers of the blocks that are here and whole; tells which."""
        here = [item for item in wanted if self.has(item.name)]
        self.misses += len(wanted) - len(here)
        if not here:
            return [False] * len(wanted)
        found = await trio.to_thread.run_sync(self._read_all, here)
        self._used |= found
        self.hits += len(found)
        self.misses += len(here) - len(found)
        self.hit_bytes += sum(len(item.buffer) for item in wanted if item.name in found)
        return [item.name in found for item in wanted]

    def keep(self, name: bytes, data: memoryview, done: Callable[[], None]) -> bool:
        """Have a block written soon; False when it will not be."""
        if len(self._waiting) >= MAX_WAITING or trio.current_time() < self._quiet_until:
            self.skipped += 1
            return False
        self._waiting.append(_Waiting(name, data, done))
        self._wake.unpark_all()
        return True

    async def wait_for_room(self) -> None:
        """Have whoever fetches ahead go no faster than a quick disk writes.

        Else a part of what is read once would have to be fetched again the next time.
        """
        while len(self._waiting) >= MANY_WAITING and self._pace >= SLOW:
            with trio.move_on_after(PATIENCE) as scope:
                await self._room.park()
            if scope.cancelled_caught:
                self._pace = 0.0  # Until the next batch tells better.

    def drop(self, names: Iterable[bytes]) -> None:
        """Serve these blocks no more; they are removed soon."""
        self._dropped.update(names)
        for item in [item for item in self._waiting if item.name in self._dropped]:
            self._waiting.remove(item)
            item.done()
        self._wake.unpark_all()

    async def run(self) -> None:
        """Write what is to be kept, until cancelled."""
        while True:
            while not self._waiting and not self._dropped:
                await self._wake.park()
            if not await self._write_some() and not self._waiting:
                await trio.sleep(DROP_AGAIN_AFTER)

    async def flush(self) -> None:
        """Write all that waits."""
        while self._waiting:
            await self._write_some()
        if self._dropped:
            await self._write_some()

    async def shares(self) -> Sequence[ledger.Share]:
        """What each store has in the directory; none when it cannot be asked just now."""
        async with self._writing:
            return await trio.to_thread.run_sync(self._shares)

    async def clear(self) -> int:
        """Remove all blocks of our store, for all who use them; returns their bytes.

        Raises `OSError` when that is not possible.
        """
        async with self._writing:
            waiting, self._waiting = self._waiting, []
            for item in waiting:
                item.done()
            self._room.unpark_all()
            return await trio.to_thread.run_sync(self._clear)

    async def _write_some(self) -> bool:
        """Write what waits longest, and remove what was dropped; whether that worked."""
        async with self._writing:
            return await self._write_batch()

    async def _write_batch(self) -> bool:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        started = trio.current_time()
        uses, self._used = self._used, set()
        dropped = frozenset(self._dropped)
        try:
            await trio.to_thread.run_sync(self._write_all, batch, uses, dropped)
            self._dropped -= dropped
            size = sum(len(item.data) for item in batch)
            if size >= MEASURED:
                self._pace = size / max(trio.current_time() - started, 1e-6)
        except (OSError, sqlite3.Error) as error:
            self._quiet_until = trio.current_time() + RETRY_AFTER
            log.warning("%s: the cache is not written to for a minute: %s", self._path, error)
            return False
        finally:
            for item in batch:
                item.done()
            self._room.unpark_all()
        return True

    # -- in threads ------------------------------------------------------------------------

    def _shares(self) -> Sequence[ledger.Share]:
        try:
            return ledger.shares(self._database) if self._database is not None else ()
        except sqlite3.Error as error:
            log.info("%s: its index cannot be read: %s", self._path, error)
            return ()

    def _clear(self) -> int:
        if self._database is None:
            return 0
        try:
            freed = ledger.clear_store(self._database, self._directory, self._store)
            self.held_bytes = ledger.total(self._database)
            return freed
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.rollback()
            raise OSError(5, f"the index of the cache cannot be changed: {error}") from error

    def _read_all(self, wanted: Sequence[Wanted]) -> set[bytes]:
        return {item.name for item in wanted if self._read_one(item)}

    def _read_one(self, item: Wanted) -> bool:
        place = ledger.place(item.name)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self._folder(place) as (folder, name):
                descriptor = os.open(name, flags, dir_fd=folder)
        except OSError:
            return False
        try:
            header = bytearray(HEADER.size)
            count = os.readv(descriptor, [header, item.buffer])
            if count == HEADER.size + len(item.buffer) and self._is_good(header, item):
                return True
        except OSError as error:
            log.info("%s: %s", place, error)
        finally:
            os.close(descriptor)
        self.damaged += 1
        log.info("%s: a damaged block is dropped and fetched again", self._path / place)
        with contextlib.suppress(OSError):
            os.unlink(place, dir_fd=self._directory)
        return False

    def _is_good(self, header: bytearray, item: Wanted) -> bool:
        magic, identity, size, checksum = HEADER.unpack(header)
        if (magic, identity, size) != (MAGIC, item.name, len(item.buffer)):
            return False
        return bool(checksum == self._checksum(item.buffer, 0))

    def _write_all(
        self, batch: Sequence[_Waiting], uses: set[bytes], dropped: Collection[bytes]
    ) -> None:
        database = self._database
        if database is None:
            return
        # Before the batch, in which the right block of the same name may be.
        self._unlink(dropped)
        try:
            self._make_room(database, sum(len(item.data) for item in batch))
            for item in batch:
                self._write_one(item)
            if batch:
                sizes = [(item.name, HEADER.size + len(item.data)) for item in batch]
                ledger.note(database, self._store, sizes)
            self._note_uses(database, uses)
            database.commit()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                database.rollback()
                # Another mount writes just now: what nobody has written down must not stay.
                self._unlink(item.name for item in batch)
                return
            log.warning("%s: the cache is damaged and starts anew: %s", self._path, error)
            self._start_anew()

    def _unlink(self, names: Iterable[bytes]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(ledger.place(name), dir_fd=self._directory)

    @contextlib.contextmanager
    def _folder(self, place: str) -> Iterator[tuple[int, str]]:
        """The directory of a block, which is no link to anywhere else, and the name in it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        above, _, name = place.partition("/")
        folder = os.open(above, flags, dir_fd=self._directory)
        try:
            yield folder, name
        finally:
            os.close(folder)

    def _make_folder(self, place: str) -> None:
        above = place.partition("/")[0]
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(above, dir_fd=self._directory).st_mode):
                os.unlink(above, dir_fd=self._directory)
        with contextlib.suppress(FileExistsError):
            os.mkdir(above, 0o700, dir_fd=self._directory)

    def _write_one(self, item: _Waiting) -> None:
        place = ledger.place(item.name)
        self._make_folder(place)
        with self._folder(place) as (folder, name):
            temporary = f".{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
            try:
                header = HEADER.pack(MAGIC, item.name, len(item.data), self._checksum(item.data, 0))
                if os.writev(descriptor, [header, item.data]) != HEADER.size + len(item.data):
                    raise OSError(28, "a block was written in part only")
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                self.written_bytes += len(item.data)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            finally:
                os.close(descriptor)

    def _make_room(self, database: sqlite3.Connection, size: int) -> None:
        """Drop the blocks that were not used for longest, before more are written."""
        total = ledger.total(database)
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize
        excess = max(total + size - self._max_size, size + self._min_free - free)
        for name, used in database.execute("SELECT name, size FROM blocks ORDER BY used"):
            if excess <= 0:
                break
            excess -= used
            total -= used
            self._unlink([name])
            database.execute("DELETE FROM blocks WHERE name = ?", (name,))
        self.held_bytes = total
        if excess > 0:
            raise OSError(28, "there is no room for it")
        self.held_bytes += size

    def _note_uses(self, database: sqlite3.Connection, uses: set[bytes] | None = None) -> None:
        now = time.time()
        rows = [(now, name) for name in (self._used if uses is None else uses)]
        database.executemany("UPDATE blocks SET used = ? WHERE name = ?", rows)

    def _start_anew(self) -> None:
        """Throw away everything: a cache that nobody can keep account of has no bound."""
        if self._database is not None:
            self._database.close()
            self._database = None
        for entry in list(self._path.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and len(entry.name) == 2:
                for block in entry.iterdir():
                    block.unlink(missing_ok=True)
            elif entry.name.startswith("index.sqlite3"):
                entry.unlink(missing_ok=True)
        self._database = ledger.connect(self._directory)
        self.held_bytes = 0
