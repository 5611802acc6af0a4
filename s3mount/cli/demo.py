"""``s3mount demo``: shows s3mount on this machine, with an S3 server of its own."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from s3mount.cli.arguments import Parser
from s3mount.demo.stage import put_on
from s3mount.demo.terminal import Terminal

DESCRIPTION = """\
Starts a SeaweedFS server on 127.0.0.1, makes a bucket, mounts it, shows with
ordinary programs and with boto3 that it works, and stays until Ctrl-C; then
unmounts it and stops the server.  Nothing is left but what --dir keeps."""

EPILOG = """\
Without a terminal, or with DEMO_ONCE=1 in the environment, it is as with --once.

Exit codes: 0 all was as it has to be; 1 a step failed (it says which)."""


def main(arguments: Sequence[str]) -> int:
    """Show the demo and return the exit code."""
    parsed = parser().parse_args(arguments)
    terminal = Terminal(sys.stdout)
    once = parsed.once or os.environ.get("DEMO_ONCE", "") not in ("", "0")
    stays = terminal.is_interactive and not once
    return put_on(parsed.dir, terminal, stays=stays)


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="where data and mount point go, to be found again next time [a temporary directory]",
    )
    parser.add_argument(
        "--once", action="store_true", help="make the tour, check each step, and end"
    )
    return parser
