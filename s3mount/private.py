"""Directories and files that only we may look into: made private, refused when they are not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3mount.errors import MountError


def open_private(path: Path) -> int:
    """Make *path* where it is missing, and return a descriptor of it.

    Raises `MountError` when somebody else owns it, or others may write into it or read it: what
    lies there is trusted to be ours, and holds users' data.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError as error:
        raise MountError(f"{path}: {error.strerror} (choose another directory)", 2) from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        os.close(descriptor)
        raise MountError(f"{path} belongs to another user (uid {status.st_uid})", 2)
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.close(descriptor)
        raise MountError(f"{path} is open to others (try: chmod 700 {path})", 2)
    return descriptor


def refuse_shared(path: Path) -> None:
    """Make *path*, or raise `MountError` when others could put something else into its place.

    What is below it has to be private; the directory itself others may read.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise MountError(f"{path}: {error.strerror} (choose another directory)", 2) from error
    if status.st_uid not in (os.geteuid(), 0):
        raise MountError(f"{path} belongs to another user (uid {status.st_uid})", 2)
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise MountError(f"{path} can be written to by others (try: chmod go-w {path})", 2)


def why_not_private(path: Path) -> str | None:
    """Say what lets others read, or write, the file *path*; None when nothing does.

    Raises `OSError` when there is no such file.
    """
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user (uid {status.st_uid})"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"others may read it (try: chmod 600 {path})"
    return None
