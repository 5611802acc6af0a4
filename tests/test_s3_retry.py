"""Back-off, the retry budget and the places for connections, on a virtual clock."""

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import ERRNO_OF, StoreError, Unavailable
from s3mount.s3.faults import ERROR_OF_CODE, ERROR_OF_STATUS, Refusal, error_class
from s3mount.s3.pool import Slots
from s3mount.s3.retry import Operation, RetryBudget, retry_after_seconds


def generous() -> RetryBudget:
    return RetryBudget(capacity=1000, per_second=1000, per_success=1)


async def test_back_off_ends_before_the_deadline(autojump_clock):
    random.seed(1)
    operation = Operation(60.0)
    tries = 0
    while await operation.back_off(generous(), 0.0):
        tries += 1
    assert trio.current_time() <= operation.deadline
    assert 10 <= tries <= 60


async def test_retry_after_is_waited_for_but_not_for_ever(autojump_clock):
    operation = Operation(1000.0)
    await operation.back_off(generous(), 5.0)
    assert 5.0 <= trio.current_time() - operation.started < 6.0
    begun = trio.current_time()
    await operation.back_off(generous(), 86400.0)
    assert 30.0 <= trio.current_time() - begun < 32.0


async def test_a_hard_operation_never_gives_up(autojump_clock):
    operation = Operation(float("inf"))
    for _ in range(200):
        assert await operation.back_off(generous(), 0.0)


async def test_a_brief_operation_makes_few_attempts(autojump_clock):
    operation = Operation(60.0, attempts=3)
    assert [await operation.back_off(generous(), 0.0) for _ in range(3)] == [True, True, False]


async def test_an_empty_budget_slows_retries_down(autojump_clock):
    budget = RetryBudget(capacity=5, per_second=2, per_success=0.5)
    assert [budget.delay() for _ in range(5)] == [0, 0, 0, 0, 0]
    assert budget.delay() == 0.5
    assert budget.delay() == 1.0
    await trio.sleep(10)
    assert budget.delay() == 0.0


async def test_successes_refill_the_budget(autojump_clock):
    budget = RetryBudget(capacity=5, per_second=0.001, per_success=0.5)
    for _ in range(5):
        budget.delay()
    for _ in range(4):
        budget.succeeded()
    assert budget.delay() == 0.0
    assert budget.delay() == 0.0
    assert budget.delay() > 0.0


def test_repairs_are_made_once():
    async def run() -> None:
        operation = Operation(1.0)
        assert operation.repair("clock")
        assert not operation.repair("clock")
        assert operation.repair("region")

    trio.run(run)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        ("soon", 0.0),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 0.0),
        ("Thu, 01 Jan 99999999999 00:01:40 GMT", 0.0),
        ("9" * 5000, 999999.0),
    ],
)
def test_retry_after(text: str | None, seconds: float):
    assert retry_after_seconds(text, 40.0) == seconds


def test_every_error_has_an_errno():
    for kind in {*ERROR_OF_CODE.values(), *ERROR_OF_STATUS.values()}:
        assert kind in ERRNO_OF


@given(st.integers(300, 599), st.text(max_size=20))
def test_every_status_is_some_error(status: int, code: str):
    assert issubclass(error_class(code, status), StoreError)
    if status >= 500 and status not in ERROR_OF_STATUS and code not in ERROR_OF_CODE:
        assert error_class(code, status) is Unavailable


@given(st.text(max_size=500))
def test_messages_are_one_line(text: str):
    message = str(Refusal(403, "AccessDenied", text, "R", "", True).error("GetObject k"))
    assert len(message.splitlines()) == 1
    assert "AccessDenied" in message
    assert len(message) < 300


def test_what_is_transient():
    def refusal(status: int, code: str = "") -> Refusal:
        return Refusal(status, code, "", "", "", True)

    for status in (408, 429, 500, 502, 503, 504):
        assert refusal(status).transient
    for code in ("SlowDown", "InternalError", "RequestTimeout", "ConditionalRequestConflict"):
        assert refusal(400, code).transient
    for status, code in ((403, ""), (404, "NoSuchKey"), (501, ""), (507, ""), (412, "")):
        assert not refusal(status, code).transient
    assert not refusal(503, "QuotaExceeded").transient


# ---------------------------------------------------------------- places for connections


async def test_those_in_no_hurry_leave_places_free(autojump_clock):
    slots = Slots(4)
    for _ in range(3):
        await slots.acquire(urgent=False)
    with trio.move_on_after(1) as scope:
        await slots.acquire(urgent=False)
    assert scope.cancelled_caught
    await slots.acquire(urgent=True)


async def test_the_urgent_go_first(autojump_clock):
    slots = Slots(2)
    await slots.acquire(urgent=True)
    await slots.acquire(urgent=True)
    order = []

    async def wait(name: str, urgent: bool) -> None:
        await slots.acquire(urgent=urgent)
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "patient", False)
        await trio.sleep(1)
        nursery.start_soon(wait, "urgent", True)
        await trio.sleep(1)
        slots.release(urgent=True)
        await trio.sleep(1)
        assert order == ["urgent"]
        slots.release(urgent=True)
    assert order == ["urgent", "patient"]


async def test_who_is_cancelled_while_waiting_takes_no_place(autojump_clock):
    slots = Slots(1)
    await slots.acquire(urgent=True)
    with trio.move_on_after(1):
        await slots.acquire(urgent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.acquire, True)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
        # Granted after the cancellation: whether it took it or not, no place gets lost.
        slots.release(urgent=True)
    if not slots.take(urgent=True):
        slots.release(urgent=True)
        assert slots.take(urgent=True)


async def test_one_place_serves_everybody(autojump_clock):
    slots = Slots(1)
    done = []

    async def use(number: int) -> None:
        urgent = number % 2 == 0
        await slots.acquire(urgent)
        await trio.sleep(0.1)
        slots.release(urgent)
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(use, number)
    assert sorted(done) == list(range(10))
