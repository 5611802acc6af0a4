"""A file system of the real parts on a real store, without a kernel: a test is its kernel.

So a test decides what happens between two requests of a reader.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from s3mount.attributes import Attributes, Defaults
from s3mount.cache.blocks import BlockCache
from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import MetaCache
from s3mount.fs.directories import Directories
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import ROOT
from s3mount.fs.namespace import Namespace
from s3mount.fs.renaming import Renamer
from s3mount.fs.tree import TreeMover
from s3mount.fs.treegate import TreeGate
from s3mount.fs.workshop import Workshop
from s3mount.memory import MemoryBudget
from s3mount.rules import NO_HEADERS
from s3mount.s3.checksum import function
from s3mount.s3.client import S3Client
from s3mount.s3.store import MIN_PART_SIZE, Capabilities, ListPage, ObjectInfo
from s3mount.write.backlog import Backlog
from s3mount.write.extents import PartGrid
from s3mount.write.journal import Journal
from s3mount.write.staging import StagingDirectory

CRC = function("crc64nvme")
MODE = Attributes(0o100644, 1, 2, 0, 0)


class SmallPages:
    """A store whose listings come in pages of *size* names; `asked` counts them."""

    def __init__(self, client: S3Client, size: int) -> None:
        self._client = client
        self._size = size
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def list_page(self, prefix: str, *, limit: int = 1000, **others: Any) -> ListPage:
        self.asked += 1
        return await self._client.list_page(prefix, limit=min(limit, self._size), **others)


class Describing(SmallPages):
    """One whose listings tell metadata, as MinIO's do; `looked` counts who asks for one object."""

    looked = 0

    @property
    def capabilities(self) -> Capabilities:
        return replace(self._client.capabilities, list_metadata=True)

    async def head(self, key: str) -> ObjectInfo:
        self.looked += 1
        return await self._client.head(key)

    async def get(self, key: str, *arguments: Any, **others: Any) -> ObjectInfo:
        self.looked += 1
        return await self._client.get(key, *arguments, **others)

    async def list_page(self, prefix: str, *, metadata: bool = False, **others: Any) -> ListPage:
        page = await super().list_page(prefix, **others)
        keys = [found.key for found in page.objects] if metadata else []
        return replace(page, described={key: await self._client.head(key) for key in keys})


class Assembled:
    """The parts that a test speaks to, and what it does with them most often."""

    def __init__(
        self, store: SmallPages, filesystem: FileSystem, mover: TreeMover, nursery: trio.Nursery
    ) -> None:
        self.store = store
        self.nursery = nursery
        self.fs = filesystem
        self.directories = Directories(filesystem)
        self._renamer = Renamer(filesystem, store, mover)

    async def create(self, name: bytes, parent: int = ROOT) -> int:
        """Create a file and leave it open: its handle."""
        handle, found = await self.fs.create(parent, name, 1, MODE)
        found.inode.lookups += 1
        return handle

    async def close(self, handle: int) -> None:
        """Close a file for good: it is saved then."""
        await self.fs.handles.flush(handle)
        await self.fs.handles.release(handle)

    async def rename(self, old: bytes, new: bytes, parent: int = ROOT) -> None:
        """Rename something in the root directory, perhaps into another one."""
        await self._renamer.rename(ROOT, old, parent, new, 0)

    async def read(self, handle: int, start: int, room: int) -> tuple[list[bytes], int]:
        """What the kernel does with readdir: *room* names, and the offset of the next one."""
        names: list[bytes] = []
        for name, found, _, following in await self.directories.rows(handle, start):
            if len(names) == room:
                if found is not None:
                    self.fs.forget(found.inode.number, 0)
                break
            if found is not None:
                found.inode.lookups += 1
            names.append(name)
            start = following
        return names, start

    async def read_rest(self, handle: int, start: int = 0, room: int = 7) -> list[bytes]:
        """All names from an offset on."""
        names: list[bytes] = []
        while True:
            more, start = await self.read(handle, start, room)
            if not more:
                return names
            names += more


@asynccontextmanager
async def assembled(
    store: SmallPages,
    path: Path,
    descriptor: int,
    *,
    max_entries: int = 10_000,
    clock: Any = trio.current_time,
    writeback: bool = False,
) -> AsyncIterator[Assembled]:
    """Put the parts together; *path* is an empty directory, and *descriptor* one of it.

    With *writeback* the journal is on the disk only as far as somebody has waited for that.
    """
    with closing(Journal(descriptor, CRC)) as journal:
        journal.create()
        async with trio.open_nursery() as nursery:
            if not writeback:
                nursery.start_soon(journal.run)
            budget = MemoryBudget(64 << 20)
            blocks = BlockCache(store, budget, nursery, None, verify=False)
            index = AttributeIndex(None, "", "", lasting=False, clock=clock)
            cache = MetaCache(60, 60, max_entries, clock)
            defaults = Defaults(1, 2, 0o644, 0o755)
            namespace = Namespace(
                store, cache, index, blocks, defaults, nursery, keep_attributes=True, max_key=1024
            )
            workshop = Workshop(
                store=store,
                blocks=blocks,
                staging=StagingDirectory(path / "staged", CRC),
                budget=budget,
                nursery=nursery,
                grid=PartGrid(MIN_PART_SIZE),
                checksum=CRC,
                max_window=1 << 20,
                keep_attributes=True,
                header_rules=NO_HEADERS,
                journal=journal,
                backlog=Backlog(MIN_PART_SIZE if writeback else 0, 0, path),
                trees=TreeGate(),
            )
            filesystem = FileSystem(store, namespace, workshop, exclusive_at_open=False)
            yield Assembled(store, filesystem, TreeMover(store, journal, nursery), nursery)
            nursery.cancel_scope.cancel()
