"""The disk of the state directory is full: check 28, and what goes on without room."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.mount.conftest import keys_of
from tests.mount.test_faults_cache import read_only
from tests.mounts import Bucket, Mounter, detach

MIB = 1 << 20
OPTIONS = [(), ("-o", "writeback")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        unavailable("only root can make a small disk")
    yield path
    detach(path)


def body_of(s3, bucket: Bucket, key: str) -> bytes:
    return s3.get_object(Bucket=bucket.name, Key=key)["Body"].read()


def why_not_written(path: Path, body: bytes) -> int | None:
    """Write a file; the error that a program sees, if any."""
    try:
        path.write_bytes(body)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("options", OPTIONS, ids=["durable", "writeback"])
@pytest.mark.parametrize("part_size", ["5M", "128M"])
def test_check_28_a_file_larger_than_the_disk(
    mount: Mounter, s3, bucket: Bucket, small_disk: Path, part_size: str, options
):
    mount.expect_log(
        "No space left|wait for room|attribute index is off|: write|: flush", optional=True
    )
    state = str(small_disk / "state")
    # Room in memory for a part of it.
    one = mount(bucket, *options, "--memory", "32M", "--part-size", part_size, "--state-dir", state)
    body = os.urandom(64 * MIB)
    if why_not_written(one.path / "large", body) == errno.ENOSPC:
        (one.path / "large").unlink()
    else:
        assert (one.path / "large").read_bytes() == body
    (one.path / "little").write_bytes(b"little")
    assert one.umount() == 0
    assert body_of(s3, bucket, "little") == b"little"
    if "large" in keys_of(bucket, s3):
        assert body_of(s3, bucket, "large") == body


def test_without_room_for_the_journal_a_close_uploads(
    mount: Mounter, proxy, s3, bucket: Bucket, small_disk: Path
):
    mount.expect_log("wait for room|the journal does not take it|staging failed")
    mount.expect_log("the attribute index is off", optional=True)
    mount.expect_log("after a crash a removed or older file may come back", optional=True)
    options = ("-o", "writeback", "--state-dir", str(small_disk / "state"))
    one = mount(bucket, *options, url=proxy.url)
    (one.path / "before").write_bytes(b"before")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(MIB)) > 0:
                pass
        except OSError:
            pass
    bodies = {f"file{number}": os.urandom(60_000) for number in range(150)}
    for name, body in bodies.items():
        (one.path / name).write_bytes(body)
    assert (one.path / "before").read_bytes() == b"before"
    filler.unlink()
    (one.path / "after").write_bytes(b"after")
    for name, body in bodies.items():
        assert (one.path / name).read_bytes() == body
    assert one.umount() == 0
    assert {key: body_of(s3, bucket, key) for key in keys_of(bucket, s3)} == {
        "before": b"before",
        "after": b"after",
        **bodies,
    }


@pytest.mark.parametrize("options", OPTIONS, ids=["durable", "writeback"])
@pytest.mark.parametrize("how", ["removed", "read-only"])
def test_check_31_a_state_directory_that_is_gone_or_read_only(
    mount: Mounter, s3, bucket: Bucket, tmp_path: Path, how: str, options
):
    mount.expect_log("staging failed|journal|attribute index is off|: write|: flush", optional=True)
    state = tmp_path / "state"
    where = ("--memory", "32M", "--part-size", "5M", "--state-dir", str(state))
    one = mount(bucket, *options, *where)
    (one.path / "before").write_bytes(b"before")
    if how == "removed":
        shutil.rmtree(state)
    with read_only(state) if how == "read-only" else nullcontext():
        for size in (100, 200_000, 64 * MIB):
            path, body = one.path / f"file-{size}", os.urandom(size)
            if (error := why_not_written(path, body)) is not None:
                assert error in (errno.EIO, errno.ENOSPC)
                path.unlink()  # It has taken the memory that there was.
            else:
                assert path.read_bytes() == body
        (one.path / "directory").mkdir()
        (one.path / "directory" / "little").write_bytes(b"little")
        with suppress(OSError):  # Where nothing can be noted, no tree is renamed.
            (one.path / "directory").rename(one.path / "renamed")
        assert [path.read_bytes() for path in one.path.glob("*/little")] == [b"little"]
        assert one.umount() == 0
    assert {"before", "file-100", "file-200000"} <= set(keys_of(bucket, s3))
