"""Files whose bytes were wrong on their way from the store: no program goes on with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from s3mount.cache.version import ObjectVersion
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode


class Condemner:
    """Has whoever reads a damaged version get EIO, and whoever opens it later the right bytes.

    *forget* makes the kernel drop its pages of some inodes.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        nursery: trio.Nursery,
        forget: Callable[[Sequence[Inode]], Awaitable[None]],
    ) -> None:
        self._fs = filesystem
        self._nursery = nursery
        self._forget = forget

    def condemn(self, version: ObjectVersion) -> None:
        """Take note that programs, and the kernel's pages, may have wrong bytes of *version*."""
        stale = []
        for inode in self._fs.inodes:
            file = self._fs.files.get(inode)
            if file is not None and file.base == version:
                file.condemned = True
            elif inode.directory or inode.shown != version.etag or inode.key != version.key:
                continue
            stale.append(inode)
            if inode.parent is not None and not inode.gone and (file is None or not file.dirty):
                # The name gets another inode, of which the kernel has no pages.
                self._fs.cache.drop(inode.parent.prefix, inode.segment)
                self._fs.detach(inode)
        self._nursery.start_soon(self._forget, stale)
