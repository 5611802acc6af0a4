"""``s3mount info`` and ``s3mount cache``: what is known, what is cached, and dropping it."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from s3mount.cache import ledger
from s3mount.cache.disk import BlockDisk
from s3mount.cli.infotext import rows
from tests.faultproxy import FaultProxy
from tests.mount.conftest import Shared
from tests.mounts import Bucket, Mounter

MIB = 1 << 20
PATIENCE = 60.0
Found = Mapping[str, Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the mount of this module has its cache."""
    return tmp_path_factory.mktemp("cache") / "blocks"


@pytest.fixture(scope="module")
def shared(sharing, cache: Path) -> Iterator[Shared]:
    with sharing("--cache", str(cache), "--writeback") as shared:
        yield shared


def info(shared: Shared, *paths: Path, code: int = 0) -> list[Found]:
    done = shared.mounter.run("info", "--json", *map(str, paths))
    assert done.returncode == code, done.stdout
    return json.loads(done.stdout)["paths"]


def put(shared: Shared, path: Path, body: bytes, **how: object) -> None:
    """Put an object, so that the mount sees it at once."""
    shared.put(path, body, **how)
    os.setxattr(shared.root, "user.s3mount.refresh", b"1")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- info --------------------------------------------------------------------------------------


def test_an_object_is_described_as_its_store_does(shared: Shared, cold: Path):
    path = cold / "file"
    put(shared, path, b"content", Metadata={"mode": "33184", "colour": "blue"}, ContentType="a/b")
    (found,) = info(shared, path)
    told, head = found["object"], shared.head(path)
    assert (found["type"], found["mode"], found["size"]) == ("file", 0o640, 7)
    assert (found["key"], found["url"]) == (
        f"{cold.name}/file",
        f"s3://{shared.bucket.name}/{cold.name}/file",
    )
    assert (told["etag"], told["size"]) == (head["ETag"].strip('"'), 7)
    assert (told["storage_class"], told["content_type"], told["parts"]) == ("STANDARD", "a/b", None)
    assert told["metadata"] == {"mode": "33184", "colour": "blue"}
    assert (found["state"], found["versions"]) == ("clean", None)
    assert found["mountpoint"] == str(shared.root)


def test_parts_are_counted(shared: Shared, cold: Path):
    path = cold / "parts"
    where = {"Bucket": shared.bucket.name, "Key": shared.key(path)}
    upload = shared.s3.create_multipart_upload(**where)["UploadId"]
    done = [
        shared.s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)["ETag"]
        for number, body in ((1, b"a" * 5 * MIB), (2, b"b"))
    ]
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(done, 1)]
    shared.s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    os.setxattr(shared.root, "user.s3mount.refresh", b"1")
    assert info(shared, path)[0]["object"]["parts"] == 2


def test_what_is_cached_is_told_in_ranges(shared: Shared, cold: Path):
    path = cold / "large"
    put(shared, path, os.urandom(9 * MIB))
    cached = info(shared, path)[0]["cached"]
    assert (cached["memory"]["bytes"], cached["disk"]["bytes"]) == (0, 0)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 4096, 5 * MIB)
    wait_for(lambda: info(shared, path)[0]["cached"]["disk"]["bytes"] > 0)
    cached = info(shared, path)[0]["cached"]
    for tier in ("memory", "disk"):
        assert 0 < cached[tier]["bytes"] < 9 * MIB
        assert any(low <= 5 * MIB < high for low, high in cached[tier]["ranges"])
    assert len(path.read_bytes()) == 9 * MIB
    wait_for(lambda: info(shared, path)[0]["cached"]["disk"]["ranges"] == [[0, 9 * MIB]])


def test_what_is_not_saved_is_told_and_what_is_open(shared: Shared, cold: Path):
    cold.mkdir()
    with (cold / "new").open("wb", buffering=0) as file:
        file.write(b"x" * 1000)
        (found, above) = info(shared, cold / "new", cold)
        assert (found["state"], found["object"], found["open"]) == ("dirty", None, 1)
        assert (found["unsaved_bytes"], found["size"], found["failure"]) == (1000, 1000, "")
        assert (above["type"], above["unsaved_files"], above["unsaved_bytes"]) == (
            "directory", 1, 1000,
        )  # fmt: skip
    shared.mounter.run("sync", str(shared.root))
    (found,) = info(shared, cold / "new")
    assert (found["state"], found["object"]["size"]) == ("clean", 1000)


