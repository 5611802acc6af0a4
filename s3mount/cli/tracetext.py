"""What ``s3mount trace`` tells, in lines: an operation, and below it the requests it caused."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from s3mount.cli.statustext import describe_duration, printable

Event = Mapping[str, Any]
Paint = Callable[[str, str], str]  # a text and its colour

RED, GREEN, YELLOW, CYAN, DIM = "31", "32", "33", "36", "2"
OPERATION_WIDTH, PATH_WIDTH, RESULT_WIDTH, KIND_WIDTH = 11, 44, 9, 16
INDENT = " " * 13  # As long as a moment and what is behind it.
SLOW = 1.0  # Seconds from which on a time is marked.


def lines(event: Event, *, colours: bool) -> Iterator[str]:
    """Yield what there is to show of one event."""
    paint = _paint if colours else _plain
    if not event.get("late"):
        yield _operation(event, paint)
    for number, request in enumerate(event["requests"]):
        if number == 0 and event.get("late"):
            yield f"{_moment(event)} {_request(request, paint)}{_whose(event)}"
        else:
            yield f"{INDENT}{_request(request, paint)}"
    if more := event.get("more_requests"):
        yield f"{INDENT}... and {more:,} requests more"


def _operation(event: Event, paint: Paint) -> str:
    name = paint(f"{event['operation']:<{OPERATION_WIDTH}}", CYAN)
    result = f"{event['error'] or 'ok':<{RESULT_WIDTH}}"
    result = paint(result, RED if event["error"] else GREEN)
    path = f"{printable(event['path']):<{PATH_WIDTH}}"
    who = f"  {printable(event['program']) or '?'}[{event['pid']}]" if event["pid"] else ""
    return f"{_moment(event)} {name} {path} {result} {_took(event['seconds'], paint)}{who}"


def _request(request: Event, paint: Paint) -> str:
    key = printable(request["key"]) + (f" {request['range']}" if request["range"] else "")
    colour = GREEN if 200 <= request["status"] < 400 else RED
    if request["status"] == 404:
        colour = YELLOW  # What is looked for is often not there.
    result = str(request["status"]) if request["status"] else printable(request["error"])
    identity = f"  {printable(request['request_id'])}" if request["request_id"] else ""
    kind = f"{request['kind']:<{KIND_WIDTH}}"
    what = paint(f"{request['method']:<6} {kind} {key}", DIM)
    result = paint(result, colour)
    return f"{what}  {result}  {_took(request['seconds'], paint)}{paint(identity, DIM)}"


def _whose(event: Event) -> str:
    """On whose behalf a request was made that nobody waited for."""
    if "operation" not in event:
        return "  (by itself)"
    return f"  (for {event['operation']} {printable(event['path'])})"


def _took(seconds: float, paint: Paint) -> str:
    text = f"{describe_duration(seconds):>8}"
    return paint(text, YELLOW) if seconds >= SLOW else text


def _moment(event: Event) -> str:
    moment = float(event["time"])
    text = time.strftime("%H:%M:%S", time.localtime(moment))
    return f"{text}.{int(moment % 1 * 1000):03d}"


def _paint(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if text else ""


def _plain(text: str, colour: str) -> str:
    return text
