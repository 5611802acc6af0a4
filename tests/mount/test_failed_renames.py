"""Renames of files that fail half way: both names are there, each for itself."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import ACCESS_DENIED
from tests.mount.conftest import Shared
from tests.mount.test_memory import direct
from tests.mount.test_writeback import wait_until


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing("--metadata-ttl", "1h", "--negative-ttl", "0s", proxied=True) as shared:
        shared.mounter.expect_log("rename .*AccessDenied")
        yield shared


def fail_to_rename(proxy: FaultProxy, old: Path, new: Path, method: str) -> None:
    """Rename a file while the store refuses requests of a *method*."""
    refusal = proxy.inject(ACCESS_DENIED, method=method)
    with pytest.raises(PermissionError):
        old.rename(new)
    proxy.remove(refusal)
    assert refusal.hits


def test_a_file_whose_old_name_stays_is_two_files(shared: Shared, proxy: FaultProxy, work: Path):
    old, new = work / "old", work / "new"
    old.write_bytes(b"content")
    fail_to_rename(proxy, old, new, "DELETE")
    wait_until(lambda: old.stat().st_ino != new.stat().st_ino)
    old.write_bytes(b"meant for the old one")
    assert (shared.get(old), shared.get(new)) == (b"meant for the old one", b"content")
    assert (old.read_bytes(), new.read_bytes()) == (b"meant for the old one", b"content")
    old.rename(new)
    assert new.read_bytes() == b"meant for the old one" == shared.get(new)
    assert not old.exists()


def test_who_uses_the_old_name_again_keeps_it(shared: Shared, proxy: FaultProxy, work: Path):
    """As a log that is rotated; the program goes on with the file that it has open."""
    log, rotated = work / "app.log", work / "app.log.1"
    with log.open("ab", buffering=0) as before:
        before.write(b"one\n")
        os.fsync(before.fileno())
        fail_to_rename(proxy, log, rotated, "DELETE")
        wait_until(lambda: log.stat().st_ino != rotated.stat().st_ino)
        log.write_bytes(b"new\n")
        before.write(b"two\n")
    assert (shared.get(log), shared.get(rotated)) == (b"new\n", b"one\ntwo\n")
    assert (log.read_bytes(), rotated.read_bytes()) == (b"new\n", b"one\ntwo\n")


def test_a_file_that_could_not_be_renamed_undoes_nothing(
    shared: Shared, proxy: FaultProxy, work: Path
):
    """It is changed in part, and what it began from has been replaced by somebody else."""
    shared.mounter.expect_log(r"`s3mount recover` has|(flush|fsync) .*: ")
    path = work / "file"
    path.write_bytes(b"A" * 8192)

    def change() -> None:
        with direct(path) as write:
            write(4096, b"B" * 4096)
            fail_to_rename(proxy, path, work / "other", "PUT")
            shared.put(path, b"theirs")

    with pytest.raises(OSError, match="Stale"):
        change()
    assert shared.get(path) == b"theirs"


def test_a_directory_that_stays_under_its_old_name_is_two(
    shared: Shared, proxy: FaultProxy, work: Path
):
    """Who works in it goes on in the new one, which is whole; nothing vanishes later."""
    old, new = work / "old", work / "new"
    (old / "sub").mkdir(parents=True)
    (old / "a").write_bytes(b"a")
    (old / "sub" / "b").write_bytes(b"b")
    (old / "sub" / "c").write_bytes(b"c")
    with (old / "sub" / "b").open("ab", buffering=0) as file:
        refusal = proxy.inject(ACCESS_DENIED, operation="DeleteObjects")
        with pytest.raises(PermissionError):
            old.rename(new)
        file.write(b" and more")
    assert refusal.hits
    proxy.remove(refusal)
    wait_until(lambda: old.stat().st_ino != new.stat().st_ino)
    (old / "sub" / "c").write_bytes(b"meant for the old one")
    for path in (old, new):
        assert sorted(one.name for one in path.iterdir()) == ["a", "sub"]
    for place, b, c in ((old, b"b", b"meant for the old one"), (new, b"b and more", b"c")):
        assert (place / "a").read_bytes() == b"a" == shared.get(place / "a")
        assert (place / "sub" / "b").read_bytes() == b == shared.get(place / "sub" / "b")
        assert (place / "sub" / "c").read_bytes() == c == shared.get(place / "sub" / "c")
    shutil.rmtree(new)
    old.rename(new)
    assert (new / "sub" / "c").read_bytes() == b"meant for the old one"
    assert shared.all_keys(old) == []
