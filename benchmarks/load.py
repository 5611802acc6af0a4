"""The program that works on a mount: a process of its own, told by JSON, answering in JSON.

The loops are lean, so that the machine measures the mount: on a memory file system one thread
opens, reads and closes 190,000 small files a second, sixteen 90,000, with 5 and 15 us of CPU
each, a small part of what any mount takes.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.data import (
    APPEND_SIZE,
    LISTED_MTIME,
    MIB,
    PAGE_SIZE,
    PATCH_SIZE,
    SMALL_SIZE,
    page_number,
    small_name,
    stamped,
)
from benchmarks.meter import LoadReport, Meter

RANDOM_SEED = 20
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class WrongData(Exception):
    """A mount answered with something else than what is stored."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a load process is told: which load, where, how much, and whom to watch.

    `count` is a number of files or entries, `size` that of a file in bytes; a load with a
    `time_box` stops after so many seconds; `statistics` is the proxy's file of counters, and
    `scratch` a directory on the disk where the mount has its own files.
    """

    load: str
    directory: str
    daemon: int
    server: int
    statistics: str | None
    count: int
    size: int
    threads: int
    time_box: float
    archive: str
    scratch: str

    def as_json(self) -> str:
        """The job as the argument of a load process."""
        return json.dumps(asdict(self))


def read_file(job: Job, meter: Meter) -> None:
    """Read a large file three times: cold, again at once, and again after close and open."""
    path = f"{job.directory}/file"
    with contextlib.ExitStack() as stack:
        with meter.phase("cold") as phase:
            descriptor = stack.enter_context(_opened(path, os.O_RDONLY))
            phase.amount = _read_through(descriptor, job.size)
        with meter.phase("second") as phase:
            os.lseek(descriptor, 0, os.SEEK_SET)
            phase.amount = _read_through(descriptor, job.size)
    with meter.phase("reopened") as phase, _opened(path, os.O_RDONLY) as descriptor:
        phase.amount = _read_through(descriptor, job.size)


def read_file_once(job: Job, meter: Meter) -> None:
    """Read a large file, as the first or the second mount of a disk cache does."""
    path = f"{job.directory}/file"
    with meter.phase("read") as phase, _opened(path, os.O_RDONLY) as descriptor:
        phase.amount = _read_through(descriptor, job.size)


def _read_through(descriptor: int, size: int) -> int:
    """Read to the end in pieces of 1 MiB, and check one page number in each."""
    buffer = bytearray(MIB)
    position = 0
    while count := os.readv(descriptor, [buffer]):
        if position % PAGE_SIZE == 0 and page_number(buffer) != position // PAGE_SIZE:
            raise WrongData(f"wrong bytes at {position}")
        position += count
    if position != size:
        raise WrongData(f"the file ended at {position} instead of {size}")
    return position


def write_file(job: Job, meter: Meter) -> None:
    """Write a large file in pieces of 1 MiB, sync and close it."""
    path = f"{job.directory}/file"
    with meter.phase("write") as phase, _opened(path, NEW_FILE) as descriptor:
        phase.amount = _write_through(descriptor, job.size)
        os.fsync(descriptor)


def write_behind(job: Job, meter: Meter) -> None:
    """Write a large file, first to the disk of the journal with fsync, then to the mount.

    The figure is how many times longer the mount took until close had returned.
    """
    began = time.perf_counter()
    local = f"{job.scratch}/copy"
    with _opened(local, NEW_FILE) as descriptor:
        _write_through(descriptor, job.size)
        os.fsync(descriptor)
    seconds = time.perf_counter() - began
    Path(local).unlink()
    with meter.phase("write") as phase, _opened(f"{job.directory}/file", NEW_FILE) as descriptor:
        phase.amount = _write_through(descriptor, job.size)
    meter.note("ratio", phase.seconds / seconds)


def write_pieces(job: Job, meter: Meter) -> None:
    """Write a file in pieces of 4 KiB and close it."""
    piece = bytes(stamped(PAGE_SIZE, 0))
    path = f"{job.directory}/file"
    with meter.phase("write") as phase, _opened(path, NEW_FILE) as descriptor:
        for _ in range(job.size // PAGE_SIZE):
            phase.amount += os.write(descriptor, piece)


def _write_through(descriptor: int, size: int) -> int:
    """Write *size* bytes in pieces of 1 MiB."""
    piece, written = stamped(MIB, 0), 0
    for number in range(size // MIB):
        piece[:8] = (number * (MIB // PAGE_SIZE)).to_bytes(8, "little")
        written += _write_all(descriptor, piece)
    return written


def _write_all(descriptor: int, piece: bytearray) -> int:
    written = os.write(descriptor, piece)
    if written != len(piece):
        raise WrongData(f"only {written} of {len(piece)} bytes were taken")
    return written


def read_random(job: Job, meter: Meter) -> None:
    """Read pages of 4 KiB from all over a large file, none twice, each thread its share."""
    pages = random.Random(RANDOM_SEED).sample(range(job.size // PAGE_SIZE), job.count)
    path = f"{job.directory}/file"
    counts = [0] * job.threads

    def read(index: int) -> None:
        buffer = bytearray(PAGE_SIZE)
        for page in pages[index :: job.threads]:
            if time.monotonic() >= deadline:
                return
            os.preadv(descriptors[index], [buffer], page * PAGE_SIZE)
            if page_number(buffer) != page:
                raise WrongData(f"wrong bytes in page {page}")
            counts[index] += 1

    with contextlib.ExitStack() as stack:
        descriptors = [stack.enter_context(_opened(path, os.O_RDONLY)) for _ in range(job.threads)]
        deadline = time.monotonic() + job.time_box
        with meter.phase("read") as phase:
            _in_threads(job.threads, read)
            phase.amount = sum(counts)


def list_long(job: Job, meter: Meter) -> None:
    """List a directory with ``ls -l``, and look whether it showed what is stored."""
    with meter.phase("list") as phase:
        output = _run("ls", "-l", job.directory)
        phase.amount = job.count
    lines = output.count(b"\n") - 1  # the first line is the total
    if lines != job.count:
        raise WrongData(f"{lines} entries instead of {job.count}")
    sample = f"{job.directory}/{small_name(job.count // 2)}"
    meter.attributes_shown = int(Path(sample).stat().st_mtime) == LISTED_MTIME


def list_names(job: Job, meter: Meter) -> None:
    """List the names of a large directory, and note when the first arrives."""
    with meter.phase("list") as phase:
        begin = time.perf_counter()
        with os.scandir(job.directory) as entries:
            next(entries)
            first = time.perf_counter() - begin
            phase.amount = 1 + sum(1 for _ in entries)
    meter.note("first", first)
    if phase.amount != job.count:
        raise WrongData(f"{phase.amount:.0f} names instead of {job.count}")


def read_small_files(job: Job, meter: Meter) -> None:
    """Open, read and close many small files."""

    def read(name: str) -> None:
        with _opened(f"{job.directory}/{name}", os.O_RDONLY) as descriptor:
            size = len(os.read(descriptor, 65536))
        if size != SMALL_SIZE:
            raise WrongData(f"{name} has {size} bytes")

    _for_each_file(job, meter, read)


def create_small_files(job: Job, meter: Meter) -> None:
    """Create, write and close many small files."""
    body = bytes(stamped(SMALL_SIZE, 0))

    def create(name: str) -> None:
        with _opened(f"{job.directory}/{name}", NEW_FILE) as descriptor:
            os.write(descriptor, body)

    _for_each_file(job, meter, create)


def _for_each_file(job: Job, meter: Meter, action: Callable[[str], None]) -> None:
    """Let threads share the files among them, until all are done or the time is up."""
    names = iter([small_name(number) for number in range(job.count)])
    counts = [0] * job.threads

    def work(index: int) -> None:
        while time.monotonic() < deadline and (name := next(names, None)) is not None:
            action(name)
            counts[index] += 1

    deadline = time.monotonic() + job.time_box
    with meter.phase("files") as phase:
        _in_threads(job.threads, work)
        phase.amount = sum(counts)


def rename_directory(job: Job, meter: Meter) -> None:
    """Rename a directory that is full of files."""
    with meter.phase("rename") as phase:
        Path(job.directory, "old").rename(f"{job.directory}/new")
        phase.amount = job.count


def remove_tree(job: Job, meter: Meter) -> None:
    """Remove a tree with ``rm -r``."""
    with meter.phase("remove") as phase:
        _run("rm", "-r", f"{job.directory}/tree")
        phase.amount = job.count


def unpack(job: Job, meter: Meter) -> None:
    """Unpack an archive of small files with tar."""
    Path(job.archive).read_bytes()  # from now on it is in memory
    with meter.phase("unpack") as phase:
        _run("tar", "-xf", job.archive, "-C", job.directory)
        phase.amount = job.count


def append(job: Job, meter: Meter) -> None:
    """Append 1 KiB to a large file."""
    path = f"{job.directory}/file"
    with meter.phase("change") as phase, _opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        phase.amount = os.write(descriptor, bytes(APPEND_SIZE))


def patch(job: Job, meter: Meter) -> None:
    """Overwrite 4 KiB in the middle of a large file."""
    path = f"{job.directory}/file"
    with meter.phase("change") as phase, _opened(path, os.O_WRONLY) as descriptor:
        phase.amount = os.pwrite(descriptor, bytes(PATCH_SIZE), job.size // 2)


class _opened:  # noqa: N801 - reads like the context manager that it is
    """Open a file and close it at the end; less work than a generator, for it is timed."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: str, flags: int) -> None:
        self._descriptor = os.open(path, flags, 0o644)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _run(*command: str) -> bytes:
    """Run an ordinary program and return its output."""
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def _in_threads(count: int, action: Callable[[int], None]) -> None:
    """Run *action* once in each of *count* threads, and raise the first of their errors."""
    failures: list[Exception] = []

    def guarded(index: int) -> None:
        try:
            action(index)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


LOADS: Mapping[str, Callable[[Job, Meter], None]] = {
    load.__name__: load
    for load in (
        read_file,
        read_file_once,
        write_file,
        write_behind,
        write_pieces,
        read_random,
        list_long,
        list_names,
        read_small_files,
        create_small_files,
        rename_directory,
        remove_tree,
        unpack,
        append,
        patch,
    )
}


def main() -> int:
    """Do the job that the first argument describes, and print the report."""
    job = Job(**json.loads(sys.argv[1]))
    meter = Meter(job.daemon, job.server, Path(job.statistics) if job.statistics else None)
    try:
        os.stat(job.directory)  # noqa: PTH116 - a path that is a str stays one here
        LOADS[job.load](job, meter)
        if not all(phase.amount for phase in meter.phases):
            raise WrongData("nothing was done in time")
    except (OSError, WrongData) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(LoadReport(tuple(meter.phases), meter.attributes_shown).as_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