def test_directories_links_and_the_mount_itself_are_described(shared: Shared, cold: Path):
    cold.mkdir(0o750)
    (cold / "link").symlink_to("nowhere")
    shared.mounter.run("sync", str(shared.root))
    (above, link, root) = info(shared, cold, cold / "link", shared.root)
    assert (above["type"], above["mode"], above["key"]) == ("directory", 0o750, f"{cold.name}/")
    assert (link["type"], link["key"]) == ("symlink", f"{cold.name}/link")
    assert (root["type"], root["url"]) == ("directory", f"s3://{shared.bucket.name}/")
    assert above["cached"] is None


def test_versions_are_told_where_a_bucket_keeps_them(mount: Mounter, bucket: Bucket, s3):
    s3.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"1", b"22", b"333"):
        s3.put_object(Bucket=bucket.name, Key="file", Body=body)
    s3.put_object(Bucket=bucket.name, Key="file2", Body=b"another's")
    mounted = mount(bucket)
    done = mount.run("info", "--json", str(mounted.path / "file"))
    (found,) = json.loads(done.stdout)["paths"]
    assert [one["size"] for one in found["versions"]] == [3, 2, 1]
    assert [one["latest"] for one in found["versions"]] == [True, False, False]
    assert found["object"]["version_id"] == found["versions"][0]["version_id"]
    told = mount.run("info", str(mounted.path / "file")).stdout
    assert told.count("(latest)") == 1
    assert "  versions" in told


def test_what_is_not_there_is_told_beside_what_is(shared: Shared, cold: Path, tmp_path: Path):
    cold.mkdir()
    missing, outside = cold / "missing", tmp_path / "x"
    found = info(shared, missing, outside, cold, code=32)
    assert [("error" in one) for one in found] == [True, True, False]
    assert "No such file" in found[0]["error"]
    assert "not in a mount of s3mount" in found[1]["error"]


def test_the_words_play_no_tricks(shared: Shared, cold: Path):
    path = cold / "a\x1b[2Jb"
    put(shared, path, b"x", Metadata={"note": "plain"})
    told = shared.mounter.run("info", str(path)).stdout
    assert "\x1b" not in told
    assert "  metadata  note = plain\n" in told
    (found,) = info(shared, path)
    assert dict(rows({**found, "given_up": True}))["state"].startswith("clean; given up")


# -- cache -------------------------------------------------------------------------------------


def look(shared: Shared, *arguments: str) -> Found:
    done = shared.mounter.run("cache", "--json", *arguments)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def test_the_caches_of_a_mount_are_told_and_dropped_while_it_is_used(
    shared: Shared, cold: Path, cache: Path
):
    body = os.urandom(3 * MIB)
    put(shared, cold / "file", body)
    with (cold / "file").open("rb") as file:
        assert file.read(2 * MIB) == body[: 2 * MIB]
        assert (cold / "file").read_bytes() == body
        wait_for(lambda: _share(look(shared, str(shared.root)))["bytes"] > 3 * MIB)
        (before,) = look(shared, shared.bucket.name)["mounts"]
        assert before["memory_bytes"] >= 3 * MIB
        assert before["disk"]["path"] == str(cache)
        assert _share({"mounts": [before]})["bucket"] == shared.bucket.name
        (after,) = look(shared, "--clear", str(shared.root))["mounts"]
        assert after["freed"]["disk_bytes"] >= 3 * MIB
        assert after["freed"]["names"] > 0
        assert (after["memory_bytes"], after["disk"]["shares"]) == (0, [])
        assert not [path for path in cache.glob("??/*") if not path.name.startswith(".")]
        assert file.read() == body[2 * MIB :]
    assert (cold / "file").read_bytes() == body


def _share(found: Found) -> Found:
    shares = found["mounts"][0]["disk"]["shares"]
    return shares[0] if shares else {"bytes": 0}


def test_what_is_not_saved_survives_the_dropping_of_all_caches(shared: Shared, work: Path):
    with (work / "file").open("wb", buffering=0) as file:
        file.write(b"unsaved")
        look(shared, "--clear", str(shared.root))
        assert (work / "file").read_bytes() == b"unsaved"
        file.write(b" and more")
    assert (work / "file").read_bytes() == b"unsaved and more"


