"""``s3mount info PATH...``: the object behind a path, what of it is cached, what is not saved."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3mount.cli.arguments import Parser
from s3mount.cli.asking import ask, mount_of
from s3mount.cli.infotext import rows
from s3mount.cli.statustext import printable
from s3mount.errors import MountError

EPILOG = """\
What is cached is told as ranges of bytes: in memory, and in the cache on disk.
A state other than "clean" says what the store has not got yet; the versions of
an object are shown where its bucket keeps them. Links are not followed.

  s3mount info report.pdf
  s3mount info --json data/*.parquet | jq '.paths[].object.etag'

Exit codes: 0 all is shown; 1 wrong usage; 32 a path is not there, or is in no
mount of s3mount."""

TIMEOUT = 120.0  # seconds: the store may be slow, and is given that time by the mount
Found = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Show what is known of each path, and return the exit code."""
    parsed = parser().parse_args(arguments)
    found = list(_look(parsed.path))
    if parsed.json:
        print(json.dumps({"paths": found}, indent=2))
    elif good := [_describe(one) for one in found if "error" not in one]:
        print("\n\n".join(good))
    for one in found:
        if "error" in one and not parsed.json:
            print(f"s3mount: {printable(one['path'])}: {one['error']}", file=sys.stderr)
    return 32 if any("error" in one for one in found) else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount info",
        description="Shows the object behind a path: key, ETag, size, parts, metadata, and more.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="+", help="a file or directory in a mount of s3mount"
    )
    parser.add_argument("--json", action="store_true", help="print everything, for programs")
    return parser


def _look(paths: Sequence[str]) -> Iterator[Found]:
    for path in paths:
        try:
            yield {"path": path, **_ask(path)}
        except MountError as error:
            reason = str(error).removeprefix(path).lstrip(": ").removeprefix("is ")
            yield {"path": path, "error": reason}


def _ask(path: str) -> Found:
    real = _real(path)
    mount = mount_of(real)
    inside = os.fspath(real.relative_to(mount.mountpoint))
    inside = "" if inside == "." else inside
    answer = ask(mount, "info", {"paths": [inside]}, timeout=TIMEOUT)
    found: Found = answer["found"][0]
    return {"mountpoint": os.fspath(mount.mountpoint), **found}


def _real(path: str) -> Path:
    """The real path of a name, which may be a link itself."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # "x/.." is what the shell shows
    return absolute.parent.resolve() / absolute.name


def _describe(found: Found) -> str:
    """Describe one path, in lines."""
    lines = [printable(found["path"])]
    lines += [f"  {title:<10}{text}" for title, text in rows(found)]
    if sys.stdout.isatty():
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    return "\n".join(lines)
