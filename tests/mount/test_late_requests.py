"""Requests that the store carries out long after their connection broke undo nothing.

The client has heard nothing, has tried again, and has done other things since.  What the store
is asked to check (the version that was there, or that there was none) keeps it from obeying.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import Hang, Late, Point
from tests.mount.conftest import Shared

MIB = 1 << 20
TIMEOUT = 4  # Seconds that the mount tries a failing store.
REFUSED = {404, 409, 412}


@pytest.fixture(scope="module", params=["weed", "minio"])
def shared(sharing, request: pytest.FixtureRequest) -> Iterator[Shared]:
    options = ("--timeout", f"{TIMEOUT}s", "--metadata-ttl", "30s", "--part-size", "5M")
    with sharing(*options, server=request.param, proxied=True) as shared:
        shared.mounter.expect_log(r"file: (flush|fsync)|in time|connection", optional=True)
        yield shared


@pytest.fixture
def proxy(shared: Shared) -> Iterator[FaultProxy]:
    """The proxy of the shared mount; every test begins and ends without faults."""
    assert shared.proxy is not None
    yield shared.proxy
    shared.proxy.clear()
    shared.proxy.deliver_late()


def late(proxy: FaultProxy, operation: str) -> None:
    """Have the next request of a kind that is for a file come late."""
    proxy.inject(Late(), operation=operation, path="/file$", count=1)


def arrives_in_vain(proxy: FaultProxy) -> None:
    """Deliver the request that is late; the store has to refuse it."""
    statuses = proxy.deliver_late()
    assert len(statuses) == 1
    assert set(statuses) <= REFUSED


def test_a_late_overwrite_does_not_undo_the_next(shared: Shared, proxy: FaultProxy, work: Path):
    (work / "file").write_bytes(b"before")
    late(proxy, "PutObject")
    (work / "file").write_bytes(b"one")
    assert shared.get(work / "file") == b"one"
    (work / "file").write_bytes(b"two")
    arrives_in_vain(proxy)
    assert shared.get(work / "file") == b"two"


def test_a_late_creation_does_not_undo_the_next_version(
    shared: Shared, proxy: FaultProxy, work: Path
):
    late(proxy, "PutObject")
    (work / "file").write_bytes(b"one")
    (work / "file").write_bytes(b"two")
    arrives_in_vain(proxy)
    assert shared.get(work / "file") == b"two"


def test_a_late_change_in_part_does_not_undo_the_next(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "file").write_bytes(b"before")
    late(proxy, "PutObject")
    for number in (b"1", b"2"):
        with (work / "file").open("ab") as file:
            file.write(number)
    arrives_in_vain(proxy)
    assert shared.get(work / "file") == b"before12"


def test_a_late_deletion_does_not_remove_what_has_been_written_since(
    shared: Shared, proxy: FaultProxy, work: Path
):
    if shared.server.name == "minio":
        pytest.skip("MinIO ignores the conditions of a deletion")
    (work / "file").write_bytes(b"one")
    late(proxy, "DeleteObject")
    (work / "file").unlink()
    (work / "file").write_bytes(b"two")
    arrives_in_vain(proxy)
    assert shared.get(work / "file") == b"two"


def test_a_late_copy_of_a_rename_does_not_undo_what_was_written_since(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "file").write_bytes(b"before")
    (work / "source").write_bytes(b"one")
    late(proxy, "CopyObject")
    (work / "source").rename(work / "file")
    assert shared.get(work / "file") == b"one"
    (work / "file").write_bytes(b"two")
    arrives_in_vain(proxy)
    assert shared.get(work / "file") == b"two"


def test_a_late_completion_does_not_undo_the_next_version(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body = Random(0).randbytes(11 * MIB)
    late(proxy, "CompleteMultipartUpload")
    (work / "file").write_bytes(body)
    assert shared.get(work / "file") == body
    (work / "file").write_bytes(b"two")
    arrives_in_vain(proxy)
    assert shared.get(work / "file") == b"two"


def test_what_was_done_though_nobody_heard_is_no_conflict(
    shared: Shared, proxy: FaultProxy, work: Path
):
    """An fsync fails, because its answer came too late; the next one goes on from there."""
    (work / "file").write_bytes(b"before")
    hang = proxy.inject(Hang(Point.ANSWER), operation="PutObject", path="/file$")
    with (work / "file").open("ab", buffering=0) as file:
        file.write(b"1")
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(file.fileno())
        assert hang.hits
        assert shared.get(work / "file") == b"before1"
        proxy.clear()
        file.write(b"2")
        os.fsync(file.fileno())
    assert shared.get(work / "file") == b"before12"
    assert (work / "file").read_bytes() == b"before12"


def test_the_last_close_wins_over_what_another_host_has_written(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "file").write_bytes(b"ours")
    shared.put(work / "file", b"theirs")
    proxy.forget()
    (work / "file").write_bytes(b"ours again")
    assert shared.get(work / "file") == b"ours again"
    assert (work / "file").read_bytes() == b"ours again"
    assert proxy.counts()["PutObject"] <= 2


def test_the_last_close_of_a_large_file_wins_as_well(shared: Shared, proxy: FaultProxy, work: Path):
    body = Random(1).randbytes(11 * MIB)
    (work / "file").write_bytes(b"ours")
    shared.put(work / "file", b"theirs")
    (work / "file").write_bytes(body)
    assert shared.get(work / "file") == body
    shared.delete(work / "file")
    (work / "file").write_bytes(body[::-1])
    assert shared.get(work / "file") == body[::-1]


def test_the_last_close_wins_over_a_deletion_by_another_host(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "file").write_bytes(b"ours")
    with (work / "file").open("wb") as file:
        file.write(b"ours again")
        shared.delete(work / "file")
    assert shared.get(work / "file") == b"ours again"


def test_a_deletion_removes_what_another_host_has_just_written(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "file").write_bytes(b"ours")
    shared.put(work / "file", b"theirs")
    (work / "file").unlink()
    assert shared.all_keys(work) == [shared.key(work) + "/"]
