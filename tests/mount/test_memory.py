"""Files that are larger than the memory of the mount: slower, and never wrong or stuck."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import BinaryIO

import pytest

from tests.faults import ACCESS_DENIED, Answer, Delay, Hang, Point
from tests.mount.conftest import Shared
from tests.mount.test_conflicts import recover_of
from tests.mount.test_overtaken_reads import beside
from tests.mount.test_writeback import wait_until
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


@contextmanager
def direct(path: Path, flags: int = 0) -> Iterator[Callable[[int, bytes], None]]:
    """``write(offset, data)`` past the kernel's cache, in pieces of 64 KiB."""
    piece = 65_536
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | flags)

    def write(offset: int, data: bytes) -> None:
        for start in range(0, len(data), piece):
            part = data[start : start + piece]
            with mmap.mmap(-1, len(part)) as buffer:  # Aligned as O_DIRECT may demand.
                buffer[:] = part
                assert os.pwritev(descriptor, [buffer], offset + start) == len(part)

    try:
        yield write
    finally:
        os.close(descriptor)


def parts_sent(shared: Shared) -> int:
    """How many parts the store has taken since the log was emptied."""
    done = [one for one in shared.proxy.log if one.seconds is not None and one.status == 200]
    return sum(one.operation == "UploadPart" for one in done)


