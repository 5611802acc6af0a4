"""Extended attributes: those of users in the object's metadata, ours computed when asked for.

All others are answered from memory: the kernel asks for ``security.capability`` on every write.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote, unquote_to_bytes

from s3mount.attributes import META, Attributes
from s3mount.errors import PosixError
from s3mount.fs.changing import Changer
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.history import refuse_change_of
from s3mount.fs.inodes import Inode
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.refreshing import Refresher
from s3mount.fs.storagefacts import StorageFacts
from s3mount.s3.store import ObjectStore

USER = b"user."
CAPABILITY = b"security.capability"  # getcap(8) takes everything but ENODATA for a failure.
HEADER = f"{META}xattr"
# The most that mode, owner and times take beside the header, names included: so what fits
# now still fits after a chown.
ATTRIBUTE_ROOM = 144


def decode(text: str | None) -> dict[bytes, bytes]:
    """The names and values in a header as s3fs writes it; what makes no sense is left out."""
    try:
        found = json.loads(unquote_to_bytes(text or "").decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return {}
    values: dict[bytes, bytes] = {}
    for name, value in found.items() if isinstance(found, dict) else ():
        try:
            values[name.encode("utf-8", "surrogateescape")] = base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error):
            continue
    return values


def encode(values: Mapping[bytes, bytes]) -> str | None:
    """The header that holds *values*: URL-encoded JSON, and base64 in it; None for nothing."""
    if not values:
        return None
    plain = {
        name.decode("utf-8", "surrogateescape"): base64.b64encode(value).decode()
        for name, value in values.items()
    }
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    return quote(text.encode("utf-8", "surrogateescape"), safe="/")


class Xattrs:
    """getxattr(2) and its kin on a `FileSystem`.

    XATTR_CREATE and XATTR_REPLACE are not our business: pyfuse3 calls `get` for them first,
    and the kernel changes the attributes of a file one after the other.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        changer: Changer,
        facts: ObjectFacts,
        storage: StorageFacts,
        store: ObjectStore,
    ) -> None:
        self._fs = filesystem
        self._changer = changer
        self._facts = facts
        self._storage = storage
        self._store = store
        self._refresher = Refresher(filesystem)

    async def get(self, number: int, name: bytes) -> bytes:
        """The value of an attribute; raises `PosixError` ENODATA where there is none."""
        if self._storage.owns(name):
            return await self._storage.get(self._fs.inodes.get(number), name)
        if ObjectFacts.owns(name):
            return await self._facts.get(self._fs.inodes.get(number), name)
        if not name.startswith(USER):
            # For lack of the whole namespace, ls -l does not ask for security.selinux again.
            # (Of CAPABILITY there is just no value, which `s3mount.fuse` says.)
            raise PosixError(errno.EOPNOTSUPP)
        values = decode((await self._fs.getattr(number)).attributes.xattrs)
        if name not in values:
            raise PosixError(errno.ENODATA)
        return values[name]

    async def names(self, number: int) -> Sequence[bytes]:
        """The attributes that users have set: what a copy of the file takes along."""
        values = decode((await self._fs.getattr(number)).attributes.xattrs)
        return [name for name in values if name.startswith(USER) and not ObjectFacts.owns(name)]

    async def set(self, number: int, name: bytes, value: bytes) -> Sequence[Inode]:
        """Set an attribute; returns the inodes of which the kernel has to forget everything."""
        inode = self._fs.inodes.get(number)
        if name == Refresher.NAME:
            return await self._refresher.refresh(inode)
        refuse_change_of(inode)
        if self._storage.owns(name):
            await self._storage.set(inode, name, value)
        elif ObjectFacts.owns(name):
            await self._facts.set(self._changer, inode, name, value)
        else:
            self._check_namespace(name)
            await self._change(inode, {name: value})
        return ()

    async def remove(self, number: int, name: bytes) -> None:
        """Remove an attribute; raises `PosixError` ENODATA where there is none."""
        inode = self._fs.inodes.get(number)
        refuse_change_of(inode)
        if self._storage.owns(name):
            await self._storage.set(inode, name, None)
            return
        if ObjectFacts.owns(name):
            await self._facts.set(self._changer, inode, name, None)
            return
        self._check_namespace(name)
        await self._change(inode, {name: None})

    def _check_namespace(self, name: bytes) -> None:
        if not name.startswith(USER) or not self._fs.namespace.keep_attributes:
            raise PosixError(errno.EOPNOTSUPP)

    async def _change(self, inode: Inode, wanted: Mapping[bytes, bytes | None]) -> None:
        if inode.directory:
            await self._changer.change_directory(inode, lambda old: self._changed(old, wanted, {}))
            return
        async with self._changer.hold(inode) as file:
            file.set_attributes(self._changed(file.attributes, wanted, file.kept or {}))

    def _changed(
        self, old: Attributes, wanted: Mapping[bytes, bytes | None], kept: Mapping[str, str]
    ) -> Attributes:
        values = decode(old.xattrs)
        for name, value in wanted.items():
            if value is not None:
                values[name] = value
                self._check_room({name: value}, {}, errno.ERANGE)
                self._check_room(values, kept, errno.ENOSPC)
            elif values.pop(name, None) is None:
                raise PosixError(errno.ENODATA)
        return replace(old, xattrs=encode(values), ctime_ns=time.time_ns())

    def _check_room(
        self, values: Mapping[bytes, bytes], kept: Mapping[str, str], error: int
    ) -> None:
        """Raise `PosixError` *error* for more than a store keeps, beside what is *kept* already."""
        others = sum(len(n) + len(v.encode()) for n, v in kept.items() if n.startswith(META))
        size = len(HEADER) + len(encode(values) or "") + ATTRIBUTE_ROOM + others
        if size > self._store.capabilities.max_metadata_size:
            raise PosixError(error)
