"""What the control socket answers to ``s3mount cache``: what is cached, and clearing it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from s3mount.cache.blocks import BlockCache
from s3mount.cache.disk import BlockDisk
from s3mount.config import Config
from s3mount.errors import MountError, PosixError, StoreError
from s3mount.fs.filesystem import FileSystem
from s3mount.fuse import FuseOperations

log = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


class Caches:
    """All caches of one mount: names and attributes, blocks in memory, blocks on disk."""

    def __init__(
        self,
        config: Config,
        filesystem: FileSystem,
        operations: FuseOperations,
        blocks: BlockCache,
        disk: BlockDisk | None,
    ) -> None:
        self._config = config
        self._filesystem = filesystem
        self._operations = operations
        self._blocks = blocks
        self._disk = disk

    async def run(self, request: Mapping[str, object], progress: Progress) -> object:
        """Say what is cached, after dropping it if *request* says ``clear``.

        What is not saved yet is in no cache, and stays.
        """
        freed = await self._clear() if request.get("clear") else None
        found: dict[str, object] = {
            "bucket": self._config.bucket,
            "prefix": self._config.prefix,
            "names": len(self._filesystem.cache),
            "memory_bytes": self._blocks.held_bytes,
            "disk": await self._on_disk(),
        }
        return found if freed is None else {**found, "freed": freed}

    async def _clear(self) -> Mapping[str, int]:
        """Drop everything; returns what that was."""
        names, memory = len(self._filesystem.cache), self._blocks.held_bytes
        try:
            await self._operations.refresh()
        except (PosixError, StoreError) as error:
            log.warning("what was known of names is dropped, but for open files: %s", error)
        freed = 0
        if self._disk is not None:
            try:
                freed = await self._disk.clear()
            except OSError as error:
                raise MountError(f"{self._config.cache}: {error.strerror}") from error
        log.info("the caches are cleared: %d names, %d bytes on disk", names, freed)
        left = self._blocks.held_bytes
        return {"names": names, "memory_bytes": max(0, memory - left), "disk_bytes": freed}

    async def _on_disk(self) -> Mapping[str, object] | None:
        disk = self._disk
        if disk is None:
            return None
        looked = disk.hits + disk.misses
        return {
            "path": str(self._config.cache),
            "limit": self._config.max_cache_size,
            "hits": disk.hits,
            "misses": disk.misses,
            "hit_bytes": disk.hit_bytes,
            "hit_rate": round(disk.hits / looked, 4) if looked else None,
            "shares": [share.described() for share in await disk.shares()],
        }
