"""The life of one mount: build, mount, tell that it is ready, serve, drain, unmount."""

from __future__ import annotations

import errno
import gc
import logging
import math
import os
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
from s3mount.ending import Ending
from s3mount.errors import MountError, StoreError, WrongRegion
from s3mount.fs.changing import Changer
from s3mount.fs.condemning import Condemner
from s3mount.fs.draining import save_all
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.names import MAX_KEY, key_size
from s3mount.fs.namespace import Namespace
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.openfile import OpenFile
from s3mount.fs.recovery import Recovery
from s3mount.fs.renaming import Renamer
from s3mount.fs.tree import TreeMover
from s3mount.fs.workshop import Workshop
from s3mount.fs.xattrs import Xattrs
from s3mount.fuse import FuseOperations, forget_in_kernel
from s3mount.journaling import describe
from s3mount.kernel import KernelMount, MountOptions, open_files
from s3mount.memory import MemoryBudget
from s3mount.metrics import Metrics
from s3mount.private import refuse_shared
from s3mount.s3 import checksum, session
from s3mount.s3.client import S3Client
from s3mount.s3.probe import probe
from s3mount.s3.store import Capabilities
from s3mount.write.backlog import Backlog
from s3mount.write.extents import PartGrid
from s3mount.write.keeper import Keeper, act
from s3mount.write.mountjournal import MountJournal
from s3mount.write.slots import Slots
from s3mount.write.staging import StagingDirectory

log = logging.getLogger(__name__)

READ_AHEAD = 2 << 20  # What the kernel asks for in advance; see benchmarks/README.md.
ENTRY_COST = 600  # Bytes of memory that one cached name takes, about.
ANSWER_TIMEOUT = 20.0  # Seconds for the mount to answer its first request.
FORCE_PATIENCE = 5.0  # Seconds for uploads before an unmounting that is to happen in any case.

MIN_TASKS, MAX_TASKS = 32, 256  # That wait for requests, or serve one; to make one costs 30 us.
GC_THRESHOLDS = 50_000, 20, 100

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


