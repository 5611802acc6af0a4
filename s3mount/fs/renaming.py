"""Renaming: one object under another key, or a whole tree of them."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import trio

from s3mount.cache.metadata import Absent
from s3mount.errors import PosixError, StoreError
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.history import refuse_change, refuse_change_of
from s3mount.fs.inodes import Inode
from s3mount.fs.names import FOLDER
from s3mount.fs.openfile import OpenFile
from s3mount.fs.tree import TreeMover
from s3mount.s3.store import ALWAYS, EXPECTING_NOTHING, ObjectStore, Precondition, expecting

RENAME_NOREPLACE = 1


class _Shadowed(NamedTuple):
    """The object that the store has at the new name of a file, as far as it is known.

    `key` is empty when there is none.
    """

    key: str = ""
    etag: str = ""

    @property
    def condition(self) -> Precondition:
        """What the renamed file is expected to replace."""
        return expecting(self.etag) if self.key else EXPECTING_NOTHING


class Renamer:
    """rename(2) on a `FileSystem`: server-side copies, then deletions."""

    def __init__(self, filesystem: FileSystem, store: ObjectStore, mover: TreeMover) -> None:
        self._fs = filesystem
        self._store = store
        self._mover = mover
        self._forget_name: Callable[[int, bytes], None] = lambda parent, name: None

    def tell_stale_names_to(self, forget_name: Callable[[int, bytes], None]) -> None:
        """Whom to tell of names that the kernel goes on believing in when a rename has failed."""
        self._forget_name = forget_name

    async def rename(
        self, parent_number: int, name: bytes, new_parent_number: int, new_name: bytes, flags: int
    ) -> bool:
        """Rename a file or a tree; what was at the target is replaced.

        Returns whether the kernel knew what it has renamed: it goes by its own idea of the
        name, and somebody else may have replaced that.
        """
        if flags & ~RENAME_NOREPLACE:
            raise PosixError(errno.EINVAL)
        parent, new_parent = (
            self._fs.inodes.get(parent_number),
            self._fs.inodes.get(new_parent_number),
        )
        source = (await self._fs.lookup(parent_number, name)).inode
        known = source.lookups > 0
        namespace = self._fs.namespace
        new_name, segment = await self._fs.place_of(new_parent, new_name, errno.EINVAL)
        refuse_change_of(source)
        refuse_change(new_parent, segment)
        try:
            target = (await self._fs.lookup(new_parent_number, new_name)).inode
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            target = None
            await namespace.check_new(new_parent.prefix, segment, directory=source.directory)
        if target is source:
            return True
        if target is not None and flags & RENAME_NOREPLACE:
            raise PosixError(errno.EEXIST)
        try:
            await self._rename(source, target, new_parent, new_name, segment)
        finally:
            for inode in (source, target):
                if inode is not None:
                    self._fs.inodes.release(inode)
        self._fs.touch_directory(parent)
        self._fs.touch_directory(new_parent)
        await self._fs.keep_directory(parent)
        return known

    async def _rename(
        self, source: Inode, target: Inode | None, parent: Inode, name: bytes, segment: str
    ) -> None:
        if source.directory:
            await self._rename_directory(source, target, parent, name, segment)
            return
        async with self._fs.trees.changing(lambda: source.key, lambda: parent.prefix):
            await self._rename_file(source, target, parent, name, segment)

    async def _rename_file(
        self, source: Inode, target: Inode | None, parent: Inode, name: bytes, segment: str
    ) -> None:
        if target is not None and target.directory:
            raise PosixError(errno.EISDIR)
        with self._fs.open_files.held(await self._fs.file_of(source)) as file:
            if file.given_up:
                raise PosixError(errno.ESTALE)  # The name has another inode by now.
            await self._fs.open_files.learn_stored(file)
            # Who opens the target from here on finds it gone: no checkpoint until it is.
            replaced = self._fs.files.get(target) if target is not None else None
            if replaced is None:
                shadowed = _Shadowed() if target is None else _Shadowed(target.key, target.shown)
                await self._move_file(file, None, shadowed, parent, name, segment)
                return
            with self._fs.open_files.held(replaced):
                await replaced.keep_content()
                async with replaced.lock:  # What it saves meanwhile would undo the rename.
                    await self._fs.open_files.learn_stored(replaced)
                    shadowed = _Shadowed(replaced.stored_key, replaced.inode.shown)
                    async with self._fs.open_files.giving_way(replaced):
                        await self._move_file(file, replaced, shadowed, parent, name, segment)

    async def _move_file(
        self,
        file: OpenFile,
        replaced: OpenFile | None,
        shadowed: _Shadowed,
        parent: Inode,
        name: bytes,
        segment: str,
    ) -> None:
        """Move a file; *shadowed* is what the store has at the new name."""
        if file.acknowledged and not file.stored_key and not file.lock.locked():
            await self._rename_waiting(file, replaced, shadowed, parent, name, segment)
            return
        source = file.inode
        known = expecting(source.shown)
        old = (source.parent, source.name, source.segment)
        assert old[0] is not None
        base, condition, expected = file.base, file.condition, file.expected
        try:
            # No checkpoint between these: both names change for everybody at once.
            self._fs.inodes.move(source, parent, name, segment)
            file.attributes = replace(file.attributes, ctime_ns=time.time_ns())
            await file.save_as_renamed(shadowed.condition)
        except BaseException:
            self._fs.inodes.move(source, old[0], old[1], old[2])
            if file.base is base:  # What it may replace under its old name is what it was.
                file.condition, file.expected = condition, expected
            raise
        else:
            if replaced is not None:
                replaced.detach()
            self._fs.open_files.saved(file)
            self._fs.cache.put(old[0].prefix, old[2], Absent(self._fs.cache.clock()))
            try:
                await self._fs.open_files.remove_obsolete(file, known)
            except BaseException:
                # The rename fails, and has been made: both names are there, each for itself.
                self._fs.open_files.leave_obsolete(file)
                self._fs.cache.drop(old[0].prefix, old[2])
                self._forget_name(old[0].number, old[1])
                self._forget_name(parent.number, name)
                raise
            await self._fs.open_files.forgotten()  # Of the old name, and of what was replaced.

    async def _rename_waiting(
        self,
        file: OpenFile,
        replaced: OpenFile | None,
        shadowed: _Shadowed,
        parent: Inode,
        name: bytes,
        segment: str,
    ) -> None:
        """Rename a file that only the journal has: no request to the store."""
        source = file.inode
        assert source.parent is not None
        old_parent, old_segment = source.parent, source.segment
        # No checkpoint between these: both names change for everybody at once.
        self._fs.inodes.move(source, parent, name, segment)
        file.attributes = replace(file.attributes, ctime_ns=time.time_ns())
        file.condition = ALWAYS
        file.expected = shadowed.condition
        file.stored_key = shadowed.key  # Ours to remove with this name.
        with contextlib.suppress(OSError):  # Then `make_safe` finds another way.
            file.note()
        if replaced is not None:
            replaced.detach()
        self._fs.cache.put(old_parent.prefix, old_segment, Absent(self._fs.cache.clock()))
        await self._fs.open_files.make_safe(file)

    async def _rename_directory(
        self, source: Inode, target: Inode | None, parent: Inode, name: bytes, segment: str
    ) -> None:
        await self._check_tree(source, target, parent, segment)
        await self._save_under(source)
        assert source.parent is not None
        before = (source.parent, source.name, source.segment)
        async with self._fs.trees.moving(
            lambda: source.prefix, lambda: parent.prefix + segment + "/"
        ) as (old, new):
            attributes = (await self._fs.getattr(source.number)).attributes
            copied = await self._mover.copy(old, new, replacing=target is not None)
            if not copied.etags:
                with trio.CancelScope(shield=True):
                    await self._fs.markers.put(new, attributes)
            # No checkpoint from here on: all names change for everybody at once, and nobody
            # asks for what is about to be deleted.
            self._fs.inodes.move(source, parent, name, segment)
            self._moved(old, new, copied.etags, before[0], before[2])
            self._fs.markers.written(new, attributes)
        try:
            await self._mover.remove(copied)
            if self._fs.namespace.folders:
                await self._store.delete(old[:-1] + FOLDER)
        except StoreError:
            # The rename fails, and has been made: both trees are there, each for itself.
            self._fs.cache.drop(before[0].prefix, before[2])
            self._forget_name(before[0].number, before[1])
            self._forget_name(parent.number, name)
            await self._fs.open_files.forgotten()  # Or the old one would go after a crash.
            raise
        # Whoever has listed the directory above meanwhile may have seen the old name still.
        self._fs.cache.put(before[0].prefix, before[2], Absent(self._fs.cache.clock()))
        self._fs.reveal(before[0], before[2])
        await self._fs.open_files.renamed(new)

    async def _check_tree(
        self, source: Inode, target: Inode | None, parent: Inode, segment: str
    ) -> None:
        new = parent.prefix + segment + "/"
        if new.startswith(source.prefix):
            raise PosixError(errno.EINVAL)
        if target is not None:
            if not target.directory:
                raise PosixError(errno.ENOTDIR)
            if self._fs.has_unsaved(target) or not await self._fs.namespace.directories.is_empty(
                new
            ):
                raise PosixError(errno.ENOTEMPTY)

    def _moved(
        self, old: str, new: str, etags: Mapping[str, str], above: Inode, segment: str
    ) -> None:
        """Take note of where a tree is now; its old name was *segment* in *above*."""
        self._fs.cache.drop_tree(old)
        self._fs.cache.drop_tree(new)
        self._moved_files(old, new, etags)
        self._fs.cache.put(above.prefix, segment, Absent(self._fs.cache.clock()))
        self._fs.namespace.index.moved(old, new)
        self._fs.namespace.directories.doubt(old)

    def _moved_files(self, old: str, new: str, moved: Mapping[str, str]) -> None:
        """Files that are open in a renamed tree have other objects below them now."""
        for file in self._fs.files.values():
            key = new + file.stored_key[len(old) :]
            if file.stored_key.startswith(old) and key in moved and not file.inode.gone:
                file.rebase(key, moved[key])
                file.inode.shown = moved[key]

    async def _save_under(self, directory: Inode) -> None:
        """Save what is dirty in a tree, so that the store can copy it."""
        prefix = directory.prefix
        for inode in [i for i in self._fs.markers.unsaved if i.prefix.startswith(prefix)]:
            await self._fs.markers.save(inode)
        for inode, file in list(self._fs.files.items()):
            if file.dirty and not inode.gone and inode.key.startswith(prefix):
                await self._fs.open_files.save(file)
