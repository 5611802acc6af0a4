"""``mount.s3mount``, which mount(8) calls: its arguments, in the words of the one parser.

mount(8) says ``-f`` for "do everything but mount", and puts flags behind the arguments.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from s3mount.cli import mount
from s3mount.cli.arguments import Parser, parse_arguments
from s3mount.cli.remounting import remount
from s3mount.errors import MountError
from s3mount.options import Item, mount_options, normal_name


def main(arguments: Sequence[str]) -> int:
    """Do what mount(8) asks for, and return the exit code that it shall have."""
    parsed = parser().parse_args(arguments)
    if parsed.namespace:
        enter(parsed.namespace, "mount.s3mount", arguments)
    options = ",".join([*parsed.options, *["ro"] * parsed.read_only, *["sloppy"] * parsed.sloppy])
    items = mount_options(options)
    if "remount" in {normal_name(name) for name, _ in items}:
        return _remount(parsed, items)
    arguments = _arguments(parsed, options, items)
    if parsed.fake:
        _check(arguments, verbose=parsed.verbose)
        return 0
    code = mount.main(arguments)
    if parsed.verbose and code == 0:
        print(f"mount.s3mount: {parsed.source} is mounted on {parsed.directory}")
    return code


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="mount.s3mount",
        description="Called by mount(8) for file systems of type s3mount and fuse.s3mount.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="BUCKET[/PREFIX]")
    parser.add_argument("directory", metavar="MOUNTPOINT")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("-f", dest="fake", action="store_true", help="check, and do not mount")
    parser.add_argument("-r", dest="read_only", action="store_true", help="mount read-only")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-w", action="store_true", help="mount for reading and writing")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what mount(8) and umount(8) pass on to any helper."""
    parser.add_argument("-n", action="store_true", help="no mtab is written anyway")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what was done")
    parser.add_argument("-N", dest="namespace", metavar="PATH", help="mount namespace to enter")
    parser.add_argument("-t", metavar="TYPE", help="type of the file system")


def enter(namespace: str, program: str, arguments: Sequence[str]) -> NoReturn:
    """Be the same command in another mount namespace."""
    rest = list(arguments)
    at = rest.index("-N")  # mount(8) writes it as a word of its own
    del rest[at : at + 2]
    command = [sys.executable, "-P", "-m", "s3mount", program, *rest]
    try:
        os.execvp("nsenter", ["nsenter", f"--mount={namespace}", "--", *command])
    except OSError as error:
        raise MountError(f"nsenter: {error.strerror}", 2) from error


def _arguments(parsed: argparse.Namespace, options: str, items: Sequence[Item]) -> Sequence[str]:
    """The same as people write it."""
    if "fsname" not in {normal_name(name) for name, _ in items}:
        # So that `mount -a` finds what fstab says in the table of mounts.
        options += f",fsname={_protected(parsed.source)}"
    return [parsed.source, parsed.directory, "-o", options]


def _check(arguments: Sequence[str], *, verbose: bool) -> None:
    """Read the options as a mount would, and say what it would say; raises `OptionError`."""
    warnings = parse_arguments(arguments)[1]
    if verbose:
        for text in (*warnings, "the options are understood; nothing is mounted (-f)"):
            print(f"mount.s3mount: {text}")


def _protected(text: str) -> str:
    """Return a value as ``-o`` takes it, commas and all."""
    return "".join(f"\\{one}" if one in '\\",' else one for one in text)


def _remount(parsed: argparse.Namespace, items: Sequence[Item]) -> int:
    if parsed.fake:
        return 0
    flags = remount(parsed.directory, parsed.source, items)
    if parsed.verbose:
        print(f"mount.s3mount: {parsed.directory} is mounted again ({flags})")
    return 0
