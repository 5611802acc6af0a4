"""Which parts one mount consists of, and how they are put together from its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from urllib.parse import urlsplit

import trio

from s3mount.attributes import Defaults
from s3mount.cache.blocks import BlockCache
from s3mount.cache.disk import BlockDisk
from s3mount.cache.index import AttributeIndex
from s3mount.cache.metadata import MetaCache
from s3mount.config import Config
from s3mount.errors import MountError
from s3mount.fs.changing import Changer
from s3mount.fs.condemning import Condemner
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.names import MAX_KEY, key_size
from s3mount.fs.namespace import Namespace
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.renaming import Renamer
from s3mount.fs.storagefacts import StorageFacts
from s3mount.fs.tree import TreeMover
from s3mount.fs.treegate import TreeGate
from s3mount.fs.watching import Watcher
from s3mount.fs.workshop import Workshop
from s3mount.fs.xattrs import Xattrs
from s3mount.fuse import FuseOperations
from s3mount.kernelcache import KernelNotices
from s3mount.memory import MemoryBudget
from s3mount.metrics import Metrics
from s3mount.reporting import Observed, Reporter
from s3mount.rules import HeaderRules, header_rules
from s3mount.s3 import checksum
from s3mount.s3.changes import ChangeSource
from s3mount.s3.session import is_loopback
from s3mount.s3.versions import HistoryClient
from s3mount.write.backlog import Backlog
from s3mount.write.extents import PartGrid
from s3mount.write.mountjournal import MountJournal
from s3mount.write.staging import StagingDirectory

ENTRY_COST = 600  # Bytes of memory that one cached name takes, about.


@dataclass(frozen=True, slots=True)
class Engine:
    """What moves names and bytes between the kernel's side and the store."""

    client: HistoryClient
    budget: MemoryBudget
    blocks: BlockCache
    index: AttributeIndex
    workshop: Workshop
    filesystem: FileSystem
    notices: KernelNotices
    watcher: Watcher


@dataclass(frozen=True, slots=True)
class Parts:
    """What one mount consists of."""

    client: HistoryClient
    blocks: BlockCache
    index: AttributeIndex
    journal: MountJournal
    workshop: Workshop
    filesystem: FileSystem
    mover: TreeMover
    operations: FuseOperations
    notices: KernelNotices
    watcher: Watcher
    reporter: Reporter


