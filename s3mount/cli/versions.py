"""``s3mount versions PATH...``: what versions of files the bucket keeps."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s3mount.cli.arguments import Parser
from s3mount.cli.past import ask, moment, shown
from s3mount.cli.umount import describe_size
from s3mount.errors import MountError

EPILOG = """\
The newest comes first.  MOUNTPOINT/.s3mount/versions/PATH has the versions as
files; `s3mount undelete` makes one of them the newest.

Exit codes: 0 done; 1 wrong usage; 32 there are no versions."""

COLUMNS = ("TIME", "SIZE", "VERSION", "ETAG", "AUTHOR", "")
NUMBERS = frozenset({1})


def main(arguments: Sequence[str]) -> int:
    """Print the versions, and return the exit code."""
    parsed = parser().parse_args(arguments)
    answers = [_versions_of(path) for path in parsed.path]
    if parsed.json:
        found = zip(parsed.path, answers, strict=True)
        print(json.dumps([{"path": path, **answer} for path, answer in found], indent=2))
        return 0
    for path, answer in zip(parsed.path, answers, strict=True):
        if len(answers) > 1:
            print(f"{shown(path)}:")
        print(table([_row(version) for version in answer["versions"]]))
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of ``s3mount versions``."""
    parser = Parser(
        prog="s3mount versions",
        description="Shows what versions of a file the bucket keeps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="+", help="a file in a mount, also one that was deleted"
    )
    parser.add_argument("--json", action="store_true", help="print everything, for programs")
    return parser


def _versions_of(path: str) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = ask(path, "versions")
    if not answer["versions"]:
        raise MountError(f"{path}: there is no such file, and the bucket knows of none")
    return answer


def _row(version: Mapping[str, Any]) -> Sequence[str]:
    notes = [word for word in ("newest", "deleted") if version[word]]
    return (
        moment(version["time"]),
        "-" if version["deleted"] else describe_size(version["size"]),
        shown(version["version"]),
        shown(version["etag"]) or "-",
        shown(version["author"]) or "-",
        ", ".join(notes),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows below their titles, in columns; a column in which nothing is known is left out."""
    used = [i for i in range(len(COLUMNS)) if any(row[i] not in ("", "-") for row in rows)]
    lines = [[row[i] for i in used] for row in (COLUMNS, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number in NUMBERS else cell.ljust(width)
            for number, cell, width in zip(used, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
