"""Whether the blocks that were fetched are the object that was stored, where no TLS says so.

A checksum of a whole object cannot judge one block.  So those of the blocks are put together,
and the last block that was missing is shown to nobody before the whole has been compared.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable

import cachetools
import trio

from s3mount.cache.version import ObjectVersion
from s3mount.errors import Corrupt, StoreError
from s3mount.s3.store import ObjectStore, StoredChecksum

log = logging.getLogger(__name__)

MAX_BLOCKS = 1 << 19  # Blocks that are remembered, of all versions: half a TiB in 4 MiB.

Peek = Callable[[ObjectVersion, int], memoryview | None]


class _Trail:
    """The blocks of one version that have arrived.

    `checksums` are those of blocks from the first one on without a gap, and `joined` is theirs
    together; `beyond` are those of later blocks.  `unread` are blocks that arrived before
    `stored`, what the store says of the whole, was known; it is None for good where the store
    says nothing.
    """

    __slots__ = (
        "asked", "beyond", "checksums", "count", "given_up", "joined", "learnt", "stored", "unread",
    )  # fmt: skip

    def __init__(self, count: int) -> None:
        self.count = count
        self.checksums = array("Q")
        self.beyond: dict[int, int] = {}
        self.joined = 0
        self.unread: set[int] = set()
        self.stored: StoredChecksum | None = None
        self.asked = self.given_up = False
        self.learnt = trio.Event()

    @property
    def size(self) -> int:
        """How many blocks are remembered."""
        return len(self.checksums) + len(self.beyond) + len(self.unread)

    def has(self, number: int) -> bool:
        """Whether a block has arrived before."""
        return number < len(self.checksums) or number in self.beyond or number in self.unread

    def known(self, number: int) -> int | None:
        """The checksum of a block, if it has arrived and was computed."""
        if number < len(self.checksums):
            return self.checksums[number]
        return self.beyond.get(number)

    def add(self, number: int, checksum: int, block_size: int, last_size: int) -> None:
        """Take note of a block's checksum."""
        assert self.stored is not None
        self.beyond[number] = checksum
        while (position := len(self.checksums)) in self.beyond:
            found = self.beyond.pop(position)
            size = last_size if position == self.count - 1 else block_size
            self.joined = self.stored.join(self.joined, found, size) if position else found
            self.checksums.append(found)

    def give_up(self) -> None:
        """The whole cannot be judged: forget what was for nothing."""
        self.given_up = True
        self.checksums, self.beyond, self.unread = array("Q"), {}, set()


class Integrity:
    """Judges the blocks of versions that have several; a single one the store's client checks.

    `peek` shows a block that is in memory.  Who has been told of damage has to drop all blocks
    of the version: which of them is wrong is not known.
    """

    def __init__(
        self, store: ObjectStore, nursery: trio.Nursery, block_size: int, peek: Peek
    ) -> None:
        self._store = store
        self._nursery = nursery
        self._block_size = block_size
        self._peek = peek
        self._trails: cachetools.LRUCache[ObjectVersion, _Trail] = cachetools.LRUCache(256)
        self._blocks = 0

    def holds_back(self, version: ObjectVersion, number: int) -> bool:
        """Whether a block must not be shown before `check` has found nothing wrong."""
        trail = self._trails.get(version)
        if trail is None or trail.given_up:
            return False
        return trail.has(number) or trail.size == trail.count - 1

    def arrived(self, version: ObjectVersion, number: int, data: memoryview) -> None:
        """Take note of a block that is shown already."""
        trail = self._trails.get(version)
        if trail is None:
            count = -(-version.size // self._block_size)
            if count < 2:
                return
            trail = self._trails[version] = _Trail(count)
        if trail.given_up:
            return
        if trail.stored is None:
            trail.unread.add(number)
            # Whoever reads here and there will never have the whole.
            if number <= 1 and {0, 1} <= trail.unread:
                self._ask(version, trail)
        else:
            self._add(version, trail, number, trail.stored.of(data, 0))
        self._bound(trail)

    def awaits(self, version: ObjectVersion, number: int) -> bool:
        """Whether the checksum of a block is computed soon, and it has to stay until then."""
        trail = self._trails.get(version)
        return trail is not None and trail.asked and number in trail.unread

    async def check(self, version: ObjectVersion, number: int, data: memoryview) -> None:
        """Judge a block that was held back; raises `Corrupt` for any damage of the version."""
        trail = self._trails.get(version)
        if trail is None:
            return
        self._ask(version, trail)
        await trail.learnt.wait()
        if trail.given_up or trail.stored is None:
            return
        checksum = trail.stored.of(data, 0)
        known = trail.known(number)
        if known is None:
            self._add(version, trail, number, checksum)
        complete = len(trail.checksums) == trail.count
        if (known is None or known == checksum) and not (
            complete and trail.joined != trail.stored.value
        ):
            return
        self.forget(version)
        raise Corrupt(
            f"{version.key} does not match the checksum that the store keeps of it: "
            "what was read of it is wrong somewhere"
        )

    def forget(self, version: ObjectVersion) -> None:
        """Begin anew with a version."""
        trail = self._trails.pop(version, None)
        if trail is not None:
            trail.give_up()

    def _add(self, version: ObjectVersion, trail: _Trail, number: int, checksum: int) -> None:
        last_size = version.size - (trail.count - 1) * self._block_size
        trail.add(number, checksum, self._block_size, last_size)

    def _ask(self, version: ObjectVersion, trail: _Trail) -> None:
        if not trail.asked:
            trail.asked = True
            self._nursery.start_soon(self._learn, version, trail)

    async def _learn(self, version: ObjectVersion, trail: _Trail) -> None:
        """Ask for the checksum of the whole, and compute those of the blocks that are here."""
        try:
            trail.stored = await self._store.stored_checksum(version.key, etag=version.etag)
        except StoreError as error:
            # Nobody asked for this: that the bytes cannot be judged is no reason to refuse them.
            log.debug("%s: its checksum is not known: %s", version.key, error)
        # No checkpoint from here on: the blocks in memory are those that `unread` names.
        unread, trail.unread = sorted(trail.unread), set()
        if trail.stored is None:
            trail.give_up()
        else:
            for number in unread:
                data = self._peek(version, number)
                # What has been dropped meanwhile counts when it is fetched again.
                if data is not None:
                    self._add(version, trail, number, trail.stored.of(data, 0))
        trail.learnt.set()

    def _bound(self, trail: _Trail) -> None:
        """Forget the versions that were read longest ago when there is too much to remember."""
        if trail.size > MAX_BLOCKS:
            trail.give_up()
        elif trail.size % 1024 == 0:
            while sum(one.size for one in self._trails.values()) > MAX_BLOCKS:
                self._trails.popitem()[1].give_up()
