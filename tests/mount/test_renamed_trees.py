"""A directory is renamed, which takes a while, and programs go on working in it meanwhile."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import Delay
from tests.mount.conftest import Shared

SLOW = 1.0  # Seconds that the store takes for one request.


def drop_caches() -> None:
    """Have the kernel forget the bytes of files, if we may say so."""
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing(proxied=True) as shared:
        yield shared


@pytest.fixture
def tree(work: Path) -> Path:
    """A directory with files in it and below it."""
    path = work / "old"
    (path / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (path / name).write_bytes(f"old {name}".encode())
    return path


@pytest.fixture
def renaming(proxy: FaultProxy, tree: Path) -> Callable:
    """``with renaming(operation) as new``: what is inside happens while the tree is renamed.

    Requests of that kind are on their way to a slow store then; at the end it is done.
    """

    @contextmanager
    def rename(operation: str) -> Iterator[Path]:
        new = tree.with_name("new")
        slow = proxy.inject(Delay(SLOW), operation=operation)
        thread = threading.Thread(target=tree.rename, args=(new,))
        thread.start()
        deadline = time.monotonic() + 10
        while not slow.hits and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slow.hits, "the store was not asked"
        time.sleep(SLOW / 4)
        yield new
        thread.join()
        assert not tree.exists()

    return rename


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects"])
@pytest.mark.parametrize("how", ["fsync", "close"])
def test_what_is_saved_meanwhile_is_there_under_the_new_name(
    shared: Shared, tree: Path, renaming: Callable, operation: str, how: str
):
    descriptor = os.open(tree / "sub" / "c", os.O_RDWR)
    with renaming(operation) as new:
        os.pwrite(descriptor, b"new", 0)
        if how == "fsync":
            os.fsync(descriptor)
        os.close(descriptor)
    assert (new / "sub" / "c").read_bytes() == b"new sub/c"
    assert shared.get(new / "sub" / "c") == b"new sub/c"
    assert (new / "a").read_bytes() == b"old a"


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects"])
def test_what_is_made_meanwhile_is_there_under_the_new_name(
    shared: Shared, tree: Path, renaming: Callable, operation: str
):
    directory = os.open(tree / "sub", os.O_PATH)
    with renaming(operation) as new:
        descriptor = os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        os.write(descriptor, b"made meanwhile")
        os.close(descriptor)
    os.close(directory)
    assert sorted(path.name for path in (new / "sub").iterdir()) == ["c", "made"]
    assert (new / "sub" / "made").read_bytes() == b"made meanwhile"
    assert shared.get(new / "sub" / "made") == b"made meanwhile"


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects"])
def test_an_open_file_is_read_while_its_tree_is_renamed(
    shared: Shared, tree: Path, renaming: Callable, operation: str
):
    body = os.urandom(12 << 20)
    (tree / "large").write_bytes(body)
    drop_caches()
    with (tree / "large").open("rb", buffering=0) as file:
        found = file.read(4096)
        with renaming(operation):
            while piece := file.read(1 << 20):
                found += piece
    assert found == body


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects"])
def test_a_mode_that_is_changed_meanwhile_is_the_new_one(
    shared: Shared, tree: Path, renaming: Callable, operation: str
):
    descriptor = os.open(tree / "b", os.O_RDONLY)
    with renaming(operation) as new:
        os.fchmod(descriptor, 0o604)
        os.close(descriptor)
        time.sleep(2 * SLOW)
    time.sleep(1)
    assert (new / "b").stat().st_mode & 0o777 == 0o604
    assert shared.all_keys(tree) == []
    assert shared.head(new / "b")["Metadata"]["mode"] == str(0o100604)
