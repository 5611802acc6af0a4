"""A cache on disk that is damaged, full, gone, or somebody else's: it costs requests, never bytes.

The numbers are those of the table in docs/reliability.md.
"""

import os
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.conftest import unavailable
from tests.mounts import Bucket, Mount, Mounter, MountFailed
from tests.servers import Server

MIB = 1 << 20
FILES = {f"file-{number}": size for number, size in enumerate((1000, 200_000, 3 * MIB, 7 * MIB))}
BODIES = {name: Random(name).randbytes(size) for name, size in FILES.items()}
PATIENCE = 30.0


@pytest.fixture
def filled(bucket: Bucket, server: Server) -> Bucket:
    """A bucket with some files, with checksums."""
    for name, body in BODIES.items():
        server.client().put_object(
            Bucket=bucket.name, Key=name, Body=body, ChecksumAlgorithm="CRC64NVME"
        )
    return bucket


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def options(cache: Path) -> tuple[str, ...]:
    return ("--cache", str(cache), "--min-free-space", "0")


def check(mounted: Mount) -> None:
    """Read everything, and compare."""
    for name, body in BODIES.items():
        assert (mounted.path / name).read_bytes() == body, name


def blocks_in(cache: Path) -> list[Path]:
    """The files of blocks that are in a cache."""
    return sorted(path for path in cache.glob("??/*") if not path.name.startswith("."))


def fill(mount: Mounter, bucket: Bucket, cache: Path) -> None:
    """Have a daemon fill the cache, and end."""
    mounted = mount(bucket, *options(cache))
    check(mounted)
    mounted.umount()
    assert len(blocks_in(cache)) > 10


# -- damage ------------------------------------------------------------------------------------


