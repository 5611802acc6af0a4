"""What one mount sees of what others do: old or new, an error where it must be, never a mixture."""

import errno
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from tests.mount.conftest import Shared
from tests.mount.trees import names

MIB = 1 << 20
LARGE = 40 * MIB  # More than is ever read ahead of somebody who has read 100 KB.
RECENT = 1.2  # Seconds after which `open` asks the store anew.
TTL = 10.0  # Seconds in which everything is seen: negative TTL, and some more.


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing("--metadata-ttl", "3s", "--negative-ttl", "1s", mounts=2) as shared:
        # Refused conflicts are what these tests are about.
        shared.mounter.expect_log(
            r"could not be saved|pre-conditions|changed in the store", optional=True
        )
        yield shared


@pytest.fixture
def path(shared: Shared) -> Path:
    """A file in the first mount that is not there yet."""
    return shared.root / f"file-{secrets.token_hex(4)}"


@pytest.fixture
def other(shared: Shared, path: Path) -> Path:
    """The same file in the second mount."""
    return shared.mounts[1].path / path.name


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until *condition* returns true."""
    end = time.monotonic() + TTL
    while not condition():
        assert time.monotonic() < end, "not within the time to live"
        time.sleep(0.05)


def content(path: Path) -> bytes | int:
    """What a file holds, or the errno of whoever tries to read it."""
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno or -1


# -- others change what is open ----------------------------------------------------------------


def replace(shared: Shared, path: Path, size: int | None) -> None:
    """Put another object there, of *size* bytes ``B``; None deletes it."""
    if size is None:
        shared.delete(path)
    else:
        shared.put(path, b"B" * size)


@pytest.mark.parametrize("size", [LARGE, LARGE // 2, 10, 0, 2 * LARGE, None])
def test_an_open_file_never_mixes_two_versions(shared: Shared, path: Path, size: int | None):
    shared.put(path, b"A" * LARGE)
    eventually(path.exists)
    with path.open("rb", buffering=0) as file:
        assert file.read(100_000) == b"A" * 100_000
        replace(shared, path, size)
        stale = 0
        for offset in [*range(0, LARGE, 3 * MIB), LARGE - 1000]:
            try:
                found = os.pread(file.fileno(), 70_000, offset)
            except OSError as error:
                found = error.errno
            assert found in (b"A" * min(70_000, LARGE - offset), errno.ESTALE)
            stale += found == errno.ESTALE
        assert stale > 0
    # Who has learned that the object is another one must not be told the same thing twice.
    assert content(path) == (errno.ENOENT if size is None else b"B" * size)


def test_readers_see_whole_versions_while_others_replace_them(shared: Shared, path: Path):
    def version(number: int) -> bytes:
        return bytes([97 + number % 26]) * (100_000 * (1 + number % 26))

    def read_until(end: float) -> int:
        count = 0
        while time.monotonic() < end:
            found = content(path)
            if found != errno.ESTALE:
                assert found == found[:1] * (100_000 * (found[0] - 96))
                count += 1
        return count

    shared.put(path, version(0))
    eventually(lambda: content(path) == version(0))
    end = time.monotonic() + 5
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_until, end) for _ in range(3)]
        number = 0
        while time.monotonic() < end:
            number += 1
            shared.put(path, version(number))
            time.sleep(0.05)
        assert all(reader.result() > 0 for reader in readers)
    eventually(lambda: content(path) == version(number))


# -- close to open -----------------------------------------------------------------------------


def test_what_one_has_closed_another_sees_that_opens_later(path: Path, other: Path):
    path.write_bytes(b"version 0")
    eventually(lambda: content(other) == b"version 0")
    for number in range(1, 4):
        path.write_bytes(b"version %d" % number * number)
        time.sleep(RECENT)
        assert other.read_bytes() == b"version %d" % number * number
        other.write_bytes(b"answer %d" % number)
        time.sleep(RECENT)
        assert path.read_bytes() == b"answer %d" % number


def test_what_is_appended_elsewhere_is_seen(path: Path, other: Path):
    path.write_bytes(b"0")
    eventually(other.exists)
    for number in range(1, 5):
        here = path if number % 2 else other
        time.sleep(RECENT)
        with here.open("ab") as file:
            file.write(b"%d" % number)
    time.sleep(RECENT)
    assert path.read_bytes() == other.read_bytes() == b"01234"


def test_names_that_others_make_and_remove_are_seen(shared: Shared, path: Path, other: Path):
    path.mkdir()
    (path / "file").write_bytes(b"content")
    eventually(lambda: other.is_dir() and names(other) == ["file"])
    (other / "second").write_bytes(b"")
    (path / "file").unlink()
    eventually(lambda: names(path) == names(other) == ["second"])
    (other / "second").rename(other / "third")
    eventually(lambda: names(path) == ["third"])
    eventually(lambda: not (path / "second").exists())
    shared.put(path / "third", b"by another tool")
    eventually(lambda: (path / "third").stat().st_size == 15)


# -- two who change the same file --------------------------------------------------------------


def close_error(descriptor: int) -> int:
    """Close, and return the errno, 0 for none."""
    try:
        os.close(descriptor)
    except OSError as error:
        return error.errno or -1
    return 0


def test_of_two_that_create_a_name_exclusively_one_wins(path: Path, other: Path):
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    first, second = os.open(path, flags), os.open(other, flags)
    os.write(first, b"first")
    os.write(second, b"second")
    assert [close_error(first), close_error(second)] == [0, errno.EEXIST]
    assert path.read_bytes() == b"first"
    eventually(lambda: content(other) == b"first")


def test_exclusive_creation_that_is_claimed_at_open(sharing):
    with sharing("--exclusive-create", "open", mounts=2) as two:
        two.mounter.expect_log(r"create .*lock-\d+", optional=True)

        def create(mount: int, name: str) -> bool:
            try:
                with (two.mounts[mount].path / name).open("x") as file:
                    file.write(f"by {mount}")
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            for number in range(20):
                outcomes = pool.map(create, (0, 1), (f"lock-{number}",) * 2)
                assert sum(outcomes) == 1


@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_a_change_in_part_over_the_change_of_another_is_refused(
    shared: Shared, path: Path, size: int
):
    shared.put(path, b"A" * size)
    eventually(path.exists)
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"mine", 100)
    shared.put(path, b"B" * size)
    with pytest.raises(OSError, match="Stale"):
        os.fsync(descriptor)
    close_error(descriptor)
    assert shared.get(path) == b"B" * size
    eventually(lambda: content(path) == b"B" * size)


def test_a_file_that_is_rewritten_from_empty_replaces_what_is_there(shared: Shared, path: Path):
    path.write_bytes(b"old")
    with path.open("wb") as file:
        shared.put(path, b"of somebody else")
        file.write(b"mine")
    assert shared.get(path) == b"mine"
    assert path.read_bytes() == b"mine"


def test_two_mounts_that_write_at_once_leave_one_whole_version(
    shared: Shared, path: Path, other: Path
):
    def write(where: Path, letter: bytes) -> None:
        with where.open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(letter * MIB)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (path, other), (b"A", b"B")))
    assert shared.get(path) in (b"A" * 20 * MIB, b"B" * 20 * MIB)


# -- replacing by rename -----------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_replaced_by_rename_is_never_missing(path: Path, other: Path, elsewhere: bool):
    path.write_bytes(b"version 0")
    eventually(lambda: content(other) == b"version 0")
    reading = other if elsewhere else path
    ended = threading.Event()

    def read() -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while not ended.is_set():
            found = content(reading)
            if isinstance(found, int):
                outcomes[errno.errorcode[found]] += 1
            else:
                outcomes["whole" if found.startswith(b"version ") else "torn"] += 1
        return outcomes

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(150):
                temporary = path.with_name(f"{path.name}.tmp")
                temporary.write_bytes(b"version %d" % number)
                temporary.rename(path)
        finally:
            ended.set()
        outcomes = sum((reader.result() for reader in readers), Counter())
    # The kernel walks the path again after ESTALE, but only once.
    assert set(outcomes) <= {"whole", "ESTALE"}
    assert outcomes["whole"] > (3 if elsewhere else 10) * outcomes["ESTALE"], outcomes
    eventually(lambda: content(reading) == b"version 149")


def test_a_large_file_is_read_whole_while_it_is_replaced(shared: Shared, path: Path):
    """By a program on the same mount: whoever has it open keeps the old bytes."""
    body = Random(0).randbytes(20 * MIB)
    path.write_bytes(body)
    with path.open("rb", buffering=0) as file:
        assert file.read(1000) == body[:1000]
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_bytes(b"new")
        temporary.rename(path)
        assert body[1000:] == b"".join(iter(lambda: file.read(MIB), b""))
    assert path.read_bytes() == b"new"


# -- deleted elsewhere -------------------------------------------------------------------------


@pytest.mark.parametrize("rewritten", [False, True])
def test_check_35_a_file_that_is_deleted_under_its_writer(
    shared: Shared, path: Path, rewritten: bool
):
    """What was changed in part has nothing to be a part of any more; a whole file has."""
    shared.put(path, b"A" * 10_000)
    eventually(path.exists)
    descriptor = os.open(path, os.O_RDWR | (os.O_TRUNC if rewritten else 0))
    os.pwrite(descriptor, b"mine", 0)
    shared.delete(path)
    found = close_error(descriptor)
    assert found == (0 if rewritten else errno.ESTALE)
    assert (shared.key(path) in shared.all_keys()) == rewritten
    if rewritten:
        assert shared.get(path) == b"mine"
