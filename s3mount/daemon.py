"""The life of one mount: build, mount, tell that it is ready, serve, drain, unmount."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from s3mount import control, logs, notify, webpage
from s3mount.apart import call_apart
from s3mount.assembly import Assembly, Engine, Parts
from s3mount.cache.disk import BlockDisk
from s3mount.caches import Caches
from s3mount.commands import Commands
from s3mount.config import Config
from s3mount.connecting import connect
from s3mount.ending import Ending
from s3mount.errors import MountError
from s3mount.fs.inspecting import Inspector
from s3mount.fs.openfile import OpenFile
from s3mount.fs.recovery import Recovery
from s3mount.fs.undeleting import Past
from s3mount.journaling import describe
from s3mount.kernel import KernelMount, MountOptions
from s3mount.metrics import Metrics
from s3mount.mounts import SELINUX, name_helper
from s3mount.pastcommands import PastCommands
from s3mount.private import refuse_shared
from s3mount.reloading import Reloader
from s3mount.reporting import Observed
from s3mount.s3 import checksum
from s3mount.s3.versions import HistoryClient
from s3mount.service import (
    ask_for_patience,
    dump_state,
    heed_signals,
    keep_informed,
    sum_up_complaints,
    toggle_debug,
)
from s3mount.watch import Watch
from s3mount.write.keeper import Keeper
from s3mount.write.mountjournal import MountJournal
from s3mount.write.slots import Slots

log = logging.getLogger(__name__)

READ_AHEAD = 2 << 20  # What the kernel asks for in advance; see benchmarks/README.md.
ENTRY_COST = 600  # Bytes of memory that one cached name takes, about.
ANSWER_TIMEOUT = 20.0  # Seconds for the mount to answer its first request.
RECENT = 20  # Warnings and errors that `s3mount status` shows.

MIN_TASKS, MAX_TASKS = 32, 256  # That wait for requests, or serve one; to make one costs 30 us.
GC_THRESHOLDS = 50_000, 20, 100


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
    gc.enable()
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
        self._recent = logs.Recent(RECENT)
        logging.getLogger().addHandler(self._recent)
        self._ended = trio.Event()
        self._disk: BlockDisk | None = None
        flags = set(config.mount_flags) | ({"ro"} if config.ro else set())
        self._serving = trio.CancelScope()
        self._kernel = KernelMount(
            config.mountpoint,
            MountOptions(
                source=config.fsname or self._source,
                flags=flags,
                allow_other=config.allow_other,
                allow_root=config.allow_root,
                labels=config.labels if SELINUX.exists() else {},
            ),
        )
        self._ending = Ending(
            self._kernel,
            config.mountpoint,
            limit=config.shutdown_timeout,
            page_patience=config.timeout,
        )

    async def main(self) -> int:
        """Start, serve and stop."""
        await trio.to_thread.run_sync(refuse_shared, self._config.state_dir)
        self._socket = _socket_path(self._config.mountpoint)
        address = self._config.status_listen
        listener = webpage.listen(*address) if address is not None else None
        client = await connect(self._config, self._source)
        try:
            # The address that was found, not the option: two stores may have one bucket's name.
            async with self._cache_on_disk(client.settings.url):
                return await self._main(client, listener)
        finally:
            await client.aclose()

    @contextlib.asynccontextmanager
    async def _cache_on_disk(self, endpoint: str) -> AsyncIterator[None]:
        """Have the cache on disk, if there shall be one, until the end of the block."""
        config = self._config
        if config.cache is None:
            yield
            return
        disk = BlockDisk(
            config.cache,
            f"{endpoint}\0{config.bucket}\0{config.prefix}",
            config.max_cache_size,
            config.min_free_space,
            checksum.function("crc64nvme"),
        )
        await trio.to_thread.run_sync(disk.open)
        self._disk = disk
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await disk.flush()
                await trio.to_thread.run_sync(disk.close)

    async def _main(self, client: HistoryClient, listener: trio.SocketListener | None) -> int:
        journal = await self._open_journal(client)
        try:
            async with trio.open_nursery() as background:
                left = await self._run(client, journal, listener, background)
                background.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await journal.close()
        return 1 if left else 0

    async def _run(
        self,
        client: HistoryClient,
        journal: MountJournal,
        listener: trio.SocketListener | None,
        background: trio.Nursery,
    ) -> Sequence[OpenFile]:
        """Build everything, serve, and return the files that could not be saved."""
        if self._disk is not None:
            background.start_soon(self._disk.run)
        background.start_soon(journal.journal.run)
        work = await background.start(self._ending.hold)
        assembly = Assembly(self._config, client, journal, self._disk, self._kernel.notices)
        parts = assembly.build(self._observed, background, work)
        await parts.index.open()
        background.start_soon(parts.index.run)
        background.start_soon(self._ending.heed_signals, parts.filesystem)
        self._observe(parts, listener, background)
        recovery = Recovery(parts.filesystem, parts.workshop, journal.left, parts.mover)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(ask_for_patience, lambda: parts.mover.handled)
            await recovery.prepare()
            waiting.cancel_scope.cancel()
        work.start_soon(recovery.run)
        left = await self._serve(parts, background)
        await parts.index.close()
        return left

    def _observed(self, engine: Engine, metrics: Metrics) -> Observed:
        """What a report of this mount is made from."""
        return Observed(
            config=self._config,
            source=self._source,
            client=engine.client,
            budget=engine.budget,
            blocks=engine.blocks,
            disk=self._disk,
            filesystem=engine.filesystem,
            metrics=metrics,
            heard=engine.watcher.watched,
            recent=self._recent,
            stopping=lambda: self._ending.begun,
        )

    async def _open_journal(self, client: HistoryClient) -> MountJournal:
        config = self._config
        at = client.settings
        about = describe(config, endpoint=at.url, region=at.region, path_style=not at.virtual_host)
        slots = Slots(config.state_dir, f"{at.url}\0{config.bucket}\0{config.prefix}")
        return await MountJournal.open(
            slots, checksum.function("crc64nvme"), about, adopt=not config.ro
        )

    def _observe(
        self, parts: Parts, listener: trio.SocketListener | None, background: trio.Nursery
    ) -> None:
        """Start what tells others how the mount is, and what heeds their signals."""
        reporter = parts.reporter
        background.start_soon(heed_signals, self._signal_actions(parts, background))
        background.start_soon(reporter.sampler.run)
        background.start_soon(sum_up_complaints)
        if listener is not None:
            pages = webpage.Pages(reporter.status, reporter.metrics)
            background.start_soon(webpage.serve, listener, pages)
        background.start_soon(keep_informed, reporter.report, self._config.mountpoint)

    def _signal_actions(
        self, parts: Parts, background: trio.Nursery
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

    async def _serve(self, parts: Parts, background: trio.Nursery) -> Sequence[OpenFile]:
        """Mount, serve until unmounted, and return the files that could not be saved."""
        self._kernel.mount(parts.operations, relay=not self._config.no_fast_init)
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                await self._kernel.greet()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_unmounted, nursery.cancel_scope)
                await self._get_ready(parts, nursery, background)
            notify.stopping("saving what is not in the store yet")
            left = await self._ending.drain(parts.filesystem)
        except trio.TooSlowError as error:
            raise MountError("the mount did not answer its first request", 2) from error
        finally:
            self._kernel.unmount(lazy=True)
            self._kernel.close()
            self._ended.set()
        return left

    async def _until_unmounted(self, scope: trio.CancelScope) -> None:
        with self._ending.serving:
            await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
        scope.cancel()

    async def _get_ready(
        self, parts: Parts, nursery: trio.Nursery, background: trio.Nursery
    ) -> None:
        with trio.fail_after(ANSWER_TIMEOUT):
            device = await trio.to_thread.run_sync(
                _device_of, self._config.mountpoint, abandon_on_cancel=True
            )
        if not parts.operations.initialised:
            raise MountError("the kernel and libfuse did not agree on the protocol", 2)
        self._kernel.widen_read_ahead(READ_AHEAD, device)
        await trio.to_thread.run_sync(
            name_helper, self._config.mountpoint, "_netdev" in self._config.mount_flags
        )
        # Until the end, so that `s3mount status` sees what is uploaded after the mount is gone.
        await background.start(
            control.serve,
            self._socket,
            {**self._commands(parts).handlers(), **self._past_commands(parts).handlers()},
        )
        nursery.start_soon(parts.operations.callers.watch)
        nursery.start_soon(parts.notices.run)
        nursery.start_soon(parts.watcher.run)
        log.info("%s is mounted at %s", self._source, self._config.mountpoint)
        logs.detach()
        notify.ready(parts.reporter.report().line)
        if self._background:
            notify.dismiss()

    def _past_commands(self, parts: Parts) -> PastCommands:
        """What it can be asked for about the past of the bucket."""
        past = Past(parts.filesystem, parts.client, parts.journal.journal)
        return PastCommands(past, self._ending.push_pages, parts.notices, read_only=self._config.ro)

    def _commands(self, parts: Parts) -> Commands:
        """What the control socket can be asked for."""
        return Commands(
            self._config,
            self._source,
            kernel=self._kernel,
            ending=self._ending,
            filesystem=parts.filesystem,
            reporter=parts.reporter,
            keeper=Keeper(
                parts.client,
                parts.journal,
                parts.workshop.grid,
                attributes=self._config.attributes,
            ),
            watch=Watch(parts.client.trace),
            inspector=Inspector(parts.filesystem, parts.client, parts.blocks, self._disk),
            caches=Caches(
                self._config, parts.filesystem, parts.operations, parts.blocks, self._disk
            ),
        )


def _socket_path(mountpoint: Path) -> Path:
    """Where our commands are listened for; raises `MountError` where that is not safely ours."""
    try:
        return control.socket_path(mountpoint)
    except OSError as error:
        raise MountError(
            f"the control socket has no place: {error} "
            "(XDG_RUNTIME_DIR can name another directory of yours)",
            2,
        ) from error


def _device_of(mountpoint: Path) -> int:
    """The number of the device that is mounted; blocks until we have answered the kernel."""
    return call_apart(os.stat, mountpoint).st_dev