def test_a_cache_is_looked_into_and_removed_without_a_mount(
    mount: Mounter, bucket: Bucket, s3, make_bucket, weed, tmp_path: Path
):
    where, other = tmp_path / "cache", make_bucket(weed)
    for one in (bucket, other):
        s3.put_object(Bucket=one.name, Key="file", Body=os.urandom(2 * MIB))
        mounted = mount(one, "--cache", str(where))
        assert len((mounted.path / "file").read_bytes()) == 2 * MIB
        mounted.umount()
    (found,) = json.loads(mount.run("cache", "--json", "--cache", str(where)).stdout)["directories"]
    assert {share["bucket"] for share in found["shares"]} == {bucket.name, other.name}
    done = mount.run("cache", "--clear", "--cache", str(where), bucket.name)
    assert (done.returncode, bucket.name in done.stdout, other.name in done.stdout) == (
        0, False, True,
    )  # fmt: skip
    (where / "00").mkdir(exist_ok=True)
    (where / "00" / "nobody-knows-it").write_bytes(b"x" * 100)
    done = mount.run("cache", "--clear", "--cache", str(where))
    assert done.stdout.endswith("0 bytes, 0 blocks\n")
    assert not list(where.glob("??/*"))
    for wrong in (tmp_path, tmp_path / "missing"):
        done = mount.run("cache", "--cache", str(wrong))
        assert (done.returncode, "is not a cache of s3mount" in done.stdout) == (32, True)
    assert not (tmp_path / "missing").exists()
    assert mount.run("cache", "no-such-bucket").returncode == 32


def test_stores_that_only_the_environment_names_have_caches_of_their_own(
    mount: Mounter, bucket: Bucket, s3, server, tmp_path: Path
):
    s3.put_object(Bucket=bucket.name, Key="file", Body=os.urandom(2 * MIB))
    path, where = tmp_path / "mnt", tmp_path / "cache"
    path.mkdir()
    more = (
        "--cache",
        str(where),
        "--state-dir",
        str(tmp_path / "state"),
        "--log-file",
        "/dev/null",
    )
    with FaultProxy(server.url) as proxy:
        for url in (bucket.url, proxy.url):
            keys = {**bucket.credentials.environment(), "AWS_ENDPOINT_URL": url}
            assert mount.run(bucket.name, str(path), *more, env=keys).returncode == 0
            try:
                assert len((path / "file").read_bytes()) == 2 * MIB
            finally:
                assert mount.run("umount", str(path)).returncode == 0
        (found,) = json.loads(mount.run("cache", "--json", "--cache", str(where)).stdout)[
            "directories"
        ]
        assert {share["endpoint"] for share in found["shares"]} == {bucket.url, proxy.url}


# -- the directory of blocks -------------------------------------------------------------------


def make_disk(path: Path, store: str) -> BlockDisk:
    disk = BlockDisk(path, store, 64 * MIB, 0, lambda data, crc: len(data))
    disk.open()
    return disk


async def keep(disk: BlockDisk, key: str) -> bytes:
    name = disk.name(key, '"etag"', 1000, MIB, 0)
    assert disk.keep(name, memoryview(b"x" * 1000), lambda: None)
    await disk.flush()
    return name


async def test_a_store_drops_its_own_blocks_only(tmp_path: Path):
    one = make_disk(tmp_path / "cache", "http://s\0one\0")
    two = make_disk(tmp_path / "cache", "http://s\0two\0pre/")
    names = [await keep(one, "a"), await keep(one, "b"), await keep(two, "a")]
    assert [(share.blocks, share.store) for share in await two.shares()] == [
        (2, b"http://s\0one\0"),
        (1, b"http://s\0two\0pre/"),
    ]
    assert await one.clear() > 2000
    assert [disk.has(name) for disk, name in zip((one, one, two), names, strict=True)] == [
        False, False, True,
    ]  # fmt: skip
    (left,) = await one.shares()
    assert left.described()["prefix"] == "pre/"
    one.close()
    two.close()


async def test_what_an_earlier_version_has_cached_is_taken_over(tmp_path: Path):
    disk = make_disk(tmp_path / "cache", "http://s\0one\0")
    name = await keep(disk, "a")
    disk.close()
    with sqlite3.connect(tmp_path / "cache" / ledger.FILE) as database:
        database.executescript(
            "ALTER TABLE blocks RENAME TO now; CREATE TABLE blocks (name BLOB PRIMARY KEY, "
            "size INTEGER NOT NULL, used REAL NOT NULL) WITHOUT ROWID; "
            "INSERT INTO blocks SELECT name, size, used FROM now; DROP TABLE now; "
            "DROP TABLE stores"
        )
    database.close()
    disk = make_disk(tmp_path / "cache", "http://s\0one\0")
    assert disk.has(name)
    (share,) = await disk.shares()
    assert (share.store, share.blocks) == (b"", 1)
    await keep(disk, "b")
    assert len(await disk.shares()) == 2
    disk.close()


async def test_what_could_not_be_written_down_does_not_stay_on_the_disk(tmp_path: Path):
    disk = make_disk(tmp_path / "cache", "http://s\0one\0")
    other = sqlite3.connect(tmp_path / "cache" / ledger.FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        name = await keep(disk, "a")
        assert not disk.has(name)
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert disk.has(await keep(disk, "a"))
    await trio.lowlevel.checkpoint()
    disk.close()
