"""What was measured: cells, and tables of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.meter import Phase
from benchmarks.workloads import Row

OURS = "s3mount"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one system did in one row: its best run, and what has to be said beside it.

    `memory` is the daemon's peak in bytes over all runs, `failure` what the last run that
    failed had to say.  A cell without `best` has nothing but a failure.
    """

    best: Phase | None = None
    memory: int = 0
    arrived: bool = True
    attributes_shown: bool = True
    failure: str = ""

    def joined(self, other: "Cell", row: Row) -> "Cell":
        """The better of two runs, with the warts of both."""
        best = self.best or other.best
        if self.best and other.best and row.better(row.value(other.best), row.value(self.best)):
            best = other.best
        return replace(
            self,
            best=best,
            memory=max(self.memory, other.memory),
            arrived=self.arrived and other.arrived,
            attributes_shown=self.attributes_shown and other.attributes_shown,
            failure=other.failure or self.failure,
        )

    @property
    def complete(self) -> bool:
        """Whether it did the whole job: all stored at return, all stored attributes shown."""
        return self.arrived and self.attributes_shown


@dataclass(frozen=True, slots=True)
class Table:
    """All cells of one way to the server (``direct`` or ``proxy``), by row key and system.

    `bare` are the figures of some rows when the same requests are made without a file system.
    """

    way: str
    systems: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]
    bare: Mapping[str, float] = field(default_factory=dict)

    def value(self, row: Row, system: str) -> float | None:
        """The best figure of a system, if it has one."""
        cell = self.cells.get((row.key, system))
        return None if cell is None or cell.best is None else row.value(cell.best)

    def best_peer(self, row: Row) -> float | None:
        """The best figure of the others; of those that did the whole job, if there are any."""
        peers = [name for name in self.systems if name != OURS and self.value(row, name)]
        whole = [name for name in peers if self.cells[row.key, name].complete]
        best: float | None = None
        for name in whole or peers:
            value = self.value(row, name)
            if best is None or row.better(value, best):
                best = value
        return best

    def advantage(self, row: Row, over: float | None) -> float | None:
        """How many times better than *over* s3mount is (below 1: worse)."""
        ours = self.value(row, OURS)
        if ours is None or over is None:
            return None
        return ours / over if row.is_rate else over / ours

    def peak_memory(self, system: str) -> int:
        """The peak memory of a system in all rows, in bytes."""
        return max((c.memory for (_, name), c in self.cells.items() if name == system), default=0)
