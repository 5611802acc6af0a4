"""Times the phases of a load, with the CPU that the daemon used and what went over the wire."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.latency_proxy import Traffic, read_traffic


@dataclass(slots=True)
class Phase:
    """One timed stretch: how much was done (bytes, files, entries), and what it took.

    `cpu` is that of the daemon in seconds, `server_cpu` that of the server; `traffic` is known
    when there is a proxy.
    """

    name: str
    amount: float = 0.0
    seconds: float = 0.0
    cpu: float | None = None
    server_cpu: float | None = None
    traffic: Traffic | None = None


@dataclass(slots=True)
class Meter:
    """Collects the phases of one load on one mount."""

    daemon: int
    server: int
    statistics: Path | None
    phases: list[Phase] = field(default_factory=list)
    attributes_shown: bool = True

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Time what happens inside; the caller sets the amount."""
        phase = Phase(name)
        traffic = self._traffic()
        cpu, server_cpu = self._cpu()
        begin = time.perf_counter()
        yield phase
        phase.seconds = time.perf_counter() - begin
        after, server_after = self._cpu()
        phase.cpu, phase.server_cpu = after - cpu, server_after - server_cpu
        if traffic is not None:
            phase.traffic = self._traffic() - traffic
        self.phases.append(phase)

    def note(self, name: str, seconds: float) -> None:
        """Add a time that was taken inside another phase."""
        self.phases.append(Phase(name, 1.0, seconds))

    def _cpu(self) -> tuple[float, float]:
        return processes.cpu_seconds(self.daemon), processes.cpu_seconds(self.server)

    def _traffic(self) -> Traffic | None:
        return None if self.statistics is None else read_traffic(self.statistics)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load process tells: its phases, and whether stored attributes were visible."""

    phases: tuple[Phase, ...]
    attributes_shown: bool

    def as_json(self) -> dict[str, Any]:
        """The report in types that JSON knows."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LoadReport":
        """The reverse of `as_json`."""
        phases = tuple(_phase_from_json(each) for each in data["phases"])
        return cls(phases, data["attributes_shown"])


def _phase_from_json(data: dict[str, Any]) -> Phase:
    traffic = data["traffic"]
    return Phase(**{**data, "traffic": None if traffic is None else Traffic(**traffic)})
