"""The bucket is everybody's: s3fs, rclone and others see what we wrote, and we what they wrote."""

import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3mount.demo.weed import clean_environment, ended_with_us
from tests.mount.conftest import Shared
from tests.mount.programs import need, run
from tests.mounts import detach, is_mounted

TTL = 1  # Seconds for which both mounts believe what they know.
SEEN = 10.0  # Seconds within which one mount must show what the other has written.
S3FS_START = 20.0
S3FS_STOP = 60.0
MIB = 1 << 20
MOMENT_NS = 1_234_567_890_123_456_789
OTHER_MOMENT_NS = 978_307_200_500_000_000


@pytest.fixture(scope="module", params=["moto", "rustfs"])
def shared(sharing: Callable, request: pytest.FixtureRequest) -> Iterator[Shared]:
    """A mount on servers that keep what is said of directories."""
    times = ("--metadata-ttl", f"{TTL}s", "--negative-ttl", f"{TTL}s")
    with sharing(*times, server=request.param) as shared:
        yield shared


def eventually(condition: Callable[[], object]) -> None:
    """Wait until *condition* is true."""
    end = time.monotonic() + SEEN
    while not condition():
        assert time.monotonic() < end, "not seen in time"
        time.sleep(0.05)


def shown(path: Path) -> tuple[str, int, int, int]:
    """Mode, owner, group and mtime of a path, which is not followed."""
    status = path.lstat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns


# -- s3fs --------------------------------------------------------------------------------------


@contextmanager
def s3fs_mounted(shared: Shared, directory: Path) -> Iterator[Path]:
    """The bucket of *shared*, mounted by s3fs as well."""
    pair = shared.bucket.credentials
    secret, mountpoint = directory / "password", directory / "s3fs"
    secret.touch(mode=0o600)
    secret.write_text(f"{pair.access_key}:{pair.secret_key}")
    mountpoint.mkdir()
    options = f"url={shared.bucket.url},use_path_request_style,passwd_file={secret}"
    options += f",stat_cache_expire={TTL},use_xattr,tmpdir={directory}"
    command = [need("s3fs"), shared.bucket.name, str(mountpoint), "-f", "-o", options]
    with (directory / "s3fs.log").open("wb") as log:
        process = subprocess.Popen(
            ended_with_us(command), stdout=log, stderr=log, env=clean_environment()
        )
    try:
        wait_until_mounted(process, mountpoint, directory / "s3fs.log")
        yield mountpoint
    finally:
        # Its own way to end: with SIGTERM it would leave the mount point behind.
        subprocess.run([need("fusermount3"), "-u", mountpoint], check=False)
        try:
            process.wait(S3FS_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        detach(mountpoint)


def wait_until_mounted(process: subprocess.Popen, mountpoint: Path, log: Path) -> None:
    end = time.monotonic() + S3FS_START
    while not is_mounted(mountpoint):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < end, "s3fs does not mount"
        time.sleep(0.05)


@pytest.fixture
def s3fs(shared: Shared, tmp_path: Path) -> Iterator[Path]:
    """Where s3fs shows the bucket."""
    with s3fs_mounted(shared, tmp_path) as mountpoint:
        yield mountpoint


@pytest.fixture
def name() -> str:
    """A directory that only one test uses."""
    return f"tree-{time.time_ns()}"


def furnish(root: Path) -> None:
    """Everything that can be said of files and that s3fs knows how to say."""
    root.mkdir()
    (root / "file").write_bytes(b"content")
    (root / "large").write_bytes(b"0123456789abcdef" * (2 * MIB))
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "deep" / "ünï cödé+&").write_bytes(b"!")
    (root / "link").symlink_to("sub/deep")
    os.mkfifo(root / "fifo")
    modes = {"file": 0o640, "large": 0o4755, "sub": 0o2750, "fifo": 0o600}
    for number, (entry, mode) in enumerate(modes.items()):
        os.chown(root / entry, 1000 + number, 2000 + number)
        (root / entry).chmod(mode)
    os.setxattr(root / "file", "user.colour", b"green")
    os.setxattr(root / "sub", "user.colour", bytes(range(256)))
    for entry in ("file", "sub", "link", "fifo"):
        stamps = (OTHER_MOMENT_NS, MOMENT_NS + len(entry))
        os.utime(root / entry, ns=stamps, follow_symlinks=False)
    os.sync()