@dataclass(slots=True)
class _Parts:
    """What one mount consists of."""

    client: S3Client
    blocks: BlockCache
    index: AttributeIndex
    journal: MountJournal
    workshop: Workshop
    budget: MemoryBudget
    filesystem: FileSystem
    mover: TreeMover
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
        self._ended = trio.Event()
        self._disk = self._make_disk()
        flags = set(config.mount_flags) | ({"ro"} if config.ro else set())
        self._kernel = KernelMount(
            config.mountpoint,
            MountOptions(
                source=self._source,
                flags=flags,
                allow_other=config.allow_other,
                allow_root=config.allow_root,
            ),
        )
        self._ending = Ending(
            self._kernel,
            config.mountpoint,
            limit=config.shutdown_timeout,
            page_patience=config.timeout,
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
            journal = await self._open_journal(client)
            try:
                async with trio.open_nursery() as background:
                    left = await self._run(client, journal, background)
                    background.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await journal.close()
        finally:
            await client.aclose()
        return 1 if left else 0

    async def _run(
        self, client: S3Client, journal: MountJournal, background: trio.Nursery
    ) -> Sequence[OpenFile]:
        """Build everything, serve, and return the files that could not be saved."""
        if self._disk is not None:
            background.start_soon(self._disk.run)
        background.start_soon(journal.journal.run)
        work = await background.start(self._ending.hold)
        parts = self._build(client, journal, background, work)
        await parts.index.open()
        background.start_soon(parts.index.run)
        recovery = Recovery(parts.filesystem, parts.workshop, journal.left, parts.mover)
        await recovery.prepare()
        work.start_soon(recovery.run)
        left = await self._serve(parts, background)
        await parts.index.close()
        return left

    async def _open_journal(self, client: S3Client) -> MountJournal:
        config = self._config
        at = client.settings
        about = describe(config, endpoint=at.url, region=at.region, path_style=not at.virtual_host)
        slots = Slots(config.state_dir, f"{at.url}\0{config.bucket}\0{config.prefix}")
        return await MountJournal.open(
            slots, checksum.function("crc64nvme"), about, adopt=not config.ro
        )

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

    def _build(
        self,
        client: S3Client,
        journal: MountJournal,
        background: trio.Nursery,
        work: trio.Nursery,
    ) -> _Parts:
        config = self._config
        staged = journal.slot.staged
        limit = config.writeback_limit if config.writeback and not config.ro else 0
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
            staging=StagingDirectory(staged, journal.checksum, follow=config.writeback),
            budget=budget,
            nursery=work,
            grid=PartGrid(config.part_size),
            checksum=checksum.function(client.capabilities.checksum),
            max_window=window,
            keep_attributes=config.attributes,
            extra_headers={},
            journal=journal.journal,
            backlog=Backlog(limit, config.min_free_space, staged),
        )
        filesystem = FileSystem(
            client, namespace, workshop, exclusive_at_open=config.exclusive_create == "open"
        )
        blocks.tell_damage_to(Condemner(filesystem, background, forget_in_kernel).condemn)
        metrics = Metrics()
        changer = Changer(filesystem)
        mover = TreeMover(client, journal.journal, work)
        operations = FuseOperations(
            filesystem,
            Renamer(filesystem, client, mover),
            changer,
            Xattrs(filesystem, changer, ObjectFacts(filesystem, client, client), client),
            metrics,
            ttl=config.metadata_ttl,
            writeback_cache=True,
        )
        return _Parts(
            client, blocks, index, journal, workshop, budget, filesystem, mover, operations, metrics
        )

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

    async def _serve(self, parts: _Parts, background: trio.Nursery) -> Sequence[OpenFile]:
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
        await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
        scope.cancel()

    async def _get_ready(
        self, parts: _Parts, nursery: trio.Nursery, background: trio.Nursery
    ) -> None:
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
        background.start_soon(self._ending.heed_signals, parts.filesystem)
        nursery.start_soon(parts.operations.callers.watch)
        log.info("%s is mounted at %s", self._source, self._config.mountpoint)
        logs.detach()
        notify.ready(f"{self._source} is mounted at {self._config.mountpoint}")

    # -- commands --------------------------------------------------------------------------

    def _handlers(self, parts: _Parts) -> Mapping[str, control.Handler]:
        async def status(request: Mapping[str, object], progress: Progress) -> object:
            return self._status(parts)

        async def sync(request: Mapping[str, object], progress: Progress) -> object:
            return await self._sync(parts, progress)

        async def umount(request: Mapping[str, object], progress: Progress) -> object:
            return await self._umount(parts, request, progress)

        async def recover(request: Mapping[str, object], progress: Progress) -> object:
            return await self._recover(parts, request)

        return {
            "hello": control.hello(self._config.mountpoint, self._source),
            "status": status,
            "sync": sync,
            "recover": recover,
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
        await self._ending.push_pages()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, parts, progress)
            left = await save_all(parts.filesystem)
            nursery.cancel_scope.cancel()
        return {"left": [os.fsdecode(file.inode.name) for file in left]}

    async def _recover(self, parts: _Parts, request: Mapping[str, object]) -> object:
        workshop, names = parts.workshop, request.get("names")
        if not isinstance(names, list):
            raise MountError("the names of the files are missing", 1)
        keeper = Keeper(
            parts.client, parts.journal, workshop.grid, attributes=self._config.attributes
        )
        result = await act(keeper, str(request.get("action")), [str(name) for name in names])
        for key in result["done"]:
            above, _, segment = key.rpartition("/")
            parts.filesystem.cache.drop(f"{above}/" if above else "", segment)
        return result

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
        result: object = None
        with trio.move_on_after(FORCE_PATIENCE if lazy or force else math.inf):
            result = await self._sync(parts, progress)
        left = result["left"] if isinstance(result, dict) else ()
        if left and not force and not lazy:
            raise MountError(f"{len(left)} files could not be uploaded; see the log")
        if not self._kernel.unmount(lazy=lazy or force):
            raise MountError(_busy(self._config.mountpoint))
        if force:
            pyfuse3.terminate()
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
