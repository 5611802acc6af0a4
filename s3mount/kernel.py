"""Mounting and unmounting: mount(2) or fusermount3, and the greeting with the kernel.

pyfuse3 cannot ask for FUSE_PARALLEL_DIROPS, without which the kernel sends the lookups of one
directory one at a time.  So the mount is made here, libfuse is handed one end of a socket pair
as ``/dev/fd/N``, only the FUSE_INIT exchange passes through the pair, and the flag is set in
the reply on its way to the kernel.  Then the real descriptor takes the place of the pair, and
nothing is relayed any more.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from s3mount.errors import MountError
from s3mount.mounts import FLAGS_OF_USERS, MS_FLAGS

log = logging.getLogger(__name__)

# include/uapi/linux/fuse.h; flags that change what the kernel does, not the wire format.
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_CACHE_SYMLINKS = 1 << 23
# We clear setuid and setgid bits ourselves, so the kernel need not ask for the extended
# attribute security.capability before each write(2) (25 us each).
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
WANTED = FUSE_PARALLEL_DIROPS | FUSE_CACHE_SYMLINKS | FUSE_HANDLE_KILLPRIV_V2
INIT_IN_FLAGS = 40 + 12  # fuse_init_in follows fuse_in_header
INIT_OUT = 16  # fuse_init_out follows fuse_out_header
INIT_FLAGS = INIT_OUT + 12
INIT_BACKGROUND = INIT_OUT + 16
FUSE_DEV_IOC_CLONE = 0x8004E500
MAX_BACKGROUND, CONGESTION = 128, 96  # Requests that the kernel sends ahead of answers.

MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8

_libc = ctypes.CDLL(None, use_errno=True)


class _NoLock:
    """In place of the lock that pyfuse3 takes before each request; `_Turns` does its work."""

    async def __aenter__(self) -> None:
        """Take nothing."""

    async def __aexit__(self, *_error: object) -> None:
        """Give nothing back."""


class _Turns:
    """Which of pyfuse3's tasks reads the next request from ``/dev/fuse``.

    pyfuse3 waits for the descriptor before each request, which costs two turns of trio's loop
    and four system calls.  Here a task that is done looks whether the next request is there
    already, and takes it at once, up to `_BURST` in a row; only then does it let the others
    run.  There is always one task that watches the descriptor, or is about to: whoever takes a
    request may have to wait for the store.
    """

    _BURST = 16  # Requests between two turns of the loop, which serves the sockets, too.

    def __init__(self) -> None:
        self._poll = select.poll()
        self._registered = -1
        self._idle = trio.lowlevel.ParkingLot()
        self._watched = False
        self._closed = False
        self._taken = 0

    async def wait(self, descriptor: int) -> None:
        """Wait until there is a request, and it is the caller's turn to read it."""
        if descriptor != self._registered:
            self._poll.register(descriptor, select.POLLIN)
            self._registered = descriptor
        if self._taken >= self._BURST or not self._poll.poll(0):
            await self._watch(descriptor)
            # What woke us may have been taken by another task, and read(2) would block.
            while not self._poll.poll(0):
                await self._watch(descriptor)
            self._taken = 0
        self._taken += 1
        if not self._watched and self._idle:
            self._watched = True
            self._idle.unpark()

    async def _watch(self, descriptor: int) -> None:
        if self._watched:
            await self._idle.park()  # Whoever wakes us has made us the one who watches.
        self._watched = True
        try:
            if self._closed:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(descriptor)
        except trio.ClosedResourceError:
            self._closed = True
            self._idle.unpark_all()
            raise
        finally:
            self._watched = False


