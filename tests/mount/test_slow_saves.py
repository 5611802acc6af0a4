"""Attributes are saved in the background, and the store is slow: programs go on meanwhile.

The file is let go of when that save is done, unless somebody works on it by then: an inode with
two files would lose what one of them knows.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3mount.fs.markers import ATTRIBUTE_DELAY
from tests.faultproxy import FaultProxy
from tests.faults import Delay
from tests.mount.conftest import Shared

SLOW = 1.0  # Seconds that the store takes for a copy.


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing(proxied=True) as shared:
        yield shared


@pytest.fixture
def saving(work: Path, proxy: FaultProxy) -> Callable[[str], Path]:
    """A closed file, whose changed mode is on its way to a slow store."""

    def make(name: str) -> Path:
        path = work / name
        path.write_bytes(b"old content")
        copies = proxy.inject(Delay(SLOW), operation="CopyObject", count=1)
        path.chmod(0o640)
        time.sleep(ATTRIBUTE_DELAY + SLOW / 4)
        assert copies.hits == 1, "it is not being saved"
        return path

    return make


def test_a_file_opened_and_emptied_meanwhile_has_all_that_is_changed_then(
    shared: Shared, saving: Callable[[str], Path]
):
    path = saving("file")
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, b"new")
    os.close(descriptor)
    time.sleep(ATTRIBUTE_DELAY + SLOW)
    assert shared.get(path) == b"new"
    assert stat.S_IMODE(int(shared.head(path)["Metadata"]["mode"])) == 0o600


def test_a_file_written_to_meanwhile_has_all_that_is_changed_then(
    shared: Shared, saving: Callable[[str], Path]
):
    path = saving("file")
    with path.open("r+b", buffering=0) as file:
        file.write(b"new")
        os.fchmod(file.fileno(), 0o600)
    time.sleep(ATTRIBUTE_DELAY + SLOW)
    assert shared.get(path) == b"new content"
    assert stat.S_IMODE(int(shared.head(path)["Metadata"]["mode"])) == 0o600


def test_a_file_removed_meanwhile_stays_away(shared: Shared, saving: Callable[[str], Path]):
    path = saving("file")
    path.unlink()
    time.sleep(ATTRIBUTE_DELAY + SLOW)
    assert shared.key(path) not in shared.all_keys()


def test_a_file_replaced_meanwhile_is_the_other_one(shared: Shared, saving: Callable[[str], Path]):
    path = saving("file")
    other = path.with_name("other")
    other.write_bytes(b"another")
    other.rename(path)
    path.chmod(0o604)
    time.sleep(ATTRIBUTE_DELAY + SLOW)
    assert shared.get(path) == b"another"
    assert stat.S_IMODE(int(shared.head(path)["Metadata"]["mode"])) == 0o604


def test_a_file_renamed_meanwhile_keeps_its_mode(shared: Shared, saving: Callable[[str], Path]):
    path = saving("file")
    renamed = path.rename(path.with_name("renamed"))
    assert shared.get(renamed) == b"old content"
    assert stat.S_IMODE(int(shared.head(renamed)["Metadata"]["mode"])) == 0o640
    assert shared.key(path) not in shared.all_keys()
