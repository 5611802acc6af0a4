"""The kernel's words and ours: pyfuse3 handlers over the file system, and errors as errnos."""

from __future__ import annotations

import ctypes
import errno
import logging
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from s3mount.attributes import Attributes
from s3mount.callers import Callers
from s3mount.errors import PosixError
from s3mount.fs.changing import Changer
from s3mount.fs.directories import Directories
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.handles import Opener
from s3mount.fs.inodes import ROOT
from s3mount.fs.refreshing import Refresher
from s3mount.fs.renaming import Renamer
from s3mount.fs.status import Changes, Stat
from s3mount.fs.xattrs import CAPABILITY, Xattrs
from s3mount.kernelcache import KernelNotices, forget_attributes
from s3mount.metrics import Metrics
from s3mount.paths import Subjects
from s3mount.request import Request, Surroundings
from s3mount.tracing import Trace
from s3mount.watchedrequest import WatchedRequest, tell_at_once

log = logging.getLogger(__name__)

BLOCK = 1 << 20  # st_blksize: programs that ask use it for their reads and writes.
NAME_MAX = 255
DIRECTORY_SIZE = 4096  # As on a disk.
UNLOOKED, HASH_MASK = 1 << 62, (1 << 61) - 1  # d_ino of names that have no inode yet


class Unlooked:
    """What readdir says of names that nobody has looked at yet: a type, and no inode.

    pyfuse3 has one number for what readdir(3) shows and for the inode.  The latter has to be 0:
    for any other number the kernel makes an inode, or sends a FORGET for each name, which costs
    more than the whole rest of a listing.  So it is written where the kernel's reply is made
    from, if that place is found beyond doubt; else a size that no file has must do, which only
    saves the inode (fuse_direntplus_link).
    """

    __slots__ = ("_entry", "number")

    def __init__(self) -> None:
        self._entry = EntryAttributes()
        self._entry.st_size = -1
        self.number = _inode_number(self._entry)

    def entry(self, name: bytes, kind: int) -> EntryAttributes:
        """The entry for *name*, good until the next one; *kind* are the type bits, or 0."""
        self._entry.st_mode = ModeT(kind)
        self._entry.st_ino = InodeT(UNLOOKED | hash(name) & HASH_MASK)
        if self.number is not None:
            self.number.value = 0
        return self._entry


def _inode_number(entry: EntryAttributes) -> ctypes.c_uint64 | None:
    """The number of the inode in the ``struct fuse_entry_param`` that *entry* holds."""
    entry.st_ino = InodeT(UNLOOKED | 0x5EED)
    memory = ctypes.string_at(id(entry), sys.getsizeof(entry))
    mark = entry.st_ino.to_bytes(8, sys.byteorder)
    first = memory.find(mark)
    # Number and generation, then struct stat with st_dev and st_ino: 8 bytes each.
    if first < 0 or first % 8 or memory.count(mark) != 2 or memory.rfind(mark) != first + 24:
        return None
    return ctypes.c_uint64.from_address(id(entry) + first)


