"""Which mount a path lies in, and asking its daemon: what several commands have in common."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s3mount.controlclient import Connection, ControlError, Silent, find_socket
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, all_mounts, find_mount
from s3mount.options import OptionError
from s3mount.values import DURATION

Progress = Callable[[Mapping[str, Any]], None]


def mount_around(path: Path) -> Mount | None:
    """The mount of ours that *path* (a real path) lies in, if it does."""
    for place in (path, *path.parents):
        mount = find_mount(place)
        if mount is not None:
            return mount if mount.type == FILE_SYSTEM_TYPE else None
    return None


def mount_of(path: Path) -> Mount:
    """As `mount_around`; raises `MountError` when *path* is in no mount of ours."""
    mount = mount_around(path)
    if mount is None:
        raise MountError(f"{path} is not in a mount of s3mount")
    return mount


def own_mounts() -> list[Mount]:
    """All mounts of ours whose daemons we may ask, the one that covers a place last."""
    found = {
        mount.mountpoint: mount
        for mount in all_mounts()
        if mount.type == FILE_SYSTEM_TYPE and os.geteuid() in (0, mount.owner)
    }
    return list(found.values())


def socket_of(mount: Mount) -> Path | None:
    """Where the daemon of *mount* listens, if it does; raises `MountError` for those of others."""
    try:
        return find_socket(mount.mountpoint, mount.owner)
    except PermissionError as error:
        raise MountError(f"{mount.mountpoint}: only its owner and root may ask", 1) from error


def ask(
    mount: Mount,
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    progress: Progress = lambda _: None,
    timeout: float | None = None,
) -> Mapping[str, Any]:
    """Ask the daemon of *mount*; raises `MountError` when it refuses, or there is none.

    After *timeout* seconds (None: never) it is told that the daemon goes on.
    """
    socket = socket_of(mount)
    if socket is None:
        raise MountError(f"{mount.mountpoint}: no daemon serves this mount any more")
    try:
        with Connection(socket) as connection:
            answer = connection.ask(command, arguments, progress=progress, timeout=timeout)
    except Silent as error:
        raise MountError(f"{mount.mountpoint}: not finished in time; it goes on") from error
    except ControlError as error:
        reason = str(error).removeprefix(f"{mount.mountpoint}: ")
        raise MountError(f"{mount.mountpoint}: {reason}") from error
    if not isinstance(answer, dict):
        raise MountError(f"{mount.mountpoint}: the daemon is of another version")
    return answer


def seconds_of(name: str, text: str) -> float:
    """The value of an option that is a time, in seconds."""
    try:
        return float(str(DURATION.parse(text)))
    except ValueError as error:
        raise OptionError(f"option {name}: {text!r} is not {DURATION.expected}") from error


def patience_of(text: str | None) -> float | None:
    """The value of ``--timeout``, in seconds; None for as long as it takes."""
    return None if text is None else seconds_of("timeout", text)
