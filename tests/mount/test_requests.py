"""What the work of programs costs in requests: counted on the wire, so that it cannot grow."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.mount.conftest import Shared
from tests.mount.programs import run
from tests.mount.trees import names
from tests.stores import random_bytes

MIB = 1 << 20
QUIET = 0.6  # Seconds without a request after which all background work is done.


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing(proxied=True) as shared:
        yield shared


class Counted:
    """The requests of a block: known when the block is left and all is quiet."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.sent = 0  # Bytes from the mount to the store.
        self.received = 0

    @property
    def total(self) -> int:
        """How many requests there were."""
        return self.operations.total()


def wait_until_quiet(shared: Shared) -> None:
    """Wait until nothing is asked of the store for a while."""
    before = -1
    while len(shared.proxy.log) != before:
        before = len(shared.proxy.log)
        time.sleep(QUIET)


@contextmanager
def counted(shared: Shared) -> Iterator[Counted]:
    """Count the requests that the block causes, now and soon after."""
    wait_until_quiet(shared)
    shared.proxy.forget()
    counted = Counted()
    yield counted
    wait_until_quiet(shared)
    for exchange in shared.proxy.log:
        counted.operations[exchange.operation] += 1
        counted.sent += exchange.received
        counted.received += exchange.sent


# -- writing -----------------------------------------------------------------------------------


def test_a_new_small_file_is_one_put(shared: Shared, work: Path):
    names(work)
    with counted(shared) as requests:
        (work / "file").write_bytes(b"x" * 5000)
    assert requests.operations == {"PutObject": 1}


def test_cp_p_of_a_small_file_is_one_put(shared: Shared, work: Path, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "file").chmod(0o640)
    os.utime(tmp_path / "file", (10**9, 10**9))
    with counted(shared) as requests:
        run("cp", "-p", tmp_path / "file", work / "file")
    assert requests.operations["PutObject"] + requests.operations["CopyObject"] == 1
    assert shared.head(work / "file")["Metadata"]["mtime"] == "1000000000.000000000"


def test_64_mib_in_order_are_8_parts(shared: Shared, work: Path):
    piece = Random(0).randbytes(MIB)
    with counted(shared) as requests, (work / "file").open("wb", buffering=0) as file:
        for _ in range(64):
            file.write(piece)
    assert requests.operations == {
        "CreateMultipartUpload": 1,
        "UploadPart": 8,
        "CompleteMultipartUpload": 1,
    }
    assert requests.sent < 65 * MIB


def test_appending_1_kb_to_64_mib_sends_little(shared: Shared, work: Path):
    body = Random(1).randbytes(64 * MIB)
    (work / "file").write_bytes(body)
    with counted(shared) as requests, (work / "file").open("ab") as file:
        file.write(b"!" * 1024)
    assert requests.sent + requests.received < 11 * MIB
    assert shared.get(work / "file") == body + b"!" * 1024


def test_a_patch_in_64_mib_sends_little(shared: Shared, work: Path):
    body = bytearray(Random(2).randbytes(64 * MIB))
    (work / "file").write_bytes(body)
    with counted(shared) as requests, (work / "file").open("r+b") as file:
        file.seek(30 * MIB)
        file.write(b"!" * 10)
    body[30 * MIB : 30 * MIB + 10] = b"!" * 10
    # One part of 8 MiB has to be read and sent again.
    assert requests.sent + requests.received < 17 * MIB
    assert shared.get(work / "file") == body


def test_a_file_that_is_renamed_while_it_is_written_is_sent_once(shared: Shared, work: Path):
    with counted(shared) as requests, (work / "temporary").open("wb") as file:
        file.write(b"x" * 5000)
        (work / "temporary").rename(work / "file")
    # The kernel keeps the bytes back until close: so the name, which rename promises, is sent
    # before them.
    assert requests.operations["PutObject"] <= 2
    assert requests.operations["CopyObject"] == 0
    assert requests.sent == 5000


