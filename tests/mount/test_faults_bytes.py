"""Bodies that break, end early or are changed on their way: right bytes, or an error in time.

The numbers are those of the table in docs/reliability.md.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import LOST_ANSWER, Answer, Cut, Flip, Point, Reset
from tests.mount.conftest import Shared
from tests.mount.faulty import noise
from tests.mounts import Bucket, Mounter
from tests.servers import Server

MIB = 1 << 20
TIMEOUT = 4  # Seconds that the mount tries a failing store.
SOON = TIMEOUT + 10.0  # An error has to come within the limit, on a slow machine too.
ERROR_IN_OK = Answer(200, "InternalError")


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    options = ("--timeout", f"{TIMEOUT}s", "--metadata-ttl", "1s", "--negative-ttl", "0s")
    with sharing(*options, proxied=True) as shared:
        # Each of them is looked for by the test that causes it.
        shared.mounter.expect_log(
            r"does not match|damaged on its way|GetObject|kept in|could not be saved"
            r"|CompleteMultipartUpload|PutObject|UploadPart",
            optional=True,
        )
        yield shared


def stored(shared: Shared, path: Path, body: bytes) -> None:
    """Put an object with a checksum, and have the mount see it."""
    shared.put(path, body, ChecksumAlgorithm="CRC64NVME")
    assert path.stat().st_size == len(body)


def stored_in_parts(shared: Shared, path: Path, body: bytes) -> None:
    """Put an object by way of another mount would: in parts, with a checksum of the whole."""
    key, s3 = shared.key(path), shared.s3
    made = s3.create_multipart_upload(
        Bucket=shared.bucket.name,
        Key=key,
        ChecksumAlgorithm="CRC64NVME",
        ChecksumType="FULL_OBJECT",
    )
    parts = []
    for number, start in enumerate(range(0, len(body), 5 * MIB), 1):
        where = {"Bucket": shared.bucket.name, "Key": key, "UploadId": made["UploadId"]}
        done = s3.upload_part(
            **where,
            PartNumber=number,
            Body=body[start : start + 5 * MIB],
            ChecksumAlgorithm="CRC64NVME",
        )
        part = {"ETag": done["ETag"], "PartNumber": number}
        parts.append(part | {"ChecksumCRC64NVME": done["ChecksumCRC64NVME"]})
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert path.stat().st_size == len(body)


def same(found: bytes, expected: bytes) -> None:
    """Compare, without a report that shows megabytes."""
    if found != expected:
        at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), -1)
        pytest.fail(f"{len(found)} bytes for {len(expected)}, the first wrong one at {at}")


@contextmanager
def suppress_eio() -> Iterator[None]:
    """Let an EIO pass, and nothing else."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def fails(path: Path) -> None:
    """Check that a file cannot be read, and that its reader is told soon."""
    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    assert time.monotonic() - began < SOON


# -- bodies that break -------------------------------------------------------------------------


