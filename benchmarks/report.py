"""Writes what was measured as Markdown: for the terminal, RESULTS.md, and the README."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.goals import GIB, MOST_MEMORY, verdict
from benchmarks.meter import Phase
from benchmarks.results import OURS, Cell, Table
from benchmarks.workloads import ROWS, Row

BEGIN_MARK, END_MARK = "<!-- benchmarks -->", "<!-- /benchmarks -->"
NOT_ARRIVED, NO_ATTRIBUTES, NOT_ALWAYS = "†", "‡", "§"
TITLES = {
    "direct": "Directly to the server",
    "proxy": "Through 20 ms of round trip and at most 90 MB/s per connection",
}
CPU_WORDS = (
    "The CPU time of the daemon and of the server, and the rate at which these two of s3mount",
    "would keep all cores busy: no faster, whatever else is done better, and some less, because",
    "the program that is measured wants its share, and one waits for the other now and then.",
)
EXPLANATIONS = {
    NOT_ARRIVED: "the server did not have all of it yet when the last call had returned",
    NO_ATTRIBUTES: "did not show the time of modification that is stored with the objects",
    NOT_ALWAYS: "failed in one of its runs, see below",
}


def full_report(tables: Sequence[Table], facts: Mapping[str, str], command: str, day: str) -> str:
    """The whole of RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Written by `scripts/bench`; how it measures is in [README.md](README.md).",
        "",
        f"- command: `{command}`",
        f"- date: {day}",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "Each cell: the best of all runs, and in brackets the CPU time of the daemon (s/GiB, or",
        'for each file, entry or read) and the peak of its resident memory.  "No file system" is',
        "what the server and this machine give when s3mount's data plane makes the same requests",
        "and nobody mounts: what the best mount could reach.",
    ]
    for table in tables:
        lines += ["", f"## {TITLES[table.way]}", "", detailed_table(table)]
        if table.way == "direct":
            lines += ["", "### CPU", "", *CPU_WORDS, "", cpu_table(table)]
        if table.way == "proxy":
            lines += ["", "### Traffic", "", traffic_table(table)]
        if notes := _notes(table):
            lines += ["", *notes]
    return "\n".join(lines).rstrip() + "\n"


def detailed_table(table: Table) -> str:
    """Every row with figures, CPU and memory, the ratio to the best peer, and the goals."""
    rows = [
        [
            f"{row.title}, {row.unit}",
            *(_detailed_cell(table, row, system) for system in table.systems),
            _figure(table.bare[row.key]) if row.key in table.bare else "",
            _ratio(table, row),
            verdict(table, row),
        ]
        for row in _rows(table)
    ]
    rows.append(_memory_row(table))
    header = ["workload", *table.systems, "no file system", "ratio to the best peer", "goal"]
    return _markdown(header, rows)


def short_table(table: Table) -> str:
    """Every row with its figures alone."""
    rows = [
        [
            f"{row.title}, {row.unit}",
            *(_short_cell(table, row, system) for system in table.systems),
            _ratio(table, row),
        ]
        for row in _rows(table)
    ]
    return _markdown(["workload", *table.systems, "ratio to the best peer"], rows)


def traffic_table(table: Table) -> str:
    """What each row moved: MB sent, MB received, and requests."""
    rows = [
        [row.title, *(_traffic(table, row, system) for system in table.systems)]
        for row in _rows(table)
        if row.phase != "first"
    ]
    header = [f"{system}: MB sent / received, requests" for system in table.systems]
    return _markdown(["workload", *header], rows)


def cpu_table(table: Table) -> str:
    """What each row cost the daemon and the server, and how fast that lets s3mount be."""
    rows = [
        [
            f"{row.title}, {row.unit}",
            *(_costs(table, row, system) for system in table.systems),
            _bound(table, row),
        ]
        for row in _rows(table)
        if row.is_rate
    ]
    header = [*(f"{system}: daemon + server" for system in table.systems), "s3mount, never idle"]
    return _markdown(["workload", *header], rows)


def has_marks(readme: Path) -> bool:
    """Whether there is a place for the tables in the project's README."""
    return readme.exists() and BEGIN_MARK in (text := readme.read_text()) and END_MARK in text


