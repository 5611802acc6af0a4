"""``setfattr -n user.s3mount.refresh PATH``: drops everything that is cached of a path."""

from __future__ import annotations

from collections.abc import Sequence

from s3mount.errors import StoreError
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode


class Refresher:
    """Makes a file, or a directory with all that is below it, be looked up anew."""

    NAME = b"user.s3mount.refresh"

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem

    async def refresh(self, inode: Inode) -> Sequence[Inode]:
        """Drop what is known; returns the inodes that the kernel has to forget.

        What is not saved yet stays.  A file that is open stays, too, unless the store has
        another version of it by now: then its name stands for that one from now on.  So do
        directories, which may be where somebody works, unless they are not there any more.
        """
        below = [one for one in self._fs.inodes if _is_below(one, inode)]
        if inode.directory:
            self._fs.namespace.forget_tree(inode.prefix)
        if inode.parent is not None:
            self._fs.cache.drop(inode.parent.prefix, inode.segment)
        if not inode.directory:
            self._fs.namespace.index.forget_key(inode.key)
            self._fs.namespace.forget_blocks(inode.key, tree=False)
        for one in below:
            file = self._fs.files.get(one)
            if one.gone or one.parent is None or (file is not None and file.dirty):
                continue
            if file is not None or (one.directory and not self._fs.has_unsaved(one)):
                await self._look_again(one)
        return below

    async def _look_again(self, inode: Inode) -> None:
        assert inode.parent is not None
        try:
            entry = await self._fs.namespace.find(inode.parent.prefix, inode.segment)
        except StoreError:
            return  # Whoever uses the file next hears of it.
        replaced = entry is not None and inode.shown not in ("", entry.etag)
        if inode.directory:
            inode.vanished = entry is None or not entry.directory
        elif entry is None or replaced or entry.directory:
            self._fs.detach(inode)


def _is_below(inode: Inode, top: Inode) -> bool:
    node: Inode | None = inode
    while node is not None and node is not top:
        node = node.parent
    return node is not None
