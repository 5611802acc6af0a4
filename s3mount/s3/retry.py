"""Trying again: how often, how soon, and not so much that a sick store never recovers."""

import math
import random

import trio

from s3mount.s3.endpoint import Credentials
from s3mount.s3.http import moment_of

_BASE_SECONDS = 0.1
_MOST_DAMAGED = 6  # Attempts whose body may arrive damaged.
_CAP_SECONDS = 4.0
_MAX_RETRY_AFTER_SECONDS = 30.0


class RetryBudget:
    """A bucket of tokens that all retries to one store pay from.

    It refills by itself and with every success.  An empty bucket does not fail a call, it
    slows all of them down together to what the store may be asked in its trouble.
    """

    def __init__(self, capacity: float, per_second: float, per_success: float) -> None:
        self._capacity = capacity
        self._per_second = per_second
        self._per_success = per_success
        self._tokens = capacity
        self._counted: float | None = None

    def succeeded(self) -> None:
        """Take note of a success."""
        if self._tokens < self._capacity:
            self._tokens = min(self._capacity, self._tokens + self._per_success)

    def delay(self) -> float:
        """Take one token; return the seconds until it is there."""
        now = trio.current_time()
        passed = 0.0 if self._counted is None else now - self._counted
        self._tokens = min(self._capacity, self._tokens + passed * self._per_second) - 1
        self._counted = now
        return max(0.0, -self._tokens / self._per_second)


class Operation:
    """One call with all its attempts: what has been tried, and how much time is left.

    `uncertain` says that an earlier attempt may have taken effect though its answer never
    came; `broken` says how the last one ended that had no answer.  Repairs (new credentials, the
    clock, the region) are made once each.
    """

    __slots__ = (
        "_attempts",
        "_damaged",
        "_failures",
        "_repaired",
        "broken",
        "credentials",
        "deadline",
        "started",
        "uncertain",
    )

    def __init__(self, seconds: float, attempts: float = math.inf) -> None:
        self.started = trio.current_time()
        self.deadline = self.started + seconds
        self.uncertain = False
        self.broken = ""
        self.credentials: Credentials | None = None
        self._repaired: frozenset[str] = frozenset()
        self._failures = 0
        self._damaged = 0
        self._attempts = attempts

    def repair(self, what: str) -> bool:
        """Whether the repair *what* is still to be tried; then it counts as tried."""
        if what in self._repaired:
            return False
        self._repaired |= {what}
        return True

    def damaged(self) -> bool:
        """Take note that the body arrived damaged; whether it is worth another attempt."""
        self._damaged += 1
        return self._damaged < _MOST_DAMAGED

    def progressed(self) -> None:
        """Take note that the last attempt, though it failed, has brought the call further."""
        self._failures = 0

    async def back_off(self, budget: RetryBudget, retry_after: float) -> bool:
        """Sleep before another attempt; False, at once, when there is no time for one."""
        self._failures += 1
        ceiling = min(_CAP_SECONDS, _BASE_SECONDS * 2 ** min(self._failures, 16))
        pause = random.uniform(0, ceiling)
        if retry_after:
            pause += min(retry_after, _MAX_RETRY_AFTER_SECONDS)
        pause = max(pause, budget.delay())
        if self._failures >= self._attempts or trio.current_time() + pause >= self.deadline:
            return False
        await trio.sleep(pause)
        return True


def retry_after_seconds(text: str | None, now: float) -> float:
    """Read Retry-After, which is seconds or a date; *now* is the time since the epoch."""
    if not text:
        return 0.0
    if text.isascii() and text.isdigit():
        return float(text[:6])
    moment = moment_of(text)
    return 0.0 if moment is None else max(0.0, moment - now)
