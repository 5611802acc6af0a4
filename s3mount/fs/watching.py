"""Changes that others make: what they mean for names, inodes and the kernel, and what a gap means.

Knowledge is dropped, and the kernel told to ask again; what is there now is found out by who asks
next.  So no open file is touched: whoever reads goes on reading the version that was opened, and
a file that is not saved yet stays what it is.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from s3mount.cache.freshness import Hint
from s3mount.cache.metadata import Entry
from s3mount.errors import (
    Denied,
    InvalidRequest,
    NotFound,
    StoreError,
    Unrecognised,
    Unsupported,
)
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode
from s3mount.fs.names import BESIDE, folder_of, slot_name
from s3mount.s3.changes import Change, ChangeSource, News

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # Seconds before another attempt to listen.
SETTLED = 30.0  # Seconds of listening after which attempts begin anew.
UNWILLING_PAUSE = 600.0  # Seconds before a store that will not tell is asked once more.
MAX_SILENT = 3  # Attempts without a sign of life after which a store is taken not to tell.
ECHO = 0.3  # Seconds in which we have noted down what we have written ourselves.
MAX_ECHOES = 1000
MALFORMED_PAUSE = 5.0  # Seconds between two gaps for lines that made no sense.


class KernelCache(Protocol):
    """Who tells the kernel to ask again; nothing here waits for it."""

    def forget(self, inodes: Sequence[Inode]) -> None:
        """Drop the attributes of some inodes, and look up anew what their names stand for."""
        ...

    def forget_all(self, inodes: Callable[[], Sequence[Inode]]) -> None:
        """The same for very many, a few at a time; the next such call replaces this one."""
        ...


@dataclass(slots=True)
class Watched:
    """What has been heard so far, for people; moments are seconds since 1970."""

    source: str = "off"
    state: str = "off"
    since: float = field(default_factory=time.time)
    events: int = 0
    own: int = 0
    malformed: int = 0
    gaps: int = 0
    last_gap: float | None = None
    error: str = ""


class Watcher:
    """Follows a source of changes for as long as the mount lives, and heeds what it tells.

    Without a *source* nothing is watched.  With *insistent* somebody has asked for this one:
    that the store will not tell is a warning, and it is asked again now and then.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        source: ChangeSource | None,
        kernel: KernelCache,
        *,
        insistent: bool,
    ) -> None:
        self._fs = filesystem
        self._source = source
        self._kernel = kernel
        self._insistent = insistent
        self._nursery: trio.Nursery | None = None
        self._echoes = 0
        self._silent = 0
        self._heard_at = 0.0
        self._malformed_at = -MALFORMED_PAUSE
        self.watched = Watched()
        if source is not None:
            self.watched.source = source.name
            self.watched.state = "connecting"

    async def run(self) -> None:
        """Listen until cancelled, or until it is clear that there is nothing to hear."""
        if self._source is None:
            return
        async with trio.open_nursery() as self._nursery:
            pause = FIRST_PAUSE
            while True:
                error = await self._listen(self._source)
                if not self._is_worth_while(error):
                    return
                if self._heard_at and trio.current_time() - self._heard_at > SETTLED:
                    pause = FIRST_PAUSE
                self._heard_at = 0.0
                patience = UNWILLING_PAUSE if self._is_unwilling(error) else pause
                await trio.sleep(patience * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _listen(self, source: ChangeSource) -> StoreError:
        try:
            await source.follow(self._hear)
        except StoreError as error:
            self._lost(error)
            return error
        raise AssertionError("a source tells until it fails")

    # -- the state of the source -----------------------------------------------------------

    def _is_unwilling(self, error: StoreError) -> bool:
        """Whether the store will not tell; one that once did has only been away."""
        if self.watched.gaps:
            return False
        if isinstance(error, Denied):
            return not isinstance(error, Unrecognised)  # Credentials are renewed.
        refused = isinstance(error, Unsupported | InvalidRequest | NotFound)
        return refused or self._silent >= MAX_SILENT

    def _is_worth_while(self, error: StoreError) -> bool:
        if self._insistent or not self._is_unwilling(error):
            return True
        self._become("off", str(error))
        log.info("changes by others are seen after metadata-ttl: %s", error)
        return False

    def _become(self, state: str, error: str = "") -> None:
        watched = self.watched
        watched.state, watched.error, watched.since = state, error, time.time()

    def _hear(self, news: News) -> None:
        """Heed what was heard.  No checkpoint."""
        assert self._source is not None
        watched, cache = self.watched, self._fs.cache
        if watched.state != "listening":
            self._regained()
        watched.events += len(news.changes)
        watched.own += news.own
        cache.freshness.vouched_until = cache.clock() + self._source.lease
        for change in news.changes:
            self.heed(change)
        if news.malformed:
            watched.malformed += news.malformed
            self._misunderstood()

    def _misunderstood(self) -> None:
        """Somebody may have told us of anything."""
        now = trio.current_time()
        if now - self._malformed_at >= MALFORMED_PAUSE:
            self._malformed_at = now
            log.info("what was heard of changes made no sense: all names are asked for anew")
            self._gap()

    def _regained(self) -> None:
        assert self._source is not None
        first = self.watched.last_gap is None and not self.watched.gaps
        self._silent = 0
        self._heard_at = trio.current_time()
        self._become("listening")
        log.info("changes by others are heard of (%s)", self._source.name)
        if first or not self._source.gapless:
            self._distrust()

    def _lost(self, error: StoreError) -> None:
        self._fs.cache.freshness.vouched_until = -math.inf
        if self.watched.state == "listening":
            assert self._source is not None
            self._become("lost", str(error))
            log.log(
                logging.WARNING if self._insistent else logging.INFO,
                "changes by others are not heard of any more: %s",
                error,
            )
            self._gap(later=True)
            return
        self._silent += 1
        if self._insistent and not self.watched.error:
            log.warning("changes by others are not heard of: %s", error)
        self.watched.error = str(error)

    def _gap(self, *, later: bool = False) -> None:
        """Something may have been missed; with *later* what has is known when we hear again."""
        self.watched.gaps += 1
        self.watched.last_gap = time.time()
        if later:
            # From now on names count for their time to live only, for the kernel, too.
            self._kernel.forget_all(self._known)
        else:
            self._distrust()

    def _distrust(self) -> None:
        """Nothing that was learnt before now counts any more."""
        self._fs.cache.freshness.raise_floor(self._fs.cache.clock())
        self._fs.namespace.forget_listings()
        self._kernel.forget_all(self._known)

    def _known(self) -> Sequence[Inode]:
        """What the kernel may believe something of, but for what it has changed itself."""
        return [inode for inode in self._fs.inodes if self._may_forget(inode)]

    def _may_forget(self, inode: Inode) -> bool:
        file = self._fs.files.get(inode)
        return inode.parent is not None and not inode.gone and (file is None or not file.dirty)

    # -- one change ------------------------------------------------------------------------

    def heed(self, change: Change) -> None:
        """Drop what a change has made old.  No checkpoint."""
        log.debug("changed by others: %s", change)
        stale: dict[Inode, None] = {}
        for key in change.keys:
            hint = None
            if not change.removed and change.etag and change.size is not None:
                hint = Hint(change.etag, change.size)
            self._forget_key(key, change.removed, hint, stale)
        self._kernel.forget([inode for inode in stale if self._may_forget(inode)])
        if change.contested and self._nursery is not None:
            if self._echoes >= MAX_ECHOES:
                self._gap()
                return
            self._echoes += 1
            self._nursery.start_soon(self._heed_again, change._replace(contested=False))

    async def _heed_again(self, change: Change) -> None:
        """What we have noted down of our own write meanwhile may be older than the change."""
        await trio.sleep(ECHO)
        self._echoes -= 1
        self.heed(change)

    def _forget_key(
        self, key: str, removed: bool, hint: Hint | None, stale: dict[Inode, None]
    ) -> None:
        namespace = self._fs.namespace
        prefix, slash, segment = key.rpartition("/")
        prefix += slash
        namespace.index.forget_key(key)
        if segment:
            self._forget(prefix, segment, hint if self._is_file(prefix, segment) else None, stale)
        else:  # The marker of a directory, and, where that has bytes, the file that they are.
            self._forget(prefix, "", None, stale)
        self._forget(prefix, BESIDE + segment, None, stale)
        folder = folder_of(segment)
        if folder is not None:
            namespace.folders = True
            self._forget(prefix, folder, None, stale)
        self._forget_directories(prefix, not segment, removed, stale)

    def _is_file(self, prefix: str, segment: str) -> bool:
        """Whether a name was known to be a file before, and no directory."""
        known = self._fs.cache.peek(prefix, segment)
        if known is not None:
            return not known.directory
        return self._fs.cache.freshness.hint(prefix, segment) is not None

    def _forget_directories(
        self, prefix: str, marker: bool, removed: bool, stale: dict[Inode, None]
    ) -> None:
        """A directory is there because of what is in it: it may have come, or gone.

        With *marker* it is its marker that has changed, which tells its attributes.
        """
        while prefix:
            segment = prefix[:-1].rpartition("/")[2]
            prefix = prefix[: len(prefix) - len(segment) - 1]
            known = self._fs.cache.peek(prefix, segment)
            if not marker and _stays(known, removed):
                return
            marker = False
            self._forget(prefix, segment, None, stale)

    def _forget(
        self, prefix: str, segment: str, hint: Hint | None, stale: dict[Inode, None]
    ) -> None:
        self._fs.namespace.changed(prefix, segment, hint)
        parent = self._directory(prefix)
        inode = None if parent is None else self._fs.inodes.find(parent, slot_name(segment))
        if inode is not None:
            stale[inode] = None

    def _directory(self, prefix: str) -> Inode | None:
        """The inode of a directory, if the kernel knows it."""
        inode: Inode | None = self._fs.inodes.root
        for segment in prefix.split("/")[:-1]:
            if inode is None:
                return None
            inode = self._fs.inodes.find(inode, slot_name(segment))
        return inode


def _stays(known: Entry | None, removed: bool) -> bool:
    """Whether a directory is there, as it is known to be, after a change of what is in it."""
    return known is not None and known.directory and (known.marker or not removed)
