"""``s3mount sync [PATH]``: returns when everything that was written is in the store."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s3mount.cli.arguments import Parser
from s3mount.cli.umount import Progress
from s3mount.controlclient import Connection, ControlError, Silent, find_socket
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, find_mount
from s3mount.options import OptionError
from s3mount.values import DURATION, canonical


def main(arguments: Sequence[str]) -> int:
    """Wait until a mount is in step with its bucket, and return the exit code."""
    parsed = parser().parse_args(arguments)
    mount = _mount_of(canonical(parsed.path))
    socket = find_socket(mount.mountpoint, mount.owner)
    if socket is None:
        raise MountError(f"{mount.mountpoint}: no daemon serves this mount any more")
    progress = Progress(visible=sys.stderr.isatty())
    try:
        with Connection(socket) as connection:
            result = connection.ask(
                "sync", progress=progress.show, timeout=_timeout(parsed.timeout)
            )
    except Silent as error:
        raise MountError(f"{mount.mountpoint}: not finished in time; it goes on") from error
    except ControlError as error:
        raise MountError(f"{mount.mountpoint}: {error}") from error
    finally:
        progress.clear()
    left = result.get("left", ()) if isinstance(result, dict) else ()
    if left:
        names = ", ".join(map(str, left[:5]))
        raise MountError(f"{mount.mountpoint}: {len(left)} files could not be uploaded ({names})")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount sync",
        description="Returns when everything that was written to a mount is in the store.",
        epilog="Exit codes: 0 all is in the store; 1 wrong usage; 32 something is not.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default=".", help="a place in the mount [.]"
    )
    parser.add_argument(
        "--timeout", metavar="TIME", help="how long to wait [for as long as it takes]"
    )
    return parser


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(str(DURATION.parse(text)))
    except ValueError as error:
        raise OptionError(f"option timeout: {text!r} is not {DURATION.expected}") from error


def _mount_of(path: Path) -> Mount:
    """The mount that *path* lies in."""
    for place in (path, *path.parents):
        mount = find_mount(place)
        if mount is not None:
            if mount.type == FILE_SYSTEM_TYPE:
                return mount
            break
    raise MountError(f"{path} is not in a mount of s3mount")
