"""Marker objects: what makes an empty directory exist, and holds its attributes."""

from __future__ import annotations

import math
import time

import trio

from s3mount.attributes import Attributes
from s3mount.cache.metadata import Entry
from s3mount.errors import NotFound, StoreError
from s3mount.fs.inodes import Inode, InodeTable
from s3mount.fs.namespace import Namespace
from s3mount.fs.workshop import Workshop
from s3mount.s3.store import ObjectStore

ATTRIBUTE_DELAY = 0.25  # Seconds in which chmod, chown and utimes become one request.


class Markers:
    """Writes the markers of directories; `unsaved` are attributes that none has yet."""

    def __init__(
        self, store: ObjectStore, namespace: Namespace, workshop: Workshop, inodes: InodeTable
    ) -> None:
        self.unsaved: dict[Inode, Attributes] = {}
        self._store = store
        self._namespace = namespace
        self._workshop = workshop
        self._inodes = inodes

    async def put(self, prefix: str, attributes: Attributes) -> None:
        """Write the marker of the directory *prefix*."""
        await self._store.put(prefix, [], headers=self._workshop.marker_headers(attributes))
        self.written(prefix, attributes)

    def written(self, prefix: str, attributes: Attributes) -> None:
        """Take note of what the marker of the directory *prefix* says since we have written it."""
        above, slash, segment = prefix[:-1].rpartition("/")
        above += slash
        cache = self._namespace.cache
        index = self._namespace.index
        learnt = math.inf if index.lasting else None
        entry = Entry(True, 0, "", 0, attributes, cache.clock(), True, learnt=learnt)
        cache.put_own(above, segment, entry)
        index.remember(above, segment, entry)

    def set(self, inode: Inode, attributes: Attributes) -> None:
        """Change what stat(2) shows of a directory, and write it down soon."""
        if inode not in self.unsaved:
            self._inodes.pin(inode)
            self._workshop.nursery.start_soon(self._save_later, inode)
        self.unsaved[inode] = attributes

    async def _save_later(self, inode: Inode) -> None:
        while inode in self.unsaved:  # They may change again while they are written.
            await trio.sleep(ATTRIBUTE_DELAY)
            try:
                await self.save(inode)
            except StoreError as error:
                self._workshop.report(inode.prefix, error)

    async def save(self, inode: Inode) -> None:
        """Write down what was changed of a directory, if anything."""
        attributes = self.unsaved.get(inode)
        if attributes is None:
            return
        try:
            async with self._workshop.trees.changing(lambda: inode.prefix):
                if not inode.gone and inode.parent is not None:
                    await self._replace(inode.parent, inode, attributes)
        finally:
            if self.unsaved.get(inode) is attributes:
                del self.unsaved[inode]
                self._inodes.unpin(inode)

    async def _replace(self, parent: Inode, inode: Inode, attributes: Attributes) -> None:
        cache, prefix = self._namespace.cache, inode.prefix
        entry = cache.peek(parent.prefix, inode.segment)
        if entry is not None and entry.attributes is not None and not entry.size:
            await self.put(prefix, attributes)
            return
        # Somebody's marker may have content, which is not ours to drop.
        headers = self._workshop.marker_headers(attributes)
        try:
            await self._store.copy(prefix, prefix, headers=headers, source_etag=None)
        except NotFound:
            await self.put(prefix, attributes)
        else:
            cache.drop(parent.prefix, inode.segment)

    async def keep(self, directory: Inode) -> None:
        """Give a directory a marker, if it has none and nothing else is left in it."""
        if directory.parent is None or directory.gone:
            return
        cache = self._namespace.cache
        entry = cache.peek(directory.parent.prefix, directory.segment)
        if entry is not None and entry.marker:
            return
        prefix = directory.prefix
        listing = cache.listing(prefix)
        if listing is not None and any(isinstance(known, Entry) for known in listing.values()):
            return
        if await self._namespace.directories.is_empty(prefix):
            attributes = entry.attributes if entry is not None else None
            defaults = self._namespace.defaults
            await self.put(prefix, attributes or defaults.directory(time.time_ns()))
