"""Notices to the kernel that what it keeps of names, attributes and bytes is in doubt.

A notice about attributes never waits.  One about a name may wait for the lock of its directory,
and one about bytes for pages, which the kernel holds while it waits for our answer to a request;
so those are given by another process (`noticer`), and nobody waits for long for them.  Until the
kernel has heard of a name, the attributes do for most of what is done with it: the kernel asks for
them before it uses the name, hears ESTALE if that stands for something else by now, and looks the
name up anew.

The kernel is asked to let names in doubt expire (FUSE_EXPIRE_ONLY, Linux 6.2), which leaves
directories where somebody works, and open files, their paths.  The notices are in the words of
include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyfuse3
import trio
from pyfuse3 import InodeT

from s3mount import noticer
from s3mount.fs.inodes import Inode

log = logging.getLogger(__name__)

NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 2, 3
EXPIRE_ONLY = 1
EXPIRING_RELEASE = (6, 2)
SLICE = 500  # Inodes between two turns of the loop: 2 ms.
MAX_WAITING = 20_000  # Names; when more wait, all are looked up anew.
PATIENCE = 2.0  # Seconds that somebody waits for the kernel to drop bytes.
END_PATIENCE = 2.0  # Seconds that the end of a mount waits for the kernel to take a notice.
_INODE = struct.Struct("=Qqq")  # fuse_notify_inval_inode_out; from 0 to 0 are all pages
_ENTRY = struct.Struct("=QII")  # fuse_notify_inval_entry_out


class Name(NamedTuple):
    """A name in a directory, which is told by the number of its inode."""

    parent: int
    name: bytes


class Doubt(NamedTuple):
    """What the name stood for, and how the kernel is to forget it."""

    number: int
    flags: int


class KernelNotices:
    """Tells the kernel what to ask again.

    *get_descriptor* returns a descriptor of ``/dev/fuse`` that is ours to close; it raises
    `OSError` when there is no mount any more, and is not called before there is one.
    """

    def __init__(self, get_descriptor: Callable[[], int]) -> None:
        self._noticer = _Noticer(get_descriptor)
        self._drops: deque[tuple[Sequence[bytes], trio.Event]] = deque()
        self._waiting: OrderedDict[Name, Doubt] = OrderedDict()
        self._all: Callable[[], Sequence[Inode]] | None = None
        self._wake = trio.Event()
        self.names_can_expire = kernel_release() >= EXPIRING_RELEASE

    def forget(self, inodes: Sequence[Inode]) -> None:
        """Drop the attributes of some inodes, and look up anew what their names stand for."""
        for inode in inodes:
            forget_attributes(inode.number)
            self._doubt_name_of(inode)
        if len(self._waiting) > MAX_WAITING:
            # The oldest are looked up anew because of their attributes, if somebody uses them.
            while len(self._waiting) > MAX_WAITING // 2:
                self._waiting.popitem(last=False)
        if self._waiting:
            self._wake.set()

    def _doubt_name_of(self, inode: Inode) -> None:
        if inode.parent is None:
            return
        if self.names_can_expire:
            name = Name(inode.parent.number, inode.name)
            self._waiting.setdefault(name, Doubt(inode.number, EXPIRE_ONLY))
        elif not inode.directory:  # Those may be where somebody works.
            self.forget_name_of(inode)

    def forget_name_of(self, inode: Inode) -> None:
        """Have the kernel look up anew what an inode was known by, as soon as it can."""
        if inode.parent is not None:
            self.forget_name(inode.parent.number, inode.name, inode.number)

    def forget_name(self, parent: int, name: bytes, number: int = 0) -> None:
        """Have the kernel look a name up anew, as soon as it can; *number* is its inode's."""
        self._waiting[Name(parent, name)] = Doubt(number, 0)
        self._wake.set()

    async def drop(self, inodes: Sequence[Inode]) -> None:
        """Have the kernel ask again for attributes and bytes of some inodes.

        It may have to wait for pages that we have yet to take, and even for the request that we
        are answering, so after `PATIENCE` it is not waited for.
        """
        if not inodes:
            return
        done = trio.Event()
        self._drops.append(([_inode_notice(inode.number) for inode in inodes], done))
        self._wake.set()
        with trio.move_on_after(PATIENCE):
            await done.wait()
        for inode in inodes:
            # Only names that stand for something else by now: the others may be somebody's
            # working directory, which would lose its path.
            forgotten = inode.vanished if inode.directory else inode.gone
            if forgotten:
                self.forget_name_of(inode)

    def forget_all(self, inodes: Callable[[], Sequence[Inode]]) -> None:
        """As `forget` for very many, a few at a time; the next such call replaces this one."""
        self._all = inodes
        self._wake.set()

    async def run(self) -> None:
        """Give the notices that may have to wait, as long as the mount lives."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                if self._all is not None:
                    inodes, self._all = self._all, None
                    await self._sweep(inodes())
                while self._drops or (self._waiting and self._all is None):
                    await self._tell_some()
        finally:
            await self._noticer.end()

    async def _sweep(self, inodes: Sequence[Inode]) -> None:
        """Attributes first: they are what makes the kernel ask about any of these names."""
        for start in range(0, len(inodes), SLICE):
            if self._all is not None:
                return  # Another one begins, and has all of these.
            for inode in inodes[start : start + SLICE]:
                forget_attributes(inode.number)
                if self.names_can_expire:
                    self._doubt_name_of(inode)
            await trio.lowlevel.checkpoint()

    async def _tell_some(self) -> None:
        if self._drops:
            notices, done = self._drops.popleft()
            await self._noticer.give(notices)
            done.set()
            return
        count = min(SLICE, len(self._waiting))
        names = [self._waiting.popitem(last=False) for _ in range(count)]
        await self._noticer.give([_entry_notice(name, doubt.flags) for name, doubt in names])
        for _, doubt in names:
            if doubt.number:
                # The kernel may have been about to keep an answer from before the change.
                forget_attributes(doubt.number)


class _Noticer:
    """The process that gives notices; there is none before it is needed, and it may die."""

    def __init__(self, get_descriptor: Callable[[], int]) -> None:
        self._get_descriptor = get_descriptor
        self._process: trio.Process | None = None

    async def give(self, notices: Sequence[bytes]) -> None:
        """Give notices, and wait until the kernel has taken them.  Not for two tasks at once."""
        batch = b"".join(notices)
        try:
            if self._process is None:
                self._process = await self._start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            await self._process.stdin.send_all(noticer.SIZE.pack(len(batch)) + batch)
            if await self._process.stdout.receive_some(1):
                return
        except (OSError, trio.BrokenResourceError) as error:
            log.info("the kernel cannot be told what is in doubt: %s", error)
        await self.end()

    async def _start(self) -> trio.Process:
        device = self._get_descriptor()
        command = [sys.executable, "-I", "-S", noticer.__file__, str(device)]
        try:
            return await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[device],
                env={},
                start_new_session=True,
            )
        finally:
            os.close(device)

    async def end(self) -> None:
        """End the process; it goes by itself as soon as nothing waits for the kernel any more."""
        process, self._process = self._process, None
        if process is None:
            return
        with trio.CancelScope(shield=True), trio.move_on_after(END_PATIENCE):
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
            await process.wait()


def kernel_release() -> tuple[int, int]:
    """The version of the running kernel."""
    major, _, rest = os.uname().release.partition(".")
    minor = "".join(digit if digit.isdecimal() else " " for digit in rest).split()
    return (int(major) if major.isdecimal() else 0, int(minor[0]) if minor else 0)


def forget_attributes(number: int) -> None:
    """Have the kernel ask for the attributes of an inode anew; its pages stay.  Never waits."""
    with contextlib.suppress(OSError):  # The kernel has forgotten it by itself.
        pyfuse3.invalidate_inode(InodeT(number), attr_only=True)


def _inode_notice(number: int) -> bytes:
    return _notice(NOTIFY_INVAL_INODE, _INODE.pack(number, 0, 0))


def _entry_notice(name: Name, flags: int) -> bytes:
    body = _ENTRY.pack(name.parent, len(name.name), flags) + name.name + b"\0"
    return _notice(NOTIFY_INVAL_ENTRY, body)


def _notice(kind: int, body: bytes) -> bytes:
    return noticer.ANSWER.pack(noticer.ANSWER.size + len(body), kind, 0) + body
