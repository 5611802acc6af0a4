"""A mount of a store that has every weakness at once: programs notice none of them."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oldstore
from tests.mounts import Bucket, Mounter
from tests.oldstore import OldStore
from tests.servers import Server

MIB = 1 << 20


@pytest.fixture
def old_store(server: Server) -> Iterator[OldStore]:
    """A store of the worst kind."""
    weaknesses = (
        oldstore.OldListing(refuses=True),
        oldstore.Refusing("UploadPartCopy"),
        oldstore.Refusing("DeleteObjects", silent=True),
        oldstore.IgnoresReplace(),
        oldstore.WrongLength("0"),
        oldstore.OneETag(),
        oldstore.OddOrder(),
        oldstore.Lingering(),
        oldstore.ShoutedMetadata(),
        oldstore.Picky(r"[\n\\]|//|(^|/)\.\.?(/|$)"),
        oldstore.IgnoresConditions(),
    )
    with OldStore(server, *weaknesses) as store:
        yield store


def test_programs_notice_nothing(
    mount: Mounter, bucket: Bucket, old_store: OldStore, tmp_path: Path
):
    mount.expect_log("no conditional writes")
    mount.expect_log("cannot copy parts")
    mounted = mount(bucket, "--metadata-ttl", "1s", url=old_store.url)
    local = tmp_path / "local"
    local.mkdir()
    for root in (mounted.path, local):
        work(root)
    assert contents(mounted.path) == contents(local)
    assert mounted.umount() == 0
    again = mount(bucket, url=old_store.url)
    assert contents(again.path) == contents(local)
    assert again.umount() == 0


def work(root: Path) -> None:
    """A little of everything that touches a weakness."""
    for name in ("plain", "new\nline", "back\\slash", "\u00fcber"):
        folder = root / name
        folder.mkdir()
        (folder / name).write_bytes(name.encode())
        (folder / name).chmod(0o640)
        (folder / name).rename(folder / f"{name}2")
        shutil.copy(folder / f"{name}2", folder / name)
        (folder / name).write_bytes(name.encode()[::-1])  # Of the same size, at once.
    large = root / "large"
    large.write_bytes(b"A" * (9 * MIB))
    with large.open("r+b") as file:
        file.seek(MIB)
        file.write(b"B" * 10)
    large.chmod(0o600)
    large.rename(root / "renamed")
    (root / "gone" / "inner").mkdir(parents=True)
    (root / "gone" / "inner" / "file").write_bytes(b"x")
    shutil.rmtree(root / "gone")
    (root / "tree" / "inner").mkdir(parents=True)
    for number in range(12):
        (root / "tree" / "inner" / f"file{number}").write_bytes(b"%d" % number)
    (root / "tree").rename(root / "moved")
    os.symlink("plain/plain", root / "link")  # noqa: PTH211 - as programs do


def contents(root: Path) -> dict[str, object]:
    """All there is: mode and bytes of files, and the names of directories."""
    found: dict[str, object] = {}
    for folder, directories, files in os.walk(root):
        for name in directories:
            found[os.path.relpath(os.path.join(folder, name), root)] = None  # noqa: PTH118
        for name in files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            found[str(path.relative_to(root))] = (
                path.readlink() if path.is_symlink() else (mode, path.read_bytes())
            )
    return found


def test_a_file_that_somebody_replaces_by_one_of_its_size_is_read_anew(
    mount: Mounter, bucket: Bucket, old_store: OldStore, s3
):
    """There is only one ETag here, so it is the time that tells."""
    mount.expect_log("no conditional writes")
    mount.expect_log("cannot copy parts")
    mounted = mount(bucket, "--metadata-ttl", "1s", "--negative-ttl", "1s", url=old_store.url)
    path = mounted.path / "file"
    for _ in range(3):
        body = secrets.token_hex(1000).encode()
        s3.put_object(Bucket=bucket.name, Key="file", Body=body)
        assert path.read_bytes() == body
        # Another one within the same second would look the same: docs/compatibility.md.
        time.sleep(1.1)


def test_a_directory_that_is_only_listed_is_not_there(mount: Mounter, bucket: Bucket, server, s3):
    """RustFS goes on listing it after a deletion that was cut off, and no request ends that."""
    with OldStore(server, oldstore.Ghost("top/gone/inner/")) as store:
        mounted = mount(bucket, "--metadata-ttl", "1s", "--negative-ttl", "1s", url=store.url)
        top = mounted.path / "top"
        assert not top.exists()
        (top / "here").mkdir(parents=True)
        (top / "file").write_bytes(b"content")
        time.sleep(1.1)
        # Nobody knows before somebody has looked at it.
        assert {"here", "file"} <= set(os.listdir(top))  # noqa: PTH208 - names alone
        assert {path.name for path in top.iterdir() if path.is_dir()} == {"here"}
        for _ in range(2):
            time.sleep(1.1)
            assert sorted(os.listdir(top)) == ["file", "here"]  # noqa: PTH208
        (top / "gone").mkdir()
        (top / "gone" / "file").write_bytes(b"again")
        time.sleep(1.1)
        assert sorted(path.name for path in top.iterdir()) == ["file", "gone", "here"]
        s3.delete_object(Bucket=bucket.name, Key="top/gone/file")
        s3.delete_object(Bucket=bucket.name, Key="top/gone/")
        time.sleep(1.1)
        assert not (top / "gone").exists()
        shutil.rmtree(top)
        assert not top.exists()
        assert list(mounted.path.iterdir()) == []
        assert mounted.umount() == 0
