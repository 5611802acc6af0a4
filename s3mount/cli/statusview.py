"""The live view of ``s3mount status --watch``, drawn by rich: a panel or a line for each mount."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from s3mount.cli.statustext import describe_time, headline, printable, rows
from s3mount.cli.umount import describe_size

Status = Mapping[str, Any]

MAX_PANELS = 3  # More of them fit into no terminal.
_STYLES = {"error": "red", "warning": "yellow", "help": "red", "note": "yellow"}
_BORDERS = {"serving": "green", "ending": "yellow", "not yours": "dim"}


def show(look: Callable[[], Sequence[Status]], interval: float) -> None:
    """Show what *look* returns, every *interval* seconds, until interrupted."""
    with Live(draw(look(), time.time()), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(draw(look(), time.time()), refresh=True)


def draw(found: Sequence[Status], now: float) -> RenderableType:
    """Draw all mounts; *now* is in seconds since 1970."""
    if not found:
        return Text("nothing is mounted")
    if len(found) > MAX_PANELS:
        return _overview(found, now)
    return Group(*(_panel(status, now) for status in found))


def _overview(found: Sequence[Status], now: float) -> Table:
    """A line for each mount, those first that somebody should look at."""
    table = Table(box=None, padding=(0, 1), expand=True)
    for title in ("mount", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("in", "out", "op/s", "not uploaded"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("last error", no_wrap=True, ratio=1)
    for status in sorted(found, key=_urgency):
        style = _BORDERS.get(status["state"], "red")
        where = printable(f"{status['source']} at {status['mountpoint']}")
        cells = [where, printable(status["state"]), *_figures(status, now)]
        table.add_row(*(Text(cell) for cell in cells), style="" if style == "green" else style)
    return table


def _urgency(status: Status) -> tuple[bool, float, str]:
    return status["state"] == "serving", -status.get("dirty_age", 0.0), str(status["mountpoint"])


def _figures(status: Status, now: float) -> Sequence[str]:
    """What is in a line behind the state; nothing where the daemon has told nothing."""
    if "rates" not in status:
        return ["", "", "", "", printable(status.get("error", ""))]
    rates, count = status["rates"], status["dirty_files"]
    age = describe_time(status["dirty_age"])
    unsaved = f"{count:,} for {age}, {describe_size(status['dirty_bytes'])}" if count else "-"
    last = status["errors"][-1] if status["errors"] else None
    ago = f"{describe_time(now - last['time'])} ago: {last['message']}" if last else ""
    return [
        f"{describe_size(rates['received'])}/s",
        f"{describe_size(rates['sent'])}/s",
        f"{rates['operations']:.0f}",
        unsaved,
        printable(ago),
    ]


def _panel(status: Status, now: float) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("mount", Text(headline(status, now), style="bold"))
    for title, text in rows(status, now):
        # Text, not markup: a file may be called "[red]".
        table.add_row(title, Text(text, style=_STYLES.get(title, "")))
    return Panel(table, border_style=_BORDERS.get(status["state"], "red"))
