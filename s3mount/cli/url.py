"""``s3mount url PATH``: a link by which anybody may read a file, for a while."""

import argparse
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from s3mount.cli.arguments import Parser
from s3mount.cli.asking import mount_of, seconds_of
from s3mount.errors import MountError
from s3mount.options import OptionError
from s3mount.values import canonical

LONGEST = 7 * 86400  # seconds, S3's own limit
EPILOG = """\
A link that temporary credentials have signed ends with them.

Exit codes: 0 done; 1 wrong usage; 32 there is no link for this."""


def main(arguments: Sequence[str]) -> int:
    """Print the link, and return the exit code."""
    parsed = parser().parse_args(arguments)
    seconds = _seconds(parsed.expires)
    mount_of(canonical(parsed.path))
    try:
        link = os.getxattr(parsed.path, f"user.s3.presigned-url.{seconds}")
    except OSError as error:
        raise MountError(f"{parsed.path}: {_reason(parsed.path, error)}") from error
    print(os.fsdecode(link))
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount url",
        description="Prints a link by which anybody may read a file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="a file in a mount of s3mount")
    parser.add_argument(
        "--expires", metavar="TIME", default="1h", help="how long it is good, at most 7d [1h]"
    )
    return parser


def _seconds(text: str) -> int:
    seconds = round(seconds_of("expires", text))
    if not 1 <= seconds <= LONGEST:
        raise OptionError("option expires: a link is good for 1s to 7d")
    return seconds


def _reason(path: str, error: OSError) -> str:
    if error.errno == errno.ENODATA:
        return "there is no link for a directory" if Path(path).is_dir() else "there is no link"
    return str(error.strerror)
