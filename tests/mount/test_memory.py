"""Files that are larger than the memory of the mount: slower, and never wrong or stuck."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.faults import ACCESS_DENIED
from tests.mount.conftest import Shared
from tests.servers import CHECKOUT

MIB = 1 << 20
PART_SIZE = 5_300_000  # Not whole MiB, on purpose.
OPTIONS = ("--memory", "32M", "--part-size", str(PART_SIZE), "--negative-ttl", "0s")
PATIENCE = 60.0  # Seconds for what takes two.


@pytest.fixture(scope="module")
def shared(sharing):
    with sharing(*OPTIONS, proxied=True) as shared:
        yield shared


def in_time(path: Path, script: str) -> None:
    """Run Python statements on *path*; a hang in the mount ends the daemon, not the test run."""
    process = subprocess.Popen([sys.executable, "-c", script, path])
    try:
        assert process.wait(PATIENCE) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"the program still waits after {PATIENCE} s")


def noise(size: int, seed: int) -> bytes:
    return Random(seed).randbytes(size)


def stored(shared: Shared, path: Path, body: bytes) -> None:
    """Put an object, and have the mount see it."""
    shared.put(path, body)
    assert path.stat().st_size == len(body)


def check(shared: Shared, path: Path, expected: bytes) -> None:
    """Compare both what the store has and what the mount shows, and say where they differ."""
    for who, found in (("store", shared.get(path)), ("mount", path.read_bytes())):
        if found != expected:
            wrong = [
                start // MIB
                for start in range(0, len(expected), MIB)
                if found[start : start + MIB] != expected[start : start + MIB]
            ]
            pytest.fail(f"the {who} has {len(found)} bytes, wrong in these MiB: {wrong}")


def test_a_file_larger_than_the_memory(shared: Shared, work: Path):
    body = noise(80 * MIB, 0)
    with (work / "file").open("wb", buffering=0) as file:
        for start in range(0, len(body), MIB):
            file.write(body[start : start + MIB])
    check(shared, work / "file", body)


def test_small_writes_past_the_kernel_cache(shared: Shared, work: Path):
    """A part leaves while the next one still grows in the same block of memory."""
    body, piece = noise(40 * MIB, 7), 65_536
    descriptor = os.open(work / "file", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, piece) as buffer:  # Anonymous memory, so aligned as O_DIRECT may demand.
        for start in range(0, len(body), piece):
            buffer[:] = body[start : start + piece]
            assert os.writev(descriptor, [buffer]) == piece
    os.close(descriptor)
    check(shared, work / "file", body)


@contextmanager
def memory_taken(directory: Path) -> Iterator[None]:
    """Hold files open whose unsaved bytes take more than half of the memory."""
    with ExitStack() as stack:
        for number in range(3):
            file = stack.enter_context((directory / f"unsaved-{number}").open("wb", buffering=0))
            file.write(bytes(9 * MIB // 2))
        yield


@pytest.mark.parametrize("first", [6 * MIB, 7 * MIB + 5, 13 * MIB])
def test_a_rewritten_middle(shared: Shared, work: Path, first: int):
    """The new bytes begin between two parts, so what left early cannot be used as it is."""
    body, change = bytearray(noise(70 * MIB, 1)), noise(50 * MIB, 2)
    stored(shared, work / "file", body)
    with memory_taken(work), (work / "file").open("r+b", buffering=0) as file:
        file.seek(first)
        for start in range(0, len(change), MIB):
            file.write(change[start : start + MIB])
    body[first : first + len(change)] = change
    check(shared, work / "file", body)


def test_a_part_that_has_to_leave_again(shared: Shared, work: Path):
    """The store refuses it once, while its neighbours leave and are dropped from memory."""
    body = noise(60 * MIB, 6)
    refusal = shared.proxy.inject(ACCESS_DENIED, operation="UploadPart", skip=3, count=1)
    with memory_taken(work), (work / "file").open("wb", buffering=0) as file:
        for start in range(0, len(body), MIB):
            file.write(body[start : start + MIB])
            time.sleep(0.02)  # The store keeps up, so that nothing has to be staged on disk.
    shared.proxy.remove(refusal)
    assert refusal.hits == 1
    check(shared, work / "file", body)


def test_scattered_changes(shared: Shared, work: Path):
    """They fill the memory, and can be saved only with bytes that have to be read first."""
    body = bytearray(noise(70 * MIB, 3))
    path = work / "file"
    stored(shared, path, body)
    script = (
        "import os, sys; file = os.open(sys.argv[1], os.O_RDWR);"
        f"[os.pwrite(file, b'!', at) for at in range({MIB - 1}, {len(body)}, {MIB})];"
        "os.close(file)"
    )
    in_time(path, script)
    body[MIB - 1 :: MIB] = b"!" * 70
    check(shared, path, body)


def test_what_has_left_is_read_and_changed_again(shared: Shared, work: Path):
    body = bytearray(noise(80 * MIB, 4))
    path = work / "file"
    with path.open("w+b", buffering=0) as file:
        for start in range(0, len(body), MIB):
            file.write(body[start : start + MIB])
        for at in (0, 12 * MIB + 3, 41 * MIB, 79 * MIB):
            assert os.pread(file.fileno(), 100, at) == body[at : at + 100]
            os.pwrite(file.fileno(), b"changed", at + 50)
            body[at + 50 : at + 57] = b"changed"
        os.ftruncate(file.fileno(), 60 * MIB + 1)
        del body[60 * MIB + 1 :]
    check(shared, path, body)


def test_many_readers(shared: Shared, work: Path):
    body = noise(40 * MIB, 5)
    stored(shared, work / "file", body)
    script = (
        "import os, sys, hashlib; file = os.open(sys.argv[1], os.O_RDONLY);"
        f"os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM);"
        f"[os.pread(file, 100000, at * 7919 % {len(body)}) for at in range(0, 40000, 100)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, work / "file"]) for _ in range(6)]
    assert [process.wait(PATIENCE) for process in running] == [0] * 6
    check(shared, work / "file", body)


def test_readers_of_a_file_that_is_being_saved(shared: Shared, work: Path, tmp_path: Path):
    """Bytes are only replaced by equal ones, so every read has to find them."""
    body, path, model = noise(24 * MIB, 8), work / "file", tmp_path / "model"
    stored(shared, path, body)
    model.write_bytes(body)
    command = [sys.executable, "-m", "tests.mount.constant", path, model]
    running = [
        subprocess.Popen([*command, role, "6"], cwd=CHECKOUT)
        for role in ("write", "read", "read", "read")
    ]
    assert [process.wait(PATIENCE) for process in running] == [0] * len(running)
    check(shared, path, body)
