"""``ls -l`` asks once: what is known of unchanged objects outlives the daemon."""

import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.faultproxy import FaultProxy
from tests.mounts import Bucket, Mount, Mounter
from tests.servers import Server
from tests.stores import client_for

FILES = 5000
FIRST_SECOND = 1_600_000_000
QUIET = 0.6  # Seconds without a request after which all background work is done.
SLACK = 6.5  # Seconds after which nobody takes another's change for our own write.


def headers_of(number: int) -> dict[str, str]:
    """The headers of file *number* as s3fs would have written them."""
    return {
        "x-amz-meta-mode": str(stat.S_IFREG | 0o640),
        "x-amz-meta-uid": "12",
        "x-amz-meta-gid": "34",
        "x-amz-meta-mtime": f"{FIRST_SECOND + number}.000000007",
    }


def fill(bucket: Bucket, prefix: str, count: int) -> None:
    """Put *count* files with attributes under *prefix*."""

    async def run() -> None:
        client = client_for(bucket)
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                key = f"{prefix}{number:05}"
                await client.put(key, [b"x" * (number % 9)], headers=headers_of(number))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(work)
        await client.aclose()

    trio.run(run)


def look(directory: Path) -> dict[str, os.stat_result]:
    """What ``ls -l`` shows."""
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}


def is_as_filled(name: str, status: os.stat_result) -> bool:
    """Whether a file shows what `fill` has put."""
    number = int(name)
    return (
        status.st_mode == stat.S_IFREG | 0o640
        and (status.st_uid, status.st_gid) == (12, 34)
        and status.st_mtime_ns == (FIRST_SECOND + number) * 1_000_000_000 + 7
        and status.st_size == number % 9
    )


class Remounted:
    """One bucket behind a proxy, mounted again and again at one place with one state."""

    def __init__(self, bucket: Bucket, proxy: FaultProxy, mounter: Mounter, state: Path) -> None:
        self._state = ("--state-dir", str(state))
        self.bucket = bucket
        self._proxy = proxy
        self._mounter = mounter
        self._mount: Mount | None = None

    def fresh(self, *options: str) -> Path:
        """End the daemon if there is one, start another, and count from here."""
        if self._mount is not None:
            self._mount.umount()
        self._mount = self._mounter(
            self.bucket, *self._state, *options, url=self._proxy.url, name="same"
        )
        self.requests()
        return self._mount.path

    def requests(self) -> Counter[str]:
        """The requests since the last call, when all is quiet; of GET and HEAD those of files."""
        before = -1
        while len(self._proxy.log) != before:
            before = len(self._proxy.log)
            time.sleep(QUIET)
        counts = Counter(
            exchange.operation
            for exchange in self._proxy.log
            if exchange.operation == "ListObjects" or exchange.request.path[-1:].isdigit()
        )
        self._proxy.forget()
        return counts


@pytest.fixture
def remounted(bucket: Bucket, proxy: FaultProxy, mount: Mounter, tmp_path: Path) -> Remounted:
    return Remounted(bucket, proxy, mount, tmp_path / "state")


@pytest.fixture
def minio_remounted(
    minio: Server, make_bucket, mount: Mounter, tmp_path: Path
) -> Iterator[Remounted]:
    with FaultProxy(minio.url) as proxy:
        yield Remounted(make_bucket(minio), proxy, mount, tmp_path / "state")


def chmod_elsewhere(s3, bucket: Bucket, key: str, mode: int) -> None:
    """Change a mode as another host does: by a copy, which keeps the ETag."""
    before = s3.head_object(Bucket=bucket.name, Key=key)
    s3.copy_object(
        Bucket=bucket.name,
        Key=key,
        CopySource={"Bucket": bucket.name, "Key": key},
        Metadata={**before["Metadata"], "mode": str(stat.S_IFREG | mode)},
        MetadataDirective="REPLACE",
    )
    after = s3.head_object(Bucket=bucket.name, Key=key)
    assert after["ETag"] == before["ETag"]
    assert after["LastModified"] > before["LastModified"]


def test_5000_objects_cost_only_listings_after_a_remount(remounted: Remounted, s3):
    fill(remounted.bucket, "d/", FILES)
    directory = remounted.fresh() / "d"
    found = look(directory)
    assert len(found) == FILES
    assert all(is_as_filled(*item) for item in found.items())
    first = remounted.requests()
    assert first["HeadObject"] + first["GetObject"] >= FILES

    directory = remounted.fresh() / "d"
    found = look(directory)
    assert len(found) == FILES
    assert all(is_as_filled(*item) for item in found.items())
    assert set(remounted.requests()) == {"ListObjects"}

    chmod_elsewhere(s3, remounted.bucket, "d/00007", 0o600)
    s3.put_object(Bucket=remounted.bucket.name, Key="d/00008", Body=b"another")
    s3.delete_object(Bucket=remounted.bucket.name, Key="d/00009")
    directory = remounted.fresh() / "d"
    found = look(directory)
    assert stat.S_IMODE(found.pop("00007").st_mode) == 0o600
    assert found.pop("00008").st_size == 7
    assert "00009" not in found
    assert len(found) == FILES - 3
    assert all(is_as_filled(*item) for item in found.items())
    requests = remounted.requests()
    assert requests["HeadObject"] + requests["GetObject"] == 2


