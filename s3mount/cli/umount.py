"""``s3mount umount MOUNTPOINT``: unmounts, and returns when everything is uploaded."""

import argparse
import os
import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from s3mount.cli.arguments import Parser
from s3mount.cli.asking import patience_of, socket_of
from s3mount.controlclient import Connection, ControlError, NoDaemon, Silent
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, detach, find_mount
from s3mount.values import canonical

EPILOG = """\
Exit codes: 0 unmounted, and everything is in the store; 1 wrong usage or no
permission; 8 interrupted (the daemon goes on); 32 not mounted, busy, not
finished in time, or something could not be uploaded (it stays in the state
directory of the mount)."""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
SHOWN = 5  # names of files in a message
_CLEAR_LINE = "\r\x1b[K"


class Wish(NamedTuple):
    """How to unmount; `timeout` in seconds, None for as long as it takes."""

    lazy: bool
    force: bool
    timeout: float | None


def main(arguments: Sequence[str]) -> int:
    """Unmount, and return the exit code."""
    parsed = parser().parse_args(arguments)
    timeout = patience_of(parsed.timeout)
    wish = Wish(parsed.lazy, parsed.force, timeout)
    mountpoint = canonical(parsed.mountpoint)
    mount = find_mount(mountpoint)
    if mount is None:
        raise MountError(f"{mountpoint} is not mounted")
    if mount.type != FILE_SYSTEM_TYPE:
        raise MountError(f"{mountpoint} is not a mount of s3mount, but of type {mount.type}")
    connection = _connect(mount, force=wish.force)
    if connection is None:
        return _detach(mount, lazy=wish.lazy or wish.force)
    with connection:
        return _ask(connection, mount, wish)


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount umount",
        description="Unmounts, waits until everything is uploaded and the daemon has ended.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="take the mount away now and return; the daemon ends when the last file is closed "
        "and uploaded",
    )
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="take the mount away even when files are open or the store is gone; what cannot be "
        "uploaded stays in the state directory",
    )
    parser.add_argument(
        "--timeout", metavar="TIME", help="how long to wait [for as long as it takes]"
    )
    return parser


def _connect(mount: Mount, *, force: bool) -> Connection | None:
    """Return a connection to the daemon of *mount*, or None when it can do without, or must."""
    path = socket_of(mount)
    if path is None:
        return None
    try:
        with Connection(path) as connection:
            connection.ask("hello", timeout=5.0)
        return Connection(path)
    except NoDaemon:
        return None
    except Silent as error:
        if force:
            return None
        raise MountError(
            f"the daemon of {mount.mountpoint} does not answer (--force unmounts without it)"
        ) from error


def _detach(mount: Mount, *, lazy: bool) -> int:
    """Unmount without the daemon."""
    try:
        detach(mount, lazy=lazy)
    except PermissionError as error:
        raise MountError(f"{mount.mountpoint}: {error.strerror}", 1) from error
    except OSError as error:
        raise MountError(f"{mount.mountpoint}: {error.strerror}") from error
    if not lazy and (path := socket_of(mount)) is not None:
        path.unlink(missing_ok=True)  # Its daemon has died and could not.
    return 0


def _ask(connection: Connection, mount: Mount, wish: Wish) -> int:
    """Let the daemon unmount, and wait until it has ended."""
    deadline = None if wish.timeout is None else time.monotonic() + wish.timeout
    ended = os.pidfd_open(connection.pid)
    progress = Progress(visible=sys.stderr.isatty())
    try:
        result = connection.ask(
            "umount",
            {"lazy": wish.lazy, "force": wish.force, "timeout": wish.timeout},
            progress=progress.show,
            timeout=wish.timeout,
        )
        in_time = wish.lazy or _wait(ended, deadline)
    except Silent:
        in_time = False
    except ControlError as error:
        reason = str(error).removeprefix(f"{mount.mountpoint}: ")
        raise MountError(f"{mount.mountpoint}: {reason}") from error
    finally:
        progress.clear()
        os.close(ended)
    if not in_time:
        raise MountError(
            f"{mount.mountpoint}: not finished within {wish.timeout:g} s; "
            f"the daemon (process {connection.pid}) goes on"
        )
    return _report(mount, result)


def _wait(process: int, deadline: float | None) -> bool:
    """Wait until a process has ended; False when the time is over before."""
    poller = select.poll()
    poller.register(process, select.POLLIN)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return bool(poller.poll(left))


def _report(mount: Mount, result: object) -> int:
    """Say what the daemon could not upload."""
    left = result.get("left", ()) if isinstance(result, Mapping) else ()
    if left:
        raise MountError(
            f"{mount.mountpoint} is unmounted, but {_count(len(left))} could not be uploaded "
            f"({', '.join(map(str, left[:SHOWN]))}{', ...' if left[SHOWN:] else ''}); "
            "what was written is kept in the state directory, and the log says where"
        )
    return 0


class Progress:
    """One line on a terminal that tells how much is left."""

    def __init__(self, *, visible: bool) -> None:
        self._visible = visible
        self._shown = False

    def show(self, news: Mapping[str, Any]) -> None:
        """Show what is left: the count of *files*, and of their *bytes*."""
        if self._visible:
            sys.stderr.write(_CLEAR_LINE + describe_progress(news))
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Leave the line empty."""
        if self._shown:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


def describe_progress(news: Mapping[str, Any]) -> str:
    """Say how much is left to upload."""
    size = describe_size(int(news.get("bytes", 0)))
    return f"uploading {_count(int(news.get('files', 0)))}, {size} left"


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def describe_size(size: float) -> str:
    """Return a count of bytes with a unit."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} {_UNITS[0]}"
