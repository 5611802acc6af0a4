"""A store without conditions and copied parts: weaker, told in the log, and still right."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Shared, keys_of
from tests.mount.trees import names


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


def test_a_directory_is_made_where_the_store_would_make_a_file_of_it(shared: Shared):
    """A marker ``d/`` would be the file ``d`` there, and answer 500 to whatever comes below it."""
    folder = shared.root / "folder"
    folder.mkdir(mode=0o700)
    (folder / "inner").mkdir()
    (folder / "!first").write_bytes(b"1")
    (folder / "inner" / "file").write_bytes(b"2")
    assert keys_of(shared.bucket, shared.s3, "folder/") == [
        *("folder/!first", "folder/%s3esc:", "folder/inner/%s3esc:", "folder/inner/file")
    ]
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    assert names(folder) == ["!first", "inner"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rename(shared.root / "moved")
    assert names(shared.root / "moved" / "inner") == ["file"]
    shutil.rmtree(shared.root / "moved")
    assert keys_of(shared.bucket, shared.s3, "moved/") == []


def test_a_small_change_is_right_all_the_same(shared: Shared, work: Path):
    path = work / "file"
    path.write_bytes(b"A" * 1000)
    with path.open("r+b") as file:
        file.seek(500)
        file.write(b"!")
    assert shared.get(path) == b"A" * 500 + b"!" + b"A" * 499


def test_a_creation_asks_before_it_writes(shared: Shared, work: Path):
    """Not as good as a condition, because somebody may create the object in between."""
    path = work / "created"
    file = path.open("xb", buffering=0)
    file.write(b"mine")
    shared.put(path, b"of somebody else")
    shared.mounter.expect_log("it exists already")
    with pytest.raises(FileExistsError):
        file.close()
    assert shared.get(path) == b"of somebody else"
