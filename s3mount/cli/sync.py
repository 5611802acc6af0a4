"""``s3mount sync [PATH]``: returns when everything that was written is in the store."""

import argparse
import sys
from collections.abc import Sequence

from s3mount.cli.arguments import Parser
from s3mount.cli.asking import ask, mount_of, patience_of
from s3mount.cli.umount import Progress
from s3mount.errors import MountError
from s3mount.values import canonical


def main(arguments: Sequence[str]) -> int:
    """Wait until a mount is in step with its bucket, and return the exit code."""
    parsed = parser().parse_args(arguments)
    mount = mount_of(canonical(parsed.path))
    timeout = patience_of(parsed.timeout)
    progress = Progress(visible=sys.stderr.isatty())
    try:
        result = ask(mount, "sync", progress=progress.show, timeout=timeout)
    finally:
        progress.clear()
    left = result.get("left", ())
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
