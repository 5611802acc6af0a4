"""The life of one mount: build, mount, tell that it is ready, serve, drain, unmount."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from s3mount import control, logs, notify, webpage
from s3mount.attributes import Defaults
from s3mount.cache.blocks import BlockCache
from s3mount.cache.disk import BlockDisk
from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import MetaCache
from s3mount.config import Config
from s3mount.connecting import connect
from s3mount.errors import MountError, PosixError, StoreError
from s3mount.fs.changing import Changer
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.names import MAX_KEY, key_size
from s3mount.fs.namespace import Namespace
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.openfile import OpenFile
from s3mount.fs.renaming import Renamer
from s3mount.fs.workshop import Workshop
from s3mount.fs.xattrs import Xattrs
from s3mount.fuse import FuseOperations
from s3mount.kernel import KernelMount, MountOptions, open_files
from s3mount.memory import MemoryBudget
from s3mount.metrics import Metrics
from s3mount.mounts import name_helper
from s3mount.reloading import Reloader
from s3mount.reporting import Observed, Reporter
from s3mount.s3 import checksum
from s3mount.s3.client import S3Client
from s3mount.service import dump_state, heed_signals, keep_informed, toggle_debug
from s3mount.write.extents import PartGrid
from s3mount.write.staging import StagingDirectory

log = logging.getLogger(__name__)

READ_AHEAD = 2 << 20  # What the kernel asks for in advance; see benchmarks/README.md.
ENTRY_COST = 600  # Bytes of memory that one cached name takes, about.
ANSWER_TIMEOUT = 20.0  # Seconds for the mount to answer its first request.
DRAIN_PARALLEL = 32  # Files that are saved at once at the end.
BUSY_PATIENCE = 2.0  # Seconds in which whoever keeps the mount busy may let go of it.

RECENT = 20  # Warnings and errors that `s3mount status` shows.
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
    reporter: Reporter


def run(config: Config, reload: Callable[[], Config], *, background: bool) -> int:
    """Serve one mount until it is unmounted, and return the exit code.

    *reload* reads the options again.  In the background, whoever started us waits only until
    the mount is ready.  Raises `MountError` when it cannot start.
    """
    daemon = Daemon(config, reload, background=background)
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

    def __init__(self, config: Config, reload: Callable[[], Config], *, background: bool) -> None:
        self._config = config
        self._reload = reload
        self._background = background
        self._source = config.bucket + ("/" + config.prefix.rstrip("/") if config.prefix else "")
        self._serving: trio.Nursery | None = None
        self._recent = logs.Recent(RECENT)
        logging.getLogger().addHandler(self._recent)
        self._stopping = self._told_to_stop_before = False
        self._patience = trio.CancelScope()  # for the uploads at the end
        self._ended = trio.Event()
        self._disk = self._make_disk()
        flags = set(config.mount_flags) | ({"ro"} if config.ro else set())
        self._kernel = KernelMount(
            config.mountpoint,
            MountOptions(
                source=config.fsname or self._source,
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
        address = self._config.status_listen
        listener = webpage.listen(*address) if address is not None else None
        client = await connect(self._config, self._source)
        try:
            async with trio.open_nursery() as background:
                if self._disk is not None:
                    background.start_soon(self._disk.run)
                parts = self._build(client, background)
                await parts.index.open()
                background.start_soon(parts.index.run)
                background.start_soon(self._heed_signals, parts)
                background.start_soon(heed_signals, self._signal_actions(parts, background))
                background.start_soon(parts.reporter.sampler.run)
                if listener is not None:
                    pages = webpage.Pages(parts.reporter.status, parts.reporter.metrics)
                    background.start_soon(webpage.serve, listener, pages)
                background.start_soon(keep_informed, parts.reporter.report, self._config.mountpoint)
                left = await self._serve(parts, background)
                await parts.index.close()
                background.cancel_scope.cancel()
        finally:
            await client.aclose()
        return 1 if left else 0

    # -- building --------------------------------------------------------------------------

    def _build(self, client: S3Client, background: trio.Nursery) -> _Parts:
        config = self._config
        budget = MemoryBudget(config.memory)
        blocks = BlockCache(client, budget, background, self._disk)
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
        observed = Observed(
            config=config,
            source=self._source,
            client=client,
            budget=budget,
            blocks=blocks,
            disk=self._disk,
            filesystem=filesystem,
            metrics=metrics,
            recent=self._recent,
            stopping=lambda: self._stopping,
        )
        return _Parts(client, blocks, index, budget, filesystem, operations, Reporter(observed))

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

    def _signal_actions(
        self, parts: _Parts, background: trio.Nursery
    ) -> Mapping[signal.Signals, Callable[[], None]]:
        reloader = Reloader(self._reload, parts.filesystem.cache, parts.operations)

        async def reload() -> None:
            self._config = await reloader.reload(self._config, parts.reporter.report().line)

        return {
            signal.SIGHUP: partial(background.start_soon, reload),
            signal.SIGUSR1: lambda: dump_state(parts.reporter.status()),
            signal.SIGUSR2: lambda: toggle_debug(self._config.log_level),
        }

    # -- serving ---------------------------------------------------------------------------

    async def _serve(self, parts: _Parts, background: trio.Nursery) -> Sequence[OpenFile]:
        """Mount, serve until unmounted, and return the files that could not be saved."""
        self._kernel.mount(parts.operations, relay=not self._config.no_fast_init)
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                await self._kernel.greet()
            async with trio.open_nursery() as nursery:
                self._serving = nursery
                nursery.start_soon(self._until_unmounted, nursery.cancel_scope)
                await self._get_ready(parts, nursery, background)
            notify.stopping("saving what is not in the store yet")
            with trio.CancelScope(shield=True):
                left = await self._drain(parts)
        except trio.TooSlowError as error:
            raise MountError("the mount did not answer its first request", 2) from error
        finally:
            self._kernel.unmount(lazy=True)
            self._kernel.close()
            self._ended.set()
        return left

    async def _until_unmounted(self, scope: trio.CancelScope) -> None:
        await pyfuse3.main(max_tasks=256)
        self._serving = None
        self._stopping = True
        scope.cancel()

    async def _get_ready(
        self, parts: _Parts, nursery: trio.Nursery, background: trio.Nursery
    ) -> None:
        with trio.fail_after(ANSWER_TIMEOUT):
            await trio.to_thread.run_sync(os.stat, self._config.mountpoint, abandon_on_cancel=True)
        if not parts.operations.initialised:
            raise MountError("the kernel and libfuse did not agree on the protocol", 2)
        self._kernel.widen_read_ahead(READ_AHEAD)
        await trio.to_thread.run_sync(
            name_helper, self._config.mountpoint, "_netdev" in self._config.mount_flags
        )
        # Until the end, so that `s3mount status` sees what is uploaded after the mount is gone.
        await background.start(
            control.serve,
            control.socket_path(self._config.mountpoint),
            self._handlers(parts),
        )
        nursery.start_soon(parts.operations.callers.watch)
        log.info("%s is mounted at %s", self._source, self._config.mountpoint)
        logs.detach()
        notify.ready(parts.reporter.report().line)
        if self._background:
            notify.dismiss()

    async def _heed_signals(self, parts: _Parts) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("told to stop by %s", signal.Signals(number).name)
                self._told_to_stop(parts)

    def _told_to_stop(self, parts: _Parts) -> None:
        """Finish what is to be done; told so twice, leave what is not uploaded on this machine."""
        if self._told_to_stop_before:
            log.warning("told to stop again: leaving at once")
            self._patience.cancel()
            if self._serving is not None:
                pyfuse3.terminate()
        elif self._serving is not None:
            self._serving.start_soon(self._stop, parts)
        self._told_to_stop_before = self._stopping = True

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
        self._patience.deadline = trio.current_time() + self._config.shutdown_timeout
        with self._patience:
            await self._save_all(parts.filesystem)
        left = [file for file in parts.filesystem.files.values() if file.dirty]
        for file in left:
            path = file.keep()
            log.error("%s: its unsaved bytes are kept in %s", file.inode.name, path)
        return left

    # -- commands --------------------------------------------------------------------------

    def _handlers(self, parts: _Parts) -> Mapping[str, control.Handler]:
        async def status(request: Mapping[str, object], progress: Progress) -> object:
            return parts.reporter.status()

        async def sync(request: Mapping[str, object], progress: Progress) -> object:
            return await self._sync(parts, progress)

        async def umount(request: Mapping[str, object], progress: Progress) -> object:
            return await self._umount(parts, request, progress)

        return {
            "hello": control.hello(
                self._config.mountpoint, self._source, read_only=self._config.ro
            ),
            "status": status,
            "sync": sync,
            "umount": umount,
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
        return result


def _busy(mountpoint: Path) -> str:
    processes = open_files(mountpoint)
    who = ", ".join(str(process) for process in processes[:5])
    return f"{mountpoint}: {os.strerror(errno.EBUSY)}" + (
        f" (in use by process {who})" if who else ""
    )