class FuseOperations(pyfuse3.Operations):
    """Hands the kernel's requests to a `FileSystem`, and its answers and errors back."""

    enable_acl = False

    def __init__(
        self,
        filesystem: FileSystem,
        renamer: Renamer,
        changer: Changer,
        xattrs: Xattrs,
        metrics: Metrics,
        trace: Trace,
        notices: KernelNotices,
        *,
        ttl: float,
        writeback_cache: bool,
        slow: float,
    ) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback_cache
        self.supports_dot_lookup = True
        self._fs = filesystem
        self._renamer = renamer
        self._directories = Directories(filesystem)
        self._changer = changer
        self._xattrs = xattrs
        self._refresher = Refresher(filesystem)
        self._metrics = metrics
        self._trace = trace
        self.ttl = ttl
        self._notices = notices
        self.callers = Callers()
        subjects = Subjects(filesystem, self._directories)
        self._surroundings = Surroundings(self.callers, subjects, slow)
        self._readers: dict[int, int] = {}  # who has opened a directory
        filesystem.open_files.tell_stale_names_to(notices.forget_name_of)
        renamer.tell_stale_names_to(notices.forget_name)
        self.initialised = False

    def init(self) -> None:
        """The kernel has greeted us."""
        self.initialised = True

    def _request(self, name: str, what: object, process_id: int = 0, parent: int = 0) -> Request:
        operation = self._metrics.operation(name)
        if self._trace.watched:
            return WatchedRequest(
                operation, name, what, parent, self._surroundings, process_id, self._trace
            )
        return Request(operation, name, what, parent, self._surroundings, process_id)

    def _waiter(self, inode: InodeT, ctx: RequestContext) -> int:
        """Who might have to wait for an inode; to look after a caller costs 5 us."""
        if self._fs.is_known(self._fs.inodes.get(inode)):
            return self._caller(ctx)
        return ctx.pid

    def _caller(self, ctx: RequestContext) -> int:
        """Who asks for what needs no wait: of interest only to those who watch."""
        return ctx.pid if self._trace.watched else 0

    def _entry(self, found: Stat) -> EntryAttributes:
        attributes = found.attributes
        entry = EntryAttributes()
        entry.st_ino = InodeT(found.inode.number)
        entry.st_mode = ModeT(attributes.mode)
        entry.st_nlink = 0 if found.inode.gone else 1
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_rdev = attributes.rdev
        entry.st_size = DIRECTORY_SIZE if found.inode.directory else found.size
        entry.st_blocks = 0 if found.inode.directory else -(-found.size // 512)
        entry.st_blksize = BLOCK
        entry.st_mtime_ns = attributes.mtime_ns
        entry.st_atime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        left = max(0.0, self._fs.cache.lifetime() - found.age)
        entry.entry_timeout = left if self._notices.names_can_expire else min(left, self.ttl)
        entry.attr_timeout = left if found.certain else 0.0
        return entry

    # -- names -----------------------------------------------------------------------------

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        with self._request("lookup", name, ctx.pid, parent_inode):
            found = await self._fs.lookup(parent_inode, name)
            found.inode.lookups += 1
            return self._entry(found)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for number, count in inode_list:
            self._fs.forget(number, count)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        with self._request("getattr", inode, self._waiter(inode, ctx)):
            return self._entry(await self._fs.getattr(inode))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        waiter = ctx.pid if fields.update_size else self._waiter(inode, ctx)
        with self._request("setattr", inode, waiter):
            changes = Changes(
                mode=attr.st_mode if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size=attr.st_size if fields.update_size else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
                ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
                unprivileged=ctx.uid != 0,
            )
            return self._entry(await self._changer.setattr(inode, changes, fh))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        with self._request("readlink", inode, ctx.pid):
            return FileNameT(await self._fs.readlink(inode))

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        with self._request("mknod", name, ctx.pid, parent_inode):
            found = await self._fs.make_node(parent_inode, name, _new(mode, ctx, rdev))
            return self._entry(found)

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        with self._request("mkdir", name, ctx.pid, parent_inode):
            attributes = _new(stat.S_IFDIR | stat.S_IMODE(mode), ctx)
            found = await self._fs.mkdir(parent_inode, name, attributes)
            found.inode.lookups += 1
            return self._entry(found)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        with self._request("symlink", name, ctx.pid, parent_inode):
            attributes = _new(stat.S_IFLNK | 0o777, ctx)
            found = await self._fs.make_node(parent_inode, name, attributes, target)
            return self._entry(found)

    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        with self._request("link", new_name, 0, new_parent_inode):
            raise PosixError(errno.EPERM)  # An object has one key.

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        with self._request("unlink", name, ctx.pid, parent_inode):
            await self._fs.unlink(parent_inode, name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        with self._request("rmdir", name, ctx.pid, parent_inode):
            await self._fs.rmdir(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        names = (name_old, parent_inode_new, name_new)
        with self._request("rename", names, ctx.pid, parent_inode_old):
            known = await self._renamer.rename(
                parent_inode_old, name_old, parent_inode_new, name_new, flags
            )
            if not known:  # It has moved what it took for that file, an older version.
                self._notices.forget_name(parent_inode_new, name_new)

    # -- files -----------------------------------------------------------------------------

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        with self._request("open", inode, self._waiter(inode, ctx)):
            handle, keep = await self._fs.open(inode, flags, Opener(ctx.pid, ctx.uid != 0))
            return FileInfo(fh=FileHandleT(handle), keep_cache=keep)

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        with self._request("create", name, ctx.pid, parent_inode):
            attributes = _new(stat.S_IFREG | stat.S_IMODE(mode), ctx)
            opener = Opener(ctx.pid, ctx.uid != 0)
            handle, found = await self._fs.create(parent_inode, name, flags, attributes, opener)
            found.inode.lookups += 1
            return FileInfo(fh=FileHandleT(handle), keep_cache=True), self._entry(found)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 answers from any buffer, and does so before anything else can run.
        watched = self._trace.watched
        found = None if watched else self._fs.handles.read_now(fh, off, size)
        if found is not None:
            operation = self._metrics.operation("read")
            operation.count += 1
            operation.bytes += len(found)
            return found  # type: ignore[return-value]
        with self._request("read", fh, self._fs.handles.opener(fh)):
            view = self._fs.handles.read_now(fh, off, size) if watched else None
            if view is None:
                view = await self._fs.handles.read(fh, off, size)
            self._metrics.operation("read").bytes += len(view)
            return view  # type: ignore[return-value]

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        with self._request("write", fh, self._fs.handles.writer(fh)):
            changed = self._fs.handles.drop_set_id(fh)
            if changed is not None:
                # The mode has changed behind the kernel's back.
                forget_attributes(changed)
            self._metrics.operation("write").bytes += len(buf)
            return await self._fs.handles.write(fh, off, buf)

    async def flush(self, fh: FileHandleT) -> None:
        with self._request("flush", fh, self._fs.handles.closer(fh)):
            await self._fs.handles.flush(fh)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        with self._request("fsync", fh, self._fs.handles.opener(fh)):
            await self._fs.handles.fsync(fh)

    async def release(self, fh: FileHandleT) -> None:
        with self._request("release", fh):
            await self._fs.handles.release(fh)

    # -- directories -----------------------------------------------------------------------

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        with self._request("opendir", inode, self._caller(ctx)):
            handle = self._directories.opendir(inode)
            self._readers[handle] = ctx.pid
            return FileHandleT(handle)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        with self._request("readdir", fh, self._readers.get(fh, 0)):
            unlooked = Unlooked()
            for name, found, kind, following in await self._directories.rows(fh, start_id):
                entry = unlooked.entry(name, kind) if found is None else self._entry(found)
                if not pyfuse3.readdir_reply(token, FileNameT(name), entry, following):
                    if found is not None:
                        self._fs.forget(found.inode.number, 0)
                    break
                if found is not None:
                    found.inode.lookups += 1

    async def releasedir(self, fh: FileHandleT) -> None:
        with self._request("releasedir", fh):
            self._directories.releasedir(fh)
            del self._readers[fh]

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        with self._request("fsyncdir", fh):
            await self._directories.fsync(fh)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        with self._request("statfs", ROOT, self._caller(ctx)):
            data = StatvfsData()
            # A bucket has no size: a pebibyte that is always free, and never used up.
            data.f_bsize = BLOCK
            data.f_frsize = BLOCK
            data.f_blocks = data.f_bfree = data.f_bavail = 1 << 30
            data.f_files = data.f_ffree = data.f_favail = 1 << 32
            data.f_namemax = NAME_MAX
            return data

    # -- extended attributes ---------------------------------------------------------------

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if name == CAPABILITY:  # The kernel asks before the first write(2) into each file.
            self._metrics.operation("getxattr").count += 1
            if self._trace.watched:
                tell_at_once(
                    self._trace, self._surroundings, "getxattr", inode, ctx.pid, errno.ENODATA
                )
            raise FUSEError(errno.ENODATA)
        with self._request("getxattr", inode, ctx.pid):
            return await self._xattrs.get(inode, name)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        with self._request("listxattr", inode, self._caller(ctx)):
            return [XAttrNameT(name) for name in await self._xattrs.names(inode)]

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        with self._request("setxattr", inode, ctx.pid):
            stale = await self._xattrs.set(inode, name, value)
            if stale:
                await self._notices.drop(stale)

    async def refresh(self) -> None:
        """Drop what is known of all names, here and in the kernel."""
        await self._notices.drop(await self._refresher.refresh(self._fs.inodes.root))

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        with self._request("removexattr", inode, ctx.pid):
            await self._xattrs.remove(inode, name)


def _new(mode: int, ctx: RequestContext, rdev: int = 0) -> Attributes:
    """The attributes of something that a process makes now; the kernel applied its umask."""
    now = time.time_ns()
    return Attributes(mode, ctx.uid, ctx.gid, now, now, rdev)
