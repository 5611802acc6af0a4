"""What there is to tell of a running mount: plain values, for commands, pages and logs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import trio

from s3mount import __version__, logs, prices
from s3mount.cache.blocks import BlockCache
from s3mount.cache.disk import BlockDisk
from s3mount.config import Config
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.openfile import OpenFile
from s3mount.fs.watching import Watched
from s3mount.memory import MemoryBudget
from s3mount.metrics import Metrics
from s3mount.s3.client import S3Client
from s3mount.s3.session import SessionCredentials
from s3mount.sampling import Sampler
from s3mount.service import Report

MOVING = 10.0  # Seconds in which bytes have to move, or nothing does.
MAX_FILES = 100  # Unsaved files that are named; all of them are counted.


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The parts of a mount that are reported on."""

    config: Config
    source: str
    client: S3Client
    budget: MemoryBudget
    blocks: BlockCache
    disk: BlockDisk | None
    filesystem: FileSystem
    metrics: Metrics
    heard: Watched
    recent: logs.Recent
    stopping: Callable[[], bool]


class Reporter:
    """Describes one mount, whenever somebody asks."""

    def __init__(self, observed: Observed) -> None:
        self._of = observed
        self._began = time.time()
        self.sampler = Sampler(observed.client, observed.filesystem, observed.metrics)

    def status(self) -> Mapping[str, object]:
        """The state of the mount, as JSON has it."""
        of = self._of
        return {
            **self._identity(),
            **self._memory(),
            **self._dirty(),
            "requests": self._requests(),
            "operations": self._operations(),
            "rates": {k: round(v, 3) for k, v in self.sampler.rates()._asdict().items()},
            "cache": self._cache(),
            "credentials": self._credentials(),
            "notify": asdict(of.heard),
            "watched": of.client.trace.watched,
            "errors": of.recent.entries(),
            "notes": list(of.client.capabilities.notes),
        }

    def metrics(self, status: Mapping[str, object]) -> bytes:
        """A *status* with all counters, for Prometheus.

        Raises `ImportError` when its library is missing.
        """
        # Imported here, because it takes 0.1 s, and only who asks needs it.
        from s3mount.exposition import exposition

        return exposition(status, self._of.metrics)

    def report(self) -> Report:
        """What the service manager hears."""
        sizes = [file.unsaved_bytes for file in self._unsaved()]
        left = f"{len(sizes)} files, {sum(sizes) / (1 << 20):.1f} MiB to upload"
        where = f"{self._of.source} at {self._of.config.mountpoint}"
        moving = trio.current_time() - self._of.client.moved < MOVING
        line = f"{where}: {left if sizes else 'all is uploaded'}"
        return Report(line, self._of.stopping(), moving)

    def _unsaved(self) -> Sequence[OpenFile]:
        return [file for file in self._dirty_files() if not file.given_up]

    def _dirty_files(self) -> Sequence[OpenFile]:
        return [file for file in self._of.filesystem.files.values() if file.dirty]

    def _identity(self) -> Mapping[str, object]:
        of, settings = self._of, self._of.client.settings
        return {
            "version": __version__,
            "pid": os.getpid(),
            "source": of.source,
            "mountpoint": str(of.config.mountpoint),
            "bucket": of.config.bucket,
            "prefix": of.config.prefix,
            "endpoint": settings.url,
            "region": settings.region,
            "read_only": of.config.ro,
            "state": "ending" if of.stopping() else "serving",
            "began": round(self._began, 3),
        }

    def _memory(self) -> Mapping[str, object]:
        of = self._of
        return {
            "memory_used": of.budget.used,
            "memory_limit": of.budget.limit,
            "inodes": len(of.filesystem.inodes),
            "names": len(of.filesystem.cache),
            "open_files": len(of.filesystem.files),
        }

    def _dirty(self) -> Mapping[str, object]:
        unsaved = self._unsaved()
        given_up = [file for file in self._dirty_files() if file.given_up]
        oldest = sorted(unsaved, key=self.sampler.age, reverse=True)
        kept = self._of.filesystem.open_files.for_people()
        return {
            "dirty_files": len(unsaved),
            "dirty_bytes": sum(file.unsaved_bytes for file in unsaved),
            "dirty_age": round(self.sampler.age(oldest[0]), 1) if oldest else 0.0,
            "dirty": [self._file(file) for file in oldest[:MAX_FILES]],
            # These are not waiting for anything any more: people have them by `s3mount recover`.
            "given_up": [self._file(file) for file in given_up[:MAX_FILES]],
            "given_up_files": len(given_up),
            "kept": [file._asdict() for file in kept[:MAX_FILES]],
            "kept_files": len(kept),
        }

    def _file(self, file: OpenFile) -> Mapping[str, object]:
        return {
            "key": file.inode.key,
            "bytes": file.unsaved_bytes,
            "sent": min(file.sent_bytes, file.unsaved_bytes),
            "age": round(self.sampler.age(file), 1),
            "error": str(file.error or ""),
        }

    def _requests(self) -> Mapping[str, object]:
        statistics = self._of.client.statistics
        return {**asdict(statistics), "dollars": round(prices.dollars(statistics.requests), 6)}

    def _operations(self) -> Mapping[str, object]:
        return {
            name: {
                "count": operation.count,
                "failed": operation.failed,
                "seconds": round(operation.seconds, 6),
                "bytes": operation.bytes,
                "p50": round(operation.percentile(0.5), 6),
                "p99": round(operation.percentile(0.99), 6),
            }
            for name, operation in sorted(self._of.metrics.operations.items())
        }

    def _cache(self) -> Mapping[str, object]:
        of = self._of
        read = of.metrics.operations["read"].bytes if "read" in of.metrics.operations else 0
        fetched = of.blocks.fetched_bytes
        found: dict[str, object] = {
            "read_bytes": read,
            "fetched_bytes": fetched,
            "hit_rate": round(max(0.0, 1 - fetched / read), 4) if read else None,
            "memory_bytes": of.blocks.held_bytes,
        }
        if of.disk is not None:
            found["disk"] = {
                "path": str(of.config.cache),
                "limit": of.config.max_cache_size,
                "bytes": of.disk.held_bytes,
                "hits": of.disk.hits,
                "hit_bytes": of.disk.hit_bytes,
                "written_bytes": of.disk.written_bytes,
                "damaged": of.disk.damaged,
            }
        return found

    def _credentials(self) -> Mapping[str, object]:
        client = self._of.client
        source = client.credential_source
        expires = source.expires() if isinstance(source, SessionCredentials) else None
        return {"source": client.settings.credential_source, "expires": expires}
