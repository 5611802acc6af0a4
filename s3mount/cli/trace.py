"""``s3mount trace``: what programs do on a mount as it happens, and what that asks of the store."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3mount.cli.arguments import Parser
from s3mount.cli.asking import ask, mount_around, own_mounts, seconds_of
from s3mount.cli.tracetext import lines
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, find_mount
from s3mount.values import canonical

EPILOG = """\
A line for each operation: when it came, what it was, the path from the mount
point on, its result, how long it took, and who asked. Below it are the requests
to the store that it has caused, each with the status and the request id that
the operator of the store can look up. Requests that nobody waited for
(read-ahead, uploads after a close) come when they end, with the operation they
were made for. Reads and writes are told of whoever opened the file.

  s3mount trace /mnt/data --slow 100         what takes 100 ms or more
  s3mount trace --path 'logs/*.gz' --json    for programs, a line an event

A mount never waits for who watches it: what comes too fast is left out, and
counted. Nothing is traced, and nothing costs time, while nobody watches.

Exit codes: 0 stopped by Ctrl-C, or the mount has ended; 1 wrong usage; 32 there
is no such mount."""


class Show:
    """Prints what comes, and counts it."""

    def __init__(self, *, as_json: bool, colours: bool) -> None:
        self._as_json = as_json
        self._colours = colours
        self.operations = self.requests = self.dropped = 0

    def show(self, news: Mapping[str, Any]) -> None:
        """Print some events, and how many were left out before them."""
        for event in news["events"]:
            self.operations += not event.get("late")
            self.requests += len(event["requests"])
            self._print(event)
        if news["dropped"] > self.dropped:
            self._tell_dropped(news["dropped"] - self.dropped)
            self.dropped = news["dropped"]
        sys.stdout.flush()

    def _print(self, event: Mapping[str, Any]) -> None:
        if self._as_json:
            print(json.dumps(event))
            return
        for line in lines(event, colours=self._colours):
            print(line)

    def _tell_dropped(self, count: int) -> None:
        if self._as_json:
            print(json.dumps({"dropped": count}))
        else:
            print(f"... {count:,} events are left out: they came faster than they were read")

    def summary(self) -> str:
        """What has been shown in all."""
        dropped = f", {self.dropped:,} left out" if self.dropped else ""
        return f"{self.operations:,} operations, {self.requests:,} requests{dropped}"


def main(arguments: Sequence[str]) -> int:
    """Show what happens until Ctrl-C, and return the exit code."""
    parsed = parser().parse_args(arguments)
    slow = _slow(parsed.slow)
    mount = _chosen(parsed.mountpoint)
    show = Show(as_json=parsed.json, colours=sys.stdout.isatty())
    if sys.stderr.isatty():
        print(f"tracing {mount.source} at {mount.mountpoint}, until Ctrl-C", file=sys.stderr)
    try:
        ask(mount, "trace", {"path": parsed.path, "slow": slow}, progress=show.show)
    except KeyboardInterrupt:
        pass
    except MountError:
        if find_mount(mount.mountpoint) is not None:
            raise
        print(f"s3mount: {mount.mountpoint} is unmounted", file=sys.stderr)
    print(f"s3mount: {show.summary()}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount trace",
        description="Shows what programs do on a mount, as it happens, and what it asks of S3.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        nargs="?",
        help="[the mount that this directory is in, or the only one there is]",
    )
    parser.add_argument(
        "--path",
        metavar="GLOB",
        default="",
        help="only what is about such paths; '*' stands for slashes, too [all]",
    )
    parser.add_argument(
        "--slow", metavar="MS", default="0", help="only what takes so many milliseconds [0]"
    )
    parser.add_argument("--json", action="store_true", help="print each event as a line of JSON")
    return parser


def _slow(text: str) -> float:
    """The seconds that ``--slow`` means: a bare number counts milliseconds."""
    return seconds_of("slow", f"{text}ms" if text.replace(".", "", 1).isdecimal() else text)


def _chosen(mountpoint: str | None) -> Mount:
    if mountpoint is not None:
        mount = find_mount(canonical(mountpoint))
        if mount is None or mount.type != FILE_SYSTEM_TYPE:
            raise MountError(f"{mountpoint} is not a mount of s3mount")
        return mount
    here = mount_around(Path.cwd())
    if here is not None:
        return here
    found = own_mounts()
    if len(found) == 1:
        return found[0]
    if not found:
        raise MountError("nothing is mounted")
    names = ", ".join(str(mount.mountpoint) for mount in found[:5])
    raise MountError(f"there are several mounts: say which ({names})", 1)