def test_check_14_a_read_broken_twice_goes_on_where_it_was(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body = noise(9 * MIB)
    stored(shared, work / "file", body)
    proxy.forget()
    broken = proxy.inject(Reset(Point.BODY, 300_000), operation="GetObject", count=2)
    same((work / "file").read_bytes(), body)
    assert broken.hits == 2
    gets = [one.request for one in proxy.log if one.operation == "GetObject"]
    assert len({request.headers.get("if-match") for request in gets}) == 1
    assert None not in {request.headers.get("if-match") for request in gets}
    # Only what is missing is asked for again.
    assert sum(one.sent for one in proxy.log if one.operation == "GetObject") < 1.2 * len(body)


@pytest.mark.parametrize(("size", "honest"), [(100_000, False), (100_000, True), (3 * MIB, True)])
def test_check_15_a_body_that_is_always_cut_is_never_a_short_file(
    shared: Shared, proxy: FaultProxy, work: Path, size: int, honest: bool
):
    body = noise(size)
    stored(shared, work / "file", body)
    proxy.inject(Cut(5_000, honest=honest), operation="GetObject")
    began = time.monotonic()
    # Each attempt brings 5 kB more, so it may come to a good end.
    with suppress_eio():
        same((work / "file").read_bytes(), body)
    assert time.monotonic() - began < SOON + 30
    proxy.clear()
    same((work / "file").read_bytes(), body)


# -- bytes that are changed --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 100_000, 700_000])
def test_check_16_a_flipped_byte_of_a_small_file_is_fetched_again(
    shared: Shared, proxy: FaultProxy, work: Path, size: int
):
    body = noise(size)
    stored(shared, work / "file", body)
    flip = proxy.inject(Flip(size // 2), operation="GetObject", count=1)
    same((work / "file").read_bytes(), body)
    assert flip.hits == 1
    assert f"{work.name}/file does not match its checksum" in shared.mounts[0].log


def test_check_16_a_small_file_that_stays_wrong_is_an_error(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body = noise(50_000)
    stored(shared, work / "file", body)
    proxy.inject(Flip(20_000), operation="GetObject")
    fails(work / "file")
    proxy.clear()
    same((work / "file").read_bytes(), body)


@pytest.mark.parametrize("blocks", [2, 3, 20])
@pytest.mark.parametrize("where", ["first", "inside", "last"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_check_16_a_flipped_byte_of_a_large_file_is_found(
    shared: Shared, proxy: FaultProxy, work: Path, blocks: int, where: str, in_parts: bool
):
    size = blocks * MIB - 12_345
    body = noise(size)
    (stored_in_parts if in_parts else stored)(shared, work / "file", body)
    if where == "first":
        proxy.inject(Flip(10_000), operation="GetObject", count=1)
    else:
        # Some GET that begins behind the first block, whatever is read ahead.
        skip = 1 if where == "inside" else min(4, blocks - 1)
        proxy.inject(Flip(10_000), operation="GetObject", skip=skip, count=1)
    fails(work / "file")
    assert f"{work.name}/file does not match the checksum" in shared.mounts[0].log
    # The right bytes, of the same object, without a remount.
    same((work / "file").read_bytes(), body)


def test_check_16_who_has_read_wrong_bytes_gets_no_more_of_them(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body = noise(6 * MIB)
    stored(shared, work / "file", body)
    proxy.inject(Flip(10_000), operation="GetObject", count=1)
    with (work / "file").open("rb", buffering=0) as reader:
        with pytest.raises(OSError, match="Input/output"):
            reader.readall()
        end = time.monotonic() + SOON
        with suppress_eio():  # Also what the kernel has in its pages is gone in a moment.
            while os.pread(reader.fileno(), 1000, 10_000):
                assert time.monotonic() < end
        same((work / "file").read_bytes(), body)  # Somebody else may have it, meanwhile.


def test_check_16_wrong_bytes_do_not_stay_in_the_cache_on_disk(
    mount: Mounter, bucket: Bucket, server: Server, tmp_path: Path
):
    body = noise(5 * MIB)
    server.client().put_object(
        Bucket=bucket.name, Key="file", Body=body, ChecksumAlgorithm="CRC64NVME"
    )
    mount.expect_log(r"file does not match|damaged on its way")
    options = ("--cache", str(tmp_path / "cache"), "--min-free-space", "0")
    with FaultProxy(server.url) as proxy:
        mounted = mount(bucket, *options, url=proxy.url)
        proxy.inject(Flip(10_000), operation="GetObject", skip=1, count=1)
        fails(mounted.path / "file")
        mounted.umount()
        again = mount(bucket, *options, url=proxy.url, name="again")
        same((again.path / "file").read_bytes(), body)
        again.umount()


# -- answers that are lost, or lie -------------------------------------------------------------


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload", "UploadPart"])
def test_check_19_a_write_whose_answer_is_lost_is_done_once(
    shared: Shared, proxy: FaultProxy, work: Path, operation: str
):
    body = noise(20 * MIB if operation != "PutObject" else 100_000)
    lost = proxy.inject(LOST_ANSWER, operation=operation, count=1)
    (work / "file").write_bytes(body)
    assert lost.hits == 1
    same(shared.get(work / "file"), body)
    assert [key for key in shared.all_keys(work) if not key.endswith("/")] == [
        shared.key(work / "file")
    ]
    uploads = shared.s3.list_multipart_uploads(Bucket=shared.bucket.name)
    assert not [
        one for one in uploads.get("Uploads", ()) if one["Key"] == shared.key(work / "file")
    ]


def test_check_20_an_error_in_the_body_of_a_good_completion_is_tried_again(
    shared: Shared, proxy: FaultProxy, work: Path
):
    body = noise(20 * MIB)
    refusal = proxy.inject(ERROR_IN_OK, operation="CompleteMultipartUpload", count=2)
    (work / "file").write_bytes(body)
    assert refusal.hits == 2
    same(shared.get(work / "file"), body)


def test_check_20_a_completion_that_always_fails_is_an_error_in_time(
    shared: Shared, proxy: FaultProxy, work: Path
):
    proxy.inject(ERROR_IN_OK, operation="CompleteMultipartUpload")
    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output"):
        (work / "file").write_bytes(noise(20 * MIB))
    assert time.monotonic() - began < SOON + 5
    assert "CompleteMultipartUpload" in shared.mounts[0].log
    proxy.clear()
    # What could not be saved is not lost: it is tried again, by whoever comes first.
    with (work / "file").open("rb+") as file:
        os.fsync(file.fileno())
    same(shared.get(work / "file"), noise(20 * MIB))
