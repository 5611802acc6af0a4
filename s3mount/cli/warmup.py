"""``s3mount warmup PATH...``: fetches what will be needed, so that later reads find it cached."""

import argparse
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from s3mount.cli.arguments import Parser, number
from s3mount.cli.asking import mount_of
from s3mount.cli.statustext import describe_time, printable
from s3mount.cli.umount import describe_size
from s3mount.values import canonical

EPILOG = """\
Names, sizes and attributes are fetched with listings, and the bytes of files by
reading them.  They stay in the cache on disk (option cache) over remounts, as
far as it is large enough; without one they stay in memory, for as long as
nothing else needs it.

Exit codes: 0 all was read; 1 wrong usage; 8 interrupted; 32 something could not
be read."""

PIECE = 1 << 20  # bytes of one read, as many as the kernel asks for at once
JOBS = 8
PAUSE = 0.5  # seconds between two looks at the progress
_BAR = 24  # characters
_CLEAR_LINE = "\r\x1b[K"


class Meter:
    """How far it is: counted by many threads, shown by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._reading_since = time.monotonic()
        self.files = self.bytes = self.done = 0
        self.failures: list[str] = []

    def start_reading(self) -> None:
        """From now on bytes are read: the time before that says nothing of how fast."""
        self._reading_since = time.monotonic()

    def found(self, size: int) -> None:
        """Count a file that is to be read."""
        self.files += 1
        self.bytes += size

    def read(self, size: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self.done += size

    def failed(self, path: str, error: OSError) -> None:
        """Take note of what could not be read."""
        with self._lock:
            self.failures.append(f"{printable(path)}: {error.strerror}")

    def line(self) -> str:
        """A bar, what is done and how fast, and how long it will take."""
        share = min(1.0, self.done / self.bytes) if self.bytes else 1.0
        seconds = max(time.monotonic() - self._reading_since, 0.001)
        rate = self.done / seconds
        left = f", {describe_time((self.bytes - self.done) / rate)} left" if rate else ""
        bar = ("#" * round(share * _BAR)).ljust(_BAR, "-")
        done, total = describe_size(self.done), describe_size(self.bytes)
        return f"[{bar}] {share:4.0%}  {done} of {total}, {describe_size(rate)}/s{left}"

    def looking(self) -> str:
        """How much was found so far, while nobody can say how much there will be."""
        seconds = max(time.monotonic() - self._began, 0.001)
        names = f"{self.files:,} files, {describe_size(self.bytes)}"
        return f"looking: {names}, {self.files / seconds:,.0f} files/s"

    def summary(self) -> str:
        """What has been done in all."""
        seconds = time.monotonic() - self._began
        count = "1 file" if self.files == 1 else f"{self.files:,} files"
        return f"{count}, {describe_size(self.done)} in {describe_time(seconds)}"


def main(arguments: Sequence[str]) -> int:
    """Fetch, and return the exit code."""
    parsed = parser().parse_args(arguments)
    for path in parsed.path:
        mount_of(canonical(path))  # Reading a whole disk would help nobody.
    meter = Meter()
    files = _find_all(parsed.path, meter)
    if not parsed.metadata_only:
        _read_all(files, parsed.jobs, meter)
    for failure in meter.failures:
        print(f"s3mount: {failure}", file=sys.stderr)
    print(meter.summary())
    return 32 if meter.failures else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount warmup",
        description="Fetches files and directories into the caches.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", nargs="+", help="in a mount of s3mount")
    parser.add_argument("--metadata-only", action="store_true", help="names and attributes only")
    parser.add_argument(
        "-j",
        "--jobs",
        type=number(1, 64, int),
        default=JOBS,
        metavar="NUMBER",
        help=f"files at once [{JOBS}]",
    )
    return parser


def _find_all(paths: Sequence[str], meter: Meter) -> Sequence[str]:
    """Return all files below *paths*; on a terminal it is told how many there are by now."""
    shown = sys.stderr.isatty()
    files: list[str] = []
    told = time.monotonic()
    try:
        for path in _all_files(paths, meter):
            files.append(path)
            if shown and time.monotonic() - told >= PAUSE:
                told = time.monotonic()
                _show(meter.looking())
    finally:
        if shown:
            _show("")
    return files


def _show(line: str) -> None:
    sys.stderr.write(_CLEAR_LINE + line)
    sys.stderr.flush()


def _all_files(paths: Sequence[str], meter: Meter) -> Iterator[str]:
    """Yield the regular files below *paths*, with their attributes fetched."""
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        try:
            status = Path(path).stat()
            if stat.S_ISREG(status.st_mode):
                meter.found(status.st_size)
                yield path
            elif stat.S_ISDIR(status.st_mode):
                waiting += _below(path)
        except OSError as error:
            meter.failed(path, error)


def _below(path: str) -> list[str]:
    """Return what is in a directory, last first, without following links."""
    with os.scandir(path) as entries:
        return sorted((one.path for one in entries if not one.is_symlink()), reverse=True)


def _read_all(files: Sequence[str], jobs: int, meter: Meter) -> None:
    shown = sys.stderr.isatty()
    meter.start_reading()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_read, path, meter) for path in files}
        try:
            while waiting:
                waiting -= _finished(waiting)
                if shown:
                    _show(meter.line())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            if shown:
                _show("")


def _finished(waiting: set[Future[None]]) -> set[Future[None]]:
    done, _ = wait(waiting, PAUSE)
    for future in done:
        future.result()
    return done


def _read(path: str, meter: Meter) -> None:
    buffer = bytearray(PIECE)
    try:
        with Path(path).open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                meter.read(size)
    except OSError as error:
        meter.failed(path, error)