def is_furnished(root: Path) -> None:
    """Check that *root* shows what `furnish` has made of it."""
    assert shown(root / "file") == ("-rw-r-----", 1000, 2000, MOMENT_NS + 4)
    assert shown(root / "large")[:3] == ("-rwsr-xr-x", 1001, 2001)
    assert shown(root / "sub") == ("drwxr-s---", 1002, 2002, MOMENT_NS + 3)
    assert shown(root / "fifo") == ("prw-------", 1003, 2003, MOMENT_NS + 4)
    assert shown(root / "link") == ("lrwxrwxrwx", 0, 0, MOMENT_NS + 4)
    assert (root / "link").readlink() == Path("sub/deep")
    assert (root / "file").read_bytes() == b"content"
    assert (root / "large").read_bytes() == b"0123456789abcdef" * (2 * MIB)
    assert (root / "link" / "ünï cödé+&").read_bytes() == b"!"
    assert os.getxattr(root / "file", "user.colour") == b"green"
    assert os.getxattr(root / "sub", "user.colour") == bytes(range(256))
    assert sorted(os.listxattr(root / "file")) == ["user.colour"]
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    expected = ["fifo", "file", "large", "link", "sub", "sub/deep", "sub/deep/ünï cödé+&"]
    assert found == expected


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@as_root
def test_s3fs_sees_what_we_wrote(shared: Shared, s3fs: Path, name: str):
    furnish(shared.root / name)
    time.sleep(TTL + 1)  # Attributes of directories are written within a second.
    is_furnished(s3fs / name)


@as_root
def test_we_see_what_s3fs_wrote(shared: Shared, s3fs: Path, name: str):
    furnish(s3fs / name)
    eventually((shared.root / name).exists)
    time.sleep(TTL)
    is_furnished(shared.root / name)


@as_root
def test_what_one_changes_the_other_sees_and_keeps(shared: Shared, s3fs: Path, name: str):
    ours, theirs = shared.root / name, s3fs / name
    furnish(ours)
    time.sleep(TTL + 1)
    (theirs / "file").chmod(0o604)
    os.setxattr(theirs / "file", "user.size", b"small")
    (theirs / "sub" / "deep").rename(theirs / "moved")
    (theirs / "large").unlink()
    os.utime(theirs / "sub", ns=(1, OTHER_MOMENT_NS))
    time.sleep(TTL)
    mode, *owners = shown(ours / "file")[:3]
    assert (mode, owners) == ("-rw----r--", [1000, 2000])
    assert os.getxattr(ours / "file", "user.colour") == b"green"
    assert os.getxattr(ours / "file", "user.size") == b"small"
    assert shown(ours / "sub") == ("drwxr-s---", 1002, 2002, OTHER_MOMENT_NS)
    found = sorted(str(path.relative_to(ours)) for path in ours.rglob("*"))
    assert found == ["fifo", "file", "link", "moved", "moved/ünï cödé+&", "sub"]
    with (ours / "file").open("ab") as file:
        file.write(b" and more")
    (ours / "file").rename(ours / "sub" / "file")
    os.removexattr(ours / "sub" / "file", "user.colour")
    time.sleep(TTL + 1)
    assert (theirs / "sub" / "file").read_bytes() == b"content and more"
    assert shown(theirs / "sub" / "file")[:3] == ("-rw----r--", 1000, 2000)
    assert os.listxattr(theirs / "sub" / "file") == ["user.size"]


# -- rclone ------------------------------------------------------------------------------------


def rclone(shared: Shared, *arguments: str | Path) -> str:
    """Run rclone with a remote ``s3:`` that is the server of *shared*."""
    environment = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_S3_TYPE": "s3",
        "RCLONE_CONFIG_S3_PROVIDER": "Other",
        "RCLONE_CONFIG_S3_ENV_AUTH": "true",
        "RCLONE_CONFIG_S3_REGION": "us-east-1",
        "RCLONE_CONFIG_S3_ENDPOINT": shared.bucket.url,
    }
    return run("rclone", *arguments, env={**shared.bucket.credentials.environment(), **environment})


