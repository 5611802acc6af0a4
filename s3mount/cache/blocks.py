"""Clean bytes in memory: blocks of object versions, each fetched once however many read it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import cachetools
import trio

from s3mount.cache.arena import Arena
from s3mount.cache.block import Block
from s3mount.cache.disk import BlockDisk, Wanted
from s3mount.cache.integrity import Integrity
from s3mount.cache.version import ObjectVersion as ObjectVersion  # by which blocks are named
from s3mount.errors import Corrupt, StoreError
from s3mount.memory import MemoryBudget
from s3mount.s3.store import MIB, ObjectStore
from s3mount.write.extents import Extents

log = logging.getLogger(__name__)

BLOCK_SIZE = MIB  # The largest request of the kernel; a whole one is answered without a copy.
PIECE_SIZE = 32 << 10  # What a random read fetches; 32 KiB cost a connection 0.4 ms at 90 MB/s.


class BlockId(NamedTuple):
    """One block (or piece) of one version: bytes from ``number * size`` on."""

    version: ObjectVersion
    number: int


class BlockCache:
    """Keeps the blocks that were read last, within the memory budget.

    A block is named by its object's ETag, so a cached block is never stale: a changed object
    has other blocks, and the old ones age out unasked for.  Buffers are recycled, because the
    first touch of fresh memory costs more than filling it, so a view that is handed out is
    good only until the caller's next checkpoint.  With *verify* nobody else vouches for what
    the store sends, see `Integrity`.
    """

    def __init__(
        self,
        store: ObjectStore,
        budget: MemoryBudget,
        nursery: trio.Nursery,
        disk: BlockDisk | None,
        *,
        verify: bool,
    ) -> None:
        self._store = store
        self._disk = disk
        self._integrity = Integrity(store, nursery, BLOCK_SIZE, self._peek) if verify else None
        self._tell_damage: Callable[[ObjectVersion], None] | None = None
        self._budget = budget
        self._nursery = nursery
        self._blocks: cachetools.LRUCache[BlockId, Block] = cachetools.LRUCache(1 << 40)
        self._pieces: cachetools.LRUCache[BlockId, memoryview] = cachetools.LRUCache(1 << 40)
        self._fetching: dict[BlockId, Block] = {}
        self._fetching_pieces: dict[BlockId, trio.Event] = {}
        self._arena = Arena(BLOCK_SIZE)
        self._cooling = False
        self.fetched_bytes = 0
        budget.reclaim_with(self._reclaim)

    # -- what readers ask ------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """The bytes of all blocks and pieces in memory, about."""
        return len(self._blocks) * BLOCK_SIZE + len(self._pieces) * PIECE_SIZE

    def ranges(self, version: ObjectVersion) -> Extents:
        """Which bytes of a version are in memory."""
        found = Extents()
        for unit, held in ((BLOCK_SIZE, self._blocks), (PIECE_SIZE, self._pieces)):
            for block in held:  # By name only: to look at one would be to use it.
                if block.version == version:
                    start = block.number * unit
                    found.add(start, min(start + unit, version.size))
        return found

    def has(self, version: ObjectVersion, index: int) -> bool:
        """Whether block *index* is here or on its way."""
        block = BlockId(version, index)
        return block in self._fetching or block in self._blocks

    def cached(self, version: ObjectVersion, start: int, stop: int) -> memoryview | None:
        """The bytes ``start <= i < stop`` if they are here, in one piece."""
        index = start // BLOCK_SIZE
        low = start - index * BLOCK_SIZE
        high = stop - index * BLOCK_SIZE
        if high <= BLOCK_SIZE:
            block_id = BlockId(version, index)
            block = self._blocks.get(block_id) or self._fetching.get(block_id)
            if block is not None and block.ready >= high:
                return block.buffer[low:high]
        first = start // PIECE_SIZE
        pieces: list[memoryview] = []
        for number in range(first, -(-stop // PIECE_SIZE)):
            piece = self._pieces.get(BlockId(version, number))
            if piece is None:
                return None
            pieces.append(piece)
        joined = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        found = joined[start - first * PIECE_SIZE : stop - first * PIECE_SIZE]
        return found if len(found) == stop - start else None

    async def read(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Return the bytes ``start <= i < stop`` from whole blocks, fetching what is missing.

        The view is good until the caller's next checkpoint.  Raises `StoreError`.
        """
        assert stop <= version.size, "to wait for bytes after the end would never end"
        while True:
            first, last = start // BLOCK_SIZE, (stop - 1) // BLOCK_SIZE
            for index in range(first, last + 1):
                base = index * BLOCK_SIZE
                await self._wait(version, index, min(stop - base, BLOCK_SIZE))
            # No checkpoint from here on: what was waited for first may be gone again.
            view = self._join(version, start, stop)
            if view is not None:
                return view

    async def read_piece(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Return the bytes ``start <= i < stop``, fetching little more than those."""
        low = start // PIECE_SIZE * PIECE_SIZE
        high = min(-(-stop // PIECE_SIZE) * PIECE_SIZE, version.size)
        first = BlockId(version, low // PIECE_SIZE)
        while (found := self.cached(version, start, stop)) is None:
            if first in self._fetching_pieces:
                await self._fetching_pieces[first].wait()
                found = self.cached(version, start, stop)
                if found is None and high - low <= PIECE_SIZE:
                    continue
                break  # The other fetch may have been shorter than ours.
            with self.arriving(version, first.number):
                view = await self._fetch_pieces(version, low, high)
                return view[start - low : stop - low]
        if found is None:
            view = await self._fetch_pieces(version, low, high)
            return view[start - low : stop - low]
        return found

    @contextmanager
    def arriving(self, version: ObjectVersion, piece: int) -> Iterator[None]:
        """Let whoever wants a piece wait for the end of this scope: it is on its way."""
        block_id = BlockId(version, piece)
        if block_id in self._fetching_pieces:
            yield
            return
        done = self._fetching_pieces[block_id] = trio.Event()
        try:
            yield
        finally:
            del self._fetching_pieces[block_id]
            done.set()

    def prefetch(self, version: ObjectVersion, first: int, count: int) -> bool:
        """Fetch *count* blocks from *first* on with one GET, in the background.

        Returns False when the memory for them is not there now.
        """
        return self._start(version, first, count, urgent=False)

    def put(self, version: ObjectVersion, data: memoryview) -> None:
        """Keep the beginning of a version, which came along with its metadata."""
        if not data or not self._budget.try_take(len(data)):
            return
        for low in range(0, len(data), PIECE_SIZE):
            if len(data) - low >= PIECE_SIZE or len(data) == version.size:
                piece = data[low : low + PIECE_SIZE]
                self._put_piece(BlockId(version, low // PIECE_SIZE), piece)
                self._keep_piece(version, low // PIECE_SIZE, piece)
            else:
                self._budget.give(len(data) - low)

    def retire(self, version: ObjectVersion, index: int) -> None:
        """Use the memory of a block anew, if it is here: whoever wants it again has to fetch it."""
        if self._integrity is not None and self._integrity.awaits(version, index):
            return
        block = self._blocks.pop(BlockId(version, index), None)
        if block is not None:
            self._recycle(block)

    def forget(self, key: str, *, tree: bool) -> None:
        """Drop all blocks in memory of the object *key*, or of all whose keys begin so."""

        def meant(block_id: BlockId) -> bool:
            return block_id.version.key.startswith(key) if tree else block_id.version.key == key

        for block_id in filter(meant, list(self._blocks)):
            self._recycle(self._blocks.pop(block_id))
        for block_id in filter(meant, list(self._pieces)):
            self._budget.give(len(self._pieces.pop(block_id)))

    def tell_damage_to(self, listener: Callable[[ObjectVersion], None]) -> None:
        """Have *listener* told, without a checkpoint, of versions whose bytes were wrong."""
        self._tell_damage = listener

    def clear(self) -> None:
        """Drop all clean blocks; nobody may hold a view of one."""
        self._reclaim(1 << 62)
        self._arena.cool(keep=0)

    # -- fetching --------------------------------------------------------------------------

    async def _wait(self, version: ObjectVersion, index: int, needed: int) -> None:
        block_id = BlockId(version, index)
        while True:
            block = self._blocks.get(block_id)
            if block is not None:
                return
            block = self._fetching.get(block_id)
            if block is None:
                if not self._start(version, index, 1, urgent=True):
                    await self._wait_for_memory()
                continue
            if block.ready >= needed:
                return
            await block.progress.park()
            if block.error is not None:
                raise block.error

    async def _wait_for_memory(self) -> None:
        await self._budget.take(BLOCK_SIZE)
        self._budget.give(BLOCK_SIZE)

    def _join(self, version: ObjectVersion, start: int, stop: int) -> memoryview | None:
        found = self.cached(version, start, stop)
        if found is not None:
            return found
        joined = bytearray(stop - start)
        position = start
        while position < stop:
            end = min((position // BLOCK_SIZE + 1) * BLOCK_SIZE, stop)
            view = self.cached(version, position, end)
            if view is None:
                return None
            joined[position - start : end - start] = view
            position = end
        return memoryview(joined)

    def _start(self, version: ObjectVersion, first: int, count: int, *, urgent: bool) -> bool:
        last = -(-version.size // BLOCK_SIZE)
        count = min(count, last - first)
        if count <= 0 or not self._budget.try_take(count * BLOCK_SIZE):
            return False
        blocks = []
        for index in range(first, first + count):
            size = min(BLOCK_SIZE, version.size - index * BLOCK_SIZE)
            block = self._fetching[BlockId(version, index)] = Block(self._arena.take(), size)
            blocks.append(block)
        self._nursery.start_soon(self._fetch, version, first, blocks, urgent)
        return True

    async def _fetch(
        self, version: ObjectVersion, first: int, blocks: Sequence[Block], urgent: bool
    ) -> None:
        error: StoreError | None = None
        try:
            for start, run in await self._load(version, first, blocks):
                if self._disk is not None and not urgent:
                    await self._disk.wait_for_room()
                await self._get(version, start, run, urgent)
        except StoreError as caught:
            # Whoever waits raises it; a prefetch nobody waits for is asked again on demand,
            # and then the failure has a request to belong to.
            error = caught
            log.debug("fetching %s failed: %s", version.key, error)
        finally:
            for index, block in enumerate(blocks, first):
                if self._fetching.get(BlockId(version, index)) is block:
                    del self._fetching[BlockId(version, index)]
                    self._recycle(block)
                    block.fail(error)

    async def _get(
        self, version: ObjectVersion, first: int, blocks: Sequence[Block], urgent: bool
    ) -> None:
        """Fetch blocks with one GET, and show what nothing speaks against."""
        views = [block.filled for block in blocks]
        held: list[tuple[int, Block]] = []
        progress = self._progress(version, first, blocks, held)
        whole = first == 0 and sum([len(view) for view in views]) == version.size
        await self._store.get(
            version.key,
            first * BLOCK_SIZE,
            views,
            etag=version.etag,
            # A whole object is compared with its checksum before anybody sees it.
            progress=None if whole else progress,
            urgent=urgent,
            restore=urgent,
            size=version.size if whole else None,
        )
        if whole:
            progress(version.size)
        for number, block in held:
            await self._check(version, number, block)
            self._show(version, number, block)

    async def _check(self, version: ObjectVersion, number: int, block: Block) -> None:
        """Judge a block that was held back; raises `Corrupt` when the version is damaged."""
        assert self._integrity is not None
        try:
            await self._integrity.check(version, number, block.filled)
        except Corrupt as error:
            log.warning("%s; it is dropped and fetched again when it is read again", error)
            self._spoil(version)
            raise

    def _spoil(self, version: ObjectVersion) -> None:
        """Drop a version everywhere: some of its bytes are wrong."""
        self.forget(version.key, tree=False)
        if self._disk is not None:
            count = -(-version.size // BLOCK_SIZE)
            self._disk.drop(self._name(version, BLOCK_SIZE, number) for number in range(count))
        if self._tell_damage is not None:
            self._tell_damage(version)

    def _held_back(self, version: ObjectVersion, number: int) -> bool:
        return self._integrity is not None and self._integrity.holds_back(version, number)

    def _peek(self, version: ObjectVersion, number: int) -> memoryview | None:
        block = self._blocks.get(BlockId(version, number))
        return None if block is None else block.filled

    async def _load(
        self, version: ObjectVersion, first: int, blocks: Sequence[Block]
    ) -> Sequence[tuple[int, Sequence[Block]]]:
        """Take from the disk what is there; return the runs of blocks that are not."""
        if self._disk is None:
            return [(first, blocks)]
        found = await self._disk.read(
            [
                Wanted(self._name(version, BLOCK_SIZE, number), block.filled)
                for number, block in enumerate(blocks, first)
            ]
        )
        runs: list[tuple[int, list[Block]]] = []
        for number, (block, here) in enumerate(zip(blocks, found, strict=True), first):
            if here:
                await self._take_from_disk(version, number, block)
            elif runs and runs[-1][0] + len(runs[-1][1]) == number:
                runs[-1][1].append(block)
            else:
                runs.append((number, [block]))
        return runs

    async def _take_from_disk(self, version: ObjectVersion, number: int, block: Block) -> None:
        if self._held_back(version, number):
            await self._check(version, number, block)
            self._arrived(BlockId(version, number), block)
            return
        self._arrived(BlockId(version, number), block)
        if self._integrity is not None:
            self._integrity.arrived(version, number, block.filled)

    def _show(self, version: ObjectVersion, number: int, block: Block) -> None:
        self.fetched_bytes += block.size
        block_id = BlockId(version, number)
        self._arrived(block_id, block)
        self._keep(block_id, block)

    def _name(self, version: ObjectVersion, unit: int, number: int) -> bytes:
        assert self._disk is not None
        return self._disk.name(version.key, version.etag, version.size, unit, number)

    def _arrived(self, block_id: BlockId, block: Block) -> None:
        if self._fetching.get(block_id) is block:
            del self._fetching[block_id]
            self._blocks[block_id] = block
        block.fill(block.size)

    def _keep(self, block_id: BlockId, block: Block) -> None:
        """Have a fetched block written to disk; its buffer is not used anew before that."""
        if self._disk is None:
            return

        def written() -> None:
            block.held -= 1
            if block.held == 0 and self._blocks.get(block_id) is not block:
                self._recycle(block)

        name = self._name(block_id.version, BLOCK_SIZE, block_id.number)
        block.held += 1
        if not self._disk.keep(name, block.filled, written):
            block.held -= 1

    def _progress(
        self,
        version: ObjectVersion,
        first: int,
        blocks: Sequence[Block],
        held: list[tuple[int, Block]],
    ) -> Callable[[int], None]:
        """What shows blocks as they come; those that have to be checked first go to *held*."""
        current = 0

        def progress(received: int) -> None:
            nonlocal current
            received -= current * BLOCK_SIZE
            while current < len(blocks) and received >= blocks[current].size:
                block, number = blocks[current], first + current
                if self._held_back(version, number):
                    held.append((number, block))
                else:
                    self._show(version, number, block)
                    if self._integrity is not None:
                        self._integrity.arrived(version, number, block.filled)
                current += 1
                received -= BLOCK_SIZE
            if (
                received > 0
                and current < len(blocks)
                and not self._held_back(version, first + current)
            ):
                blocks[current].fill(received)

        return progress

    async def _fetch_pieces(self, version: ObjectVersion, low: int, high: int) -> memoryview:
        size = high - low
        await self._budget.take(size)
        buffer = memoryview(bytearray(size))
        try:
            kept = await self._load_pieces(version, low, buffer)
            if not kept:
                whole = version.size if size == version.size else None
                await self._store.get(version.key, low, [buffer], etag=version.etag, size=whole)
                self.fetched_bytes += size
        except BaseException:
            self._budget.give(size)
            raise
        for start in range(low, high, PIECE_SIZE):
            piece = buffer[start - low : start - low + PIECE_SIZE]
            if not kept:
                self._keep_piece(version, start // PIECE_SIZE, piece)
            self._put_piece(BlockId(version, start // PIECE_SIZE), piece)
        return buffer

    def _put_piece(self, block_id: BlockId, piece: memoryview) -> None:
        old = self._pieces.pop(block_id, None)
        if old is not None:
            self._budget.give(len(old))
        self._pieces[block_id] = piece

    async def _load_pieces(self, version: ObjectVersion, low: int, buffer: memoryview) -> bool:
        if self._disk is None:
            return False
        wanted = [
            Wanted(
                self._name(version, PIECE_SIZE, (low + start) // PIECE_SIZE),
                buffer[start : start + PIECE_SIZE],
            )
            for start in range(0, len(buffer), PIECE_SIZE)
        ]
        if not all(self._disk.has(item.name) for item in wanted):
            return False
        return all(await self._disk.read(wanted))

    def _keep_piece(self, version: ObjectVersion, number: int, piece: memoryview) -> None:
        if self._disk is not None:
            # A piece's buffer is never used for anything else.
            self._disk.keep(self._name(version, PIECE_SIZE, number), piece, _nothing)

    # -- memory ----------------------------------------------------------------------------

    def _recycle(self, block: Block) -> None:
        if block.held:
            return  # Whoever holds it recycles it.
        self._budget.give(BLOCK_SIZE)
        if self._arena.give(block.room) and not self._cooling:
            # Later, because the bytes may be just what the room was made for.
            self._cooling = True
            self._nursery.start_soon(self._cool)

    async def _cool(self) -> None:
        self._cooling = False
        self._arena.cool()

    def _reclaim(self, missing: int) -> None:
        target = self._budget.used - missing
        while self._budget.used > target and (self._blocks or self._pieces):
            if self._pieces:
                self._budget.give(len(self._pieces.popitem()[1]))
            if self._budget.used > target and self._blocks:
                self._recycle(self._blocks.popitem()[1])


def _nothing() -> None:
    """A buffer that is not recycled needs no looking after."""
