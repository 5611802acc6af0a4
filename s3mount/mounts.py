"""What is mounted where, and taking it away: mountinfo, umount(8), fusermount3(1)."""

import errno
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

FILE_SYSTEM_TYPE = "fuse.s3mount"
DETACH_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; `owner` is the user who made a FUSE mount."""

    mountpoint: Path
    type: str
    source: str
    owner: int


def find_mount(mountpoint: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> Mount | None:
    """Return what is mounted at *mountpoint* (a real path), without touching it.

    Where several lie on top of each other, the last one is seen.
    """
    found = None
    for line in mountinfo.read_bytes().splitlines():
        mount = _parse(os.fsdecode(line))
        if mount.mountpoint == mountpoint:
            found = mount
    return found


def _parse(line: str) -> Mount:
    # ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS
    general, _, special = line.partition(" - ")
    kind, source, options = [*special.split(" "), "", "", ""][:3]
    user = re.search(r"\buser_id=(\d+)", options)
    owner = int(user[1]) if user else 0
    return Mount(Path(_unescape(general.split(" ")[4])), kind, _unescape(source), owner)


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