def test_check_29_a_thousand_damaged_bytes_are_never_shown(
    mount: Mounter, filled: Bucket, cache: Path
):
    fill(mount, filled, cache)
    random = Random(1)
    for path in blocks_in(cache):
        data = bytearray(path.read_bytes())
        for _ in range(-(-1000 // len(blocks_in(cache)))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)
    mounted = mount(filled, *options(cache), name="again")
    check(mounted)
    assert "a damaged block is dropped and fetched again" in mounted.log
    mounted.umount()
    check(mount(filled, *options(cache), name="third"))


def test_check_29_blocks_that_were_exchanged_or_cut_are_not_served(
    mount: Mounter, filled: Bucket, cache: Path
):
    fill(mount, filled, cache)
    blocks = blocks_in(cache)
    contents = [path.read_bytes() for path in blocks]
    for path, other in zip(blocks, contents[1:] + contents[:1], strict=True):
        path.write_bytes(other)
    blocks[0].write_bytes(b"")
    os.truncate(blocks[1], 1000)
    check(mount(filled, *options(cache), name="again"))


@pytest.mark.parametrize("how", ["garbage", "older"])
def test_check_29_a_database_that_is_damaged_or_of_another_version(
    mount: Mounter, filled: Bucket, cache: Path, how: str
):
    mount.expect_log(r"starts anew|not a database|no such column|not written to", optional=True)
    fill(mount, filled, cache)
    for path in cache.glob("index.sqlite3*"):
        path.unlink()
    if how == "garbage":
        (cache / "index.sqlite3").write_bytes(b"nonsense" * 1000)
    else:
        with sqlite3.connect(cache / "index.sqlite3") as database:
            database.execute("CREATE TABLE blocks (name BLOB PRIMARY KEY, age INTEGER)")
        database.close()
    again = mount(filled, *options(cache), name="again")
    check(again)
    again.umount()
    check(mount(filled, *options(cache), name="third"))


# -- the directory -----------------------------------------------------------------------------


def test_check_31_a_cache_that_is_removed_while_it_is_used(
    mount: Mounter, filled: Bucket, cache: Path
):
    mount.expect_log(r"not written to|starts anew|No such file|disk I/O", optional=True)
    mounted = mount(filled, *options(cache))
    assert (mounted.path / "file-1").read_bytes() == BODIES["file-1"]
    while cache.exists():  # The mount may put something into what is being removed.
        shutil.rmtree(cache, ignore_errors=True)
    check(mounted)
    (mounted.path / "new").write_bytes(b"new")
    assert (mounted.path / "new").read_bytes() == b"new"
    assert mounted.umount() == 0


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A disk of its own, if we may mount one."""
    if os.geteuid() != 0:
        unavailable("only root can mount a small disk")
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", path], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_check_31_a_cache_on_a_disk_that_is_full(mount: Mounter, filled: Bucket, tmp_path: Path):
    mount.expect_log(r"not written to|starts anew|full|no room", optional=True)
    with small_disk(tmp_path / "disk", "4M") as disk:
        mounted = mount(filled, *options(disk / "cache"))
        check(mounted)
        (mounted.path / "new").write_bytes(b"new")
        assert (mounted.path / "new").read_bytes() == b"new"
        assert mounted.umount() == 0


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Let nobody create or remove anything below *path*, not even root."""
    plus, minus = (["chattr", "-R", "+i"], ["chattr", "-R", "-i"])
    if os.geteuid() != 0:
        plus, minus = (["chmod", "-R", "a-w"], ["chmod", "-R", "u+w"])
    done = subprocess.run([*plus, path], check=False, capture_output=True, text=True)
    try:
        if done.returncode != 0:
            pytest.skip(f"nothing is read-only for root here: {done.stderr}")
        yield
    finally:
        subprocess.run([*minus, path], check=False, capture_output=True)


def test_check_31_a_cache_that_becomes_read_only(mount: Mounter, filled: Bucket, cache: Path):
    mount.expect_log(r"not written to|starts anew|readonly|not permitted|denied", optional=True)
    mounted = mount(filled, *options(cache))
    assert (mounted.path / "file-1").read_bytes() == BODIES["file-1"]
    time.sleep(0.5)
    with read_only(cache):
        check(mounted)
        (mounted.path / "new").write_bytes(b"new")
        assert (mounted.path / "new").read_bytes() == b"new"
        assert mounted.umount() == 0


def test_check_32_several_daemons_share_a_cache(mount: Mounter, filled: Bucket, cache: Path):
    both = [mount(filled, *options(cache)) for _ in range(2)]
    for mounted in both:
        check(mounted)
    shutil.rmtree(cache / blocks_in(cache)[0].parent.name)
    for mounted in reversed(both):
        check(mounted)
        mounted.umount()


# -- whose it is -------------------------------------------------------------------------------


def test_check_47_what_is_written_is_for_its_owner_only(
    mount: Mounter, filled: Bucket, cache: Path, tmp_path: Path
):
    state = tmp_path / "state"
    mounted = mount(filled, *options(cache), "--state-dir", str(state), "--memory", "32M")
    check(mounted)
    with (mounted.path / "large").open("wb", buffering=0) as file:
        for _ in range(30):  # More than the memory has room for.
            file.write(bytes(MIB))
    os.utime(mounted.path / "large")
    time.sleep(1.0)
    for top in (cache, state):
        for path in [top, *top.rglob("*")]:
            found = path.lstat()
            assert found.st_uid == os.geteuid(), path
            assert not stat.S_IMODE(found.st_mode) & 0o077, f"{path}: {found.st_mode:o}"
            assert not path.is_symlink(), path


@pytest.mark.parametrize("option", ["--cache", "--state-dir"])
@pytest.mark.parametrize("trap", ["writable", "symlink"])
def test_check_47_a_directory_that_others_can_write_to_is_refused(
    mount: Mounter, filled: Bucket, tmp_path: Path, option: str, trap: str
):
    path = tmp_path / "shared"
    (tmp_path / "elsewhere").mkdir()
    if trap == "symlink":
        if option == "--state-dir":
            (tmp_path / "elsewhere").chmod(0o777)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(MountFailed, match=r"shared") as caught:
        mount(filled, option, str(path))
    assert caught.value.exit_code == 2


def test_check_47_links_in_the_cache_are_not_followed(
    mount: Mounter, filled: Bucket, cache: Path, tmp_path: Path
):
    fill(mount, filled, cache)
    target = tmp_path / "target"
    target.mkdir()
    victim = target / "victim"
    victim.write_bytes(b"not to be touched")
    for folder in sorted(cache.glob("??"))[::2]:
        shutil.rmtree(folder)
        folder.symlink_to(target)
    for path in blocks_in(cache)[::2]:
        if not path.parent.is_symlink():
            path.unlink()
            path.symlink_to(victim)
    mount.expect_log(r"not written to|starts anew", optional=True)
    mounted = mount(filled, *options(cache), name="again")
    check(mounted)
    mounted.umount()
    assert victim.read_bytes() == b"not to be touched"
    assert list(target.iterdir()) == [victim]