def test_names_cost_one_request_each(shared: Shared, work: Path):
    (work / "file").write_bytes(b"content")
    (work / "renamed").write_bytes(b"content")
    with counted(shared) as made:
        (work / "directory").mkdir()
    assert made.operations == {"PutObject": 1}
    with counted(shared) as removed:
        (work / "file").unlink()
    assert removed.operations == {"DeleteObject": 1}
    with counted(shared) as renamed:
        (work / "renamed").rename(work / "new")
    assert renamed.operations == {"CopyObject": 1, "DeleteObject": 1}


def test_a_directory_is_removed_with_two_requests(shared: Shared, work: Path):
    (work / "directory").mkdir()
    with counted(shared) as requests:
        (work / "directory").rmdir()
    # Whether it is empty is asked anew, because others may have put something into it.
    assert requests.operations == {"ListObjects": 1, "DeleteObject": 1}


def test_several_attributes_are_one_copy(shared: Shared, work: Path):
    path = work / "file"
    path.write_bytes(b"content")
    with counted(shared) as requests:
        path.chmod(0o600)
        os.chown(path, 1, 2)
        os.utime(path, (1, 1))
    assert requests.operations == {"CopyObject": 1}


# -- reading -----------------------------------------------------------------------------------


def test_what_was_just_written_is_known(shared: Shared, work: Path):
    for number in range(10):
        (work / f"file{number}").write_bytes(b"content")
    with counted(shared) as requests:
        assert len(names(work)) == 10
        for number in range(10):
            assert (work / f"file{number}").stat().st_size == 7
            assert (work / f"file{number}").read_bytes() == b"content"
            assert not (work / f"other{number}").exists()
    # The kernel keeps what was written in its own cache.
    assert requests.total == 0


def test_open_stat_and_ls_of_what_was_just_written_ask_nothing(shared: Shared, work: Path):
    (work / "file").write_bytes(b"content")
    with counted(shared) as requests:
        os.close(os.open(work / "file", os.O_RDONLY))
        assert (work / "file").stat().st_size == 7
        assert names(work) == ["file"]
    assert requests.total == 0


def test_a_listed_small_file_is_read_with_one_get(shared: Shared, cold: Path):
    shared.put(cold / "file", b"content")
    assert names(cold) == ["file"]
    with counted(shared) as requests:
        assert (cold / "file").read_bytes() == b"content"
    assert requests.operations == {"GetObject": 1}


@pytest.mark.parametrize("size", [40_000, 100_000, 250_000])
def test_a_file_of_several_pieces_is_fetched_once(shared: Shared, cold: Path, size: int):
    body = random_bytes(size)
    shared.put(cold / "file", body)
    assert names(cold) == ["file"]
    with counted(shared) as requests:
        assert (cold / "file").read_bytes() == body
    assert requests.operations["GetObject"] == 1


def test_small_files_are_read_with_two_requests_each_at_most(shared: Shared, cold: Path):
    for number in range(20):
        shared.put(cold / f"file{number}", b"content")
    assert len(names(cold)) == 20
    with counted(shared) as requests:
        for number in range(20):
            assert (cold / f"file{number}").read_bytes() == b"content"
    assert requests.operations["GetObject"] == 20
    assert requests.total <= 40


def test_small_files_read_in_order_are_fetched_ahead_and_once(shared: Shared, cold: Path):
    order = [f"file{number:03d}" for number in range(120)]
    for name in order:
        shared.put(cold / name, name.encode())
    assert names(cold) == order
    with counted(shared) as few:
        for name in order[:30]:
            assert (cold / name).read_bytes() == name.encode()
    # At most 64 are fetched that nobody has opened, and they are not fetched again.
    assert 30 <= few.operations["GetObject"] <= 30 + 64
    with counted(shared) as others:
        for name in order[30:]:
            assert (cold / name).read_bytes() == name.encode()
    assert few.operations["GetObject"] + others.operations["GetObject"] <= 122


def test_picking_a_few_small_files_fetches_a_bounded_number_ahead(shared: Shared, cold: Path):
    order = [f"file{number:03d}" for number in range(300)]
    for name in order:
        shared.put(cold / name, name.encode())
    assert names(cold) == order
    with counted(shared) as requests:
        for name in order[::10]:
            assert (cold / name).read_bytes() == name.encode()
    assert requests.operations["GetObject"] <= 30 + 64


