"""Commands for people who work in a mount: warmup, and links to files."""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from s3mount.cli.status import gather
from tests.mounts import Bucket, Mount, Mounter
from tests.terminal import watched

MIB = 1 << 20


def requests(mounted: Mount) -> dict[str, int]:
    (found,) = gather([mounted.path])
    return found["requests"]["requests"]


@pytest.fixture
def tree(bucket: Bucket, s3) -> dict[str, bytes]:
    """What is in the bucket, from elsewhere."""
    objects = {"d/large": os.urandom(5 * MIB), "d/e/small": b"small", "top": b"t" * 70_000}
    for key, body in objects.items():
        s3.put_object(Bucket=bucket.name, Key=key, Body=body)
    return objects


def test_what_is_warm_is_read_without_the_store(mount: Mounter, bucket: Bucket, tree, tmp_path):
    # The disk cache, in a directory of its own, so that a second daemon starts cold but for it.
    cache = ("--cache", str(tmp_path / "cache"))
    mounted = mount(bucket, *cache)
    done = mount.run("warmup", str(mounted.path / "d"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("2 files, 5.0 MiB in ")
    mounted.umount()
    again = mount(bucket, *cache)
    before = requests(again).get("GetObject", 0)
    assert (again.path / "d" / "large").read_bytes() == tree["d/large"]
    assert requests(again).get("GetObject", 0) == before
    assert (again.path / "top").read_bytes() == tree["top"]
    assert requests(again)["GetObject"] > before  # it was not asked for


def test_warm_metadata_cost_no_request_again(mount: Mounter, bucket: Bucket, tree):
    mounted = mount(bucket, "--metadata-ttl", "1h", "--negative-ttl", "1h")
    done = mount.run("warmup", "--metadata-only", str(mounted.path))
    assert (done.returncode, done.stdout[:24]) == (0, "3 files, 0 bytes in 0 s\n"[:24])
    before = requests(mounted)
    sizes = {str(path.relative_to(mounted.path)): path.stat().st_size
             for path in mounted.path.rglob("*") if path.is_file()}  # fmt: skip
    assert sizes == {key: len(body) for key, body in tree.items()}
    assert requests(mounted) == before


def test_who_watches_the_warming_sees_how_far_it_is(mount: Mounter, bucket: Bucket, tree):
    mounted = mount(bucket)
    code, shown = watched(["warmup", str(mounted.path)], mounted.environment)
    assert code == 0
    assert re.search(r"\[#+-*\] +\d+%  \d.* of 5\.1 MiB, .*B/s, \d+ s left", shown)
    assert re.search(r"\r\x1b\[K3 files, 5\.1 MiB in \d+ s\r\n$", shown)


def test_what_cannot_be_warmed_is_told(mount: Mounter, bucket: Bucket, tree, tmp_path: Path):
    mounted = mount(bucket)
    (mounted.path / "d" / "link").symlink_to("nowhere")
    done = mount.run("warmup", str(mounted.path / "missing"), str(mounted.path / "d"), "-j", "2")
    assert done.returncode == 32
    assert f"s3mount: {mounted.path}/missing: No such file or directory\n" in done.stdout
    assert "2 files, 5.0 MiB in " in done.stdout
    done = mount.run("warmup", str(tmp_path))
    assert (done.returncode, done.stdout) == (
        32, f"s3mount: {tmp_path} is not in a mount of s3mount\n",
    )  # fmt: skip
    assert mount.run("warmup").returncode == 1
    assert mount.run("warmup", "-j", "0", str(mounted.path)).returncode == 1


def test_a_link_is_for_anybody_and_ends(mount: Mounter, bucket: Bucket, tree, tmp_path: Path):
    mounted = mount(bucket)
    done = mount.run("url", str(mounted.path / "d" / "e" / "small"), "--expires", "1h")
    assert done.returncode == 0, done.stdout
    with urllib.request.urlopen(done.stdout.strip()) as answer:
        assert answer.read() == tree["d/e/small"]
    assert "X-Amz-Expires=3600" in done.stdout
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(done.stdout.strip().replace("small", "other"))
    assert "for a directory" in mount.run("url", str(mounted.path / "d")).stdout
    (tmp_path / "elsewhere").touch()
    told = mount.run("url", str(tmp_path / "elsewhere"))
    assert (told.returncode, told.stdout) == (
        32, f"s3mount: {tmp_path}/elsewhere is not in a mount of s3mount\n",
    )  # fmt: skip
    assert mount.run("url", str(mounted.path / "top"), "--expires", "8d").returncode == 1
    assert mount.run("url", str(mounted.path / "top"), "--expires", "soon").returncode == 1
