"""Notices to the kernel that what it keeps of names and attributes is in doubt.

A notice about attributes never waits.  One about a name may wait for the lock of its directory,
which the kernel holds while it waits for our answer to a request; so those are given by a thread
that nobody waits for, and until then the attributes do: the kernel asks for them before it uses
the name, hears ESTALE if that stands for something else by now, and looks the name up anew.

The kernel is asked to let names expire (FUSE_EXPIRE_ONLY, Linux 6.2), which leaves directories
where somebody works, and open files, their paths.  pyfuse3 and its libfuse cannot ask for that,
so the notice is written here, in the words of include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence

import pyfuse3
import trio
from pyfuse3 import FileNameT, InodeT

from s3mount.fs.inodes import Inode

log = logging.getLogger(__name__)

NOTIFY_INVAL_ENTRY = 3
EXPIRE_ONLY = 1
EXPIRING_RELEASE = (6, 2)
SLICE = 500  # Inodes between two turns of the loop: 2 ms.
MAX_WAITING = 20_000  # Names; when more wait, all are looked up anew.
_HEAD = struct.Struct("=IiQ")  # fuse_out_header
_ENTRY = struct.Struct("=QII")  # fuse_notify_inval_entry_out

Name = tuple[int, bytes]  # the number of a directory's inode, and a name in it


class KernelNotices:
    """Tells the kernel what to ask again.

    *get_descriptor* returns a descriptor of ``/dev/fuse`` that is ours to close; it is called
    when there is something to tell, which is not before the kernel knows a name.
    """

    def __init__(self, get_descriptor: Callable[[], int]) -> None:
        self._get_descriptor = get_descriptor
        self._waiting: OrderedDict[Name, int] = OrderedDict()  # and the number of its inode
        self._all: Callable[[], Sequence[Inode]] | None = None
        self._wake = trio.Event()
        self.names_can_expire = kernel_release() >= EXPIRING_RELEASE

    def forget(self, inodes: Sequence[Inode]) -> None:
        """Drop the attributes of some inodes, and look up anew what their names stand for."""
        for inode in inodes:
            _forget_attributes(inode.number)
            self._note_name(inode)
        if len(self._waiting) > MAX_WAITING:
            # The oldest are looked up anew because of their attributes, if somebody uses them.
            while len(self._waiting) > MAX_WAITING // 2:
                self._waiting.popitem(last=False)
        if self._waiting:
            self._wake.set()

    def _note_name(self, inode: Inode) -> None:
        if inode.parent is None:
            return
        if self.names_can_expire:
            self._waiting[inode.parent.number, inode.name] = inode.number
        elif not inode.directory:  # Those may be where somebody works.
            parent, name = InodeT(inode.parent.number), FileNameT(inode.name)
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)

    def forget_all(self, inodes: Callable[[], Sequence[Inode]]) -> None:
        """The same for very many, a few at a time; the next such call replaces this one."""
        self._all = inodes
        self._wake.set()

    async def run(self) -> None:
        """Give the notices that may have to wait, as long as the mount lives."""
        descriptor = -1
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                if descriptor < 0:
                    descriptor = self._get_descriptor()
                if self._all is not None:
                    inodes, self._all = self._all, None
                    await self._sweep(inodes())
                await self._expire(descriptor)
        finally:
            # A thread that still waits for the kernel keeps its own until it is done.
            if descriptor >= 0:
                os.close(descriptor)

    async def _sweep(self, inodes: Sequence[Inode]) -> None:
        """Attributes first: they are what makes the kernel ask about any of these names."""
        for start in range(0, len(inodes), SLICE):
            if self._all is not None:
                return  # Another one begins, and has all of these.
            for inode in inodes[start : start + SLICE]:
                _forget_attributes(inode.number)
                if self.names_can_expire:
                    self._note_name(inode)
            await trio.lowlevel.checkpoint()

    async def _expire(self, descriptor: int) -> None:
        while self._waiting and self._all is None:
            count = min(SLICE, len(self._waiting))
            names = [self._waiting.popitem(last=False) for _ in range(count)]
            own = os.dup(descriptor)
            await trio.to_thread.run_sync(_expire_names, own, names, abandon_on_cancel=True)
            for _, number in names:
                # The kernel may have been about to keep an answer from before the change.
                _forget_attributes(number)


def kernel_release() -> tuple[int, int]:
    """The version of the running kernel."""
    major, _, rest = os.uname().release.partition(".")
    minor = "".join(digit if digit.isdecimal() else " " for digit in rest).split()
    return (int(major) if major.isdecimal() else 0, int(minor[0]) if minor else 0)


def _expire_names(descriptor: int, names: Sequence[tuple[Name, int]]) -> None:
    """Have the kernel look names up anew; closes *descriptor*."""
    try:
        for (parent, name), _ in names:
            body = _ENTRY.pack(parent, len(name), EXPIRE_ONLY) + name + b"\0"
            with contextlib.suppress(OSError):  # The kernel does not know the name any more.
                head = _HEAD.pack(_HEAD.size + len(body), NOTIFY_INVAL_ENTRY, 0)
                os.write(descriptor, head + body)
    finally:
        os.close(descriptor)


def _forget_attributes(number: int) -> None:
    """Have the kernel ask for the attributes of an inode anew; its pages stay."""
    with contextlib.suppress(OSError):  # The kernel has forgotten it by itself.
        pyfuse3.invalidate_inode(InodeT(number), attr_only=True)
