"""What is mounted where, changing it, and taking it away: mountinfo, mount(2), umount(8)."""

import ctypes
import errno
import os
import re
import subprocess
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

FILE_SYSTEM_TYPE = "fuse.s3mount"
DETACH_TIMEOUT = 30.0  # seconds
MOUNTINFO = Path("/proc/self/mountinfo")
UTAB = Path("/run/mount/utab")
SELINUX = Path("/sys/fs/selinux/enforce")  # where the kernel has it, and it is in use
UMOUNT_HELPER = Path("/sbin/umount.fuse.s3mount")

# mount(2)'s bits for the words of mount(8).
MS_FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": 1024,
    "nodiratime": 2048,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
MS_REMOUNT = 32
# Those that fusermount3 knows; it takes others for options of FUSE, which the kernel refuses.
FLAGS_OF_USERS = frozenset({"ro", "nosuid", "nodev", "noexec", "sync", "dirsync", "noatime"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; `owner` is the user who made a FUSE mount.

    `flags` are mount(8)'s words for how it is mounted, such as ``ro`` and ``nosuid``.
    """

    mountpoint: Path
    type: str
    source: str
    owner: int
    flags: frozenset[str]


def find_mount(mountpoint: Path, mountinfo: Path = MOUNTINFO) -> Mount | None:
    """Return what is mounted at *mountpoint* (a real path), without touching it.

    Where several lie on top of each other, the last one is seen.
    """
    found = None
    for mount in all_mounts(mountinfo):
        if mount.mountpoint == mountpoint:
            found = mount
    return found


def all_mounts(mountinfo: Path = MOUNTINFO) -> Iterator[Mount]:
    """Yield everything that is mounted, lower mounts before what lies on top of them."""
    for line in mountinfo.read_bytes().splitlines():
        yield _parse(os.fsdecode(line))


def _parse(line: str) -> Mount:
    # ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS
    general, _, special = line.partition(" - ")
    fields = general.split(" ")
    kind, source, options = [*special.split(" "), "", "", ""][:3]
    user = re.search(r"\buser_id=(\d+)", options)
    owner = int(user[1]) if user else 0
    flags = frozenset(fields[5].split(",")) | ({"ro"} & set(options.split(",")))
    return Mount(Path(_unescape(fields[4])), kind, _unescape(source), owner, flags)


def _unescape(text: str) -> str:
    """Undo the kernel's escapes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def is_dead(mountpoint: Path) -> bool:
    """Say whether the daemon of a FUSE mount has died.

    Only to be asked when nobody listens at its control socket: a daemon that is alive but
    stuck would never answer this call.
    """
    try:
        # Not stat(2), which the kernel may answer from what it remembers.
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach_command(mountpoint: Path, *, lazy: bool, owner: int) -> list[str]:
    """Return the command that unmounts without the daemon's help."""
    if os.geteuid() == 0:
        # -i: umount must not call our own helper, which would wait for the daemon.
        return ["umount", "-i", *(["-l"] if lazy else []), "--", os.fspath(mountpoint)]
    if owner != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    return ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(mountpoint)]


def detach(mount: Mount, *, lazy: bool) -> None:
    """Unmount without asking the daemon; raises `OSError` saying why it did not work."""
    command = detach_command(mount.mountpoint, lazy=lazy, owner=mount.owner)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DETACH_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{command[0]} does not come back") from error
    if done.returncode:
        raise OSError(errno.EBUSY, " ".join(done.stderr.split()) or f"{command[0]} failed")


def change_flags(mount: Mount, flags: Set[str]) -> None:
    """Mount again what is mounted, with *flags* of mount(8); raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    bits = MS_REMOUNT | sum(bit for name, bit in MS_FLAGS.items() if name in flags)
    target = os.fsencode(mount.mountpoint)
    kind = mount.type.encode()
    if libc.mount(os.fsencode(mount.source), target, kind, ctypes.c_ulong(bits), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def name_helper(mountpoint: Path, network: bool) -> None:
    """Note for umount(8) that our mount has a helper, where there is one and we are root.

    Root's umount(8) does not look for the helper of a type such as fuse.s3mount by itself, but
    for one that libmount has noted; without a note it would not wait for the uploads.
    *network* says that fstab has ``_netdev``.
    """
    if os.geteuid() != 0 or not UMOUNT_HELPER.exists():
        return
    mount = find_mount(mountpoint)
    if mount is None:
        return
    note = f"SRC={mount.source} TARGET={mount.mountpoint} "
    try:
        if any(line.startswith(note) for line in UTAB.read_text().splitlines()):
            return  # left by a mount that ended without umount(8)
    except (OSError, UnicodeDecodeError):
        pass  # There is none yet, or it is libmount's to complain.
    options = "uhelper=s3mount" + (",_netdev" if network else "")
    command = ["mount", "-i", "-f", "-t", mount.type, "-o", options, "--"]
    subprocess.run(
        [*command, mount.source, os.fspath(mount.mountpoint)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DETACH_TIMEOUT,
        check=False,
    )
