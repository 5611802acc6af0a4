"""Changes of what stat(2) and getxattr(2) show, and when the store hears of them."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from s3mount.attributes import Attributes
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.history import refuse_change_of
from s3mount.fs.inodes import Inode
from s3mount.fs.openfile import OpenFile
from s3mount.fs.status import Changes, Stat, changed


class Changer:
    """setattr(2) and its kin on a `FileSystem`.

    What is changed of a closed file or of a directory is written down soon, together with
    what comes within a moment.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem

    async def setattr(self, number: int, changes: Changes, handle_number: int | None) -> Stat:
        """Change attributes or the size."""
        inode = self._fs.inodes.get(number)
        refuse_change_of(inode)
        if inode.directory:
            return await self.change_directory(inode, lambda old: changed(old, changes))
        if inode.gone and inode not in self._fs.files and changes.only_times:
            # The kernel writes back what it knows of a file that has no name any more; an
            # error would be one of the next syncfs(2).
            return self._stat_gone(inode, changes)
        open_file = self._fs.files.get(inode)
        if open_file is not None and open_file.handles and changes.size is None:
            self._apply(open_file, changes)  # As after each write: nothing to wait for.
            return self._fs.stat_file(inode, open_file)
        async with self.hold(inode) as file:
            if changes.size is not None and changes.size != file.size:
                await file.truncate(changes.size)
                self._apply(file, changes)
                if handle_number is None and file.handles == 1:
                    await self._fs.open_files.make_safe(file)
            else:
                self._apply(file, changes)
            return self._fs.stat_file(inode, file)

    def _stat_gone(self, inode: Inode, changes: Changes) -> Stat:
        assert changes.mtime_ns is not None
        attributes = self._fs.namespace.defaults.file(changes.mtime_ns)
        kind = inode.kind or stat.S_IFREG
        mode = kind | stat.S_IMODE(attributes.mode)
        return Stat(inode, replace(attributes, mode=mode), 0)

    def _apply(self, file: OpenFile, changes: Changes) -> None:
        if not self._fs.namespace.keep_attributes:
            return
        attributes = changed(file.attributes, changes)
        if changes.only_times and changes.mtime_ns == file.attributes.mtime_ns:
            # The kernel's own idea of ctime, after a rename for one: not worth a request.
            file.attributes = attributes
        elif attributes != file.attributes:
            file.set_attributes(attributes)

    @asynccontextmanager
    async def hold(self, inode: Inode) -> AsyncIterator[OpenFile]:
        """The file of an inode, to be changed; who lets go of it sees to its saving."""
        file = await self._fs.file_of(inode)
        with self._fs.open_files.held(file):
            async with self._fs.trees.changing(lambda: inode.key):
                yield file

    async def change_directory(
        self, inode: Inode, change: Callable[[Attributes], Attributes]
    ) -> Stat:
        """Change the attributes of a directory, if attributes are kept at all."""
        current = await self._fs.getattr(inode.number)
        if not self._fs.namespace.keep_attributes:
            return current
        attributes = change(current.attributes)
        if inode.parent is None:
            self._fs.root_attributes = attributes  # The root has no object that could keep them.
        else:
            self._fs.markers.set(inode, attributes)
        return Stat(inode, attributes, 0)