@pytest.mark.parametrize("size", [7, 20 * MIB], ids=["one-put", "parts"])
def test_rclone_lists_the_times_that_we_wrote(shared: Shared, work: Path, size: int):
    (work / "file").write_bytes(b"x" * size)
    os.utime(work / "file", ns=(1, MOMENT_NS))
    os.sync()
    eventually(lambda: shared.head(work / "file")["Metadata"]["mtime"].startswith("1234567890"))
    listed = rclone(shared, "lsl", f"s3:{shared.bucket.name}/{work.name}").split()
    assert listed == [str(size), "2009-02-13", "23:31:30.123456789", "file"]


def test_we_show_the_times_that_rclone_copied(shared: Shared, work: Path, tmp_path: Path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for number, file in enumerate((source / "one", source / "sub" / "two")):
        file.write_bytes(b"content")
        os.utime(file, ns=(1, MOMENT_NS + number))
    rclone(shared, "copy", source, f"s3:{shared.bucket.name}/{work.name}")
    eventually(lambda: (work / "sub" / "two").exists())
    assert (work / "one").stat().st_mtime_ns == MOMENT_NS
    assert (work / "sub" / "two").stat().st_mtime_ns == MOMENT_NS + 1
    # Times, sizes and digests agree, so there is nothing to do.
    check = rclone(shared, "copy", "-v", source, f"s3:{shared.bucket.name}/{work.name}")
    assert "There was nothing to transfer" in check


@as_root
def test_we_show_the_metadata_that_rclone_copied(shared: Shared, work: Path, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    os.chown(source / "file", 1234, 2345)
    (source / "file").chmod(0o4710)
    os.utime(source / "file", ns=(1, MOMENT_NS))
    rclone(shared, "copy", "--metadata", source, f"s3:{shared.bucket.name}/{work.name}")
    eventually(lambda: (work / "file").exists())
    assert shown(work / "file") == ("-rws--x---", 1234, 2345, MOMENT_NS)


def test_rclone_copies_back_what_we_wrote(shared: Shared, work: Path, tmp_path: Path):
    for number in range(3):
        (work / f"file{number}").write_bytes(b"%d" % number * 1000)
        os.utime(work / f"file{number}", ns=(1, MOMENT_NS + number))
    os.sync()
    eventually(lambda: shared.head(work / "file2")["Metadata"]["mtime"].startswith("1234567890"))
    rclone(shared, "copy", f"s3:{shared.bucket.name}/{work.name}", tmp_path / "copy")
    for number in range(3):
        copied = tmp_path / "copy" / f"file{number}"
        assert copied.read_bytes() == b"%d" % number * 1000
        assert copied.stat().st_mtime_ns == MOMENT_NS + number


# -- other tools, by what they write -----------------------------------------------------------

# name: (metadata, body, what is shown)
WRITTEN = {
    "s3fs": (
        {"mode": "33184", "uid": "7", "gid": "8", "mtime": "1700000000.000000009"},
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000_000_000_009),
    ),
    "s3fs of old": (
        {"mode": "33184", "uid": "7", "gid": "8", "mtime": "1700000000"},
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000 * 10**9),
    ),
    "s3fs' symlink": (
        {"mode": "41471", "uid": "7", "gid": "8", "mtime": "1700000000.5"},
        b"some/where",
        ("lrwxrwxrwx", 7, 8, 1_700_000_000_500_000_000),
    ),
    "rclone": (
        {"mode": "100640", "uid": "7", "gid": "8", "mtime": "1700000000.123456789"},
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000_123_456_789),
    ),
    "geesefs": (
        {"mode": "33184", "uid": "7", "gid": "8", "mtime": "1700000000"},
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000 * 10**9),
    ),
    "geesefs' symlink": (
        {"--symlink-target": "some/where", "uid": "7", "gid": "8", "mtime": "1700000000"},
        b"",
        ("lrwxrwxrwx", 7, 8, 1_700_000_000 * 10**9),
    ),
    "FSx": (
        {
            "file-permissions": "0100640",
            "file-owner": "7",
            "file-group": "8",
            "file-mtime": "1700000000123456789ns",
            "file-atime": "1700000000123456789ns",
        },
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000_123_456_789),
    ),
    "FSx' symlink": (
        {
            "file-permissions": "0120777",
            "file-owner": "7",
            "file-group": "8",
            "file-mtime": "1700000000123456789ns",
        },
        b"some/where",
        ("lrwxrwxrwx", 7, 8, 1_700_000_000_123_456_789),
    ),
    "DataSync": (
        {
            "file-permissions": "100640",
            "file-owner": "7",
            "file-group": "8",
            "file-mtime": "1700000000123",
        },
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000_123_000_000),
    ),
    "GCS tools": (
        {
            "goog-reserved-posix-mode": "640",
            "goog-reserved-posix-uid": "7",
            "goog-reserved-posix-gid": "8",
            "goog-reserved-file-mtime": "1700000000",
        },
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000 * 10**9),
    ),
    "gcsfuse's symlink": (
        {"gcsfuse_symlink_target": "some/where", "uid": "7", "gid": "8", "mtime": "1700000000"},
        b"",
        ("lrwxrwxrwx", 7, 8, 1_700_000_000 * 10**9),
    ),
    "s3sync": (
        {"permissions": "640", "owner": "7", "group": "8", "mtime": "1700000000"},
        b"x",
        ("-rw-r-----", 7, 8, 1_700_000_000 * 10**9),
    ),
}