def test_the_end_of_a_part_that_has_left_is_written_again(shared: Shared, work: Path):
    """It is in a block that the next part has, too, and so still here; the rest of it is not."""
    page, border = 4096, 3 * PART_SIZE
    body = bytearray(noise(border // 65_536 * 65_536 + 65_536, 8))
    last = border // page * page
    shared.proxy.forget()
    with direct(work / "file") as write:
        write(0, bytes(body))
        wait_until(lambda: parts_sent(shared) == 3)
        body[last : last + page] = noise(page, 9)
        write(last, bytes(body[last : last + page]))
    check(shared, work / "file", bytes(body))


@pytest.fixture(scope="module")
def large_parts(sharing) -> Iterator[Shared]:
    with sharing("--memory", "32M", "--part-size", "16M", proxied=True) as shared:
        yield shared


def test_more_parts_before_one_that_has_left_than_its_number_allows(large_parts: Shared):
    """Short changes and copies between them make many small parts; then comes a long change."""
    shared, work = large_parts, large_parts.root
    body = bytearray(noise(112 * MIB, 10))
    stored(shared, work / "file", bytes(body))
    with direct(work / "file") as write:
        for offset in (0, 11 * MIB, 22 * MIB):
            body[offset : offset + 4096] = noise(4096, offset)
            write(offset, bytes(body[offset : offset + 4096]))
        start, stop = 32 * MIB, 100 * MIB
        body[start:stop] = noise(stop - start, 11)
        write(start, bytes(body[start:stop]))
    check(shared, work / "file", bytes(body))


def test_a_file_without_a_name_is_written_anew(shared: Shared, work: Path):
    """Parts of it had left and were dropped; with the name went the upload that has them."""
    path = work / "file"
    script = (
        "import os, sys, time; file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT);"
        f"data = os.urandom({MIB});"
        f"[os.pwrite(file, data, at) for at in range(0, {60 * MIB}, {MIB})];"
        "time.sleep(1); os.unlink(sys.argv[1]);"  # Most parts have left by then.
        f"os.pwrite(file, data, {20 * MIB}); os.ftruncate(file, {30 * MIB});"
        "os.ftruncate(file, 0); os.pwrite(file, data, 0); os.close(file)"
    )
    in_time(path, script)
    assert not path.exists()


@pytest.mark.parametrize("existing", [True, False])
def test_a_directory_is_renamed_while_parts_of_a_file_in_it_leave(
    shared: Shared, work: Path, existing: bool
):
    """The upload goes on under the old name, where nothing else is any more."""
    old, new, body = work / "old", work / "new", noise(40 * MIB, 12)
    old.mkdir()
    (old / "other").write_bytes(b"other")
    if existing:
        (old / "file").write_bytes(b"before")
    slow = shared.proxy.inject(Delay(3), operation="CopyObject", path="other$")
    shared.proxy.forget()
    with beside(lambda: old.rename(new)):
        wait_until(lambda: slow.hits > 0)
        with direct(old / "file") as write:
            write(0, body)
            wait_until(lambda: parts_sent(shared) >= 3)
            wait_until(new.exists)
    shared.proxy.remove(slow)
    check(shared, new / "file", body)
    assert shared.all_keys(old) == []


def streamed_while_renamed(shared: Shared, old: Path, new: Path, body: bytes) -> BinaryIO:
    """Write ``old/file`` while *old* becomes *new*, and leave it open: some parts have left."""
    old.mkdir()
    (old / "other").write_bytes(b"other")
    slow = shared.proxy.inject(Delay(3), operation="CopyObject", path="other$")
    shared.proxy.forget()
    with beside(lambda: old.rename(new)):
        wait_until(lambda: slow.hits > 0)
        file = (old / "file").open("wb", buffering=0)
        for start in range(0, len(body), MIB):
            file.write(body[start : start + MIB])
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # Begins to write back.
        wait_until(lambda: parts_sent(shared) >= 3)
        wait_until(new.exists)
    shared.proxy.remove(slow)
    return file


def test_what_went_on_under_an_old_name_is_saved_when_it_has_the_new_one(
    shared: Shared, work: Path
):
    """The copy to the new name fails at first, and the file is not saved before it succeeds."""
    old, new, body = work / "old", work / "new", noise(40 * MIB, 13)
    file = streamed_while_renamed(shared, old, new, body)
    refusal = shared.proxy.inject(ACCESS_DENIED, operation="CopyObject", path="file$", count=1)
    shared.mounter.expect_log(r"fsync .*/file: EACCES: .*AccessDenied", optional=True)
    with file:
        with pytest.raises(PermissionError):
            os.fsync(file.fileno())
        os.fsync(file.fileno())
        assert shared.get(new / "file") == body
    assert refusal.hits == 1
    assert shared.all_keys(old) == []


def test_what_went_on_under_an_old_name_and_is_refused_can_be_recovered(shared: Shared, work: Path):
    """Its parts can only become the object that they were sent for."""
    old, body = work / "old", noise(40 * MIB, 16)
    file = streamed_while_renamed(shared, old, work / "new", body)
    refusal = shared.proxy.inject(ACCESS_DENIED, operation="CompleteMultipartUpload")
    shared.mounter.expect_log(r"file: .*AccessDenied", optional=True)
    with pytest.raises(PermissionError):
        file.close()
    shared.proxy.remove(refusal)
    recover = recover_of(shared, old / "file")
    assert [row[:2] for row in recover.rows()] == [
        [f"{shared.bucket.name}/{shared.key(old / 'file')}", "40.0 MiB"]
    ]
    recover.upload()
    assert shared.get(old / "file") == body
    assert recover.rows() == []


@pytest.fixture(scope="module")
def impatient(sharing) -> Iterator[Shared]:
    with sharing("--memory", "32M", "--timeout", "3s", proxied=True) as shared:
        shared.mounter.expect_log(r"(fsync|flush|write) .*: EIO")
        yield shared


def test_what_was_completed_unheard_is_gone_on_from(impatient: Shared):
    """The parts that had left are in the object by now, and nowhere else."""
    shared, proxy, body = impatient, impatient.proxy, bytearray(noise(42 * MIB, 14))
    path = shared.root / "unheard"
    proxy.forget()
    with direct(path) as write, path.open("rb") as reader:
        write(0, bytes(body))
        wait_until(lambda: parts_sent(shared) >= 4)
        unheard = Answer(503, "ServiceUnavailable", late=True)
        proxy.inject(unheard, operation="CompleteMultipartUpload", count=1)
        proxy.inject(Answer(503, "ServiceUnavailable"), method="HEAD", path="unheard$")
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(reader.fileno())
        proxy.clear()
        body += noise(4096, 15)
        write(42 * MIB, bytes(body[42 * MIB :]))
    check(shared, path, bytes(body))


def test_a_store_that_goes_away_before_the_first_part_is_not_waited_for_by_each(
    impatient: Shared,
):
    shared, proxy = impatient, impatient.proxy
    proxy.clear()
    proxy.inject(Hang(Point.REQUEST), operation="CreateMultipartUpload")
    proxy.forget()
    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        (shared.root / "never").write_bytes(bytes(120 * MIB))
    took = time.monotonic() - began
    proxy.clear()
    assert took < 4 * 3, "each of 12 parts has waited for the time limit of 3 s"


def test_small_writes_past_the_kernel_cache(shared: Shared, work: Path):
    """A part leaves while the next one still grows in the same block of memory."""
    body = noise(40 * MIB, 7)
    with direct(work / "file") as write:
        write(0, body)
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
