"""The life of one mount: build, mount, tell that it is ready, serve, drain, unmount."""

from __future__ import annotations

import errno
import gc
import logging
import math
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import pyfuse3
import trio

from s3mount import __version__, control, logs, notify
from s3mount.attributes import Defaults
from s3mount.cache.blocks import BlockCache
from s3mount.cache.disk import BlockDisk
from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import MetaCache
from s3mount.config import Config
from s3mount.errors import MountError, PosixError, StoreError, WrongRegion
from s3mount.fs.changing import Changer
from s3mount.fs.condemning import Condemner
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.names import MAX_KEY, key_size
from s3mount.fs.namespace import Namespace
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.openfile import OpenFile
from s3mount.fs.renaming import Renamer
from s3mount.fs.workshop import Workshop
from s3mount.fs.xattrs import Xattrs
from s3mount.fuse import FuseOperations, forget_in_kernel
from s3mount.kernel import KernelMount, MountOptions, open_files
from s3mount.memory import MemoryBudget
from s3mount.metrics import Metrics
from s3mount.private import refuse_shared
from s3mount.s3 import checksum, session
from s3mount.s3.client import S3Client
from s3mount.s3.probe import probe
from s3mount.s3.store import Capabilities
from s3mount.write.extents import PartGrid
from s3mount.write.staging import StagingDirectory

log = logging.getLogger(__name__)

READ_AHEAD = 2 << 20  # What the kernel asks for in advance; see benchmarks/README.md.
ENTRY_COST = 600  # Bytes of memory that one cached name takes, about.
ANSWER_TIMEOUT = 20.0  # Seconds for the mount to answer its first request.
DRAIN_PARALLEL = 32  # Files that are saved at once at the end.
BUSY_PATIENCE = 2.0  # Seconds in which whoever keeps the mount busy may let go of it.

GC_THRESHOLDS = 50_000, 20, 100

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


@dataclass(slots=True)
class _Parts:
    """What one mount consists of."""

    client: S3Client
    blocks: BlockCache
    index: AttributeIndex
    budget: MemoryBudget
    filesystem: FileSystem
    operations: FuseOperations
    metrics: Metrics


def run(config: Config) -> int:
    """Serve one mount until it is unmounted, and return the exit code.

    Raises `MountError` when it cannot start.
    """
    daemon = Daemon(config)
    # A collection looks at every name in memory, which takes half a second for a million, and a
    # quarter of the time of a listing; few of our objects are in cycles.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return trio.run(daemon.main)
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from group


