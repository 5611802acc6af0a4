"""Complaints that repeat themselves: each is logged once an interval, the others are counted.

Two complaints are the same when they come from one place in the code, and are about the same
path and failure.  One about another path, or another failure, is told at once; but of one
failure that befalls more and more paths only the first ones are named in an interval.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

INTERVAL = 60.0  # Seconds.
MAX_PATHS = 20  # That are named of one kind in an interval.
MAX_KINDS = 1000  # More would only be remembered for an attack.
FACTS = "facts"  # The attribute of a record with what programs read of it, by name.
LEFT_OUT = "left_out"  # The attribute of a record that tells how many like it were left out.

_SUMMARY = "%d more complaints like this one were left out in %.0f s: %s"
_SEEN, _PASSED = "_s3mount_seen", "_s3mount_passed"


@dataclass(slots=True)
class _Kind:
    """The complaints of one kind in an interval: the paths that were told, and the others."""

    began: float
    paths: set[Hashable] = field(default_factory=set)
    left_out: int = 0
    last: logging.LogRecord | None = None


class Repeats(logging.Filter):
    """Lets through what is new; one filter serves all handlers, so that they agree.

    *clock* is in seconds.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, interval: float = INTERVAL
    ) -> None:
        super().__init__()
        self._clock = clock
        self._interval = interval
        self._kinds: dict[Hashable, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be logged: everything that is no complaint, and what is new."""
        if not hasattr(record, _SEEN):
            setattr(record, _SEEN, True)
            setattr(record, _PASSED, self._is_new(record))
        return bool(getattr(record, _PASSED))

    def _is_new(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        failures, path = _about(record)
        if not _is_complaint(record, failures):
            return True
        now = self._clock()
        name = (record.name, record.levelno, str(record.msg), failures)
        kind = self._kinds.get(name)
        if kind is None or now - kind.began >= self._interval:
            if kind is not None and kind.left_out:
                setattr(record, LEFT_OUT, kind.left_out)
            if len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            kind = self._kinds[name] = _Kind(now)
        if path in kind.paths or len(kind.paths) >= MAX_PATHS:
            kind.left_out += 1
            kind.last = record
            return False
        kind.paths.add(path)
        return True

    def summaries(self, *, all_of_them: bool = False) -> Iterator[logging.LogRecord]:
        """Yield what is to be said of intervals that are over (or of all) without another repeat.

        Whoever asks logs it.
        """
        now = self._clock()
        for name, kind in list(self._kinds.items()):
            if not all_of_them and now - kind.began < self._interval:
                continue
            del self._kinds[name]
            if kind.last is not None:
                yield _summary(kind.last, kind.left_out, now - kind.began)


def _summary(last: logging.LogRecord, count: int, seconds: float) -> logging.LogRecord:
    arguments = (count, seconds, last.getMessage())
    record = logging.LogRecord(
        last.name, last.levelno, last.pathname, last.lineno, _SUMMARY, arguments, None
    )
    setattr(record, _SEEN, True)
    setattr(record, _PASSED, True)
    return record


def _is_complaint(record: logging.LogRecord, failures: Sequence[Hashable]) -> bool:
    """Whether a record tells of a failure, or of an operation that was slow."""
    return record.levelno >= logging.WARNING or bool(failures) or hasattr(record, FACTS)


def _about(record: logging.LogRecord) -> tuple[tuple[Hashable, ...], Hashable]:
    """The failures that a record tells, and what it is about.

    A failure counts by its class and its own word for itself and not by its text, in which
    there is a new request id each time.
    """
    failures: list[Hashable] = []
    about: list[str] = []
    for argument in record.args if isinstance(record.args, tuple) else ():
        if isinstance(argument, BaseException):
            failures.append(_failure(argument))
        elif isinstance(argument, str | bytes) or hasattr(argument, "__fspath__"):
            about.append(str(argument))
    if record.exc_info and record.exc_info[1] is not None:
        failures.append(_failure(record.exc_info[1]))
    return tuple(failures), tuple(about)


def _failure(error: BaseException) -> Hashable:
    return type(error), str(getattr(error, "code", "")), str(getattr(error, "errno", ""))
