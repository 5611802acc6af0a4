"""A store without conditions and copied parts: weaker, told in the log, and still right."""

from collections.abc import Iterator

import pytest

from tests.mount.conftest import Shared


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    """A mount of what ``rclone serve s3`` serves."""
    with sharing(server="rclone") as shared:
        shared.mounter.expect_log("no conditional writes")
        shared.mounter.expect_log("cannot copy parts")
        yield shared


def test_what_the_store_lacks_is_told_once(shared: Shared):
    for text in ("no conditional writes", "cannot copy parts"):
        assert shared.mounts[0].log.count(text) == 1


def test_a_small_change_is_right_all_the_same(shared: Shared):
    # At the top: rclone takes nothing into a directory that has a marker.
    path = shared.root / "file"
    path.write_bytes(b"A" * 1000)
    with path.open("r+b") as file:
        file.seek(500)
        file.write(b"!")
    assert shared.get(path) == b"A" * 500 + b"!" + b"A" * 499


def test_a_creation_asks_before_it_writes(shared: Shared):
    """Not as good as a condition, because somebody may create the object in between."""
    path = shared.root / "created"
    file = path.open("xb", buffering=0)
    file.write(b"mine")
    shared.put(path, b"of somebody else")
    shared.mounter.expect_log("it exists already")
    with pytest.raises(FileExistsError):
        file.close()
    assert shared.get(path) == b"of somebody else"
