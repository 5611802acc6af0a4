"""Everything that is known of one path: its object, what of it is cached, what is not saved."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from s3mount.cache.blocks import BlockCache
from s3mount.cache.disk import BlockDisk
from s3mount.cache.ranges import on_disk
from s3mount.cache.version import ObjectVersion
from s3mount.errors import Denied, InvalidRequest, NotFound, Unsupported
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import ROOT, Inode
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.status import Stat
from s3mount.s3.store import (
    ListedVersion,
    ObjectHistory,
    ObjectInfo,
    ObjectLinks,
    ObjectStore,
)
from s3mount.write.extents import Extents

MAX_VERSIONS = 50  # The latest ones are told.
TOLD_HEADERS = {
    "content-type": "content_type",
    "content-encoding": "content_encoding",
    "cache-control": "cache_control",
    "x-amz-version-id": "version_id",
    "x-amz-server-side-encryption": "encryption",
    "x-amz-restore": "restore",
    "x-amz-expiration": "expiration",
    "x-amz-replication-status": "replication",
}
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}

Facts = Mapping[str, object]


class Source(ObjectStore, ObjectLinks, ObjectHistory, Protocol):
    """Where objects are, with all that can be asked of them."""


class Inspector:
    """Describes files and directories of a mount as plain values, for people."""

    def __init__(
        self, filesystem: FileSystem, source: Source, blocks: BlockCache, disk: BlockDisk | None
    ) -> None:
        self._fs = filesystem
        self._source = source
        self._facts = ObjectFacts(filesystem, source, source)
        self._blocks = blocks
        self._disk = disk

    async def describe(self, path: bytes) -> Facts:
        """Describe what is at *path*, as seen from the mount point (empty: that itself).

        A symlink is not followed.  Raises `PosixError` and `StoreError`.
        """
        async with self._found(path) as found:
            inode = found.inode
            info = await self._object(inode)
            return {
                **self._identity(found),
                **await self._state(inode),
                "object": None if info is None else _object(info),
                "cached": await self._cached(inode, info),
                "versions": await self._versions(inode, info),
            }

    @asynccontextmanager
    async def _found(self, path: bytes) -> AsyncIterator[Stat]:
        """What is at a path; its inode stays, whatever the kernel forgets meanwhile."""
        inode = self._fs.inodes.get(ROOT)
        held: list[Inode] = []
        try:
            for name in filter(None, path.split(b"/")):
                found = await self._fs.lookup(inode.number, name)
                inode = found.inode
                self._fs.inodes.pin(inode)
                held.append(inode)
            yield await self._fs.getattr(inode.number)
        finally:
            for one in reversed(held):
                self._fs.inodes.unpin(one)

    def _identity(self, found: Stat) -> Facts:
        attributes, key = found.attributes, self._facts.local_key(found.inode)
        return {
            "type": KINDS.get(stat.S_IFMT(attributes.mode), "unknown"),
            "key": self._source.full_key(key),
            "url": self._source.url(key),
            "size": 0 if found.inode.directory else found.size,
            "mode": stat.S_IMODE(attributes.mode),
            "uid": attributes.uid,
            "gid": attributes.gid,
            "mtime": attributes.mtime_ns / 1e9,
        }

    async def _state(self, inode: Inode) -> Facts:
        state = {"state": await self._facts.state(inode)}
        file = self._fs.files.get(inode)
        if inode.directory:
            return {**state, **self._names(inode)}
        if file is None:
            return {**state, "open": 0}
        return {
            **state,
            "open": file.handles,
            "unsaved_bytes": file.unsaved_bytes,
            "sent_bytes": min(file.sent_bytes, file.unsaved_bytes),
            "in_journal": bool(file.record),
            "given_up": file.given_up,
            "failure": str(file.error or ""),
        }

    def _names(self, directory: Inode) -> Facts:
        """What is known of what is in a directory, without asking anybody."""
        cache, prefix = self._fs.cache, directory.prefix
        below = [
            file
            for inode, file in self._fs.files.items()
            if file.dirty and not inode.gone and inode.key.startswith(prefix)
        ]
        return {
            "listed": cache.listing(prefix) is not None,
            "names": len(cache.names(prefix)),
            "unsaved_files": len(below),
            "unsaved_bytes": sum(file.unsaved_bytes for file in below),
        }

    async def _object(self, inode: Inode) -> ObjectInfo | None:
        key = self._facts.stored_key(inode)
        try:
            return await self._source.head(key) if key else None
        except NotFound:
            return None  # It is not in the store yet, or a directory without a marker.

    async def _cached(self, inode: Inode, info: ObjectInfo | None) -> Facts | None:
        if inode.directory:
            return None
        file = self._fs.files.get(inode)
        version = file.base if file is not None else None
        if version is None and info is not None:
            version = ObjectVersion(info.key, info.etag, info.size)
        if version is None:
            return None
        memory = self._blocks.ranges(version)
        if self._disk is None:
            return {"memory": _ranges(memory), "disk": None}
        return {"memory": _ranges(memory), "disk": _ranges(await on_disk(self._disk, version))}

    async def _versions(self, inode: Inode, info: ObjectInfo | None) -> Sequence[Facts] | None:
        """The versions of an object; None where a bucket keeps none, or does not tell."""
        if inode.directory or (info is not None and "x-amz-version-id" not in info.headers):
            return None
        key = self._facts.stored_key(inode)
        if not key:
            return None
        try:
            found = await self._source.versions_of(key)
        except (Denied, Unsupported, InvalidRequest, NotFound):
            return None
        return [_version(one) for one in found[:MAX_VERSIONS]]


def _object(info: ObjectInfo) -> Facts:
    etag = info.etag.strip('"')
    _, dash, parts = etag.rpartition("-")
    headers = info.headers
    return {
        "etag": etag,
        "size": info.size,
        "modified": info.modified_ns / 1e9,
        "parts": int(parts) if dash and parts.isdecimal() else None,
        "storage_class": headers.get("x-amz-storage-class", "STANDARD"),
        **{word: headers[name] for name, word in TOLD_HEADERS.items() if name in headers},
        "metadata": dict(info.metadata),
    }


def _ranges(found: Extents) -> Facts:
    return {"bytes": found.total, "ranges": [[one.start, one.stop] for one in found]}


def _version(one: ListedVersion) -> Facts:
    return {
        "version_id": one.id,
        "latest": one.latest,
        "deleted": one.deleted,
        "modified": one.moment_ns / 1e9,
        "size": one.size,
        "etag": one.etag.strip('"'),
    }
