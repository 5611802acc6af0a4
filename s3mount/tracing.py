"""Who watches a mount at work: what it is told of operations, and of the requests they cause.

A request to the store belongs to the operation in whose task, or on whose behalf, it is made;
tasks hand that on to those that they start.  While nobody watches, all that happens is that
`Trace.watched` is found to be False.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from fnmatch import fnmatchcase
from typing import NamedTuple

import trio

MAX_WAITING = 4096  # Events that wait for one who watches; what comes on top is only counted.
MAX_ATTEMPTS = 1000  # Requests that are told of one operation: a directory may be renamed.
MAX_TAKEN = 256  # Events that are taken at once.

Event = Mapping[str, object]


class Attempt(NamedTuple):
    """One request to the store: what it was about, and what came of it.

    `status` is 0 and `error` says why when there was no answer; `seconds` include the wait for
    a connection.  Nothing of what authenticates it, or decrypts the object, is in here.
    """

    kind: str
    method: str
    key: str
    range: str
    status: int
    seconds: float
    request_id: str
    error: str


class Cause:
    """One operation that is watched, and the requests that it has caused so far.

    `began` is in seconds since 1970; `more` counts requests that are too many to be told.
    """

    __slots__ = ("attempts", "began", "ended", "more", "operation", "path", "process_id", "program")

    def __init__(self, operation: str, path: str, process_id: int, program: str) -> None:
        self.operation = operation
        self.path = path
        self.process_id = process_id
        self.program = program
        self.began = time.time()
        self.ended = False
        self.more = 0
        self.attempts: list[Attempt] = []


_cause: ContextVar[Cause | None] = ContextVar("cause", default=None)


class Watcher:
    """One who watches: what fits waits to be taken, and nobody ever waits for that.

    *pattern* is for paths, as the shell has it (empty: all); *slow* are the seconds from which on
    something counts.  `dropped` counts what was not told, because too much was waiting.
    """

    def __init__(self, pattern: str, slow: float) -> None:
        self._pattern = pattern
        self._slow = slow
        self._waiting: deque[Event] = deque()
        self._news = trio.lowlevel.ParkingLot()
        self.dropped = 0

    def offer(self, event: Event, path: str, seconds: float) -> None:
        """Have an event told, if it fits and there is room for it."""
        if seconds < self._slow or (self._pattern and not fnmatchcase(path, self._pattern)):
            return
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.append(event)
        self._news.unpark_all()

    async def take(self) -> Sequence[Event]:
        """Wait for events, and return them, the oldest first."""
        while not self._waiting:
            await self._news.park()
        return [self._waiting.popleft() for _ in range(min(MAX_TAKEN, len(self._waiting)))]


class Trace:
    """Tells those who watch a mount what happens there."""

    def __init__(self) -> None:
        self.watched = False
        self._watchers: list[Watcher] = []

    @contextmanager
    def watch(self, pattern: str, slow: float) -> Iterator[Watcher]:
        """Watch for a while; see `Watcher`."""
        watcher = Watcher(pattern, slow)
        self._watchers.append(watcher)
        self.watched = True
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)
            self.watched = bool(self._watchers)

    def begin(self, cause: Cause) -> Token[Cause | None]:
        """An operation begins in this task; requests belong to it until it ends."""
        return _cause.set(cause)

    def end(
        self, cause: Cause, token: Token[Cause | None], seconds: float, error_number: int
    ) -> None:
        """The operation has been answered, with an errno, or 0."""
        _cause.reset(token)
        cause.ended = True
        self.tell(cause, seconds, error_number)

    def tell(self, cause: Cause, seconds: float, error_number: int) -> None:
        """Tell of an operation and its requests."""
        event = {
            **_facts(cause, cause.began),
            "error": errno.errorcode.get(error_number, str(error_number)) if error_number else "",
            "seconds": round(seconds, 6),
            "requests": [attempt._asdict() for attempt in cause.attempts],
            "more_requests": cause.more,
        }
        self._offer(event, cause.path, seconds)

    def attempted(self, attempt: Attempt) -> None:
        """A request has ended: its operation tells of it, or we do if that is over, or is none."""
        cause = _cause.get()
        if cause is not None and not cause.ended:
            if len(cause.attempts) < MAX_ATTEMPTS:
                cause.attempts.append(attempt)
            else:
                cause.more += 1
            return
        began = time.time() - attempt.seconds
        known = _facts(cause, began) if cause is not None else {"time": round(began, 6)}
        event = {**known, "late": True, "requests": [attempt._asdict()]}
        self._offer(event, cause.path if cause is not None else attempt.key, attempt.seconds)

    def _offer(self, event: Event, path: str, seconds: float) -> None:
        for watcher in self._watchers:
            watcher.offer(event, path, seconds)


def _facts(cause: Cause, began: float) -> dict[str, object]:
    return {
        "time": round(began, 6),
        "operation": cause.operation,
        "path": cause.path,
        "pid": cause.process_id,
        "program": cause.program,
    }
