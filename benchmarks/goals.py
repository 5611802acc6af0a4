"""The goals that s3mount is built to, each tied to a row of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from benchmarks.meter import Phase
from benchmarks.results import OURS, Table
from benchmarks.workloads import ROWS, Row

GIB = 1 << 30
ROUND_TRIP_MS = 20.0
MOST_MEMORY = 350e6  # bytes, in every workload


class Measure(Enum):
    """What a goal bounds."""

    VALUE = "value"
    BEST_PEER = "better peer"
    S3FS = "s3fs"
    COLD_READ = "the cold read"
    CPU_PER_GIB = "s CPU per GiB"
    REQUESTS_EACH = "requests each"
    RECEIVED = "MB received"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of what s3mount shall reach in one row: times a peer, or a value of its own."""

    measure: Measure
    bound: float
    at_most: bool = False

    def reached(self, table: Table, row: Row) -> bool | None:
        """Whether the table shows that it is reached; None when it cannot be told."""
        value = self._value(table, row)
        if value is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound

    def text(self, row: Row) -> str:
        """The goal in the words of a table."""
        sign = "<=" if self.at_most else ">="
        match self.measure:
            case Measure.VALUE:
                bound = f"{self.bound:,.0f}" if self.bound >= 10 else f"{self.bound:g}"
                return f"{sign} {bound} {row.unit}"
            case Measure.CPU_PER_GIB | Measure.REQUESTS_EACH | Measure.RECEIVED:
                return f"{sign} {self.bound:g} {self.measure.value}"
            case _:
                return f"{sign} {self.bound:g} x {self.measure.value}"

    def _value(self, table: Table, row: Row) -> float | None:
        cell = table.cells.get((row.key, OURS))
        if cell is None or cell.best is None:
            return None
        match self.measure:
            case Measure.VALUE:
                return row.value(cell.best)
            case Measure.BEST_PEER:
                return table.advantage(row, table.best_peer(row))
            case Measure.S3FS:
                return table.advantage(row, table.value(row, "s3fs"))
            case Measure.COLD_READ:
                return table.advantage(row, table.value(ROWS["read"], OURS))
            case _:
                return _cost(self.measure, cell.best)


def _cost(measure: Measure, phase: Phase) -> float | None:
    """What a phase cost: CPU or traffic, where it was counted."""
    if measure is Measure.CPU_PER_GIB:
        return None if phase.cpu is None else phase.cpu * GIB / phase.amount
    if phase.traffic is None:
        return None
    if measure is Measure.RECEIVED:
        return phase.traffic.received / 1e6
    return phase.traffic.requests / phase.amount


def _times(bound: float, measure: Measure) -> Goal:
    return Goal(measure, bound)


def _rate(bound: float) -> Goal:
    return Goal(Measure.VALUE, bound)


def _at_most(bound: float, measure: Measure = Measure.VALUE) -> Goal:
    return Goal(measure, bound, at_most=True)


BEST, S3FS = Measure.BEST_PEER, Measure.S3FS
GOALS: Mapping[tuple[str, str], Sequence[Goal]] = {
    ("direct", "read"): [_times(1.5, BEST), _at_most(0.6, Measure.CPU_PER_GIB)],
    ("direct", "reopened"): [_times(3, BEST)],
    ("direct", "remount"): [_times(1.2, Measure.COLD_READ)],
    ("direct", "write"): [_times(2.1, S3FS), _at_most(0.9, Measure.CPU_PER_GIB)],
    ("direct", "pieces"): [_times(3, BEST)],
    ("direct", "copied"): [_at_most(1.3)],
    ("direct", "random1"): [_times(1.7, BEST)],
    ("direct", "random16"): [_times(1.2, BEST)],
    ("direct", "ls"): [_times(1.5, S3FS)],
    ("direct", "ls-again"): [_rate(20_000)],
    ("direct", "names"): [_rate(25_000)],
    ("direct", "small1"): [_times(2, S3FS)],
    ("direct", "small16"): [_times(3, S3FS)],
    ("direct", "create1"): [_times(3, S3FS)],
    ("direct", "create16"): [_times(5.5, S3FS)],
    ("direct", "behind1"): [_times(1, BEST)],
    ("direct", "behind16"): [_times(1, BEST)],
    ("direct", "rename"): [_times(5, S3FS)],
    ("direct", "remove"): [_times(2, S3FS)],
    ("direct", "unpack"): [_times(3, S3FS)],
    ("proxy", "read"): [_rate(500)],
    ("proxy", "remount"): [_at_most(1, Measure.RECEIVED)],
    ("proxy", "write"): [_times(1.5, BEST)],
    ("proxy", "random1"): [_rate(1000 / (1.3 * ROUND_TRIP_MS))],
    ("proxy", "random16"): [_rate(600)],
    ("proxy", "first"): [_at_most(3 * ROUND_TRIP_MS)],
    ("proxy", "small1"): [_at_most(1.05, Measure.REQUESTS_EACH)],
    ("proxy", "small16"): [_rate(700)],
    ("proxy", "create1"): [_rate(1000 / (1.3 * ROUND_TRIP_MS))],
    ("proxy", "create16"): [_rate(500)],
    ("proxy", "rename"): [_rate(500 / 1.5)],
    ("proxy", "remove"): [_times(1.1, S3FS)],
}


def verdict(table: Table, row: Row) -> str:
    """The goals of a row, each with whether it is reached; empty when there are none."""
    return "; ".join(
        f"{goal.text(row)} {_word(goal.reached(table, row))}".strip()
        for goal in GOALS.get((table.way, row.key), ())
    )


def _word(reached: bool | None) -> str:
    return "" if reached is None else "(yes)" if reached else "(no)"