def fill_readme(readme: Path, tables: Iterable[Table]) -> None:
    """Put the short tables between the marks in the project's README."""
    before, _, rest = readme.read_text().partition(BEGIN_MARK)
    _, _, after = rest.partition(END_MARK)
    parts = [
        f"{TITLES[table.way]}:\n\n{short_table(table)}\n\n" + "\n".join(_marks(table))
        for table in tables
    ]
    body = "\n\n".join(part.strip() for part in parts)
    readme.write_text(f"{before}{BEGIN_MARK}\n{body}\n{END_MARK}{after}")


def _rows(table: Table) -> list[Row]:
    measured = {key for key, _ in table.cells}
    return [row for row in ROWS.values() if row.key in measured]


def _short_cell(table: Table, row: Row, system: str) -> str:
    cell = table.cells.get((row.key, system))
    if cell is None:
        return "-"
    if cell.best is None:
        return "failed"
    return _figure(row.value(cell.best)) + _cell_marks(cell)


def _detailed_cell(table: Table, row: Row, system: str) -> str:
    cell = table.cells.get((row.key, system))
    text = _short_cell(table, row, system)
    if cell is None or cell.best is None:
        return text
    cost = [_cpu(row, cell.best, cell.best.cpu)] if cell.best.cpu is not None else []
    return f"{text} ({', '.join([*cost, f'{cell.memory / 1e6:.0f} MB'])})"


def _costs(table: Table, row: Row, system: str) -> str:
    cell = table.cells.get((row.key, system))
    if cell is None or cell.best is None or cell.best.server_cpu is None:
        return "-"
    best = cell.best
    return f"{_cpu(row, best, best.cpu)} + {_cpu(row, best, best.server_cpu)}"


def _bound(table: Table, row: Row) -> str:
    """The rate at which daemon and server would keep all cores busy."""
    cell = table.cells.get((row.key, OURS))
    best = None if cell is None else cell.best
    if best is None or not best.cpu or not best.server_cpu:
        return "-"
    seconds = (best.cpu + best.server_cpu) / (os.cpu_count() or 1)
    return _figure(row.value(replace(best, seconds=seconds)))


def _cpu(row: Row, phase: Phase, cpu: float | None) -> str:
    """CPU time that a phase took, in the unit that fits its row."""
    cpu = cpu or 0.0
    if row.unit == "MB/s":
        return f"{cpu * GIB / phase.amount:.2f} s/GiB"
    if row.is_rate:
        return f"{cpu / phase.amount * 1e6:.0f} µs"
    return f"{cpu:.2f} s"


def _cell_marks(cell: Cell) -> str:
    marks = NOT_ARRIVED * (not cell.arrived) + NO_ATTRIBUTES * (not cell.attributes_shown)
    return marks + NOT_ALWAYS * bool(cell.failure)


def _ratio(table: Table, row: Row) -> str:
    advantage = table.advantage(row, table.best_peer(row))
    return "-" if advantage is None else f"{advantage:.2f}"


def _traffic(table: Table, row: Row, system: str) -> str:
    cell = table.cells.get((row.key, system))
    if cell is None or cell.best is None or cell.best.traffic is None:
        return "-"
    traffic = cell.best.traffic
    sent, received = _figure(traffic.sent / 1e6), _figure(traffic.received / 1e6)
    return f"{sent} / {received}, {traffic.requests:,}{_cell_marks(cell)}"


def _memory_row(table: Table) -> list[str]:
    peaks = [table.peak_memory(system) for system in table.systems]
    goal = f"<= {MOST_MEMORY / 1e6:.0f} MB"
    if peak := table.peak_memory(OURS):
        goal += " (yes)" if peak <= MOST_MEMORY else " (no)"
    figures = [f"{peak / 1e6:.0f}" for peak in peaks]
    return ["peak memory of the daemon, MB", *figures, "", "-", goal]


def _notes(table: Table) -> list[str]:
    failures = [
        f"- {ROWS[key].title}, {system}: {cell.failure}"
        for (key, system), cell in table.cells.items()
        if cell.failure
    ]
    marks = _marks(table)
    if failures:
        marks += ["", "Failures:", "", *failures] if marks else ["Failures:", "", *failures]
    return marks


def _marks(table: Table) -> list[str]:
    used = {mark for cell in table.cells.values() if cell.best for mark in _cell_marks(cell)}
    return [f"- {mark} {text}" for mark, text in EXPLANATIONS.items() if mark in used]


def _figure(value: float) -> str:
    """A number with three digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_markdown_line(line, widths) for line in [header, rule, *rows])


def _markdown_line(line: Sequence[str], widths: Sequence[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
    return f"| {' | '.join(padded)} |"
