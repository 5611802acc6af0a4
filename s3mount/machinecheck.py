"""What a mount needs of this machine: FUSE, helpers, limits, and no nightly search of buckets."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from s3mount import mounts
from s3mount.controlclient import Connection, ControlError, find_socket
from s3mount.diagnosis import BAD, GOOD, WEAK, Finding

ENOUGH_DESCRIPTORS = 4096
KERNEL = (5, 10)  # Older ones lack flags that make directories fast.


def check_machine(root: Path = Path("/")) -> Iterator[Finding]:
    """Look at everything; *root* is where the system's files are."""
    yield _kernel()
    yield _device(root / "dev/fuse")
    yield _fusermount()
    yield _allow_other(root / "etc/fuse.conf")
    yield _helpers(root / "sbin")
    yield from _updatedb(root / "etc/updatedb.conf")
    yield _descriptors()
    yield from _dead_mounts()


def _kernel() -> Finding:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < KERNEL:
        return Finding("kernel", WEAK, release, "it works, but 5.10 and later are faster")
    return Finding("kernel", GOOD, release)


def _device(path: Path) -> Finding:
    if not path.exists():
        return Finding("/dev/fuse", BAD, "missing", "nothing can be mounted: modprobe fuse")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding("/dev/fuse", BAD, "not for this user", "root can mount; or: chmod 666")
    return Finding("/dev/fuse", GOOD, "can be opened")


def _fusermount() -> Finding:
    found = shutil.which("fusermount3")
    root = os.geteuid() == 0
    if found is None:
        level = WEAK if root else BAD
        return Finding("fusermount3", level, "missing", "only root can mount: apt install fuse3")
    if not Path(found).stat().st_mode & stat.S_ISUID:
        level = GOOD if root else BAD
        return Finding("fusermount3", level, f"{found} is not setuid", "only root can mount")
    return Finding("fusermount3", GOOD, found)


def _allow_other(path: Path) -> Finding:
    lines = _lines(path)
    if "user_allow_other" in lines:
        return Finding("allow_other", GOOD, "every user may ask for it")
    level = GOOD if os.geteuid() == 0 else WEAK
    return Finding("allow_other", level, "for root only", f"for others: user_allow_other in {path}")


def _helpers(folder: Path) -> Finding:
    names = ("mount.fuse.s3mount", "umount.fuse.s3mount")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        return Finding(
            "helpers",
            WEAK,
            f"{missing[0]} is not in {folder}",
            "umount(8) does not wait for uploads: sudo s3mount install-helpers",
        )
    return Finding("helpers", GOOD, f"in {folder}")


def _updatedb(path: Path) -> Iterator[Finding]:
    for line in _lines(path):
        name, _, value = line.partition("=")
        if name.strip() == "PRUNEFS":
            words = value.strip().strip("\"'").lower().split()
            if {"fuse.s3mount", "fuse"} & set(words):
                yield Finding("updatedb", GOOD, "leaves fuse.s3mount alone")
            else:
                yield Finding(
                    "updatedb",
                    WEAK,
                    "searches mounts every night, and each listing costs",
                    f"add fuse.s3mount to PRUNEFS in {path}",
                )


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = GOOD if soft >= ENOUGH_DESCRIPTORS or soft == resource.RLIM_INFINITY else WEAK
    means = "" if level == GOOD else "many files at once may fail: ulimit -n, or LimitNOFILE="
    return Finding("descriptors", level, f"{soft} (at most {hard})", means)


def _dead_mounts() -> Iterator[Finding]:
    for mount in mounts.all_mounts():
        if mount.type != mounts.FILE_SYSTEM_TYPE or os.geteuid() not in (0, mount.owner):
            continue
        path = find_socket(mount.mountpoint, mount.owner)
        try:
            if path is not None:
                Connection(path).close()
                continue
        except ControlError:
            pass
        yield Finding(
            "mounts",
            BAD,
            f"the daemon of {mount.mountpoint} has died",
            f"s3mount umount {mount.mountpoint}",
        )


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where there is no such file, or not for us."""
    try:
        return [line.strip() for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return []
