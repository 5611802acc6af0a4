"""What programs change in a directory while it is being renamed, and what becomes of that."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import Delay
from tests.mount.conftest import Shared
from tests.mount.faulty import eventually
from tests.mount.trees import names
from tests.mounts import run_command

PAUSE = 1.2  # Seconds that each request of the renaming takes.

MOVING = COPYING, DELETING = "CopyObject", "DeleteObjects"


@pytest.fixture(scope="module", params=["durable", "writeback"])
def shared(sharing, request: pytest.FixtureRequest) -> Iterator[Shared]:
    options = ("-o", "writeback") if request.param == "writeback" else ()
    with sharing(*options, proxied=True) as shared:
        yield shared


@dataclass(frozen=True, slots=True)
class Moving:
    """A directory that is being renamed to `new`; `old` is a descriptor of it."""

    old: int
    new: Path

    def write(self, name: str, body: bytes, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
        """Write a file in it, and close that."""
        file = os.open(name, os.O_WRONLY | flags, dir_fd=self.old)
        try:
            os.write(file, body)
        finally:
            os.close(file)


@contextmanager
def renaming(work: Path, proxy: FaultProxy, moment: str = COPYING) -> Iterator[Moving]:
    """Rename a directory with some files in it, and let the caller do things meanwhile."""
    for name in ("one", "two"):
        (work / "old" / "deep").mkdir(parents=True, exist_ok=True)
        (work / "old" / name).write_bytes(name.encode())
    os.sync()
    delays = [proxy.inject(Delay(PAUSE), operation=operation) for operation in MOVING]
    directory = os.open(work / "old", os.O_RDONLY | os.O_DIRECTORY)
    thread = threading.Thread(target=(work / "old").rename, args=(work / "new",))
    try:
        thread.start()
        at = MOVING.index(moment)
        while not delays[at].hits:
            time.sleep(0.01)
        time.sleep(PAUSE / 3)  # All names are known by now.
        yield Moving(directory, work / "new")
    finally:
        thread.join()
        os.close(directory)
        proxy.clear()


def stored(shared: Shared, work: Path) -> dict[str, bytes]:
    """The files that the store has in a directory, when everything has been uploaded."""
    mounted = shared.mounts[0]
    assert run_command(["sync", str(mounted.path)], mounted.environment, 60).returncode == 0
    keys = [key for key in shared.all_keys(work) if not key.endswith("/")]
    return {key.partition("/")[2]: shared.get(shared.root / key) for key in keys}


@pytest.mark.parametrize("moment", MOVING)
def test_a_file_that_is_written_meanwhile_is_new(
    shared: Shared, work: Path, proxy: FaultProxy, moment: str
):
    with renaming(work, proxy, moment) as moving:
        moving.write("one", b"written again")
    assert (work / "new" / "one").read_bytes() == b"written again"
    assert stored(shared, work) == {"new/one": b"written again", "new/two": b"two"}


def test_a_file_that_is_changed_in_part_meanwhile_is_changed(
    shared: Shared, work: Path, proxy: FaultProxy
):
    with renaming(work, proxy) as moving:
        moving.write("one", b" and more", os.O_APPEND)
    assert (work / "new" / "one").read_bytes() == b"one and more"
    assert stored(shared, work) == {"new/one": b"one and more", "new/two": b"two"}


@pytest.mark.parametrize("moment", MOVING)
def test_a_file_that_is_made_meanwhile_goes_along(
    shared: Shared, work: Path, proxy: FaultProxy, moment: str
):
    with renaming(work, proxy, moment) as moving:
        moving.write("late", b"late")
        moving.write("deep/late", b"deep and late")
    assert (work / "new" / "deep" / "late").read_bytes() == b"deep and late"
    found = stored(shared, work)
    assert found.pop("new/deep/late") == b"deep and late"
    assert found == {"new/one": b"one", "new/two": b"two", "new/late": b"late"}


def test_a_file_that_is_removed_meanwhile_stays_removed(
    shared: Shared, work: Path, proxy: FaultProxy
):
    with renaming(work, proxy) as moving:
        os.unlink("one", dir_fd=moving.old)
    assert not (work / "new" / "one").exists()
    assert stored(shared, work) == {"new/two": b"two"}


def test_a_directory_that_is_made_meanwhile_goes_along(
    shared: Shared, work: Path, proxy: FaultProxy
):
    with renaming(work, proxy) as moving:
        os.mkdir("late", dir_fd=moving.old)
        os.rmdir("deep", dir_fd=moving.old)
    assert names(work / "new") == ["late", "one", "two"]
    keys = [key.partition("/")[2] for key in shared.all_keys(work)]
    assert "new/late/" in keys
    assert not [key for key in keys if key.startswith(("old", "new/deep"))]


def test_a_file_that_is_renamed_meanwhile_is_under_its_last_name(
    shared: Shared, work: Path, proxy: FaultProxy
):
    with renaming(work, proxy) as moving:
        os.rename("one", "uno", src_dir_fd=moving.old, dst_dir_fd=moving.old)
        os.rename("two", work / "out", src_dir_fd=moving.old)
    assert names(work / "new") == ["deep", "uno"]
    assert (work / "out").read_bytes() == b"two"
    assert stored(shared, work) == {"new/uno": b"one", "out": b"two"}


def test_attributes_that_are_changed_meanwhile_are_kept(
    shared: Shared, work: Path, proxy: FaultProxy
):
    with renaming(work, proxy) as moving:
        os.chmod("one", 0o640, dir_fd=moving.old)
        os.chmod("deep", 0o750, dir_fd=moving.old)
    assert (work / "new" / "one").stat().st_mode & 0o7777 == 0o640
    assert (work / "new" / "deep").stat().st_mode & 0o7777 == 0o750
    new = work / "new" / "one"
    eventually(lambda: shared.head(new)["Metadata"]["mode"] == str(0o100640))
    assert not [key for key in shared.all_keys(work) if key.partition("/")[2].startswith("old")]