def test_what_other_tools_wrote_is_understood(shared: Shared, work: Path):
    for name, (metadata, body, _) in WRITTEN.items():
        shared.put(work / name, body, Metadata=metadata)
    eventually(lambda: len(list(work.iterdir())) == len(WRITTEN))
    assert {name: shown(work / name) for name in WRITTEN} == {
        name: expected for name, (_, _, expected) in WRITTEN.items()
    }
    links = [path for path in work.iterdir() if path.is_symlink()]
    assert {str(path.readlink()) for path in links} == {"some/where"}
    assert [path.lstat().st_size for path in links] == [len("some/where")] * 4


@as_root
def test_what_other_tools_wrote_can_be_changed(shared: Shared, work: Path):
    """Our own form then stands beside theirs, and comes first."""
    for name, (metadata, body, _) in WRITTEN.items():
        shared.put(work / name, body, Metadata=metadata)
    eventually(lambda: len(list(work.iterdir())) == len(WRITTEN))
    for path in work.iterdir():
        os.chown(path, 70, 80, follow_symlinks=False)
        os.utime(path, ns=(1, MOMENT_NS), follow_symlinks=False)
        path.rename(path.with_name(f"{path.name}, changed"))
    os.sync()
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    for name, (_, body, expected) in WRITTEN.items():
        path = work / f"{name}, changed"
        assert shown(path) == (expected[0], 70, 80, MOMENT_NS)
        if path.is_symlink():
            assert str(path.readlink()) == "some/where"
        else:
            assert path.read_bytes() == body


def test_directories_of_other_tools_are_understood(shared: Shared, work: Path):
    metadata = {"file-permissions": "040750", "file-owner": "7", "file-group": "8"}
    times = {"file-mtime": "1700000000123456789ns"}
    shared.s3.put_object(
        Bucket=shared.bucket.name,
        Key=f"{work.name}/FSx/",
        Body=b"",
        Metadata={**metadata, **times},
    )
    shared.s3.put_object(
        Bucket=shared.bucket.name,
        Key=f"{work.name}/s3fs/",
        Body=b"",
        ContentType="application/x-directory",
        Metadata={"mode": "16872", "uid": "7", "gid": "8", "mtime": "1700000000.123456789"},
    )
    eventually(lambda: len(list(work.iterdir())) == 2)
    for path in work.iterdir():
        assert shown(path) == ("drwxr-x---", 7, 8, 1_700_000_000_123_456_789)