def test_a_file_that_changes_after_it_was_fetched_ahead_is_read_as_it_is(
    shared: Shared, cold: Path
):
    for number in range(40):
        shared.put(cold / f"file{number:02d}", b"before")
    assert len(names(cold)) == 40
    for number in range(20):
        (cold / f"file{number:02d}").read_bytes()
    wait_until_quiet(shared)
    for number in range(20, 40):
        shared.put(cold / f"file{number:02d}", b"changed by another host")
    time.sleep(1.1)  # An open so soon after a look at the store needs no second one.
    for number in range(20, 40):
        assert (cold / f"file{number:02d}").read_bytes() == b"changed by another host"


def test_a_small_file_nobody_has_listed_is_read_with_few_requests(shared: Shared, cold: Path):
    shared.put(cold / "file", b"content")
    assert cold.exists()
    with counted(shared) as requests:
        assert (cold / "file").read_bytes() == b"content"
    assert requests.operations["GetObject"] == 1
    assert requests.operations["ListObjects"] <= 1
    assert requests.total <= 3


def test_the_second_read_asks_nothing(shared: Shared, cold: Path):
    shared.put(cold, Random(3).randbytes(3 * MIB))
    first = cold.read_bytes()
    with counted(shared) as requests:
        assert cold.read_bytes() == first
    assert requests.total == 0


def test_a_sequential_read_asks_for_each_byte_once(shared: Shared, cold: Path):
    body = Random(4).randbytes(40 * MIB)
    shared.put(cold, body)
    with counted(shared) as requests:
        assert cold.read_bytes() == body
    assert requests.received < 41 * MIB
    assert requests.operations["GetObject"] <= 30


def test_random_reads_fetch_little(shared: Shared, cold: Path):
    body = Random(5).randbytes(40 * MIB)
    shared.put(cold, body)
    random = Random(6)
    offsets = [random.randrange(len(body) - 4096) // 4096 * 4096 for _ in range(50)]
    assert cold.exists()
    with counted(shared) as requests, cold.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in offsets:
            assert os.pread(file.fileno(), 4096, offset) == body[offset : offset + 4096]
    assert requests.operations["GetObject"] <= 55
    assert requests.received < 5 * MIB


def test_ls_l_asks_for_attributes_once(shared: Shared, cold: Path):
    for number in range(30):
        shared.put(cold / f"file{number}", b"content", Metadata={"mode": "33152"})
    with counted(shared) as first:
        assert run("ls", "-l", cold).count("-rw-------") == 30
    assert first.operations["ListObjects"] <= 3
    assert first.operations["HeadObject"] + first.operations["GetObject"] <= 32
    with counted(shared) as second:
        assert run("ls", "-l", cold).count("-rw-------") == 30
    assert second.total == 0


def test_find_lists_each_directory_once(shared: Shared, cold: Path):
    # Objects below 4 KiB could be symlinks, so their types cost a HEAD each.
    for number in range(10):
        for name in ("one", "two"):
            shared.put(cold / f"directory{number}" / name, b"x" * 5000)
    with counted(shared) as requests:
        assert run("find", cold, "-name", "one").count("one") == 10
    assert requests.operations["ListObjects"] <= 13
    assert requests.operations["HeadObject"] <= 12


def test_the_first_names_of_a_directory_come_with_a_small_request(shared: Shared, cold: Path):
    for number in range(130):
        shared.put(cold / f"{number:03}", b"")
    with counted(shared) as requests:
        assert len(os.listdir(cold)) == 130  # noqa: PTH208 - names alone
    # One more for the directory itself.
    asked = [exchange.request.query for exchange in shared.proxy.log]
    pages = [query for query in asked if "delimiter=" in query]
    assert ["max-keys=100&" in query for query in pages] == [True, False]
    assert requests.operations["ListObjects"] <= 3


def test_who_walks_a_tree_gets_each_directory_with_one_request(shared: Shared, cold: Path):
    for directory in ("a", "b", "c"):
        for number in range(105):
            shared.put(cold / directory / f"{number:03}", b"x" * 5000)
    with counted(shared):
        found = [len(files) for _, _, files in os.walk(cold)]
    assert found == [0, 105, 105, 105]
    pages = [exchange for exchange in shared.proxy.log if "delimiter=" in exchange.request.query]
    assert len(pages) <= 4
