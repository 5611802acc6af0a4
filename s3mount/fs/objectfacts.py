"""What extended attributes tell of an object beside what a file has: ETag, links, state."""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from s3mount.errors import NotFound, PosixError
from s3mount.fs.changing import Changer
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode
from s3mount.s3.store import ObjectInfo, ObjectLinks, ObjectStore

PREFIXES = (b"s3.", b"s3mount.")
LINK_SECONDS = 3600  # How long a link is good for that does not say so itself.
MAX_LINK_SECONDS = 7 * 86400  # S3's limit.
MAX_TYPE = 255  # bytes of a Content-Type
TYPE = "s3.content-type"

Fact = Callable[[Inode], Awaitable[str | None]]


class ObjectFacts:
    """``user.s3.*`` and ``user.s3mount.*``: readable by name, and in no list of names.

    So no copy takes them along.  The names are good without ``user.``, too, as goofys has
    them; the kernel lets only those through for symlinks.
    """

    def __init__(self, filesystem: FileSystem, store: ObjectStore, links: ObjectLinks) -> None:
        self._fs = filesystem
        self._store = store
        self._links = links
        self._facts: Mapping[str, Fact] = {
            "s3.etag": self._etag,
            "s3.version-id": self._version_id,
            TYPE: self._content_type,
            "s3.key": self._key,
            "s3.url": self._url,
            "s3.presigned-url": self._link,
            "s3mount.state": self.state,
        }

    @staticmethod
    def owns(name: bytes) -> bool:
        """Whether an attribute is one of ours, known or not."""
        return name.removeprefix(b"user.").startswith(PREFIXES)

    async def get(self, inode: Inode, name: bytes) -> bytes:
        """The value of a fact; raises `PosixError` ENODATA where there is none."""
        word = name.removeprefix(b"user.").decode("utf-8", "replace")
        stem, _, seconds = word.rpartition(".")
        if stem == "s3.presigned-url":
            value = await self._link(inode, seconds)
        else:
            fact = self._facts.get(word)
            value = await fact(inode) if fact is not None else None
        if value is None:
            raise PosixError(errno.ENODATA)
        return value.encode("utf-8", "surrogateescape")

    async def set(self, changer: Changer, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Change the Content-Type (None: what the name suggests); all else is as it is."""
        word = name.removeprefix(b"user.").decode("utf-8", "replace")
        if word != TYPE or inode.directory:
            raise PosixError(errno.EPERM if word in self._facts else errno.EOPNOTSUPP)
        async with changer.hold(inode) as file:
            kept = file.kept
            if kept is None:
                kept = self._fs.namespace.kept_headers(await self._store.head(file.stored_key))
            others = {name: text for name, text in kept.items() if name != "content-type"}
            file.kept = others if value is None else {**others, "content-type": _media_type(value)}
            file.set_attributes(replace(file.attributes, ctime_ns=time.time_ns()))

    # -- what is known ---------------------------------------------------------------------

    async def _etag(self, inode: Inode) -> str | None:
        file = self._fs.files.get(inode)
        if file is not None:
            return file.base.etag.strip('"') if file.base is not None else None
        if inode.parent is None or inode.gone:
            return None
        entry = await self._fs.namespace.find(inode.parent.prefix, inode.segment, attributes=False)
        return entry.etag.strip('"') or None if entry is not None else None

    async def state(self, inode: Inode) -> str | None:
        """Whether the store has it as it is: clean, dirty, uploading, or failed and why."""
        file = self._fs.files.get(inode)
        if file is None:
            return "dirty" if inode in self._fs.markers.unsaved else "clean"
        if file.dirty and file.error is not None:
            return f"failed: {file.error}"
        if file.uploading:
            return "uploading"
        return "dirty" if file.dirty else "clean"

    async def _key(self, inode: Inode) -> str | None:
        return self._links.full_key(self.local_key(inode)) or None

    async def _url(self, inode: Inode) -> str | None:
        return self._links.url(self.local_key(inode))

    def local_key(self, inode: Inode) -> str:
        """The key of a file, or of the marker of a directory, as seen from the mounted prefix."""
        return inode.prefix if inode.directory else inode.key

    # -- what the store is asked -----------------------------------------------------------

    async def _version_id(self, inode: Inode) -> str | None:
        info = await self.head(inode)
        return info.headers.get("x-amz-version-id") if info is not None else None

    async def _content_type(self, inode: Inode) -> str | None:
        file = self._fs.files.get(inode)
        if file is not None and file.kept is not None:
            return file.headers()["content-type"]
        info = await self.head(inode)
        return info.headers.get("content-type") if info is not None else None

    async def head(self, inode: Inode) -> ObjectInfo | None:
        """What the store says of the object of a file; None where it has none."""
        key = self.stored_key(inode)
        try:
            return await self._store.head(key) if key else None
        except NotFound:
            return None

    async def _link(self, inode: Inode, seconds: str = str(LINK_SECONDS)) -> str | None:
        key = "" if inode.directory else self.stored_key(inode)
        if not key or not seconds.isdecimal() or not seconds.isascii() or len(seconds) > 6:
            return None
        if not 1 <= int(seconds) <= MAX_LINK_SECONDS:
            return None
        return await self._links.presigned_url(key, int(seconds))

    def stored_key(self, inode: Inode) -> str:
        """Where the store has the object by now; empty: nowhere."""
        file = self._fs.files.get(inode)
        if file is not None:
            return file.stored_key if not file.unlinked else ""
        return "" if inode.gone else self.local_key(inode)


def _media_type(value: bytes) -> str:
    if not value.isascii() or not value.decode().isprintable():
        raise PosixError(errno.EINVAL)
    text = value.decode().strip()
    if "/" not in text or len(text) > MAX_TYPE:
        raise PosixError(errno.EINVAL)
    return text
