"""``s3mount status``: all mounts of this machine, as their daemons describe them."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from s3mount.cli.arguments import Parser, number
from s3mount.cli.statustext import describe, describe_all
from s3mount.controlclient import Connection, ControlError, NoDaemon, all_sockets, find_socket
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, all_mounts
from s3mount.options import OptionError
from s3mount.values import canonical

EPILOG = """\
Exit codes: 0 every mount answers; 1 wrong usage; 32 one does not answer, or is not there.

What requests cost is an estimate: list prices of AWS S3 Standard in us-east-1,
without data transfer; other stores have other prices, or none."""

TIMEOUT = 2.0  # seconds for a daemon to answer
AT_ONCE = 64  # Daemons that are asked; they may all hang.
STATE, ERROR = "state", "error"
FINE = ("serving", "ending", "not yours")

Status = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Show the state of mounts, and return the exit code."""
    parsed = parser().parse_args(arguments)
    if parsed.watch and parsed.json:
        raise OptionError("--watch and --json exclude each other")
    chosen = [canonical(path) for path in parsed.mountpoint]
    if parsed.watch:
        return _watch(chosen, parsed.interval)
    found = gather(chosen)
    if parsed.json:
        print(json.dumps({"mounts": found}, indent=2))
    else:
        print(describe_all(found, time.time()))
    return 0 if all(status[STATE] in FINE for status in found) else 32


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount status",
        description="Shows the mounts of this machine: all of them to root, others their own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="*", help="only these")
    parser.add_argument("-w", "--watch", action="store_true", help="go on showing, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print everything, for programs")
    parser.add_argument(
        "--interval",
        type=number(0.1, 3600),
        default=2.0,
        metavar="SECONDS",
        help="for --watch [2]",
    )
    return parser


def gather(chosen: Sequence[Path]) -> list[Status]:
    """Ask all daemons at once, or those that were *chosen*.

    Raises `MountError` when a mount that was chosen is not there.
    """
    mounts = {
        mount.mountpoint: mount
        for mount in all_mounts()
        if mount.type == FILE_SYSTEM_TYPE and (not chosen or mount.mountpoint in chosen)
    }
    asked: set[Path] = set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda mount: _ask_mount(mount, asked), mounts.values()))
        # Those whose mounts are gone, and that still upload.
        others = [path for path in all_sockets(chosen) if path not in asked]
        found += [status for status in pool.map(_ask_socket, others) if status]
    if chosen:
        there = {Path(status["mountpoint"]) for status in found}
        for path in chosen:
            if path not in there:
                raise MountError(f"{path} is not a mount of s3mount")
    return sorted(found, key=lambda status: str(status["mountpoint"]))


def _ask_mount(mount: Mount, asked: set[Path]) -> Status:
    """What the daemon of a mount says; its socket is added to those that were *asked*."""
    known = {"source": mount.source, "mountpoint": os.fspath(mount.mountpoint)}
    if os.geteuid() not in (0, mount.owner):
        return {**known, STATE: "not yours"}
    try:
        path = find_socket(mount.mountpoint, mount.owner)
        if path is None:
            return {**known, STATE: "no daemon"}
        asked.add(path)
        return _ask(path)
    except NoDaemon:
        return {**known, STATE: "no daemon"}
    except ControlError as error:
        return {**known, STATE: "not answering", ERROR: str(error)}


def _ask_socket(path: Path) -> Status | None:
    """What the daemon behind a socket says; None when there is none, as after a crash."""
    try:
        return _ask(path)
    except ControlError:
        return None


def _ask(path: Path) -> Status:
    with Connection(path, timeout=TIMEOUT) as connection:
        answer = connection.ask("status", timeout=TIMEOUT)
    if not isinstance(answer, dict):
        raise ControlError("the daemon does not say how it is")
    if "rates" not in answer:
        return {**answer, STATE: "serving", ERROR: "the daemon is of another version"}
    return answer


def _watch(chosen: Sequence[Path], interval: float) -> int:
    """Show the state again and again, until Ctrl-C."""
    if not sys.stdout.isatty():
        while True:
            print(describe_all(gather(chosen), time.time()), flush=True)
            time.sleep(interval)
    try:
        # Imported here, because it takes 0.1 s, and may not be installed.
        from s3mount.cli.statusview import show
    except ImportError:
        show = _show_plainly
    try:
        show(lambda: gather(chosen), interval)
    except KeyboardInterrupt:
        return 0
    return 0


def _show_plainly(look: Callable[[], Sequence[Status]], interval: float) -> None:
    while True:
        text = "\n\n".join(describe(status, time.time()) for status in look())
        sys.stdout.write(f"\x1b[H\x1b[2J{text or 'nothing is mounted'}\n")
        sys.stdout.flush()
        time.sleep(interval)
