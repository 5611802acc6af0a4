"""What the commands about older versions share: whom to ask about a path, and how to say when."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s3mount.cli.asking import socket_of
from s3mount.cli.statustext import printable
from s3mount.controlclient import Connection, ControlError, Silent
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, find_mount
from s3mount.values import canonical

Answer = Mapping[str, Any]
Progress = Callable[[Mapping[str, Any]], None]


def ask(path: str, command: str, *, progress: Progress | None = None, **words: object) -> Answer:
    """Ask the mount that *path* lies in about that path; raises `MountError`."""
    real = canonical(path)
    mount = _mount_of(real)
    socket = socket_of(mount)
    if socket is None:
        raise MountError(f"{mount.mountpoint}: no daemon serves this mount any more")
    below = str(real.relative_to(mount.mountpoint))
    try:
        with Connection(socket) as connection:
            found = connection.ask(
                command,
                {**words, "path": "" if below == "." else below},
                progress=progress or (lambda news: None),
            )
    except (ControlError, Silent) as error:
        raise MountError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise MountError(f"{path}: the daemon answers something else")
    return found


def _mount_of(path: Path) -> Mount:
    """The mount that *path* lies in, whether or not it is there."""
    for place in (path, *path.parents):
        mount = find_mount(place)
        if mount is not None:
            if mount.type == FILE_SYSTEM_TYPE:
                return mount
            break
    raise MountError(f"{path} is not in a mount of s3mount")


def moment(seconds: float) -> str:
    """When it was, by this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def shown(text: object) -> str:
    """A name that plays no tricks with the terminal."""
    return printable(str(text))