def test_what_we_wrote_ourselves_is_known(remounted: Remounted, s3):
    directory = remounted.fresh()
    for number in range(20):
        path = directory / f"{number}"
        path.write_bytes(b"x" * number)
        path.chmod(0o604)
        os.utime(path, ns=(1, FIRST_SECOND * 1_000_000_000 + number))
    (directory / "link").symlink_to("0")
    directory = remounted.fresh()
    found = look(directory)
    assert (directory / "link").readlink() == Path("0")
    assert stat.S_ISLNK(found.pop("link").st_mode)
    for name, status in found.items():
        assert status.st_mode == stat.S_IFREG | 0o604
        assert status.st_mtime_ns == FIRST_SECOND * 1_000_000_000 + int(name)
    assert remounted.requests()["HeadObject"] == 0

    time.sleep(SLACK)
    chmod_elsewhere(s3, remounted.bucket, "3", 0o644)
    found = look(remounted.fresh())
    assert stat.S_IMODE(found["3"].st_mode) == 0o644
    assert stat.S_IMODE(found["4"].st_mode) == 0o604


def test_another_hosts_chmod_of_our_own_file_is_noticed(remounted: Remounted, s3):
    """Our write does not know its Last-Modified, and a copy changes nothing else."""
    directory = remounted.fresh("--metadata-ttl", "1s")
    (directory / "file").write_bytes(b"ours")
    (directory / "file").chmod(0o604)
    time.sleep(SLACK)
    chmod_elsewhere(s3, remounted.bucket, "file", 0o640)
    time.sleep(1.1)
    assert stat.S_IMODE(look(directory)["file"].st_mode) == 0o640
    assert stat.S_IMODE(look(remounted.fresh())["file"].st_mode) == 0o640


def test_a_store_that_forgets_directories_has_us_to_remember(remounted: Remounted):
    """SeaweedFS keeps no metadata of markers."""
    top = remounted.fresh()
    (top / "a" / "b").mkdir(parents=True)
    (top / "gone").mkdir()
    (top / "a").chmod(0o710)
    (top / "a" / "b").chmod(0o750)
    os.utime(top / "a" / "b", ns=(5, 5))
    top = remounted.fresh()
    assert stat.S_IMODE(look(top)["a"].st_mode) == 0o710
    assert stat.S_IMODE((top / "a" / "b").stat().st_mode) == 0o750
    assert (top / "a" / "b").stat().st_mtime_ns == 5
    (top / "a").rename(top / "c")
    (top / "gone").rmdir()
    (top / "gone").mkdir(0o700)
    top = remounted.fresh()
    assert stat.S_IMODE(look(top)["c"].st_mode) == 0o710
    assert stat.S_IMODE((top / "c" / "b").stat().st_mode) == 0o750
    assert stat.S_IMODE((top / "gone").stat().st_mode) == 0o700


def test_a_damaged_index_costs_requests_and_nothing_else(
    remounted: Remounted, mount: Mounter, tmp_path: Path
):
    fill(remounted.bucket, "d/", 100)
    assert len(look(remounted.fresh() / "d")) == 100
    remounted.fresh()
    mount.expect_log("attribute index is made anew")
    for path in tmp_path.rglob("*.sqlite3*"):
        path.write_bytes(b"\xff" * 50_000)
    found = look(remounted.fresh() / "d")
    assert len(found) == 100
    assert all(is_as_filled(*item) for item in found.items())


def test_without_attributes_there_is_no_index(remounted: Remounted, tmp_path: Path):
    fill(remounted.bucket, "d/", 10)
    assert len(look(remounted.fresh("--attributes", "off") / "d")) == 10
    assert not list(tmp_path.rglob("*.sqlite3"))


def test_a_listing_that_tells_metadata_saves_the_heads(minio_remounted: Remounted):
    remounted = minio_remounted
    fill(remounted.bucket, "d/", 2000)
    found = look(remounted.fresh() / "d")
    assert len(found) == 2000
    assert all(is_as_filled(*item) for item in found.items())
    requests = remounted.requests()
    assert requests["HeadObject"] + requests["GetObject"] <= 64
    assert 2 <= requests["ListObjects"] <= 8


def test_the_next_directory_of_a_tree_is_listed_with_metadata_at_once(minio_remounted: Remounted):
    remounted = minio_remounted
    fill(remounted.bucket, "tree/one/", 60)
    fill(remounted.bucket, "tree/two/", 60)
    tree = remounted.fresh() / "tree"
    assert len(look(tree / "one")) == 60
    remounted.requests()
    found = look(tree / "two")
    assert len(found) == 60
    assert all(is_as_filled(*item) for item in found.items())
    requests = remounted.requests()
    assert requests["HeadObject"] + requests["GetObject"] == 0
    assert requests["ListObjects"] <= 2