def _quicken_pyfuse3() -> None:
    """Give pyfuse3 the turns above, by the module global that its asyncio twin replaces, too."""
    lowlevel = types.SimpleNamespace(**{**vars(trio.lowlevel), "wait_readable": _Turns().wait})
    replaced = {"Lock": _NoLock, "lowlevel": lowlevel}
    vars(pyfuse3)["trio"] = types.SimpleNamespace(**{**vars(trio), **replaced})


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What the kernel is told: *source* is shown by findmnt(8), *flags* are mount(8)'s words.

    *labels* are the options of SELinux, such as ``context``.
    """

    source: str
    flags: Collection[str]
    allow_other: bool
    allow_root: bool
    labels: Mapping[str, str] = field(default_factory=dict)


class KernelMount:
    """One mount point from mount(2) to umount(2)."""

    def __init__(self, mountpoint: Path, options: MountOptions) -> None:
        self.mountpoint = mountpoint
        self._options = options
        self._kernel = -1
        self._ours: socket.socket | None = None
        self._theirs = -1  # libfuse's descriptor of /dev/fuse
        self.handles_set_id = False

    def mount(self, operations: pyfuse3.Operations, *, relay: bool) -> None:
        """Mount, and hand the descriptor to libfuse; *relay* sets what pyfuse3 cannot."""
        self._kernel = self._mount_as_root() if os.geteuid() == 0 else self._mount_as_user()
        try:
            theirs = self._kernel
            if relay:
                self._ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                theirs = end.detach()
            options = {"fsname=s3mount"}
            if self._options.allow_root:
                options.add("allow_root")  # libfuse refuses the others.
            if relay:
                _quicken_pyfuse3()
            pyfuse3.init(operations, f"/dev/fd/{theirs}", options)
            # From here on libfuse owns that descriptor.
            self._theirs = theirs
            if not relay:
                self._kernel = -1
        except BaseException:
            self.unmount()
            raise

    async def greet(self) -> None:
        """Pass the FUSE_INIT exchange on, with more flags than pyfuse3 asks for."""
        if self._ours is None:
            return
        await trio.lowlevel.wait_readable(self._kernel)
        request = os.read(self._kernel, 1 << 18)
        (offered,) = struct.unpack_from("=I", request, INIT_IN_FLAGS)
        self._ours.send(request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.lowlevel.wait_readable(self._ours)
            reply = bytearray(self._ours.recv(1 << 16))
            nursery.cancel_scope.cancel()
        (flags,) = struct.unpack_from("=I", reply, INIT_FLAGS)
        flags |= WANTED & offered
        self.handles_set_id = bool(flags & FUSE_HANDLE_KILLPRIV_V2)
        struct.pack_into("=I", reply, INIT_FLAGS, flags)
        struct.pack_into("=HH", reply, INIT_BACKGROUND, MAX_BACKGROUND, CONGESTION)
        os.dup2(self._kernel, self._theirs, inheritable=False)
        os.write(self._kernel, reply)
        os.close(self._kernel)
        self._kernel = -1
        self._ours.close()
        self._ours = None

    def notices(self) -> int:
        """A descriptor of a device of its own for notices to the kernel; the caller closes it.

        When we are killed while a notice waits for somebody whose request we have read, the
        kernel answers that request as soon as the device is closed that it was read from.
        Raises `OSError` when there is no mount any more.
        """
        try:
            clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return os.dup(self._theirs)
        try:
            fcntl.ioctl(clone, FUSE_DEV_IOC_CLONE, struct.pack("=I", self._theirs))
        except OSError as error:
            log.debug("/dev/fuse cannot be cloned: %s", error)
            os.close(clone)
            return os.dup(self._theirs)
        return clone

    def widen_read_ahead(self, size: int, device: int) -> None:
        """Let the kernel read ahead up to *size* bytes, where we are allowed to say so.

        *device* is the number of the mount's, as stat(2) tells it.
        """
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        try:
            bdi.write_text(str(size >> 10))
        except OSError as error:
            log.info("the kernel's read-ahead stays as it is: %s", error)

    def unmount(self, *, lazy: bool = False) -> bool:
        """Unmount; False when it is busy.  A mount that is gone already is no error."""
        if os.geteuid() == 0:
            flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
            if _libc.umount2(os.fsencode(self.mountpoint), flags) == 0:
                return True
            return ctypes.get_errno() in (errno.EINVAL, errno.ENOENT)
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(self.mountpoint)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode == 0 or "not found" in done.stderr

    def close(self) -> None:
        """Let go of the descriptors; the mount must be gone, or abandoned."""
        if self._theirs >= 0:
            pyfuse3.close(unmount=False)
            self._theirs = -1
        if self._ours is not None:
            self._ours.close()
        if self._kernel >= 0:
            os.close(self._kernel)

    def _option_text(self, descriptor: int | None) -> str:
        options = ["default_permissions"]
        if self._options.allow_other or self._options.allow_root:
            options.append("allow_other")
        if descriptor is not None:
            mode = stat.S_IFMT(self.mountpoint.stat().st_mode)
            options += [f"fd={descriptor}", f"rootmode={mode:o}"]
            options += [f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
            options += [f'{name}="{label}"' for name, label in self._options.labels.items()]
        return ",".join(options)

    def _mount_as_root(self) -> int:
        try:
            descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise MountError(
                f"/dev/fuse: {error.strerror} (is the fuse module loaded? try: modprobe fuse)", 2
            ) from error
        chosen = self._options.flags
        flags = sum(bit for name, bit in MS_FLAGS.items() if name in chosen)
        result = _libc.mount(
            os.fsencode(self._options.source),
            os.fsencode(self.mountpoint),
            b"fuse.s3mount",
            ctypes.c_ulong(flags),
            self._option_text(descriptor).encode(),
        )
        if result != 0:
            number = ctypes.get_errno()
            os.close(descriptor)
            raise MountError(f"{self.mountpoint}: mount(2) failed: {os.strerror(number)}")
        return descriptor

    def _mount_as_user(self) -> int:
        """Through the setuid helper, which hands the descriptor over a socket."""
        helper = shutil.which("fusermount3")
        if helper is None:
            raise MountError("fusermount3 is missing (try: apt install fuse3)", 2)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.closing(ours), contextlib.closing(theirs):
            flags = [name for name in MS_FLAGS if name in self._options.flags]
            for name in sorted({*flags, *self._options.labels} - FLAGS_OF_USERS):
                log.warning("option %s is ignored: only root may mount so", name)
            flags = [name for name in flags if name in FLAGS_OF_USERS]
            source = self._options.source.replace("\\", "\\\\").replace(",", "\\,")
            text = ",".join(
                [self._option_text(None), *flags, f"fsname={source}", "subtype=s3mount"]
            )
            done = subprocess.run(
                [helper, "-o", text, "--", str(self.mountpoint)],
                check=False,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            )
            if done.returncode != 0:
                raise MountError(f"{self.mountpoint}: {_reason(done.stderr)}")
            return _receive_descriptor(ours)


def _reason(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line]
    reason = lines[-1] if lines else "fusermount3 failed"
    if "allow_other" in reason:
        reason += " (uncomment user_allow_other in /etc/fuse.conf)"
    return reason


def _receive_descriptor(end: socket.socket) -> int:
    size = array.array("i").itemsize
    _, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptor = array.array("i", data[:size])[0]
            os.set_inheritable(descriptor, False)
            return descriptor
    raise MountError("fusermount3 handed over no descriptor", 2)


def open_files(mountpoint: Path) -> Sequence[int]:
    """Process ids that keep *mountpoint* busy, as far as /proc tells."""
    prefix = str(mountpoint)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(str(link.readlink()).startswith(prefix) for link in links):
                found.append(int(process.name))
    return found
