"""``s3mount install-helpers`` and ``remove-helpers``: what mount(8) and umount(8) look for."""

import argparse
import os
import shlex
import site
import sys
from collections.abc import Sequence
from pathlib import Path

from s3mount.cli import HELPERS
from s3mount.cli.arguments import Parser
from s3mount.errors import MountError

MARK = "# Made by `s3mount install-helpers`."

EPILOG = """\
With them, `mount -t fuse.s3mount BUCKET MOUNTPOINT`, /etc/fstab and systemd start
this s3mount, and umount(8) returns when everything is uploaded.

Exit codes: 0 done; 1 no permission, or somebody else's file is in the way."""
REMOVE_EPILOG = """\
Files of the same names that others have made are left alone.

Exit codes: 0 done; 1 no permission."""


def main(arguments: Sequence[str]) -> int:
    """Write the helpers, and return the exit code."""
    root = parser().parse_args(arguments).root
    if not root.is_dir():
        raise MountError(f"{root}: there is no such directory", 1)
    folder = root / "sbin"
    for path in (folder / name for name in HELPERS):
        if os.path.lexists(path) and not _is_ours(path):
            raise MountError(f"{path} is there, and is not of s3mount's making", 1)
    for name in HELPERS:
        _write(folder / name, _script(name))
        print(folder / name)
    return 0


def remove(arguments: Sequence[str]) -> int:
    """Remove the helpers, and return the exit code."""
    folder = remove_parser().parse_args(arguments).root / "sbin"
    for path in (folder / name for name in HELPERS):
        if _is_ours(path):
            try:
                path.unlink()
            except OSError as error:
                raise MountError(f"{path}: {error.strerror}", 1) from error
            print(path)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of install-helpers."""
    return _parser("install-helpers", "Makes the helpers of mount(8) and umount(8).", EPILOG)


def remove_parser() -> argparse.ArgumentParser:
    """The arguments of remove-helpers."""
    return _parser("remove-helpers", "Removes what install-helpers has made.", REMOVE_EPILOG)


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"s3mount {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="the system in this directory, such as an image that is being built [/]",
    )
    return parser


def _is_ours(path: Path) -> bool:
    try:
        return MARK in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _script(name: str) -> str:
    """The helper: this interpreter, with this s3mount, whatever the environment may be."""
    home = os.fspath(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-m", "s3mount", name]
    if home not in site.getsitepackages():
        command = ["env", f"PYTHONPATH={home}", *command]
    return f'#!/bin/sh\n{MARK}\nexec {shlex.join(command)} "$@"\n'


def _write(path: Path, text: str) -> None:
    """Put a program into its place at once, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.chmod(0o755)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MountError(f"{path}: {error.strerror}", 1) from error
