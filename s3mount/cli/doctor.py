"""``s3mount doctor [BUCKET]``: what is good, weak or bad on this machine, and in the store."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from s3mount.cli.arguments import Parser, parse_arguments
from s3mount.cli.statustext import printable
from s3mount.diagnosis import BAD, GOOD, WEAK, Finding
from s3mount.machinecheck import check_machine

EPILOG = """\
OPTIONS are those of a mount, such as --endpoint-url, --profile or -o ...: what they
lead to is what is looked at.  In the bucket, keys under .s3mount/ are made and removed.
What was found out about the store is used by the mounts of the next 24 hours, which
then need not try it themselves (state directory: option state-dir).

Exit codes: 0 nothing is bad; 1 wrong usage; 32 something is bad."""

_MARKS = {GOOD: ("ok", "32"), WEAK: ("weak", "33"), BAD: ("bad", "31")}


def main(arguments: Sequence[str]) -> int:
    """Look at everything, print it, and return the exit code."""
    if set(arguments) & {"-h", "--help"}:
        parser().print_help()
        return 0
    rest = [argument for argument in arguments if argument != "--json"]
    # A mount point is of no interest; that of a command line that was copied is no mistake.
    config = parse_arguments([*rest, "-o", "mountpoint=/"])[0] if rest else None
    machine = list(check_machine())
    store: Sequence[Finding] = []
    if config is not None:
        # Imported here: a look at the machine needs no event loop.
        from s3mount.cli.doctoring import check

        store = check(config)
    if len(rest) < len(arguments):
        groups = {"machine": machine, "store": store}
        found = {name: [asdict(one) for one in group] for name, group in groups.items()}
        print(json.dumps(found, indent=2))
    else:
        _print("This machine", machine)
        if config is not None:
            _print(f"The store of {config.bucket}", store)
    return 32 if any(finding.level == BAD for finding in [*machine, *store]) else 0


def parser() -> argparse.ArgumentParser:
    """The parser for the help; the arguments are those of a mount, but for ``--json``."""
    parser = Parser(
        prog="s3mount doctor",
        usage="s3mount doctor [--json] [BUCKET[/PREFIX] [OPTIONS]]",
        description="Looks at this machine and at a store, and says what s3mount makes of it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bucket", metavar="BUCKET", nargs="?", help="what would be mounted")
    parser.add_argument("--json", action="store_true", help="print it for programs")
    return parser


def _print(title: str, findings: Sequence[Finding]) -> None:
    print(f"{title}:")
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark, color = _MARKS[finding.level]
        mark = f"{mark:<5}"
        if sys.stdout.isatty():
            mark = f"\x1b[{color}m{mark}\x1b[0m"
        means = f": {finding.means}" if finding.means else ""
        print(f"  {mark} {finding.subject:<{width}}  {printable(finding.found + means)}")
