"""The same complaint is logged once an interval; none that is the first of its kind is lost."""

import json
import logging

import pytest

from s3mount import logs
from s3mount.errors import Denied, Unavailable
from s3mount.repeats import INTERVAL, MAX_PATHS, Repeats


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    """Keeps what is logged, as text and as JSON."""

    def __init__(self, repeats: Repeats) -> None:
        super().__init__()
        self.addFilter(repeats)
        self.text: list[str] = []
        self.json: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(logs.TextFormatter("%(message)s").format(record))
        self.json.append(json.loads(logs.JsonFormatter().format(record)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repeats(clock: Clock) -> Repeats:
    return Repeats(clock)


@pytest.fixture
def lines(repeats: Repeats) -> Lines:
    return Lines(repeats)


@pytest.fixture
def log(lines: Lines) -> logging.Logger:
    log = logging.Logger("s3mount.test")
    log.addHandler(lines)
    return log


def unavailable(request_id: str) -> Unavailable:
    return Unavailable(f"slow down (request {request_id})", code="SlowDown", request_id=request_id)


def test_a_repeat_is_counted_and_told_with_the_next_one(log, lines, clock):
    for number in range(5):
        log.warning("%s: %s", "file", unavailable(f"ID{number}"))
    assert lines.text == ["file: slow down (request ID0)"]
    clock.now += INTERVAL
    log.warning("%s: %s", "file", unavailable("ID9"))
    assert lines.text[1:] == ["file: slow down (request ID9) (4 more like it were left out before)"]
    assert lines.json[1]["left_out"] == 4
    assert (lines.json[1]["request_id"], lines.json[1]["code"]) == ("ID9", "SlowDown")


def test_the_first_of_another_path_failure_or_place_is_never_lost(log, lines):
    for _ in range(3):
        log.warning("%s: %s", "file", unavailable("ID"))
        log.warning("%s: %s", "other", unavailable("ID"))
        log.warning("%s: %s", "file", Denied("no", code="AccessDenied"))
        log.warning("%s: %s", "file", OSError(28, "No space left on device"))
        log.warning("%s: %s", "file", OSError(5, "Input/output error"))
        log.error("%s: not uploaded: %s", "file", unavailable("ID"))
    assert len(lines.text) == 6


def test_more_and_more_paths_do_not_fill_the_log(log, lines, repeats, clock):
    for number in range(1000):
        log.warning("%s: %s", f"file{number}", unavailable("ID"))
    assert len(lines.text) == MAX_PATHS
    clock.now += INTERVAL
    (summary,) = repeats.summaries()
    assert summary.getMessage() == (
        f"{1000 - MAX_PATHS} more complaints like this one were left out in {INTERVAL:.0f} s: "
        "file999: slow down (request ID)"
    )
    log.handle(summary)
    assert "980 more complaints" in lines.text[-1]
    assert not list(repeats.summaries(all_of_them=True))


def test_what_was_left_out_is_told_at_the_end_although_no_other_comes(log, repeats):
    for _ in range(3):
        log.error("%s: %s", "file", unavailable("ID"))
    assert not list(repeats.summaries())
    (summary,) = repeats.summaries(all_of_them=True)
    assert (summary.levelno, summary.args[0]) == (logging.ERROR, 2)


def test_what_is_no_complaint_is_never_left_out(log, lines):
    for _ in range(3):
        log.info("told by %s", "SIGHUP")
        log.debug("%s: %s", "file", unavailable("ID"))
        log.info("slow: %s", "file", extra={"facts": {"path": "file", "seconds": 12.5}})
    assert len(lines.text) == 7
    assert (lines.json[2]["path"], lines.json[2]["seconds"]) == ("file", 12.5)


def test_all_handlers_agree(log, lines, repeats):
    second = Lines(repeats)
    log.addHandler(second)
    for _ in range(3):
        log.warning("%s: %s", "file", unavailable("ID"))
    assert (len(lines.text), len(second.text)) == (1, 1)


def test_a_bug_is_told_once_with_its_traceback(log, lines):
    for _ in range(3):
        try:
            raise KeyError("x")
        except KeyError:
            log.exception("bug in %s", "lookup")
    (line,) = lines.json
    assert "KeyError" in str(line["traceback"])
