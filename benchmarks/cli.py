"""The command ``scripts/bench``: what to run, where, and what to do with the result."""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, report, server
from benchmarks.data import FULL, QUICK, through_proxy
from benchmarks.objects import Bucket
from benchmarks.processes import REPOSITORY
from benchmarks.proxy_process import ProxyProcess
from benchmarks.results import Table
from benchmarks.runner import Runner
from benchmarks.systems import SYSTEMS, System
from benchmarks.workloads import WORKLOADS, DataSets

RESULTS_FILE = REPOSITORY / "benchmarks" / "RESULTS.md"
README_FILE = REPOSITORY / "README.md"
BUCKET_NAME = "benchmark"
DELAY_MS = 10.0
RATE = 90e6  # bytes per second
DISK_NEEDED = 8 << 30  # bytes, for caches and staging files
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the benchmark as the command line says."""
    arguments = _parser().parse_args()
    problem = _problem(arguments)
    if problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    for number in END_SIGNALS:
        signal.signal(number, _stop)
    try:
        program = server.find_program(arguments.server)
    except FileNotFoundError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    systems = [SYSTEMS[name] for name in arguments.systems]
    with (
        _work_folder(arguments.work) as work,
        server.running(program, work / "server.log") as running,
    ):
        tables = _measure(arguments, running, work, systems)
        facts = machine.describe(running, systems)
    _publish(arguments, tables, facts)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, each run once")
    parser.add_argument(
        "--only", type=_choices(WORKLOADS), default=list(WORKLOADS), metavar="WORKLOAD,..."
    )
    parser.add_argument(
        "--systems", type=_choices(SYSTEMS), default=list(SYSTEMS), metavar="SYSTEM,..."
    )
    parser.add_argument("--repeat", type=int, metavar="N", help="best of N (3; 1 if quick)")
    parser.add_argument(
        "--proxy-repeat", type=int, metavar="N", help="the same for the proxy (as --repeat)"
    )
    parser.add_argument("--direct", action="store_true", help="only directly to the server")
    parser.add_argument("--proxy", action="store_true", help="only through the latency proxy")
    parser.add_argument("--server", choices=["auto", "minio", "weed"], default="auto")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="folder for caches"
    )
    parser.add_argument(
        "--write-results", action="store_true", help="write RESULTS.md and the table in README.md"
    )
    return parser


def _choices(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _problem(arguments: argparse.Namespace) -> str | None:
    """Why nothing can be measured here, in one line."""
    if arguments.write_results and not report.has_marks(README_FILE):
        return f"{README_FILE} has no {report.BEGIN_MARK} ... {report.END_MARK} to fill"
    return _lack(arguments.work)


def _lack(work: Path) -> str | None:
    """What this machine lacks for mounting, in one line."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or may not be used"
    if not shutil.which("fusermount3"):
        return "fusermount3 is missing (apt-get install fuse3)"
    if not work.is_dir():
        return f"{work} is not a folder"
    if shutil.disk_usage(work).free < DISK_NEEDED:
        return f"{work} has less than {DISK_NEEDED >> 30} GiB free: name another with --work"
    return None


def _stop(number: int, _frame: object) -> None:
    """End in order: the clean-up runs once, and no second signal cuts it short."""
    for other in END_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    """A folder for this run, without symbolic links, as the kernel's mount table shows it."""
    folder = Path(tempfile.mkdtemp(prefix="s3mount-bench-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a work folder without ever walking into something that is mounted there."""
    device = folder.stat().st_dev
    for mountpoint in folder.glob("run-*/mount"):
        with contextlib.suppress(OSError):
            if mountpoint.stat().st_dev != device:
                print(f"bench: {mountpoint} is still mounted", file=sys.stderr)
                return
    shutil.rmtree(folder, ignore_errors=True)


def _measure(
    arguments: argparse.Namespace, running: server.Server, work: Path, systems: Sequence[System]
) -> list[Table]:
    scale = QUICK if arguments.quick else FULL
    repeats = arguments.repeat or (1 if arguments.quick else 3)
    workloads = [WORKLOADS[name] for name in arguments.only]
    bucket = Bucket(running, BUCKET_NAME)
    bucket.create()
    data_sets = DataSets(bucket, scale)
    tables = []
    if arguments.direct or not arguments.proxy:
        runner = Runner(running, bucket, data_sets, scale, work, None)
        tables.append(runner.measure(workloads, systems, repeats))
    if arguments.proxy or not arguments.direct:
        proxy = ProxyProcess(running.port, work / "traffic", DELAY_MS, RATE)
        try:
            runner = Runner(running, bucket, data_sets, through_proxy(scale), work, proxy)
            repeats = arguments.proxy_repeat or repeats
            tables.append(runner.measure(workloads, systems, repeats))
        finally:
            proxy.stop()
    return tables


def _publish(arguments: argparse.Namespace, tables: Sequence[Table], facts: dict[str, str]) -> None:
    command = shlex.join(["scripts/bench", *sys.argv[1:]])
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    text = report.full_report(tables, facts, command, day)
    print(text)
    if arguments.write_results:
        RESULTS_FILE.write_text(text)
        report.fill_readme(README_FILE, tables)
