"""A store that refuses: who hears of it, how often it is asked, and what is good again afterwards.

The numbers are those of the table in docs/reliability.md.
"""

import errno
import os
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from s3mount.demo.weed import Credentials
from tests.faultproxy import FaultProxy
from tests.faults import ACCESS_DENIED, EXPIRED_TOKEN, SKEWED_CLOCK, Answer
from tests.mount.conftest import Shared
from tests.mount.faulty import errno_of
from tests.mount.trees import names
from tests.mounts import Bucket, Mounter
from tests.servers import Server

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    options = ("--timeout", "10s", "--metadata-ttl", "1s", "--negative-ttl", "0s")
    with sharing(*options, proxied=True) as shared:
        shared.mounter.expect_log(
            r"injected by the fault proxy|status 403|could not be saved|kept|recover|clock"
            r"|RequestTimeTooSkewed",
            optional=True,
        )
        yield shared


# -- credentials -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        EXPIRED_TOKEN,
        Answer(403, "InvalidAccessKeyId"),
        Answer(403, "SignatureDoesNotMatch"),
        Answer(400, "InvalidToken"),
    ],
    ids=lambda refusal: refusal.code,
)
def test_check_21_credentials_that_are_refused_are_no_storm(
    shared: Shared, proxy: FaultProxy, work: Path, refusal: Answer
):
    shared.put(work / "file", b"content")
    assert (work / "file").stat().st_size == 7
    descriptor = os.open(work / "new", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"new")
    proxy.forget()
    proxy.inject(refusal)
    assert errno_of((work / "file").read_bytes) == errno.EACCES
    assert errno_of(lambda: os.fsync(descriptor)) == errno.EACCES
    assert errno_of((work / "unknown").stat) == errno.EACCES
    assert len(proxy.log) <= 15
    proxy.clear()
    # As soon as they are good again: without a remount, and what was written is still there.
    assert (work / "file").read_bytes() == b"content"
    assert errno_of(lambda: os.fsync(descriptor)) == 0
    assert shared.get(work / "new") == b"new"
    os.close(descriptor)


def write_credentials(path: Path, credentials: Credentials) -> None:
    """What ``aws configure`` leaves."""
    path.write_text(
        f"[default]\naws_access_key_id = {credentials.access_key}\n"
        f"aws_secret_access_key = {credentials.secret_key}\n"
    )
    path.chmod(0o600)


def test_check_21_credentials_that_change_in_their_file_are_taken_up(
    mount: Mounter, bucket: Bucket, server: Server, tmp_path: Path
):
    mount.expect_log(r"injected by|AccessKey|access key|credentials", optional=True)
    server.client().put_object(Bucket=bucket.name, Key="file", Body=b"content")
    path = tmp_path / "credentials"
    write_credentials(path, bucket.credentials)
    environment = {
        "AWS_SHARED_CREDENTIALS_FILE": str(path),
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
    }
    with FaultProxy(server.url) as proxy:
        root = mount(bucket, "--timeout", "10s", url=proxy.url, env=environment).path
        assert (root / "file").stat().st_size == 7
        write_credentials(path, Credentials.random())
        # The old ones have expired, and those that are there instead are of no use.
        expired = proxy.inject(EXPIRED_TOKEN, count=2)
        assert errno_of((root / "file").read_bytes) == errno.EACCES
        assert expired.hits >= 1
        write_credentials(path, bucket.credentials)
        assert (root / "file").read_bytes() == b"content"


# -- the clock ---------------------------------------------------------------------------------


def test_check_22_a_wrong_clock_is_corrected_once(shared: Shared, proxy: FaultProxy, work: Path):
    shared.put(work / "file", b"content")
    assert (work / "file").stat().st_size == 7
    later = {"Date": formatdate(time.time() + 3600, usegmt=True)}
    proxy.inject(Answer(403, "RequestTimeTooSkewed", later), operation="GetObject", count=1)
    proxy.inject(Answer(403, "RequestTimeTooSkewed", later), operation="PutObject", count=1)
    # The store itself finds us an hour ahead then, which is corrected in the same way.
    assert errno_of((work / "file").read_bytes) in (0, errno.EACCES)
    assert (work / "file").read_bytes() == b"content"
    assert errno_of(lambda: (work / "new").write_bytes(b"new")) in (0, errno.EACCES)
    (work / "new").write_bytes(b"new")
    assert shared.get(work / "new") == b"new"
    assert "off the clock of the store" in shared.mounts[0].log


def test_check_22_a_clock_that_cannot_be_corrected_is_told(
    shared: Shared, proxy: FaultProxy, work: Path
):
    shared.put(work / "file", b"content")
    assert (work / "file").stat().st_size == 7
    proxy.forget()
    proxy.inject(SKEWED_CLOCK)
    assert errno_of((work / "file").read_bytes) == errno.EACCES
    assert len(proxy.log) <= 8
    assert "takes the clock of this machine for wrong" in shared.mounts[0].log
    proxy.clear()
    assert (work / "file").read_bytes() == b"content"


# -- permissions -------------------------------------------------------------------------------


def test_check_26_one_key_that_is_forbidden(shared: Shared, proxy: FaultProxy, work: Path):
    for name in ("secret", "open"):
        shared.put(work / name, b"content")
    for operation in ("HeadObject", "GetObject"):
        proxy.inject(ACCESS_DENIED, operation=operation, path="secret")
    time.sleep(1.1)  # The time to live of this mount.
    assert names(work) == ["open", "secret"]
    assert errno_of((work / "secret").read_bytes) == errno.EACCES
    assert (work / "open").read_bytes() == b"content"
    proxy.clear()
    time.sleep(1.1)  # The time to live of this mount.
    assert (work / "secret").read_bytes() == b"content"


@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_check_27_a_write_that_is_forbidden_leaves_the_old_object(
    shared: Shared, proxy: FaultProxy, work: Path, size: int
):
    (work / "file").write_bytes(b"old")
    etag = shared.head(work / "file")["ETag"]
    for method in ("PUT", "POST"):
        proxy.inject(ACCESS_DENIED, method=method)
    assert errno_of(lambda: (work / "file").write_bytes(b"x" * size)) == errno.EACCES
    assert errno_of(lambda: (work / "zombie").write_bytes(b"x" * size)) == errno.EACCES
    proxy.clear()
    assert shared.head(work / "file")["ETag"] == etag
    time.sleep(1.1)
    assert names(work) == ["file"]
    assert (work / "file").read_bytes() == b"old"


def test_check_27_a_write_that_is_forbidden_half_way(shared: Shared, proxy: FaultProxy, work: Path):
    (work / "file").write_bytes(b"old")
    refused = proxy.inject(ACCESS_DENIED, operation="UploadPart", skip=1)
    assert errno_of(lambda: (work / "file").write_bytes(b"x" * 40 * MIB)) == errno.EACCES
    assert refused.hits > 0
    proxy.clear()
    assert shared.get(work / "file") == b"old"
    uploads = shared.s3.list_multipart_uploads(Bucket=shared.bucket.name).get("Uploads", ())
    assert shared.key(work / "file") not in [one["Key"] for one in uploads]
