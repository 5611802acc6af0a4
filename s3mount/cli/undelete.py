"""``s3mount undelete PATH...``: makes an older version of a file the newest one again."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from s3mount.cli.arguments import Parser
from s3mount.cli.past import Progress, ask, moment, shown
from s3mount.options import OptionError
from s3mount.values import MOMENT

EPILOG = """\
The mark that S3 leaves for a deletion is removed, and the version below it is
the newest again.  Where that is not enough (--version names one that others came
after) or not allowed, the version is copied on the server, as a new one.

A directory (-r) gets back all that was ever deleted below it; --since leaves
alone what was deleted before that.

Exit codes: 0 done; 1 wrong usage; 32 something was not brought back."""

_CLEAR_LINE = "\r\x1b[K"


def main(arguments: Sequence[str]) -> int:
    """Bring files back, say what was done, and return the exit code."""
    parsed = parser().parse_args(arguments)
    if parsed.version is not None and (parsed.recursive or len(parsed.path) > 1):
        raise OptionError("--version is for one file")
    if parsed.since is not None and not parsed.recursive:
        raise OptionError("--since is for directories (-r)")
    words: dict[str, object] = {"recursive": parsed.recursive, "version": parsed.version}
    words["since_ns"] = _since(parsed.since)
    failed = done = 0
    for path in parsed.path:
        for outcome in ask(path, "undelete", progress=_progress(), **words)["outcomes"]:
            failed += bool(outcome["error"])
            done += not outcome["error"]
            name = outcome["key"] if parsed.recursive else path
            stream = sys.stderr if outcome["error"] else sys.stdout
            print(f"{shown(name)}: {_said(outcome)}", file=stream)
    if parsed.recursive and not failed and not done:
        print("nothing was deleted there" + (" since then" if parsed.since else ""))
    return 32 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of ``s3mount undelete``."""
    parser = Parser(
        prog="s3mount undelete",
        description="Brings deleted files back, and older versions of files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", nargs="+", help="a path in a mount of s3mount")
    parser.add_argument("-r", "--recursive", action="store_true", help="directories, whole")
    parser.add_argument(
        "--version", metavar="ID", help="the version that is wanted [the last before the deletion]"
    )
    parser.add_argument(
        "--since", metavar="TIME", help="with -r, only what was deleted since then, such as 2h"
    )
    return parser


def _since(text: str | None) -> int:
    if text is None:
        return 0
    try:
        moment_ns = int(str(MOMENT.parse(text)))
    except ValueError as error:
        raise OptionError(f"option since: {text!r} is not {MOMENT.expected}") from error
    # A whole second means its end there, and its beginning here.
    return moment_ns if (moment_ns + 1) % 1_000_000_000 else moment_ns - 999_999_999


def _said(outcome: Mapping[str, Any]) -> str:
    if outcome["error"]:
        return shown(outcome["error"])
    version = outcome["version"]
    which = f"the version of {moment(version['time'])} ({shown(version['version'])})"
    if outcome["copied"]:
        return f"{which} is copied back"
    marks = "its deletion is" if outcome["markers"] == 1 else f"{outcome['markers']} deletions are"
    return f"{marks} undone, {which} is the newest again"


def _progress() -> Progress | None:
    if not sys.stderr.isatty():
        return None

    def show(news: Mapping[str, Any]) -> None:
        sys.stderr.write(f"{_CLEAR_LINE}{news['files']:,} files")
        sys.stderr.flush()

    return show
