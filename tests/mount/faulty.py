"""What the tests of faults have in common: bodies, waiting, and errors that come in time."""

import time
from collections.abc import Callable
from random import Random

SOON = 20.0  # Seconds that CHECKS allow for an error.
BACK = 15.0  # Seconds for five that may pass after the store's return.


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that nothing can be guessed of, the same for the same seed."""
    return Random(seed).randbytes(size)


def eventually(condition: Callable[[], bool], seconds: float = BACK) -> None:
    """Wait until *condition* returns true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def errno_of(action: Callable[[], object], seconds: float = SOON) -> int:
    """The errno with which *action* fails, 0 if it does not; it must not take longer."""
    began = time.monotonic()
    try:
        action()
        found = 0
    except OSError as error:
        found = error.errno or -1
    assert time.monotonic() - began < seconds
    return found
