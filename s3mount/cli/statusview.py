"""The live view of ``s3mount status --watch``: one panel a mount, drawn by rich."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from s3mount.cli.statustext import headline, rows

Status = Mapping[str, Any]

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
    return Group(*(_panel(status, now) for status in found))


def _panel(status: Status, now: float) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("mount", Text(headline(status, now), style="bold"))
    for title, text in rows(status, now):
        # Text, not markup: a file may be called "[red]".
        table.add_row(title, Text(text, style=_STYLES.get(title, "")))
    return Panel(table, border_style=_BORDERS.get(status["state"], "red"))
