"""A store that is away, or does not answer, or always refuses: an error in time, and no more.

The numbers are those of the table in docs/reliability.md.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import INTERNAL_ERROR, SLOW_DOWN, Delay, Hang, Point, Throttle
from tests.mount.conftest import Shared
from tests.mount.faulty import BACK, errno_of, eventually, noise
from tests.mount.trees import names

MIB = 1 << 20
TIMEOUT = 4  # Seconds that the mount tries a failing store.
SOON = TIMEOUT + 10.0  # An error has to come within the limit, on a slow machine too.


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    options = ("--timeout", f"{TIMEOUT}s", "--metadata-ttl", "30s", "--negative-ttl", "0s")
    with sharing(*options, proxied=True) as shared:
        shared.mounter.expect_log(
            r"cannot connect|in time|503|SlowDown|connection|could not be saved"
            r"|InternalError|the store answered",
            optional=True,
        )
        yield shared


def is_in_store(shared: Shared, path: Path, body: bytes) -> bool:
    return shared.key(path) in shared.all_keys() and shared.get(path) == body


def shown(path: Path) -> bytes:
    """What a file holds; whether its close saves it does not matter."""
    descriptor = os.open(path, os.O_RDONLY)
    found = os.read(descriptor, path.stat().st_size)
    with suppress(OSError):
        os.close(descriptor)
    return found


# -- the store is away -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_check_09_the_store_goes_away_before_a_close(
    shared: Shared, proxy: FaultProxy, work: Path, size: int
):
    body, path = noise(size), work / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, body[: size // 2])
    proxy.down()
    os.write(descriptor, body[size // 2 :])
    assert errno_of(lambda: os.close(descriptor)) == errno.EIO
    assert shared.key(path) not in shared.all_keys(work)
    assert shown(path) == body  # Nothing is lost: the mount has it, and tries again.
    proxy.up()
    eventually(lambda: is_in_store(shared, path, body))


def test_check_09_a_reader_does_not_keep_a_file_from_being_saved(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body, path = noise(100_000), work / "file"
    with path.open("wb", buffering=0) as file, path.open("rb", buffering=0) as reader:
        file.write(body)
        proxy.down()
        assert errno_of(lambda: os.fsync(file.fileno())) == errno.EIO
        with suppress(OSError):
            file.close()
        proxy.up()
        eventually(lambda: is_in_store(shared, path, body))
        assert reader.read(200_000) == body


def test_check_09_the_store_goes_away_before_an_fsync(
    shared: Shared, proxy: FaultProxy, work: Path
):
    path = work / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"content")
    proxy.down()
    assert errno_of(lambda: os.fsync(descriptor)) == errno.EIO
    proxy.up()
    assert errno_of(lambda: os.fsync(descriptor)) == 0
    assert shared.get(path) == b"content"
    os.close(descriptor)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_check_10_the_store_is_away_when_a_file_is_read(
    shared: Shared, proxy: FaultProxy, work: Path, size: int
):
    body, path = noise(size), work / "file"
    shared.put(path, body)
    assert path.stat().st_size == size
    proxy.down()
    assert errno_of(path.read_bytes) == errno.EIO
    proxy.up()
    began = time.monotonic()
    assert path.read_bytes() == body
    assert time.monotonic() - began < BACK
    assert "work-" in shared.mounts[0].log


def test_check_11_what_is_known_is_served_while_the_store_is_away(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body, path = noise(300_000), work / "file"
    shared.put(path, body)
    assert path.read_bytes() == body
    assert names(work) == ["file"]
    names(shared.root)
    time.sleep(1.2)  # From now on an open would ask the store.
    proxy.down()
    for action in (
        lambda: shared.root.stat(),
        lambda: os.statvfs(shared.root),
        lambda: names(work),
        lambda: path.stat(),
    ):
        assert errno_of(action, 5.0) == 0
    assert errno_of(path.read_bytes, 8.0) == 0
    assert path.read_bytes() == body
    done = subprocess.run(["df", str(shared.root)], timeout=5, check=False, capture_output=True)
    assert done.returncode == 0


# -- the store is busy -------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.1, 0.3])
def test_check_12_a_busy_store_costs_time_and_no_errors(
    shared: Shared, proxy: FaultProxy, work: Path, probability: float
):
    for number in range(15):
        (work / f"before-{number}").write_bytes(b"%d" % number)
    proxy.forget()
    busy = proxy.inject(SLOW_DOWN, probability=probability)
    for number in range(15):
        (work / f"file-{number}").write_bytes(b"%d" % number)
    for number in range(15):
        assert (work / f"before-{number}").read_bytes() == b"%d" % number
    proxy.clear()
    good = len(proxy.log) - busy.hits
    assert busy.hits > 0
    assert len(proxy.log) <= 3 * good
    for number in range(15):
        assert shared.get(work / f"file-{number}") == b"%d" % number


def test_check_13_a_store_that_always_refuses_and_recovers(
    shared: Shared, proxy: FaultProxy, work: Path
):
    shared.put(work / "file", b"content")
    assert (work / "file").stat().st_size == 7
    (work / "directory").mkdir()
    new = os.open(work / "new", os.O_WRONLY | os.O_CREAT)
    os.write(new, b"new")
    proxy.inject(SLOW_DOWN, probability=0.5)
    proxy.inject(INTERNAL_ERROR)
    for action in (
        lambda: (work / "file").read_bytes(),
        lambda: (work / "directory").rmdir(),
        lambda: (work / "unknown").stat(),
        lambda: os.close(new),
    ):
        assert errno_of(action) == errno.EIO  # Never ENOENT, never EACCES.
    proxy.clear()
    assert (work / "file").read_bytes() == b"content"
    eventually(lambda: is_in_store(shared, work / "new", b"new"))


def test_check_13_a_pause_shorter_than_the_time_limit_is_no_error(
    shared: Shared, proxy: FaultProxy, work: Path
):
    path = work / "file"
    shared.put(path, b"content")
    refusal = proxy.inject(SLOW_DOWN)
    script = "import sys; print(open(sys.argv[1]).read())"
    reader = subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True
    )
    eventually(lambda: refusal.hits >= 2)
    proxy.clear()
    assert reader.communicate(timeout=SOON)[0] == "content\n"
    assert reader.returncode == 0


# -- the store is slow -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_check_17_an_answer_that_never_comes_is_asked_for_again(
    shared: Shared, proxy: FaultProxy, work: Path, size: int
):
    body = noise(size)
    shared.put(work / "file", body)
    assert (work / "file").stat().st_size == size
    hang = proxy.inject(Hang(Point.REQUEST), operation="GetObject", count=1)
    assert errno_of(lambda: (work / "file").read_bytes()) == 0
    assert hang.hits == 1
    assert (work / "file").read_bytes() == body


def test_check_17_a_store_that_never_answers_is_an_error_in_time(
    shared: Shared, proxy: FaultProxy, work: Path
):
    shared.put(work / "file", b"content")
    assert (work / "file").stat().st_size == 7
    other = os.open(work / "other", os.O_WRONLY | os.O_CREAT)
    os.write(other, b"other")
    proxy.inject(Hang(Point.REQUEST))
    # The kernel asks twice for what it did not get; only the first answer may take its time.
    assert errno_of(lambda: (work / "file").read_bytes(), 1.9 * TIMEOUT) == errno.EIO
    assert errno_of(lambda: os.close(other)) == errno.EIO
    proxy.clear()
    assert (work / "file").read_bytes() == b"content"
    eventually(lambda: is_in_store(shared, work / "other", b"other"))


def test_check_18_a_slow_download_keeps_nobody_else_waiting(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body = noise(1 * MIB)
    shared.put(work / "slow", body)
    for number in range(20):
        shared.put(work / f"file-{number}", b"content")
    names(work)
    proxy.inject(Delay(0.2))
    proxy.inject(Throttle(200_000.0), operation="GetObject", path="slow")
    reader = subprocess.Popen(["cmp", work / "slow", "-"], stdin=subprocess.PIPE)
    took = []
    for number in range(20):
        began = time.monotonic()
        assert (work / f"file-{number}").stat().st_size == 7
        took.append(time.monotonic() - began)
    assert reader.poll() is None, "the download was over too soon"
    reader.communicate(body, timeout=60)
    assert reader.returncode == 0
    assert sorted(took)[-2] < 2.0
