"""Objects that are much larger than what is changed of them, and those too large for one copy."""

import hashlib
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests import mounts
from tests.mount.conftest import Shared
from tests.mount.small_copies import LARGEST
from tests.mount.test_requests import counted

MIB = 1 << 20
GIB = 1 << 30
PIECE = 64 * MIB
MOMENT_NS = 1_234_567_890_123_456_789


def put_large(shared: Shared, path: Path, piece: bytes, count: int, **how) -> None:
    """Make an object of *count* times *piece*, on the server: nothing else crosses the wire."""
    source = f"{shared.key(path)}.piece"
    where = {"Bucket": shared.bucket.name, "Key": shared.key(path)}
    shared.s3.put_object(Bucket=shared.bucket.name, Key=source, Body=piece)
    upload = shared.s3.create_multipart_upload(**where, **how)["UploadId"]
    parts = []
    for number in range(1, count + 1):
        done = shared.s3.upload_part_copy(
            **where,
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": shared.bucket.name, "Key": source},
        )
        parts.append({"PartNumber": number, "ETag": done["CopyPartResult"]["ETag"]})
    shared.s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    shared.s3.delete_object(Bucket=shared.bucket.name, Key=source)


def digest_in_store(shared: Shared, path: Path) -> str:
    """The SHA-256 of the object that the mount shows as *path*."""
    digest = hashlib.sha256()
    found = shared.s3.get_object(Bucket=shared.bucket.name, Key=shared.key(path))
    for piece in found["Body"].iter_chunks(MIB):
        digest.update(piece)
    return digest.hexdigest()


def digest_of(piece: bytes, count: int, *rest: bytes) -> str:
    """The SHA-256 of *count* times *piece*, and of the *rest*."""
    digest = hashlib.sha256()
    for part in (*(piece,) * count, *rest):
        digest.update(part)
    return digest.hexdigest()


# -- a little of a lot -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing(proxied=True) as shared:
        yield shared


def test_appending_1_kb_to_1_gib_moves_little(shared: Shared, work: Path):
    piece = Random(1).randbytes(PIECE)
    put_large(shared, work / "file", piece, GIB // PIECE)
    os.setxattr(work, "user.s3mount.refresh", b"")
    with counted(shared) as requests, (work / "file").open("ab") as file:
        assert file.tell() == GIB
        file.write(b"!" * 1024)
    assert requests.sent + requests.received < 16 * MIB
    assert requests.operations["UploadPartCopy"] >= 1
    assert (work / "file").stat().st_size == GIB + 1024
    assert digest_in_store(shared, work / "file") == digest_of(piece, GIB // PIECE, b"!" * 1024)


# -- too large for one copy --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_copies(sharing) -> Iterator[Shared]:
    """A mount for which objects of more than 16 MiB are what those of 5 GiB are for others."""
    command = (sys.executable, "-m", "tests.mount.small_copies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "COMMAND", command)
        with sharing("--metadata-ttl", "1s", proxied=True, server="moto") as shared:
            yield shared


PART = Random(2).randbytes(LARGEST // 2)
HEADERS = {
    "ContentType": "text/x-special",
    "CacheControl": "max-age=7",
    "ContentDisposition": "attachment",
    "Metadata": {"color": "green", "mode": str(stat.S_IFREG | 0o604)},
}


@pytest.fixture
def large(small_copies: Shared) -> Path:
    """A directory with a file that is too large to be copied at once, and a small one."""
    path = small_copies.root / f"large-{os.urandom(4).hex()}"
    put_large(small_copies, path / "file", PART, 3, **HEADERS)
    small_copies.put(path / "small", b"small")
    os.setxattr(small_copies.root, "user.s3mount.refresh", b"")
    return path


def is_whole(shared: Shared, path: Path, operations: Counter[str]) -> None:
    """Check that a copy was made in parts, of all bytes and all headers."""
    assert operations["UploadPartCopy"] >= 1
    assert operations["CompleteMultipartUpload"] == 1
    assert digest_in_store(shared, path) == digest_of(PART, 3)
    found = shared.head(path)
    assert found["Metadata"]["color"] == "green"
    for name in ("ContentType", "CacheControl", "ContentDisposition"):
        assert found[name] == HEADERS[name]


def test_attributes_of_what_is_too_large_to_copy(small_copies: Shared, large: Path):
    with counted(small_copies) as requests:
        (large / "file").chmod(0o640)
        os.utime(large / "file", ns=(1, MOMENT_NS))
    assert requests.operations["CopyObject"] == 0
    assert requests.sent + requests.received < MIB
    is_whole(small_copies, large / "file", requests.operations)
    metadata = small_copies.head(large / "file")["Metadata"]
    assert metadata["mode"] == str(stat.S_IFREG | 0o640)
    assert metadata["mtime"] == "1234567890.123456789"


def test_renaming_what_is_too_large_to_copy(small_copies: Shared, large: Path):
    with counted(small_copies) as requests:
        (large / "file").rename(large / "renamed")
    assert requests.operations["CopyObject"] == 0
    is_whole(small_copies, large / "renamed", requests.operations)
    assert small_copies.all_keys(large) == [f"{large.name}/renamed", f"{large.name}/small"]
    assert stat.S_IMODE((large / "renamed").stat().st_mode) == 0o604


def test_renaming_a_directory_with_what_is_too_large_to_copy(small_copies: Shared, large: Path):
    moved = large.with_name(f"{large.name}-moved")
    with counted(small_copies) as requests:
        large.rename(moved)
    assert requests.operations["CopyObject"] == 1  # The small one.
    is_whole(small_copies, moved / "file", requests.operations)
    assert small_copies.all_keys(moved) == [f"{moved.name}/file", f"{moved.name}/small"]
    assert small_copies.all_keys(large) == []
    assert stat.S_IMODE((moved / "file").stat().st_mode) == 0o604
