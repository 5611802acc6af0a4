"""Buckets that keep versions: older ones are seen, mounted as of a time, and brought back."""

import errno
import json
import os
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.mount.conftest import Shared
from tests.mount.programs import run
from tests.mount.trees import names
from tests.mounts import Bucket, Mounter, MountFailed, why_no_mounts
from tests.servers import Server

MIB = 1 << 20
STORES = ("rustfs", "minio", "moto")  # Each of which keeps versions.
# Seconds: what happens that much later has another Last-Modified.
TICK = {"rustfs": 0.02, "minio": 0.02, "moto": 1.1}


@pytest.fixture(scope="module", params=STORES)
def shared(
    request: pytest.FixtureRequest,
    server_of: Callable[[str], Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shared]:
    """A mount of a bucket that keeps versions."""
    with versioned(server_of(request.param), tmp_path_factory) as shared:
        yield shared


@contextmanager
def versioned(server: Server, factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """``with versioned(...) as shared``: a bucket that keeps versions, and a mount of it."""
    if reason := why_no_mounts():
        unavailable(reason)
    bucket = Bucket(f"test-{secrets.token_hex(6)}", server.url, server.credentials)
    server.client().create_bucket(Bucket=bucket.name)
    keep_versions(server, bucket)
    mounter = Mounter(factory.mktemp("shared"))
    try:
        yield Shared(bucket, server, mounter, (mounter(bucket),))
    finally:
        mounter.finish()


def keep_versions(server: Server, bucket: Bucket) -> None:
    """Switch versioning on."""
    server.client().put_bucket_versioning(
        Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"}
    )


def past(root: Path, path: Path | str = "") -> Path:
    """Where a mount shows the past of *path*."""
    if isinstance(path, Path):
        path = path.relative_to(root)
    return root / ".s3mount" / "versions" / path


def contents(directory: Path) -> list[bytes]:
    """What the versions in a directory hold, the oldest first (of two in a second: any)."""
    return [path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()]


def others(folder: Path) -> list[str]:
    """What is in ``.s3mount`` but for what a probe leaves on moto, which does not delete it."""
    return [name for name in names(folder) if not name.startswith("probe-")]


def command(shared: Shared, *arguments: object, code: int = 0) -> str:
    """Run ``s3mount ARGUMENTS`` as the owner of the mount, and return what it printed."""
    # Its control socket is where the daemon's environment says.
    environment = shared.mounts[0].environment
    done = shared.mounter.run(*map(str, arguments), env=dict(environment))
    assert done.returncode == code, done.stdout
    return done.stdout


def write(path: Path, *bodies: bytes, pause: float = 0.0) -> None:
    """Write a file several times over."""
    for number, body in enumerate(bodies):
        if number and pause:
            time.sleep(pause)
        path.write_bytes(body)


def tick(shared: Shared) -> float:
    """How long to wait for another Last-Modified."""
    return TICK[shared.server.name]


def moment(shared: Shared) -> str:
    """Now, as `as-of` takes it, between what was done and what will be done."""
    time.sleep(tick(shared))
    now = datetime.now(UTC)
    time.sleep(tick(shared))
    if tick(shared) > 1:
        now = now.replace(microsecond=0)
    return now.isoformat(timespec="milliseconds")


def refuses(action: Callable[[], object], number: int = errno.EROFS) -> None:
    """Check that something cannot be done, and why not."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is checked below)
        action()
    assert caught.value.errno == number


# -- .s3mount/versions ---------------------------------------------------------------------------


def test_versions_of_a_file_are_in_a_directory_of_its_name(shared: Shared, work: Path):
    write(work / "file", b"one", b"two and more", pause=tick(shared))
    (work / "file").unlink()
    there = past(shared.root, work / "file")
    assert contents(there) == [b"one", b"two and more"]
    ids = {
        version["VersionId"]
        for version in shared.s3.list_object_versions(
            Bucket=shared.bucket.name, Prefix=shared.key(work / "file")
        )["Versions"]
    }
    for path in there.iterdir():
        moment, _, version = path.name.partition("-")
        datetime.strptime(moment, "%Y%m%dT%H%M%S.%fZ")
        assert version in ids


def test_the_directory_of_the_past_is_hidden_and_reachable(shared: Shared, work: Path):
    write(work / "file", b"content")
    assert ".s3mount" not in names(shared.root)
    assert stat.S_ISDIR((shared.root / ".s3mount").stat().st_mode)
    assert not others(shared.root / ".s3mount")
    assert past(shared.root).is_dir()
    # Also after it was looked up, from the cache and from the store.
    assert ".s3mount" not in names(shared.root)
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    assert ".s3mount" not in names(shared.root)
    assert ".s3mount" not in run("find", shared.root)


def test_directories_of_the_past_can_be_walked(shared: Shared, work: Path):
    (work / "deep" / "er").mkdir(parents=True)
    write(work / "deep" / "er" / "file", b"!")
    write(work / "gone", b"?")
    (work / "gone").unlink()
    run("rm", "-r", work / "deep")
    assert not (work / "deep").exists()
    assert names(past(shared.root, work)) == ["deep", "gone"]
    assert names(past(shared.root, work / "deep")) == ["er"]
    assert names(past(shared.root, work / "deep" / "er")) == ["file"]
    assert contents(past(shared.root, work / "deep" / "er" / "file")) == [b"!"]
    assert work.name in names(past(shared.root))
    assert ".s3mount" not in names(past(shared.root))
    assert not past(shared.root, work / "never").exists()


def test_versions_have_their_own_attributes(shared: Shared, work: Path):
    path = work / "file"
    for number, mode in enumerate((0o600, 0o755)):
        path.write_bytes(b"x" * (number + 1))
        path.chmod(mode)
        os.utime(path, ns=(10**18, 10**18 + number))
        if os.geteuid() == 0:
            os.chown(path, 1234 + number, 4321)
        shared.mounter.run("sync", str(work), env=dict(shared.mounts[0].environment))
        time.sleep(tick(shared))
    # chmod and its kin make a version, too, after the one that close has made.
    found = [one.stat() for one in past(shared.root, path).iterdir()]
    for number, mode in enumerate((0o600, 0o755)):
        modes = {stat.S_IMODE(one.st_mode): one for one in found if one.st_size == number + 1}
        status = modes[mode]
        assert status.st_mtime_ns == 10**18 + number
        if os.geteuid() == 0:
            assert (status.st_uid, status.st_gid) == (1234 + number, 4321)


def test_large_versions_are_read_at_random(shared: Shared, work: Path):
    body = os.urandom(20 * MIB)
    write(work / "large", body, b"small", pause=tick(shared))
    first = min(past(shared.root, work / "large").iterdir())
    assert first.stat().st_size == len(body)
    with first.open("rb") as file:
        file.seek(17 * MIB + 3)
        assert file.read(1000) == body[17 * MIB + 3 : 17 * MIB + 1003]
    assert first.read_bytes() == body


def test_the_past_cannot_be_changed(shared: Shared, work: Path):
    write(work / "file", b"content")
    (version,) = past(shared.root, work / "file").iterdir()
    refuses(lambda: version.write_bytes(b"other"))
    refuses(lambda: version.open("r+b"))
    refuses(version.unlink)
    refuses(lambda: version.chmod(0o600))
    refuses(lambda: os.truncate(version, 0))
    refuses(lambda: os.utime(version, (1, 1)))
    refuses(lambda: version.rename(work / "moved"))
    refuses(lambda: (work / "file").rename(past(shared.root, work) / "moved"))
    refuses(lambda: (past(shared.root) / "new").write_bytes(b""))
    refuses(lambda: (past(shared.root) / "new").mkdir())
    refuses(lambda: (past(shared.root) / "new").symlink_to("x"))
    refuses(lambda: os.setxattr(version, "user.a", b"b"))
    refuses(past(shared.root).rmdir)
    refuses((shared.root / ".s3mount").rmdir)
    refuses(lambda: (shared.root / ".s3mount").rename(shared.root / "other"))
    assert version.read_bytes() == b"content"


def test_a_version_can_be_copied_with_ordinary_tools(shared: Shared, work: Path):
    write(work / "file", b"one", b"two", pause=tick(shared))
    first = min(past(shared.root, work / "file").iterdir())
    run("cp", "-p", first, work / "file")
    assert (work / "file").read_bytes() == b"one"
    assert shared.get(work / "file") == b"one"


def test_objects_that_really_are_below_the_name_are_ordinary(shared: Shared):
    folder = shared.root / ".s3mount"
    shared.put(folder / "of-others", b"!")
    assert (folder / "of-others").read_bytes() == b"!"
    (folder / "ours").write_bytes(b"?")
    assert shared.get(folder / "ours") == b"?"
    os.setxattr(folder, "user.s3mount.refresh", b"")
    assert others(folder) == ["of-others", "ours"]
    assert ".s3mount" not in names(shared.root)
    for name in ("of-others", "ours"):
        (folder / name).unlink()


def test_odd_names_have_a_past(shared: Shared, work: Path):
    for name in ("with space", "ünïcödé", "20261121T000000.000Z-x", "a+b%c"):
        write(work / name, name.encode())
        assert contents(past(shared.root, work / name)) == [name.encode()]


def test_names_that_the_store_keeps_in_another_way_have_a_past(shared: Shared, work: Path):
    """RustFS takes no newline, MinIO no backslash; what they list has to be read back."""
    odd = ("new\nline", "back\\slash")
    for name in odd:
        (work / name).mkdir()
        write(work / name / name, b"one", b"two", pause=tick(shared))
    then = moment(shared)
    for name in odd:
        (work / name / name).unlink()
        there = past(shared.root, work / name / name)
        assert contents(there) == [b"one", b"two"]
        assert sorted(odd) == names(past(shared.root, work))
        command(shared, "versions", work / name / name)
    for name in odd:
        command(shared, "undelete", work / name / name)
        assert (work / name / name).read_bytes() == b"two"
    if shared.server.name == "moto":
        return  # It refuses names only when they are listed: who must not write cannot know.
    before = shared.mounter(shared.bucket, "-o", f"as-of={then}")
    assert names(before.path / work.name) == sorted(odd)
    for name in odd:
        assert (before.path / work.name / name / name).read_bytes() == b"two"
    assert before.umount() == 0


def test_versions_of_other_writers_are_seen_after_the_time_to_live(shared: Shared, work: Path):
    path = work / "file"
    shared.put(path, b"one")
    assert contents(past(shared.root, path)) == [b"one"]
    time.sleep(tick(shared))
    shared.put(path, b"two")
    os.setxattr(past(shared.root), "user.s3mount.refresh", b"")
    assert contents(past(shared.root, path)) == [b"one", b"two"]


def test_a_long_history_is_listed_whole(shared: Shared, work: Path):
    path = work / "file"
    for number in range(30):
        shared.put(path, b"%d" % number)
    shared.delete(path)
    shared.put(work / "file-2", b"beside")
    found = sorted(int(body) for body in contents(past(shared.root, path)))
    assert found == list(range(30))


def test_links_to_versions_are_links_to_versions(shared: Shared, work: Path):
    if shared.server.name == "moto":
        pytest.skip("moto checks no signature")
    write(work / "file", b"one", b"two", pause=tick(shared))
    first = min(past(shared.root, work / "file").iterdir())
    link = command(shared, "url", first).strip()
    assert run("curl", "-sSf", link) == "one"


# -- a mount as of a time ------------------------------------------------------------------------


def test_a_bucket_is_mounted_as_it_was(shared: Shared, work: Path):
    write(work / "stays", b"same")
    write(work / "changes", b"old")
    (work / "changes").chmod(0o640)
    write(work / "goes", b"still there")
    (work / "tree").mkdir()
    write(work / "tree" / "inner", b"inside")
    command(shared, "sync", work)
    then = moment(shared)
    write(work / "changes", b"new, and longer")
    (work / "goes").unlink()
    write(work / "comes", b"later")
    run("rm", "-r", work / "tree")
    (work / "fresh").mkdir()
    write(work / "fresh" / "file", b"later")
    before = shared.mounter(shared.bucket, "-o", f"as-of={then}")
    old = before.path / work.name
    assert names(old) == ["changes", "goes", "stays", "tree"]
    assert (old / "stays").read_bytes() == b"same"
    assert (old / "changes").read_bytes() == b"old"
    assert stat.S_IMODE((old / "changes").stat().st_mode) == 0o640
    assert (old / "goes").read_bytes() == b"still there"
    assert (old / "tree" / "inner").read_bytes() == b"inside"
    assert not (old / "comes").exists()
    assert not (old / "fresh").exists()
    refuses(lambda: (old / "stays").write_bytes(b"!"))
    refuses(lambda: (old / "goes").unlink())
    assert before.umount() == 0
    # Today's mount is none the wiser.
    assert names(work) == ["changes", "comes", "fresh", "stays"]


def test_before_the_first_version_there_was_nothing(shared: Shared, work: Path):
    write(work / "file", b"content")
    before = shared.mounter(shared.bucket, "-o", "as-of=2001-01-01")
    assert names(before.path) == []
    assert not (before.path / work.name).exists()
    assert before.umount() == 0


def test_a_listing_as_of_a_time_goes_over_pages(shared: Shared, work: Path):
    """Of each file there is one version too old, and one too young, on both sides of pages."""
    client, bucket = shared.s3, shared.bucket.name
    expected = []
    for number in range(40):
        key = f"{shared.key(work)}/many/{number:03}"
        client.put_object(Bucket=bucket, Key=key, Body=b"b")
        if number % 4:
            expected.append(f"{number:03}")
    time.sleep(tick(shared))
    for number in range(0, 40, 4):
        client.delete_object(Bucket=bucket, Key=f"{shared.key(work)}/many/{number:03}")
    then = moment(shared)
    for number in range(40):
        client.put_object(Bucket=bucket, Key=f"{shared.key(work)}/many/{number:03}", Body=b"c")
    before = shared.mounter(shared.bucket, "-o", f"as-of={then}")
    old = before.path / work.name / "many"
    assert names(old) == expected
    assert {path.read_bytes() for path in old.iterdir()} == {b"b"}
    assert before.umount() == 0


@pytest.mark.parametrize("wrong", ["soon", "12:00", "2026-13-01", "", "99999999999h"])
def test_a_time_that_is_none_is_refused(mount: Mounter, wrong: str):
    done = mount.run("no-bucket", "/nowhere", "-o", f"as-of={wrong}")
    assert done.returncode == 1
    assert "as-of" in done.stdout


def test_the_future_is_refused(shared: Shared):
    with pytest.raises(MountFailed) as caught:
        shared.mounter(shared.bucket, "-o", "as-of=2200-01-01T00:00:00Z", name="future")
    assert "2200-01-01T00:00:00Z is in the future" in caught.value.output


# -- s3mount versions ----------------------------------------------------------------------------


def test_versions_are_told(shared: Shared, work: Path):
    write(work / "file", b"one", b"two and more", pause=tick(shared))
    (work / "file").unlink()
    (told,) = json.loads(command(shared, "versions", "--json", work / "file"))
    found = told["versions"]
    assert [(one["size"], one["deleted"], one["newest"]) for one in found] == [
        (0, True, True),
        (12, False, False),
        (3, False, False),
    ]
    listed = shared.s3.list_object_versions(
        Bucket=shared.bucket.name, Prefix=shared.key(work / "file")
    )
    etags = {one["VersionId"]: one["ETag"].strip('"') for one in listed["Versions"]}
    assert {one["version"]: one["etag"] for one in found[1:]} == etags
    lines = command(shared, "versions", work / "file").splitlines()
    assert lines[0].split()[:4] == ["TIME", "SIZE", "VERSION", "ETAG"]
    assert len(lines) == 4
    assert lines[1].endswith("newest, deleted")


def test_versions_of_what_never_was_is_an_error(shared: Shared, work: Path):
    said = command(shared, "versions", work / "never", code=32)
    assert "there is no such file" in said
    write(work / "file", b"")
    assert "Is a directory" in command(shared, "versions", work, code=32)


# -- s3mount undelete ----------------------------------------------------------------------------


def test_a_deletion_is_undone(shared: Shared, work: Path):
    path = work / "file"
    write(path, b"precious")
    path.chmod(0o600)
    command(shared, "sync", work)
    before = shared.head(path)["VersionId"]
    path.unlink()
    assert names(work) == []
    assert not path.exists()
    said = command(shared, "undelete", path)
    assert "its deletion is undone" in said
    assert before in said
    # At once, not after the time to live.
    assert names(work) == ["file"]
    assert path.read_bytes() == b"precious"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert shared.head(path)["VersionId"] == before


def test_what_was_deleted_more_than_once_comes_back(shared: Shared, work: Path):
    path = work / "file"
    write(path, b"precious")
    for _ in range(3):
        time.sleep(tick(shared))
        shared.delete(path)
    # Some stores, such as MinIO, mark a deletion of nothing, too; others do not.
    listed = shared.s3.list_object_versions(Bucket=shared.bucket.name, Prefix=shared.key(path))
    count = len(listed["DeleteMarkers"])
    said = "its deletion is" if count == 1 else f"{count} deletions are"
    assert f"{said} undone" in command(shared, "undelete", path)
    assert path.read_bytes() == b"precious"


def test_an_older_version_is_copied_back(shared: Shared, work: Path):
    path = work / "file"
    write(path, b"one", b"two", pause=tick(shared))
    first = shared.s3.list_object_versions(Bucket=shared.bucket.name, Prefix=shared.key(path))
    oldest = next(one["VersionId"] for one in first["Versions"] if not one["IsLatest"])
    with path.open("rb") as open_file:
        assert open_file.read() == b"two"
        assert "is copied back" in command(shared, "undelete", "--version", oldest, path)
        assert path.read_bytes() == b"one"
        assert shared.get(path) == b"one"
    (told,) = json.loads(command(shared, "versions", "--json", path))
    assert [one["size"] for one in told["versions"]] == [3, 3, 3]


def test_what_is_not_deleted_is_left_alone(shared: Shared, work: Path):
    path = work / "file"
    write(path, b"one")
    assert "not deleted" in command(shared, "undelete", path, code=32)
    newest = shared.head(path)["VersionId"]
    said = command(shared, "undelete", "--version", newest, path, code=32)
    assert "newest" in said
    assert "no such file" in command(shared, "undelete", work / "never", code=32)
    said = command(shared, "undelete", "--version", secrets.token_hex(16), path, code=32)
    assert "no such version" in said
    assert "Is a directory" in command(shared, "undelete", work, code=32)
    assert path.read_bytes() == b"one"


def test_unsaved_bytes_become_a_version_before_another_is_copied_over_them(
    shared: Shared, work: Path
):
    path = work / "file"
    write(path, b"one", b"two", pause=tick(shared))
    (told,) = json.loads(command(shared, "versions", "--json", path))
    with path.open("ab") as file:
        file.write(b" and more")
        file.flush()
        time.sleep(tick(shared))
        command(shared, "undelete", "--version", told["versions"][1]["version"], path)
    assert path.read_bytes() == b"one"
    (told,) = json.loads(command(shared, "versions", "--json", path))
    assert [one["size"] for one in told["versions"]] == [3, 12, 3, 3]


def test_a_whole_directory_comes_back(shared: Shared, work: Path):
    tree = work / "tree"
    (tree / "inner").mkdir(parents=True)
    for number in range(5):
        write(tree / f"file{number}", b"%d" % number)
        write(tree / "inner" / f"file{number}", b"inner %d" % number)
    command(shared, "sync", work)
    subprocess.run(["rm", "-r", tree], check=True)
    assert names(work) == []
    said = command(shared, "undelete", "-r", tree)
    assert said.count("its deletion is undone") >= 10
    assert names(work) == ["tree"]
    assert names(tree) == sorted(["inner", *(f"file{number}" for number in range(5))])
    assert (tree / "inner" / "file3").read_bytes() == b"inner 3"
    assert "nothing was deleted there" in command(shared, "undelete", "-r", tree)


def test_only_what_was_deleted_since_then_comes_back(shared: Shared, work: Path):
    write(work / "long-gone", b"1")
    (work / "long-gone").unlink()
    then = moment(shared)
    write(work / "just-gone", b"2")
    (work / "just-gone").unlink()
    command(shared, "undelete", "-r", "--since", then, work)
    assert names(work) == ["just-gone"]


def test_a_mount_of_the_past_tells_and_does_not_change_it(shared: Shared, work: Path):
    write(work / "file", b"1")
    (work / "file").unlink()
    before = shared.mounter(shared.bucket, "-o", "as-of=0s")
    environment = dict(before.environment)
    there = str(before.path / work.name / "file")
    done = shared.mounter.run("versions", there, env=environment)
    assert done.returncode == 0
    done = shared.mounter.run("undelete", there, env=environment)
    assert done.returncode == 32
    assert "Read-only" in done.stdout
    assert before.umount() == 0


def test_the_whole_mount_comes_back_but_for_scratch_objects(shared: Shared):
    """A bucket of its own would cost a mount; a prefix of one is as good."""
    s3, bucket = shared.s3, shared.bucket.name
    for key in ("whole/a", "whole/b/c", "whole/.s3mount/probe-x"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"!")
        time.sleep(tick(shared))
        s3.delete_object(Bucket=bucket, Key=key)
    mounted = shared.mounter(shared.bucket, prefix="whole")
    # MinIO and moto go on listing directories in which all is deleted.
    assert "a" not in names(mounted.path)
    done = shared.mounter.run("undelete", "-r", str(mounted.path), env=dict(mounted.environment))
    assert done.returncode == 0, done.stdout
    assert names(mounted.path) == ["a", "b"]
    assert (mounted.path / "b" / "c").read_bytes() == b"!"
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="whole/.s3mount/probe-x")
    assert listed["KeyCount"] == 0
    assert mounted.umount() == 0


# -- buckets without versions ----------------------------------------------------------------------


@pytest.mark.parametrize("name", STORES)
def test_a_bucket_that_keeps_no_versions_says_so(name: str, server_of, make_bucket, mount: Mounter):
    bucket = make_bucket(server_of(name))
    mounted = mount(bucket)
    (mounted.path / "file").write_bytes(b"content")
    mount.expect_log("keeps no versions")
    refuses(lambda: names(past(mounted.path)), errno.EOPNOTSUPP)
    for words in (("versions",), ("undelete",)):
        done = mount.run(*words, str(mounted.path / "file"), env=dict(mounted.environment))
        assert done.returncode == 32
        assert done.stdout.count("\n") == 1
        assert "the bucket keeps no versions: versioning is off" in done.stdout
    with pytest.raises(MountFailed) as caught:
        mount(bucket, "-o", "as-of=1h")
    assert "keeps no versions" in caught.value.output
    assert caught.value.output.count("\n") == 1
    # Switched on while it is mounted, it is seen within a minute; the commands ask anew.


def test_a_prefix_has_its_own_past(shared: Shared):
    for body in (b"one", b"two"):
        shared.s3.put_object(Bucket=shared.bucket.name, Key="pre/fix/file", Body=body)
    shared.s3.delete_object(Bucket=shared.bucket.name, Key="pre/fix/file")
    mounted = shared.mounter(shared.bucket, prefix="pre/fix")
    assert sorted(contents(past(mounted.path, "file"))) == [b"one", b"two"]
    done = shared.mounter.run("undelete", str(mounted.path / "file"), env=dict(mounted.environment))
    assert done.returncode == 0, done.stdout
    assert (mounted.path / "file").read_bytes() == b"two"
    assert mounted.umount() == 0


@pytest.mark.parametrize("store", STORES)
def test_the_trials_of_a_mount_leave_no_versions_behind(
    store: str,
    server_of: Callable[[str], Server],
    tmp_path_factory: pytest.TempPathFactory,
):
    with versioned(server_of(store), tmp_path_factory) as shared:
        found = shared.s3.list_object_versions(Bucket=shared.bucket.name)
    assert [one["Key"] for one in found.get("Versions", [])] == []
    assert [one["Key"] for one in found.get("DeleteMarkers", [])] == []
