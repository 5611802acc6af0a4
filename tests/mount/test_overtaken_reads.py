"""Reads that a save or a truncation on the same mount overtakes: the bytes of before or after."""

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import Delay, Throttle
from tests.mount.conftest import Shared
from tests.mount.test_writeback import wait_until
from tests.stores import random_bytes

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing(proxied=True) as shared:
        yield shared


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Run *work* in a thread of its own; what it raises fails the test."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive(), "it does not end"
    assert errors == []


def read_past_the_page_cache(path: Path, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as buffer:  # Anonymous memory, so aligned as O_DIRECT may demand.
            count = os.preadv(descriptor, [buffer], 0)
            return buffer[:count]
    finally:
        os.close(descriptor)


def test_a_read_of_what_our_own_save_has_just_replaced(shared: Shared, cold: Path):
    """The store has the new version already, and the mount waits for its word still."""
    assert shared.proxy is not None
    body = random_bytes(24 * MIB)
    shared.put(cold / "file", body)
    writer = os.open(cold / "file", os.O_WRONLY)
    try:
        os.pwrite(writer, b"more", len(body))
        slow = shared.proxy.inject(Throttle(100), operation="CompleteMultipartUpload")
        with beside(lambda: os.fsync(writer)):
            wait_until(lambda: shared.head(cold / "file")["ContentLength"] == len(body) + 4)
            assert read_past_the_page_cache(cold / "file", 64 * KIB) == body[: 64 * KIB]
        assert slow.hits == 1
    finally:
        shared.proxy.clear()
        os.close(writer)
    assert shared.get(cold / "file") == body + b"more"


@pytest.mark.parametrize("fault", [Delay(2.0), Throttle(300_000)])
def test_a_read_while_a_file_becomes_shorter_and_is_saved(
    shared: Shared, cold: Path, fault: Delay | Throttle
):
    """What is read of the old object lies after the end of the new one, and no wait is for it."""
    assert shared.proxy is not None
    body, short = random_bytes(MIB), 600 * KIB
    shared.put(cold / "file", body)
    writer = os.open(cold / "file", os.O_WRONLY)
    try:
        os.pwrite(writer, b"A" * short, 0)
        slow = shared.proxy.inject(fault, method="GET", path="file$", count=1)
        found: list[bytes] = []
        with beside(lambda: found.append(read_past_the_page_cache(cold / "file", MIB))):
            wait_until(lambda: slow.hits == 1)
            os.ftruncate(writer, short)
            os.fsync(writer)
    finally:
        shared.proxy.clear()
        os.close(writer)
    assert found[0][:short] == b"A" * short
    assert found[0][short:] in (b"", body[short:])
    assert shared.get(cold / "file") == b"A" * short
