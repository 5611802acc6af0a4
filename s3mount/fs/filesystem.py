"""POSIX on a bucket: what each operation on names, attributes and handles means.

Lock order: the lock of an open file that is replaced, then of the one that replaces it.  The
kernel holds the lock of a directory while it creates, removes or renames in it, so two changes
of one name never meet here.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import replace

from s3mount.attributes import Attributes
from s3mount.cache.blocks import ObjectVersion
from s3mount.cache.metadata import Absent, Entry
from s3mount.errors import (
    PosixError,
)
from s3mount.fs.handles import NOBODY, Handles, Opener
from s3mount.fs.history import refuse_change, refuse_change_of
from s3mount.fs.inodes import Inode, InodeTable
from s3mount.fs.learner import Learner
from s3mount.fs.markers import Markers
from s3mount.fs.names import BESIDE, FOLDER, key_of, slot_name
from s3mount.fs.namespace import HEAD_SIZE, Namespace
from s3mount.fs.openfile import OpenFile
from s3mount.fs.siblings import Siblings
from s3mount.fs.status import Stat, inherited, other_kind, shown_size, target_of
from s3mount.fs.unsaved import OpenFiles
from s3mount.fs.workshop import Workshop
from s3mount.s3.store import (
    ABSENT,
    ALWAYS,
    EXPECTING_NOTHING,
    ObjectStore,
    Precondition,
    expecting,
)
from s3mount.storing import is_archived

RECENT = 1.0  # Seconds: an open so soon after its lookup needs no second look.


class FileSystem:
    """One mounted bucket."""

    def __init__(
        self,
        store: ObjectStore,
        namespace: Namespace,
        workshop: Workshop,
        *,
        exclusive_at_open: bool,
    ) -> None:
        self.inodes = InodeTable()
        self.namespace = namespace
        self._store = store
        self._workshop = workshop
        self.trees = workshop.trees
        self._exclusive_at_open = exclusive_at_open
        self.cache = namespace.cache
        self.open_files = OpenFiles(workshop, self.inodes, self.cache, namespace.index)
        self.files = self.open_files.by_inode
        self.handles = Handles(self.open_files, workshop)
        self.markers = Markers(store, namespace, workshop, self.inodes)
        self.siblings = Siblings(namespace, workshop.blocks, self.inodes, workshop.nursery)
        self.learner = Learner(namespace, workshop.nursery, self.siblings.is_read)
        self.root_attributes = namespace.defaults.directory(time.time_ns())

    # -- names -----------------------------------------------------------------------------

    async def lookup(self, parent_number: int, name: bytes) -> Stat:
        """What *name* is in a directory."""
        parent = self.inodes.get(parent_number)
        if name == b".":
            return await self.getattr(parent_number)
        if name == b"..":
            return await self.getattr((parent.parent or parent).number)
        inode = self.inodes.find(parent, name)
        if inode is not None and inode in self.files:
            file = self.files[inode]
            if file.dirty:
                return self.stat_file(inode, file)
        prefix = parent.prefix
        name, segment = await self.place_of(parent, name)
        self.learner.looked_up(prefix, segment)
        entry = await self.namespace.find(prefix, segment)
        if parent.prefix != prefix:  # It was renamed meanwhile: that was about its old name.
            return await self.lookup(parent_number, name)
        if entry is None:
            raise PosixError(errno.ENOENT)
        return self.stat_entry(self.inode_of(parent, name, segment, entry), entry)

    async def place_of(
        self, parent: Inode, name: bytes, missing: int = errno.ENOENT
    ) -> tuple[bytes, str]:
        inode = self.inodes.find(parent, name)
        if inode is not None:
            return name, inode.segment
        return await self.namespace.place_of(parent.prefix, name, missing)

    def inode_of(self, parent: Inode, name: bytes, segment: str, entry: Entry) -> Inode:
        """The inode for an entry: another one when the content is another.

        So the kernel's pages, and its idea of the size, never belong to two versions.
        """
        inode = self.inodes.find(parent, name)
        if inode is not None and not entry.directory:
            file = self.files.get(inode)
            if file is not None and file.dirty:
                return inode
            if inode.shown not in ("", entry.etag) or other_kind(inode, entry):
                self.detach(inode)
        inode = self.inodes.obtain(parent, name, segment, directory=entry.directory)
        if not entry.directory:
            inode.shown = entry.etag
        return inode

    def detach(self, inode: Inode) -> None:
        self.inodes.detach(inode)

    def forget(self, number: int, count: int) -> None:
        """The kernel gives back *count* lookups of an inode."""
        self.inodes.forget(number, count)

    async def getattr(self, number: int) -> Stat:
        """What stat(2) shows of an inode.

        ESTALE says that the name stands for something else by now: the kernel then walks the
        path again, and the program never notices.
        """
        inode = self.inodes.get(number)
        file = self.files.get(inode)
        if file is not None:
            return self.stat_file(inode, file)
        if inode.parent is None:
            return Stat(inode, self.root_attributes, 0)
        if inode.gone and inode.directory:  # Removed, but somebody still has it open.
            return Stat(inode, self.namespace.defaults.directory(0), 0)
        if inode.gone:
            raise PosixError(errno.ESTALE)
        entry = await self.namespace.find(inode.parent.prefix, inode.segment)
        if entry is None or entry.directory != inode.directory:
            raise PosixError(errno.ESTALE)
        other = inode.shown not in ("", entry.etag) or other_kind(inode, entry)
        if not entry.directory and other:
            self.detach(inode)
            raise PosixError(errno.ESTALE)
        return self.stat_entry(inode, entry)

    def stat_file(self, inode: Inode, file: OpenFile) -> Stat:
        inode.kind = stat.S_IFMT(file.attributes.mode)
        return Stat(inode, file.attributes, shown_size(file.attributes, file.size, file.kept))

    def stat_entry(self, inode: Inode, entry: Entry) -> Stat:
        unsaved = self.markers.unsaved.get(inode)
        attributes = unsaved or entry.attributes
        if attributes is None:
            defaults = self.namespace.defaults
            make = defaults.directory if entry.directory else defaults.file
            attributes = make(entry.modified_ns)
        certain = entry.attributes is not None or not self.namespace.keep_attributes
        inode.kind = stat.S_IFMT(attributes.mode)
        age = self.cache.clock() - entry.checked
        size = shown_size(attributes, entry.size, entry.kept)
        return Stat(inode, attributes, size, certain, age)

    # -- opening ---------------------------------------------------------------------------

    async def open(self, number: int, flags: int, opener: Opener = NOBODY) -> tuple[int, bool]:
        """Open a file: its handle, and whether the kernel's pages of it are still good."""
        inode = self.inodes.get(number)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            refuse_change_of(inode)
        with self.open_files.held(await self.file_of(inode, fresh=True)) as file:
            if flags & os.O_ACCMODE == os.O_RDONLY and file.size <= HEAD_SIZE and inode.parent:
                self.siblings.opened(inode.parent, inode.segment)
            if not flags & os.O_TRUNC and is_archived(file.kept) and not file.dirty:
                # Who only writes may need old bytes, too.
                await self._store.awaken(file.stored_key)
            if flags & os.O_TRUNC and file.size:
                await file.truncate(0)
                if opener.unprivileged:
                    file.drop_set_id()
            return self.handles.new(file, flags, opener), True

    def is_known(self, inode: Inode) -> bool:
        """Whether `getattr` of an inode, and opening it now, needs no wait."""
        if inode in self.files or inode.parent is None or inode.gone:
            return True
        entry = self.cache.get(inode.parent.prefix, inode.segment)
        return (
            isinstance(entry, Entry)
            and entry.attributes is not None
            and entry.checked >= self.cache.current_since(RECENT)
        )

    async def file_of(self, inode: Inode, *, fresh: bool = False) -> OpenFile:
        """The open file of an inode; with *fresh* the store is asked whether it is current."""
        file = self.files.get(inode)
        if file is not None and (file.dirty or file.unlinked or not fresh):
            if (file.condemned or file.given_up) and inode.gone and fresh:
                raise PosixError(errno.ESTALE)  # The name has another inode by now.
            return file
        if inode.parent is None:
            raise PosixError(errno.ESTALE)
        since = self.cache.current_since(RECENT) if fresh else 0.0
        # Of a name that stands for something else, too: the kernel walks the path again after
        # ESTALE, but only once, and then it has to find what is there now.
        entry = await self.namespace.find_current(inode.parent.prefix, inode.segment, since)
        if inode.gone:
            raise PosixError(errno.ESTALE)
        file = self.files.get(inode)
        if file is not None and file.dirty:
            return file
        if entry is None or entry.directory or inode.shown not in ("", entry.etag):
            self.detach(inode)
            raise PosixError(errno.ESTALE)
        return file if file is not None else self._new_file(inode, entry)

    def _new_file(self, inode: Inode, entry: Entry | None, attributes: Attributes | None = None
    ) -> OpenFile:  # fmt: skip
        base = None
        if entry is not None:
            base = ObjectVersion(inode.key, entry.etag, entry.size)
            attributes = entry.attributes or self.namespace.defaults.file(entry.modified_ns)
        assert attributes is not None
        kept = entry.kept if entry is not None else {}
        inode.opened = True
        file = OpenFile(self._workshop, inode, attributes, base, kept)
        self.open_files.add(file)
        return file

    async def create(
        self,
        parent_number: int,
        name: bytes,
        flags: int,
        attributes: Attributes,
        opener: Opener = NOBODY,
    ) -> tuple[int, Stat]:
        """Create and open a file; the store hears of it when it is closed."""
        parent = self.inodes.get(parent_number)
        name, segment = await self.place_of(parent, name, errno.EINVAL)
        entry = await self.namespace.find(parent.prefix, segment)
        known = self.inodes.find(parent, name)
        if entry is not None or (known is not None and known in self.files):
            return await self._open_existing(parent, name, segment, flags, entry, opener)
        refuse_change(parent, segment)
        await self.namespace.check_new(parent.prefix, segment, directory=False)
        inode = self.inodes.obtain(parent, name, segment, directory=False)
        file = self._new_file(inode, None, inherited(attributes, self._attributes_of(parent)))
        if flags & os.O_EXCL or self.namespace.listing_denied:
            file.condition = ABSENT
        file.expected = EXPECTING_NOTHING
        handle = self.handles.new(file, flags, opener)
        if flags & os.O_EXCL and self._exclusive_at_open:
            await self._claim(file, handle)
        self.touch_directory(parent)
        return handle, self.stat_file(inode, file)

    async def _claim(self, file: OpenFile, handle: int) -> None:
        """Make the name ours in the store before open(2) returns."""
        try:
            await self.open_files.save(file)
        except BaseException:
            self._discard(file, handle)
            raise

    def _discard(self, file: OpenFile, handle: int) -> None:
        self.handles.discard(handle)
        file.detach()
        self.detach(file.inode)
        self.open_files.settle(file)

    async def _open_existing(
        self,
        parent: Inode,
        name: bytes,
        segment: str,
        flags: int,
        entry: Entry | None,
        opener: Opener,
    ) -> tuple[int, Stat]:
        if flags & os.O_EXCL:
            raise PosixError(errno.EEXIST)
        if entry is not None:
            inode = self.inode_of(parent, name, segment, entry)
        else:
            found = self.inodes.find(parent, name)
            assert found is not None
            inode = found
        if inode.directory:
            raise PosixError(errno.EISDIR)
        handle, _ = await self.open(inode.number, flags, opener)
        return handle, self.stat_file(inode, self.files[inode])

    # -- removing and making names ---------------------------------------------------------

    async def unlink(self, parent_number: int, name: bytes) -> None:
        """Remove a file; whoever has it open keeps its bytes."""
        parent = self.inodes.get(parent_number)
        async with self.trees.changing(lambda: parent.prefix):
            await self._unlink(parent, name)

    async def _unlink(self, parent: Inode, name: bytes) -> None:
        name, segment = await self.place_of(parent, name)
        refuse_change(parent, segment)
        inode = self.inodes.find(parent, name)
        file = self.files.get(inode) if inode is not None else None
        entry = self.cache.peek(parent.prefix, segment)
        known = expecting(entry.etag) if entry is not None else ALWAYS
        await self._remove_object(key_of(parent.prefix, segment), file, known)
        inode = self.inodes.find(parent, name)
        if inode is not None:
            late = self.files.get(inode)
            if late is not None and late is not file:  # Opened while its object went.
                late.detach()
            self.detach(inode)
        self._gone(parent, segment)
        await self.keep_directory(parent)

    async def _remove_object(self, key: str, file: OpenFile | None, known: Precondition) -> None:
        if file is None:
            await self._store.remove(key, condition=known)
            return
        async with self.open_files.removing(file):
            if file.stored_key:
                known = expecting(file.base.etag) if file.base is not None else file.expected
                await self._store.remove(key, condition=known)

    def _gone(self, parent: Inode, segment: str) -> None:
        self.cache.put(parent.prefix, segment, Absent(self.cache.clock()))
        if not segment and parent.parent is not None:  # It was the marker of the directory.
            self.cache.drop(parent.parent.prefix, parent.segment)
        self.touch_directory(parent)

    def reveal(self, parent: Inode, segment: str) -> None:
        """A directory is gone: an object of its name gets the plain name."""
        beside = BESIDE + segment
        entry = self.cache.get(parent.prefix, beside)
        if isinstance(entry, Entry):
            self.cache.put(parent.prefix, segment, entry)
            self.cache.put(parent.prefix, beside, Absent(self.cache.clock()))
        elif entry is None:
            self.cache.drop(parent.prefix, segment)
        inode = self.inodes.find(parent, slot_name(beside))
        if inode is not None:
            self.inodes.move(inode, parent, slot_name(segment), segment)

    async def keep_directory(self, directory: Inode) -> None:
        """A directory does not vanish with its last file."""
        files = self.files.items()
        if not any(i.parent is directory and not i.gone and f.changed for i, f in files):
            await self.markers.keep(directory)

    async def mkdir(self, parent_number: int, name: bytes, attributes: Attributes) -> Stat:
        """Make a directory: its marker object."""
        parent = self.inodes.get(parent_number)
        async with self.trees.changing(lambda: parent.prefix):
            return await self._mkdir(parent, name, attributes)

    async def _mkdir(self, parent: Inode, name: bytes, attributes: Attributes) -> Stat:
        prefix, namespace = parent.prefix, self.namespace
        name, segment = await self.place_of(parent, name, errno.EINVAL)
        namespace.check_key(prefix + segment + "/")
        if await namespace.find(prefix, segment, attributes=False) is not None:
            raise PosixError(errno.EEXIST)
        refuse_change(parent, segment)
        await namespace.check_new(prefix, segment, directory=True)
        attributes = inherited(attributes, self._attributes_of(parent))
        await self.markers.put(prefix + segment + "/", attributes)
        self.cache.put_listing(prefix + segment + "/", {}, self.cache.clock())
        self.touch_directory(parent)
        inode = self.inodes.obtain(parent, name, segment, directory=True)
        return Stat(inode, attributes, 0)

    async def rmdir(self, parent_number: int, name: bytes) -> None:
        """Remove an empty directory, whatever made it one."""
        parent = self.inodes.get(parent_number)
        async with self.trees.changing(lambda: parent.prefix):
            await self._rmdir(parent, name)

    async def _rmdir(self, parent: Inode, name: bytes) -> None:
        name, segment = await self.place_of(parent, name)
        refuse_change(parent, segment)
        prefix = parent.prefix + segment + "/"
        inode = self.inodes.find(parent, name)
        if inode is not None and self.has_unsaved(inode):
            raise PosixError(errno.ENOTEMPTY)
        if not await self.namespace.directories.is_empty(prefix):
            raise PosixError(errno.ENOTEMPTY)
        await self.remove_markers(prefix)
        self.cache.drop_tree(prefix)
        self.namespace.directories.doubt(prefix)
        if inode is not None:
            self.detach(inode)
        self._gone(parent, segment)
        self.reveal(parent, segment)
        await self.keep_directory(parent)

    async def remove_markers(self, prefix: str) -> None:
        """Delete what makes an empty directory exist, in every style."""
        await self._store.delete(prefix)
        if self.namespace.folders:
            await self._store.delete(prefix[:-1] + FOLDER)

    def has_unsaved(self, directory: Inode) -> bool:
        return any(i.parent is directory and not i.gone and f.dirty for i, f in self.files.items())

    async def make_node(
        self, parent_number: int, name: bytes, attributes: Attributes, body: bytes = b""
    ) -> Stat:
        """Make a symlink (*body* is its target), a fifo, a socket, a device, an empty file.

        Counts as one lookup already, because nothing else holds the inode at the end.
        """
        handle, made = await self.create(parent_number, name, os.O_EXCL | os.O_WRONLY, attributes)
        try:
            if body:
                await self.handles.write(handle, 0, body)
            await self.open_files.make_safe(self.handles.file(handle))
        except BaseException:
            self._discard(self.handles.file(handle), handle)
            raise
        made.inode.lookups += 1
        await self.handles.release(handle)
        return replace(made, size=len(body))

    async def readlink(self, number: int) -> bytes:
        """The target of a symlink, as it stands in the object or in its metadata."""
        with self.open_files.held(await self.file_of(self.inodes.get(number))) as file:
            if not file.size:
                target = target_of(file.kept)
                if target is None:
                    raise PosixError(errno.EIO)
                return target
            handle = self.handles.new(file, os.O_RDONLY)
        try:
            found = self.handles.read_now(handle, 0, 4096)
            return bytes(await self.handles.read(handle, 0, 4096) if found is None else found)
        finally:
            await self.handles.release(handle)

    # -- directories -----------------------------------------------------------------------

    def _attributes_of(self, directory: Inode) -> Attributes | None:
        """What is known of a directory without asking; the kernel has just looked at its mode."""
        if directory.parent is None:
            return self.root_attributes
        entry = self.cache.peek(directory.parent.prefix, directory.segment)
        known = entry.attributes if entry is not None else None
        return self.markers.unsaved.get(directory, known)

    def touch_directory(self, directory: Inode) -> None:
        """A change of its names moves mtime and ctime of a directory, for this mount."""
        now = time.time_ns()
        if directory.parent is None:
            self.root_attributes = replace(self.root_attributes, mtime_ns=now, ctime_ns=now)
            return
        unsaved = self.markers.unsaved.get(directory)
        if unsaved is not None:
            self.markers.unsaved[directory] = replace(unsaved, mtime_ns=now, ctime_ns=now)
        entry = self.cache.peek(directory.parent.prefix, directory.segment)
        if entry is not None and entry.attributes is not None:
            attributes = replace(entry.attributes, mtime_ns=now, ctime_ns=now)
            entry = entry._replace(attributes=attributes)
            self.cache.put(directory.parent.prefix, directory.segment, entry)
