"""Runs workloads on systems, by turns, and keeps the best of each."""

import contextlib
import itertools
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from benchmarks import processes
from benchmarks.bare import BARE
from benchmarks.data import FULL, Scale, write_archive
from benchmarks.load import Job
from benchmarks.meter import LoadReport
from benchmarks.objects import Bucket
from benchmarks.proxy_process import ProxyProcess
from benchmarks.results import Cell, Table
from benchmarks.server import Server, endpoint_url
from benchmarks.systems import MountFailed, System, Target, last_words, mounted
from benchmarks.workloads import DataSets, Row, Workload

LOAD_PATIENCE = 240.0  # seconds; a workload that takes longer has failed
LONG_RUN = 30.0  # seconds; what takes longer is not repeated
MOST_TOUCHED = 2 << 30  # bytes
CACHE_REST = 6.0  # seconds; rclone notes what its cache holds 5 s after the last close
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

_run_numbers = itertools.count(1)


class LoadFailed(Exception):
    """A workload did not come to its end on a mount."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a workload on a system gave; memory is the daemon's peak in bytes."""

    report: LoadReport
    arrived: bool
    memory: int

    @property
    def is_long(self) -> bool:
        """Whether it took too long to be done again."""
        return sum(phase.seconds for phase in self.report.phases) > LONG_RUN

    def cell(self, row: Row) -> Cell:
        """What it says for one row."""
        phase = next(each for each in self.report.phases if each.name == row.phase)
        return Cell(
            best=phase,
            memory=self.memory,
            arrived=self.arrived,
            attributes_shown=self.report.attributes_shown,
        )


