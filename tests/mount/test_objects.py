"""What is in the bucket: plain objects that any S3 tool reads, and nothing else."""

import os
import stat
import time
from pathlib import Path
from random import Random

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import Delay
from tests.mount.conftest import Shared
from tests.mount.programs import run
from tests.mount.trees import names
from tests.mounts import Bucket, Mounter

MIB = 1 << 20
KEYS_OF_S3FS = {"mode", "uid", "gid", "mtime", "ctime"}
SETTLED = 5.0  # Seconds in which attributes of closed files must have reached the store.


def aws(shared: Shared, *arguments: str) -> str:
    """Run the AWS CLI on the server of *shared*."""
    command = ("aws", "--endpoint-url", shared.bucket.url, "s3", *arguments, "--only-show-errors")
    region = {"AWS_DEFAULT_REGION": "us-east-1"}
    return run(*command, env={**shared.bucket.credentials.environment(), **region})


def eventually(condition) -> None:
    """Wait until *condition* returns true."""
    end = time.monotonic() + SETTLED
    while not condition():
        assert time.monotonic() < end, "not within the time that is documented"
        time.sleep(0.05)


# -- what programs write, S3 tools read --------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 1, 20 * MIB + 7])
def test_a_file_is_an_object_byte_for_byte(shared: Shared, work: Path, size: int):
    body = Random(size).randbytes(size)
    (work / "file.bin").write_bytes(body)
    assert shared.get(work / "file.bin") == body
    assert shared.head(work / "file.bin")["ContentLength"] == size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("page.html", "text/html"),
        ("style.css", "text/css"),
        ("data.json", "application/json"),
        ("image.PNG", "image/png"),
        ("photo.jpg", "image/jpeg"),
        ("paper.pdf", "application/pdf"),
        ("noise", "application/octet-stream"),
        ("what.unheard-of", "application/octet-stream"),
    ],
)
def test_the_content_type_follows_the_extension(
    shared: Shared, work: Path, name: str, expected: str
):
    (work / name).write_bytes(b"content")
    assert shared.head(work / name)["ContentType"] == expected
    (work / "other").write_bytes(b"content")
    (work / "other").rename(work / f"renamed-{name}")
    assert shared.head(work / f"renamed-{name}")["ContentLength"] == 7


def test_the_aws_cli_copies_out_and_in(shared: Shared, work: Path, tmp_path: Path):
    body = Random(1).randbytes(9 * MIB)
    (work / "file").write_bytes(body)
    where = f"s3://{shared.bucket.name}/{work.name}"
    aws(shared, "cp", f"{where}/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == body
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "small.txt").write_text("small")
    (tmp_path / "tree" / "large").write_bytes(body)
    aws(shared, "cp", "--recursive", str(tmp_path / "tree"), f"{where}/tree")
    eventually(lambda: (work / "tree" / "large").exists())
    assert (work / "tree" / "large").read_bytes() == body
    assert (work / "tree" / "inner" / "small.txt").read_text() == "small"
    assert names(work / "tree") == ["inner", "large"]


# -- what S3 tools write, programs read --------------------------------------------------------


def test_objects_of_others_appear(shared: Shared):
    root = shared.root / "others"
    for name in ("plain.txt", "deep/er/file", "deep/marked/", "with space/ünïcödé"):
        shared.s3.put_object(
            Bucket=shared.bucket.name, Key=f"others/{name}", Body=b"" if name[-1] == "/" else b"!"
        )
    eventually(root.exists)
    assert names(root) == ["deep", "plain.txt", "with space"]
    assert names(root / "deep") == ["er", "marked"]
    assert names(root / "deep" / "marked") == []
    assert (root / "deep" / "er" / "file").read_bytes() == b"!"
    assert (root / "with space" / "ünïcödé").read_bytes() == b"!"
    status = (root / "plain.txt").stat()
    assert stat.S_IMODE(status.st_mode) == 0o644
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert abs(status.st_mtime - time.time()) < 60


def test_a_directory_without_a_marker_does_not_vanish_with_its_last_file(shared: Shared):
    shared.s3.put_object(Bucket=shared.bucket.name, Key="implicit/file", Body=b"")
    directory = shared.root / "implicit"
    eventually(directory.exists)
    (directory / "file").unlink()
    assert names(directory) == []
    assert "implicit" in names(shared.root)
    directory.rmdir()
    assert "implicit" not in names(shared.root)
    assert not any(key.startswith("implicit") for key in shared.all_keys())


def test_nor_does_one_that_was_looked_at_when_it_was_listed(shared: Shared, work: Path):
    """A listing does not tell whether there is a marker: the question for it is the answer."""
    shared.put(work / "dir" / "file", b"1")
    os.setxattr(work, "user.s3mount.refresh", b"")
    assert names(work) == ["dir"]
    assert (work / "dir").is_dir()
    (work / "dir" / "file").unlink()
    assert names(work) == ["dir"]
    os.setxattr(work, "user.s3mount.refresh", b"")
    assert names(work) == ["dir"]


def test_the_headers_of_others_survive_a_change(shared: Shared):
    path = shared.root / "page.bin"
    shared.put(
        path,
        b"old",
        ContentType="text/x-special",
        CacheControl="max-age=7",
        Metadata={"color": "green"},
    )
    eventually(path.exists)
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b" and new")
    eventually(lambda: shared.head(path)["Metadata"].get("mode") == str(0o100600))
    found = shared.head(path)
    assert shared.get(path) == b"old and new"
    assert (found["ContentType"], found["CacheControl"]) == ("text/x-special", "max-age=7")
    assert found["Metadata"]["color"] == "green"