class Daemon:
    """One mount, from its options to its end."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._source = config.bucket + ("/" + config.prefix.rstrip("/") if config.prefix else "")
        self._stopping = False
        self._ended = trio.Event()
        self._disk = self._make_disk()
        flags = set(config.mount_flags) | ({"ro"} if config.ro else set())
        self._serving = trio.CancelScope()
        self._kernel = KernelMount(
            config.mountpoint,
            MountOptions(
                source=self._source,
                flags=flags,
                allow_other=config.allow_other,
                allow_root=config.allow_root,
            ),
        )

    def _make_disk(self) -> BlockDisk | None:
        config = self._config
        if config.cache is None:
            return None
        store = f"{config.endpoint_url}\0{config.bucket}\0{config.prefix}"
        return BlockDisk(
            config.cache,
            store,
            config.max_cache_size,
            config.min_free_space,
            checksum.function("crc64nvme"),
        )

    async def main(self) -> int:
        """Start, serve and stop."""
        await trio.to_thread.run_sync(refuse_shared, self._config.state_dir)
        if self._disk is not None:
            await trio.to_thread.run_sync(self._disk.open)
        try:
            return await self._main()
        finally:
            if self._disk is not None:
                with trio.CancelScope(shield=True):
                    await self._disk.flush()
                    await trio.to_thread.run_sync(self._disk.close)

    async def _main(self) -> int:
        client = await self._connect()
        try:
            async with trio.open_nursery() as background:
                if self._disk is not None:
                    background.start_soon(self._disk.run)
                parts = self._build(client, background)
                await parts.index.open()
                background.start_soon(parts.index.run)
                left = await self._serve(parts)
                await parts.index.close()
                background.cancel_scope.cancel()
        finally:
            await client.aclose()
        return 1 if left else 0

    # -- starting --------------------------------------------------------------------------

    async def _connect(self) -> S3Client:
        config = self._config
        resolved = await trio.to_thread.run_sync(
            lambda: session.resolve(
                config.bucket,
                endpoint_url=config.endpoint_url,
                region=config.region,
                profile=config.profile,
                path_style=config.path_style,
                no_sign_request=config.no_sign_request,
                ca_bundle=str(config.ca_bundle) if config.ca_bundle else None,
                verify_ssl=not config.no_verify_ssl,
                insecure_http=config.insecure_http,
            )
        )
        client = S3Client(
            resolved.settings,
            resolved.credentials,
            config.bucket,
            config.prefix,
            capabilities=Capabilities(),
            timeout=math.inf if config.hard else config.timeout,
            max_connections=config.connections,
        )
        try:
            await self._check(client)
        except BaseException:
            await client.aclose()
            raise
        return client

    async def _check(self, client: S3Client) -> None:
        try:
            await client.check_bucket()
            if not self._config.ro:
                client.adopt(await probe(client, ".s3mount/"))
        except StoreError as error:
            raise MountError(f"{self._source}: {error}{_hint(error)}") from error
        self._tell_weaknesses(client.capabilities)

    def _tell_weaknesses(self, found: Capabilities) -> None:
        if not found.conditional_put:
            log.warning(
                "%s: the store has no conditional writes: of two hosts that change one file at "
                "the same time, the last one wins unnoticed",
                self._source,
            )
        if not found.copy_part:
            log.warning(
                "%s: the store cannot copy parts: a change in a large file uploads all of it",
                self._source,
            )

    def _build(self, client: S3Client, background: trio.Nursery) -> _Parts:
        config = self._config
        budget = MemoryBudget(config.memory)
        blocks = BlockCache(
            client, budget, background, self._disk, verify=not client.settings.secure
        )
        cache = MetaCache(
            config.metadata_ttl,
            config.negative_ttl,
            max(1000, config.memory // 4 // ENTRY_COST),
            trio.current_time,
        )
        defaults = Defaults(
            config.uid,
            config.gid,
            config.file_mode & ~config.umask,
            config.dir_mode & ~config.umask,
        )
        index = self._make_index(client, defaults)
        namespace = Namespace(
            client,
            cache,
            index,
            blocks,
            defaults,
            background,
            keep_attributes=config.attributes,
            max_key=MAX_KEY - key_size(config.prefix),
        )
        window = config.read_ahead if config.read_ahead is not None else config.memory // 2
        workshop = Workshop(
            store=client,
            blocks=blocks,
            staging=StagingDirectory(config.state_dir / "staging"),
            budget=budget,
            nursery=background,
            grid=PartGrid(config.part_size),
            checksum=checksum.function(client.capabilities.checksum),
            max_window=window,
            keep_attributes=config.attributes,
            extra_headers={},
        )
        filesystem = FileSystem(
            client, namespace, workshop, exclusive_at_open=config.exclusive_create == "open"
        )
        blocks.tell_damage_to(Condemner(filesystem, background, forget_in_kernel).condemn)
        metrics = Metrics()
        changer = Changer(filesystem)
        operations = FuseOperations(
            filesystem,
            Renamer(filesystem, client),
            changer,
            Xattrs(filesystem, changer, ObjectFacts(filesystem, client, client), client),
            metrics,
            ttl=config.metadata_ttl,
            writeback_cache=True,
        )
        return _Parts(client, blocks, index, budget, filesystem, operations, metrics)

    def _make_index(self, client: S3Client, defaults: Defaults) -> AttributeIndex:
        """The attribute index of the bucket.

        Attributes that an object does not tell are the mount's defaults, so mounts with other
        ones have another index.
        """
        config = self._config
        what = (client.settings.url, config.bucket, *astuple(defaults))
        return AttributeIndex(
            config.state_dir / "index" if config.attributes else None,
            "\0".join(map(str, what)),
            config.prefix,
            lasting=not client.capabilities.marker_metadata,
            clock=trio.current_time,
        )

    # -- serving ---------------------------------------------------------------------------

    async def _serve(self, parts: _Parts) -> Sequence[OpenFile]:
        """Mount, serve until unmounted, and return the files that could not be saved."""
        self._kernel.mount(parts.operations, relay=not self._config.no_fast_init)
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                await self._kernel.greet()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_unmounted, nursery.cancel_scope)
                await self._get_ready(parts, nursery)
            notify.stopping("saving what is not in the store yet")
            with trio.CancelScope(shield=True, deadline=self._deadline()):
                left = await self._drain(parts)
        except trio.TooSlowError as error:
            raise MountError("the mount did not answer its first request", 2) from error
        finally:
            self._kernel.unmount(lazy=True)
            self._kernel.close()
            self._ended.set()
        return left

    def _deadline(self) -> float:
        return trio.current_time() + self._config.shutdown_timeout

    async def _until_unmounted(self, scope: trio.CancelScope) -> None:
        with self._serving:
            await pyfuse3.main(max_tasks=256)
        scope.cancel()

    async def _get_ready(self, parts: _Parts, nursery: trio.Nursery) -> None:
        with trio.fail_after(ANSWER_TIMEOUT):
            await trio.to_thread.run_sync(os.stat, self._config.mountpoint, abandon_on_cancel=True)
        if not parts.operations.initialised:
            raise MountError("the kernel and libfuse did not agree on the protocol", 2)
        self._kernel.widen_read_ahead(READ_AHEAD)
        await nursery.start(
            control.serve,
            control.socket_path(self._config.mountpoint),
            self._handlers(parts),
        )
        nursery.start_soon(self._heed_signals, parts)
        nursery.start_soon(parts.operations.callers.watch)
        log.info("%s is mounted at %s", self._source, self._config.mountpoint)
        logs.detach()
        notify.ready(f"{self._source} is mounted at {self._config.mountpoint}")

    async def _heed_signals(self, parts: _Parts) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if self._stopping:
                    log.warning("told to stop twice: leaving at once")
                    pyfuse3.terminate()
                    return
                self._stopping = True
                log.info("told to stop by %s", signal.Signals(number).name)
                parts_nursery = trio.lowlevel.current_task().parent_nursery
                assert parts_nursery is not None
                parts_nursery.start_soon(self._stop, parts)

    async def _stop(self, parts: _Parts) -> None:
        """Unmount; whoever still uses the mount keeps what is open, for a while."""
        notify.stopping("unmounting")
        await self._push_pages()
        await self._save_all(parts.filesystem)
        if not self._kernel.unmount():
            await trio.sleep(BUSY_PATIENCE)
            self._kernel.unmount(lazy=True)
        # pyfuse3.main() returns, and this is cancelled, when nobody uses the mount any more.
        await parts.filesystem.handles.wait_closed(self._config.shutdown_timeout)
        if not parts.filesystem.handles.in_use:
            pyfuse3.terminate()  # Somebody's working directory is no reason to stay.
            return
        log.warning("files are still open at %s, stopping without them", self._config.mountpoint)
        pyfuse3.terminate()

    async def _push_pages(self) -> None:
        """Have the kernel write back what programs changed through mmap(2).

        In another process: syncfs(2) would wait for us with our own interpreter blocked.
        """
        with trio.move_on_after(self._config.timeout):
            command = ["sync", "--file-system", str(self._config.mountpoint)]
            await trio.run_process(command, check=False, capture_stderr=True)

    # -- saving ----------------------------------------------------------------------------

    async def _save_all(self, filesystem: FileSystem) -> Sequence[OpenFile]:
        """Save everything that is dirty, many files at a time; return what could not be."""
        left: list[OpenFile] = []
        slots = trio.CapacityLimiter(DRAIN_PARALLEL)

        async def save(file: OpenFile) -> None:
            async with slots:
                try:
                    await filesystem.open_files.save(file)
                except (StoreError, PosixError) as error:
                    log.error("%s: could not be saved: %s", file.inode.name, error)
                    left.append(file)

        for directory in list(filesystem.markers.unsaved):
            await filesystem.markers.save(directory)
        async with trio.open_nursery() as nursery:
            for file in list(filesystem.files.values()):
                if file.dirty:
                    nursery.start_soon(save, file)
        return left

    async def _drain(self, parts: _Parts) -> Sequence[OpenFile]:
        left = await self._save_all(parts.filesystem)
        for file in left:
            path = file.keep()
            log.error("%s: its unsaved bytes are kept in %s", file.inode.name, path)
        return left

    # -- commands --------------------------------------------------------------------------

    def _handlers(self, parts: _Parts) -> Mapping[str, control.Handler]:
        async def status(request: Mapping[str, object], progress: Progress) -> object:
            return self._status(parts)

        async def sync(request: Mapping[str, object], progress: Progress) -> object:
            return await self._sync(parts, progress)

        async def umount(request: Mapping[str, object], progress: Progress) -> object:
            return await self._umount(parts, request, progress)

        return {
            "hello": control.hello(self._config.mountpoint, self._source),
            "status": status,
            "sync": sync,
            "umount": umount,
        }

    def _status(self, parts: _Parts) -> Mapping[str, object]:
        filesystem = parts.filesystem
        dirty = [file for file in filesystem.files.values() if file.dirty]
        return {
            "version": __version__,
            "source": self._source,
            "mountpoint": str(self._config.mountpoint),
            "memory_used": parts.budget.used,
            "memory_limit": parts.budget.limit,
            "inodes": len(filesystem.inodes),
            "names": len(filesystem.cache),
            "open_files": len(filesystem.files),
            "dirty_files": len(dirty),
            "dirty_bytes": sum(file.unsaved_bytes for file in dirty),
            "requests": asdict(parts.client.statistics),
            "operations": {
                name: {"count": o.count, "failed": o.failed, "seconds": round(o.seconds, 6)}
                for name, o in sorted(parts.metrics.operations.items())
            },
        }

    async def _sync(self, parts: _Parts, progress: Progress) -> object:
        await self._push_pages()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, parts, progress)
            left = await self._save_all(parts.filesystem)
            nursery.cancel_scope.cancel()
        return {"left": [os.fsdecode(file.inode.name) for file in left]}

    async def _tell_progress(self, parts: _Parts, progress: Progress) -> None:
        while True:
            dirty = [file for file in parts.filesystem.files.values() if file.dirty]
            left = sum(file.unsaved_bytes for file in dirty)
            await progress({"files": len(dirty), "bytes": left})
            await trio.sleep(0.5)

    async def _umount(
        self, parts: _Parts, request: Mapping[str, object], progress: Progress
    ) -> object:
        lazy, force = bool(request.get("lazy")), bool(request.get("force"))
        result = await self._sync(parts, progress)
        assert isinstance(result, dict)
        if result["left"] and not force and not lazy:
            raise MountError(f"{len(result['left'])} files could not be uploaded; see the log")
        if not self._kernel.unmount(lazy=lazy or force):
            raise MountError(_busy(self._config.mountpoint))
        if force:
            pyfuse3.terminate()
            self._serving.cancel()  # Also what waits for a store that does not come back.
        return result


def _hint(error: StoreError) -> str:
    """What to do about a store that refuses a mount."""
    if isinstance(error, WrongRegion) and error.region:
        return f" (the bucket is in {error.region}: try --region {error.region})"
    return ""


def _busy(mountpoint: Path) -> str:
    processes = open_files(mountpoint)
    who = ", ".join(str(process) for process in processes[:5])
    return f"{mountpoint}: {os.strerror(errno.EBUSY)}" + (
        f" (in use by process {who})" if who else ""
    )