@dataclass(frozen=True, slots=True)
class Runner:
    """Measures over one way to the server: directly, or through *proxy*.

    *work* is a folder on local disk for mount points, caches and logs.
    """

    server: Server
    bucket: Bucket
    data_sets: DataSets
    scale: Scale
    work: Path
    proxy: ProxyProcess | None

    def measure(
        self, workloads: Sequence[Workload], systems: Sequence[System], repeats: int
    ) -> Table:
        """Run all *workloads* on all *systems*; a failure fills its cell and nothing else."""
        cells: dict[tuple[str, str], Cell] = {}
        for workload in workloads:
            self.data_sets.need(workload.data_set)
            able = [each for each in systems if each.has_writeback or not workload.writeback]
            for _ in range(repeats):
                for system in list(able):
                    outcome = self._try(workload, system)
                    _keep(cells, workload, system, outcome)
                    _tell(self._way, workload, system, outcome)
                    if isinstance(outcome, str) or outcome.is_long:
                        able.remove(system)
        bare = self._bare(workloads, repeats)
        return Table(self._way, [system.name for system in systems], cells, bare)

    def _bare(self, workloads: Sequence[Workload], repeats: int) -> dict[str, float]:
        """The figures of some rows when their requests are made without a file system."""
        rows = [(workload, row.key) for workload in workloads for row in workload.rows]
        wanted = [key for _, key in rows if key in BARE]
        if not wanted:
            return {}
        for workload, key in rows:
            if key in BARE:
                self.data_sets.need(workload.data_set)
        target = self._target(workloads[0], self.work / "bare")
        command = [sys.executable, "-m", "benchmarks.bare", "--url", target.url]
        command += ["--bucket", target.bucket, "--repeat", str(repeats)]
        command += ["--quick"] * (self.scale.large < FULL.large)
        environment = {**target.environment, "TMPDIR": str(self.work)}
        try:
            done = subprocess.run(
                [*command, *wanted],
                env=environment,
                cwd=processes.REPOSITORY,
                stdout=subprocess.PIPE,
                timeout=LOAD_PATIENCE,
                check=True,
            )
        except subprocess.SubprocessError as error:
            print(f"{self._way:7} bare      {error}", file=sys.stderr)
            return {}
        found: dict[str, float] = json.loads(done.stdout)
        print(f"{self._way:7} bare   {found}", file=sys.stderr)
        self.server.empty_wastebasket()
        return found

    @property
    def _way(self) -> str:
        return "proxy" if self.proxy else "direct"

    def _try(self, workload: Workload, system: System) -> Outcome | str:
        """Run a workload once on one system; return what it gave or why it failed."""
        try:
            return self._run(workload, system)
        except MountFailed as error:
            return f"no mount: {error}"
        except (LoadFailed, OSError) as error:
            return str(error)
        except (BotoCoreError, ClientError) as error:
            return f"the server, asked directly: {error}"

    def _run(self, workload: Workload, system: System) -> Outcome:
        folder = self.work / f"run-{next(_run_numbers)}"
        prefix = f"{folder.name}/" if workload.writes else workload.data_set
        target = self._target(workload, folder)
        target.mountpoint.mkdir(parents=True)
        target.scratch.mkdir()
        try:
            if workload.writes:
                self.bucket.put_small([prefix], b"")
            if workload.prepare:
                workload.prepare(self.bucket, prefix, self.scale)
            _drop_caches()
            outcomes = [
                self._run_load(workload, load, system, target, prefix) for load in workload.loads
            ]
            return outcomes[-1]
        finally:
            # Nothing recursive at the mount point: were it still mounted, that would empty
            # the bucket.
            shutil.rmtree(target.scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                target.mountpoint.rmdir()
            if workload.writes:
                self.bucket.delete(prefix)
                self.server.empty_wastebasket()

    def _target(self, workload: Workload, folder: Path) -> Target:
        return Target(
            bucket=self.bucket.name,
            url=endpoint_url(self.proxy.port) if self.proxy else self.server.url,
            server_name=self.server.name,
            credentials=self.server.credentials,
            mountpoint=folder / "mount",
            scratch=folder / "scratch",
            persistent=workload.persistent,
            writeback=workload.writeback,
        )

    def _run_load(
        self, workload: Workload, load: str, system: System, target: Target, prefix: str
    ) -> Outcome:
        """Do one load on a mount of its own."""
        with mounted(system, target) as daemon:
            job = self._job(workload, load, target, prefix, daemon)
            _touch_memory()
            report = _run_job(job, target)
            phase = report.phases[0]
            arrived = workload.arrived is None or workload.arrived(
                self.bucket, prefix, self.scale, phase
            )
            if workload.persistent:
                time.sleep(CACHE_REST)
            return Outcome(report, arrived, processes.peak_memory(daemon))

    def _job(self, workload: Workload, load: str, target: Target, prefix: str, daemon: int) -> Job:
        count = workload.count(self.scale)
        archive = self.work / f"archive-{count}.tar"
        if workload.needs_archive and not archive.exists():
            write_archive(archive, count)
        return Job(
            load=load,
            directory=str(target.mountpoint / prefix),
            scratch=str(target.scratch),
            daemon=daemon,
            server=self.server.process_id,
            statistics=str(self.proxy.statistics) if self.proxy else None,
            count=count,
            size=workload.size(self.scale),
            threads=workload.threads,
            time_box=self.scale.time_box,
            archive=str(archive),
        )


def _keep(
    cells: dict[tuple[str, str], Cell], workload: Workload, system: System, outcome: Outcome | str
) -> None:
    for row in workload.rows:
        place = row.key, system.name
        new = Cell(failure=outcome) if isinstance(outcome, str) else outcome.cell(row)
        cells[place] = cells[place].joined(new, row) if place in cells else new


def _tell(way: str, workload: Workload, system: System, outcome: Outcome | str) -> None:
    """Say on standard error how one run went: a whole table takes long."""
    if isinstance(outcome, str):
        text = outcome
    else:
        phases = {phase.name: phase for phase in outcome.report.phases}
        found = [(row.value(phases[row.phase]), row.unit) for row in workload.rows]
        text = ", ".join(f"{value:,.1f} {unit}" for value, unit in found)
    print(f"{way:<7} {workload.name:<9} {system.name:<8} {text}", file=sys.stderr, flush=True)


def _drop_caches() -> None:
    """Let nothing that was read before be in memory; where that is not allowed, so be it."""
    os.sync()
    with contextlib.suppress(OSError):
        DROP_CACHES.write_text("1")


def _touch_memory() -> None:
    """Make the first use of memory cost every system the same.

    A virtual machine hands memory that was free for a while back to its host; the first touch
    then takes up to seconds per GiB, which would be charged to whoever reads first.
    """
    size = min(MOST_TOUCHED, processes.available_memory() // 4)  # never at anybody's cost
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    with contextlib.closing(mmap.mmap(-1, max(size, mmap.PAGESIZE), flags)):
        pass


def _run_job(job: Job, target: Target) -> LoadReport:
    """Run a load in a process of its own, which cannot take us along when its mount hangs.

    When it fails, what the mount said last is often the reason.
    """
    process = processes.start_module("benchmarks.load", [job.as_json()], log=subprocess.PIPE)
    try:
        output, complaint = process.communicate(timeout=LOAD_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"not done after {LOAD_PATIENCE:.0f} s") from error
    finally:
        processes.end(process, patience=1.0)
    if process.returncode:
        lines = complaint.strip().splitlines() or [f"exit code {process.returncode}"]
        words = last_words(target)
        raise LoadFailed(f"{lines[-1]} (its log: {words})" if words else lines[-1])
    return LoadReport.from_json(json.loads(output))
