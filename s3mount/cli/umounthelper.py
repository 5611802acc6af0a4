"""``umount.s3mount``, which umount(8) calls: it returns when everything is uploaded."""

import argparse
from collections.abc import Sequence

from s3mount.cli import umount
from s3mount.cli.arguments import Parser
from s3mount.cli.mounthelper import add_common, enter
from s3mount.cli.remounting import remount
from s3mount.errors import MountError


def main(arguments: Sequence[str]) -> int:
    """Do what umount(8) asks for, and return the exit code that it shall have."""
    parsed = parser().parse_args(arguments)
    if parsed.namespace:
        enter(parsed.namespace, "umount.s3mount", arguments)
    wishes = [*["--lazy"] * parsed.lazy, *["--force"] * parsed.force]
    try:
        code = umount.main([*wishes, "--", parsed.directory])
    except MountError as error:
        if parsed.read_only:
            flags = remount(parsed.directory, None, [("ro", None)])
            raise MountError(f"{error}; mounted again ({flags})", error.exit_code) from error
        raise
    if parsed.verbose and code == 0:
        # Who is lazy does not wait for what is open, who forces not for the store.
        waited = "" if parsed.lazy or parsed.force else ", and everything is uploaded"
        print(f"umount.s3mount: {parsed.directory} is unmounted{waited}")
    return code


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="umount.s3mount",
        description="Called by umount(8) for file systems of type s3mount and fuse.s3mount.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="MOUNTPOINT")
    parser.add_argument("-f", dest="force", action="store_true", help="as `s3mount umount -f`")
    parser.add_argument("-l", dest="lazy", action="store_true", help="as `s3mount umount -l`")
    parser.add_argument(
        "-r", dest="read_only", action="store_true", help="make it read-only if that fails"
    )
    add_common(parser)
    return parser