# -- attributes --------------------------------------------------------------------------------


def test_attributes_are_stored_as_s3fs_stores_them(shared: Shared, work: Path):
    path = work / "file"
    path.write_bytes(b"content")
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    os.utime(path, ns=(10**18, 1_234_567_890_123_456_789))
    eventually(lambda: shared.head(path)["Metadata"].get("mtime", "")[:10] == "1234567890")
    found = shared.head(path)["Metadata"]
    assert set(found) == KEYS_OF_S3FS
    assert found["mode"] == str(stat.S_IFREG | 0o640)
    assert (found["uid"], found["gid"]) == ("1234", "2345")
    assert found["mtime"] == "1234567890.123456789"
    assert shared.get(path) == b"content"


def test_a_symlink_is_an_object_that_holds_its_target(shared: Shared, work: Path):
    (work / "link").symlink_to("../some/where")
    assert shared.get(work / "link") == b"../some/where"
    assert shared.head(work / "link")["Metadata"]["mode"] == str(stat.S_IFLNK | 0o777)


def test_attributes_survive_the_renaming_of_their_directory(shared: Shared, work: Path):
    """The new names are asked for together, by a listing that knows no attributes."""
    old, new = shared.root / "with-modes", work / "renamed"
    for number in range(4):
        metadata = {"mode": str(stat.S_IFREG | 0o600)}
        shared.put(old / f"file{number}", b"content" * 10_000, Metadata=metadata)
    eventually(old.exists)
    assert [stat.S_IMODE(path.stat().st_mode) for path in old.iterdir()] == [0o600] * 4
    old.rename(new)
    for number in range(4):
        (new / f"file{number}").write_bytes(b"new")
    for number in range(4):
        assert stat.S_IMODE((new / f"file{number}").stat().st_mode) == 0o600
        assert shared.head(new / f"file{number}")["Metadata"]["mode"] == str(0o100600)


def test_attributes_in_other_forms_are_read(shared: Shared):
    path = shared.root / "of-rclone"
    shared.put(path, b"!", Metadata={"mtime": "1234567890.5", "mode": "100600", "uid": "77"})
    eventually(path.exists)
    status = path.stat()
    assert status.st_mtime == 1234567890.5
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == 77


# -- nothing else ------------------------------------------------------------------------------


def work_hard(work: Path) -> None:
    """All that leaves litter behind on other mounts."""
    for number in range(3):
        temporary = work / f".saved.tmp{number}"
        temporary.write_bytes(b"saved %d" % number)
        temporary.rename(work / "saved")
    with (work / "unlinked").open("w+b") as file:
        file.write(b"x" * 100)
        (work / "unlinked").unlink()
        file.write(b"y" * (20 * MIB))
    (work / "large").write_bytes(bytes(20 * MIB))
    with (work / "large").open("r+b") as file:
        file.seek(10 * MIB)
        file.write(b"patch")
    (work / "large").rename(work / "moved")
    with (work / "abandoned").open("wb") as file:
        file.write(bytes(40 * MIB))
        file.truncate(0)
    (work / "tree" / "inner").mkdir(parents=True)
    (work / "tree" / "inner" / "file").write_bytes(b"!")
    (work / "tree").rename(work / "copied")
    run("git", "init", "-q", work / "repository")
    run("rm", "-r", work / "repository")


def test_nothing_is_in_the_bucket_that_is_not_in_the_mount(sharing, tmp_path: Path):
    with sharing("--state-dir", str(tmp_path / "state")) as shared:
        work_hard(shared.root)
        expected = ["abandoned", "copied/", "copied/inner/", "copied/inner/file", "moved", "saved"]
        eventually(lambda: sorted(shared.all_keys()) == expected)
        assert sorted(names(shared.root)) == ["abandoned", "copied", "moved", "saved"]
        uploads = shared.s3.list_multipart_uploads(Bucket=shared.bucket.name)
        assert uploads.get("Uploads", []) == []
        assert list((tmp_path / "state").rglob("staged"))  # There it would be.
        assert shared.mounts[0].umount() == 0
        assert sorted(shared.all_keys()) == expected
        folders = (tmp_path / "state").rglob("staged")
        assert [path for folder in folders for path in folder.iterdir()] == []


def test_a_file_is_emptied_while_its_attributes_are_saved(
    mount: Mounter, bucket: Bucket, proxy: FaultProxy, s3
):
    """There is one file of the name meanwhile: two would save one after the other, and one fail."""
    mounted = mount(bucket, url=proxy.url)
    path = mounted.path / "file"
    path.write_bytes(b"old")
    slow = proxy.inject(Delay(1.0), operation="CopyObject")
    path.chmod(0o600)
    eventually(lambda: slow.hits > 0)
    with path.open("wb", buffering=0) as file:  # It waits for the copy.
        proxy.clear()
        path.chmod(0o640)
        file.write(b"new")
    time.sleep(1.0)  # Longer than attributes wait for others.
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)
    found = s3.get_object(Bucket=bucket.name, Key="file")
    assert found["Body"].read() == b"new"
    assert found["Metadata"]["mode"] == str(0o100640)