class Assembly:
    """Builds the parts of one mount; nothing runs before the daemon starts it.

    *get_descriptor* returns one of ``/dev/fuse``, see `KernelNotices`.
    """

    def __init__(
        self,
        config: Config,
        client: HistoryClient,
        journal: MountJournal,
        disk: BlockDisk | None,
        get_descriptor: Callable[[], int],
    ) -> None:
        self._get_descriptor = get_descriptor
        self._config = config
        self._client = client
        self._journal = journal
        self._disk = disk

    def build(
        self,
        observed: Callable[[Engine, Metrics], Observed],
        background: trio.Nursery,
        work: trio.Nursery,
    ) -> Parts:
        """Build everything.  What saves files runs in *work*, which ends after *background*.

        *observed* says what the mount's reports are made from.
        """
        engine = self._engine(background, work)
        blocks, filesystem = engine.blocks, engine.filesystem
        blocks.tell_damage_to(Condemner(filesystem, background, engine.notices.drop).condemn)
        metrics = Metrics()
        mover = TreeMover(self._client, self._journal.journal, work)
        return Parts(
            client=self._client,
            blocks=blocks,
            index=engine.index,
            journal=self._journal,
            workshop=engine.workshop,
            filesystem=filesystem,
            mover=mover,
            operations=self._operations(engine, mover, metrics),
            notices=engine.notices,
            watcher=engine.watcher,
            reporter=Reporter(observed(engine, metrics)),
        )

    def _engine(self, background: trio.Nursery, work: trio.Nursery) -> Engine:
        client = self._client
        budget = MemoryBudget(self._config.memory)
        blocks = BlockCache(
            client, budget, background, self._disk, verify=not client.settings.secure
        )
        defaults = self._defaults()
        index = self._index(defaults)
        namespace = self._namespace(defaults, index, blocks, background)
        workshop = self._workshop(blocks, budget, work)
        filesystem = FileSystem(
            client,
            namespace,
            workshop,
            exclusive_at_open=self._config.exclusive_create == "open",
        )
        notices = KernelNotices(self._get_descriptor)
        watcher = Watcher(
            filesystem, self._source(), notices, insistent=self._config.notify != "auto"
        )
        return Engine(client, budget, blocks, index, workshop, filesystem, notices, watcher)

    def _source(self) -> ChangeSource | None:
        """Who tells of changes by others, if anybody does."""
        word, _, queue = self._config.notify.partition(":")
        if word == "off" or (word == "auto" and self._client.settings.is_aws):
            return None
        address = urlsplit(queue)
        safe = address.scheme != "http" or is_loopback(address.hostname or "")
        if not safe and not self._config.insecure_http:
            raise MountError(
                f"{queue}: signed requests would cross the network unencrypted; use https, or "
                "allow it with insecure-http",
                1,
            )
        return self._client.changes(queue)

    def _defaults(self) -> Defaults:
        config = self._config
        return Defaults(
            config.uid,
            config.gid,
            config.file_mode & ~config.umask,
            config.dir_mode & ~config.umask,
        )

    def _index(self, defaults: Defaults) -> AttributeIndex:
        """The attribute index of the bucket.

        Attributes that an object does not tell are the mount's defaults, so mounts with other
        ones have another index.
        """
        config = self._config
        what = (self._client.settings.url, config.bucket, *astuple(defaults))
        return AttributeIndex(
            # What is known of today's objects says little about those of another day.
            config.state_dir / "index" if config.attributes and config.as_of is None else None,
            "\0".join(map(str, what)),
            config.prefix,
            lasting=not self._client.capabilities.marker_metadata,
            clock=trio.current_time,
        )

    def _namespace(
        self,
        defaults: Defaults,
        index: AttributeIndex,
        blocks: BlockCache,
        background: trio.Nursery,
    ) -> Namespace:
        config = self._config
        cache = MetaCache(
            config.metadata_ttl,
            config.negative_ttl,
            max(1000, config.memory // 4 // ENTRY_COST),
            trio.current_time,
        )
        return Namespace(
            self._client,
            cache,
            index,
            blocks,
            defaults,
            background,
            keep_attributes=config.attributes,
            max_key=MAX_KEY - key_size(config.prefix),
        )

    def _workshop(self, blocks: BlockCache, budget: MemoryBudget, work: trio.Nursery) -> Workshop:
        config = self._config
        staged = self._journal.slot.staged
        limit = config.writeback_limit if config.writeback and not config.ro else 0
        window = config.read_ahead if config.read_ahead is not None else config.memory // 2
        return Workshop(
            store=self._client,
            blocks=blocks,
            staging=StagingDirectory(staged, self._journal.checksum, follow=config.writeback),
            budget=budget,
            nursery=work,
            grid=PartGrid(config.part_size),
            checksum=checksum.function(self._client.capabilities.checksum),
            max_window=window,
            keep_attributes=config.attributes,
            header_rules=self._header_rules(),
            journal=self._journal.journal,
            backlog=Backlog(limit, config.min_free_space, staged),
            trees=TreeGate(),
        )

    def _header_rules(self) -> HeaderRules:
        """What new files say about themselves; raises `MountError` for what nobody can read."""
        path = self._config.headers_file
        try:
            lines = path.read_text().splitlines() if path is not None else []
            return header_rules(self._config.cache_control, lines)
        except (OSError, ValueError) as error:
            raise MountError(f"{path}: {getattr(error, 'strerror', None) or error}", 1) from error

    def _operations(self, engine: Engine, mover: TreeMover, metrics: Metrics) -> FuseOperations:
        client, filesystem = self._client, engine.filesystem
        changer = Changer(filesystem)
        return FuseOperations(
            filesystem,
            Renamer(filesystem, client, mover),
            changer,
            self._xattrs(filesystem, changer),
            metrics,
            client.trace,
            engine.notices,
            ttl=self._config.metadata_ttl,
            writeback_cache=True,
            slow=self._config.log_slow,
        )

    def _xattrs(self, filesystem: FileSystem, changer: Changer) -> Xattrs:
        client = self._client
        facts = ObjectFacts(filesystem, client, client)
        storage = StorageFacts(filesystem, changer, facts, client, client)
        return Xattrs(filesystem, changer, facts, storage, client)
