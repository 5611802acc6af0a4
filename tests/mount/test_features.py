"""Features of the store as options and as extended attributes: each is seen at the server.

The moto server keeps all that AWS does of classes, encryption, tags, ACLs and archives; RustFS
holds objects and knows customer keys.  Few mounts are shared by many tests.
"""

import base64
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import boto3
import pytest
import trio
from botocore.config import Config

from s3mount.demo.weed import REGION, Credentials
from s3mount.errors import Denied, Held
from s3mount.s3.features import FeatureChoices, Features
from tests.conftest import unavailable
from tests.faultproxy import FaultProxy
from tests.faults import Answer
from tests.mount.conftest import Shared
from tests.mount.trees import names
from tests.mounts import Bucket, Mounter, MountFailed, why_no_mounts
from tests.oldstore import OldStore, Request, Weakness
from tests.servers import RustFSServer, Server, find_rustfs
from tests.stores import client_for
from tests.test_s3_tls import make_certificate

KIB, MIB = 1 << 10, 1 << 20
OWNER = "123456789012"
SAVED = 10.0  # Seconds within which a change of attributes is in the store.
ARCHIVED = "is archived|InvalidObjectState|not in the active tier|storage class"


def error_of(operation, *arguments, **how) -> str:
    """The name of the error that an operation ends with."""
    try:
        operation(*arguments, **how)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "none"


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.s3.{name}").decode()


def set_attribute(path: Path, name: str, text: str) -> None:
    os.setxattr(path, f"user.s3.{name}", text.encode())


def wait_for(what, wanted) -> None:
    """Wait until *what* returns *wanted*, as attributes are written a moment later."""
    deadline = time.monotonic() + SAVED
    while (found := what()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == wanted


# -- options, on moto ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich(sharing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A mount with an option for everything that moto has."""
    headers = tmp_path_factory.mktemp("headers") / "headers"
    headers.write_text(
        "# what people download\n"
        "*.bin  Content-Disposition: attachment\n"
        "*.odd  Content-Type: text/x-odd\n"
        "sub/*  x-amz-meta-team: blue\n"
    )
    options = {
        "storage-class": "*.cold:GLACIER_IR;>2K:STANDARD_IA;ONEZONE_IA",
        "sse": "aws:kms",
        "sse-kms-key-id": "key-of-the-test",
        "bucket-key": "true",
        "acl": "public-read",
        "tags": "team=blue&cost=a%20b",
        "cache-control": "*.html:no-cache;max-age=60, public",
        "headers-file": str(headers),
        "expected-bucket-owner": OWNER,
        "part-size": "5M",
    }
    words = [word for name, text in options.items() for word in ("-o", f'"{name}={text}"')]
    with sharing(*words, "--requester-pays", server="moto", proxied=True) as shared:
        yield shared


@pytest.fixture
def work(rich: Shared) -> Path:
    path = rich.root / f"work-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def public(shared: Shared, path: Path) -> bool:
    acl = shared.s3.get_object_acl(Bucket=shared.bucket.name, Key=shared.key(path))
    return any("AllUsers" in grant["Grantee"].get("URI", "") for grant in acl["Grants"])


def tags_of(shared: Shared, path: Path) -> Mapping[str, str]:
    found = shared.s3.get_object_tagging(Bucket=shared.bucket.name, Key=shared.key(path))
    return {tag["Key"]: tag["Value"] for tag in found["TagSet"]}


def check_stored(shared: Shared, path: Path, storage_class: str) -> Mapping:
    head = shared.head(path)
    assert head["StorageClass"] == storage_class
    assert head["ServerSideEncryption"] == "aws:kms"
    assert head["SSEKMSKeyId"] == "key-of-the-test"
    if "-" not in head["ETag"]:  # moto forgets this one when an object is made of parts.
        assert head["BucketKeyEnabled"]
    assert tags_of(shared, path) == {"team": "blue", "cost": "a b"}
    assert public(shared, path)
    return head


def test_a_new_file_is_stored_as_the_options_say(rich: Shared, work: Path):
    small, large, cold = work / "small.html", work / "large.bin", work / "x.cold"
    small.write_bytes(b"<p>")
    large.write_bytes(bytes(3 * KIB))
    cold.write_bytes(b"brr")
    assert check_stored(rich, small, "ONEZONE_IA")["CacheControl"] == "no-cache"
    head = check_stored(rich, large, "STANDARD_IA")
    assert head["CacheControl"] == "max-age=60, public"
    assert head["ContentDisposition"] == "attachment"
    check_stored(rich, cold, "GLACIER_IR")
    (work / "a.odd").write_bytes(b"1")
    assert rich.head(work / "a.odd")["ContentType"] == "text/x-odd"


def test_a_file_that_comes_in_parts_is_stored_so_too(rich: Shared, work: Path):
    path = work / "parts.bin"
    data = os.urandom(11 * MIB)
    path.write_bytes(data)
    head = check_stored(rich, path, "STANDARD_IA")
    assert head["ETag"].strip('"').endswith("-3")
    assert head["ContentDisposition"] == "attachment"
    with path.open("r+b") as file:  # Clean parts are copied on the server.
        file.write(b"x")
    check_stored(rich, path, "STANDARD_IA")
    assert rich.get(path) == b"x" + data[1:]
    log = [exchange.request for exchange in rich.proxy.log]
    begun = [one.headers for one in log if one.operation == "CreateMultipartUpload"]
    name = "x-amz-server-side-encryption-bucket-key-enabled"
    assert {headers[name] for headers in begun} == {"true"}


def test_copies_carry_it_along(rich: Shared, work: Path):
    path, renamed = work / "large.bin", work / "renamed"
    path.write_bytes(bytes(3 * KIB))
    before = rich.head(path)["Metadata"]["mode"]
    path.chmod(0o600)
    wait_for(lambda: rich.head(path)["Metadata"]["mode"] != before, True)
    check_stored(rich, path, "STANDARD_IA")
    path.rename(renamed)
    assert check_stored(rich, renamed, "STANDARD_IA")["ContentDisposition"] == "attachment"
    folder = work / "folder"
    folder.mkdir()
    (folder / "inside.cold").write_bytes(b"1")
    folder.rename(work / "moved")
    check_stored(rich, work / "moved" / "inside.cold", "GLACIER_IR")


def test_every_request_says_who_pays_and_whose_the_bucket_is(rich: Shared, work: Path):
    (work / "a").write_bytes(b"1")
    names(work)
    (work / "a").rename(work / "b")
    (work / "b").unlink()
    asked = [exchange.request for exchange in rich.proxy.log]
    kinds = {request.operation for request in asked}
    assert {"PutObject", "HeadObject", "CopyObject", "ListObjects", "DeleteObject"} <= kinds
    for request in asked:
        assert request.headers.get("x-amz-request-payer") == "requester"
        assert request.headers.get("x-amz-expected-bucket-owner") == OWNER
        source = request.headers.get("x-amz-source-expected-bucket-owner")
        assert source == (OWNER if "Copy" in request.operation else None)


@pytest.mark.parametrize("method", ["AES256", "aws:kms:dsse"])
def test_what_is_written_is_encrypted_as_the_option_says(
    moto: Server, make_bucket: Callable[[Server], Bucket], mount: Mounter, method: str
):
    """Those of the mount above are of a key management; here moto is not asked for one."""
    bucket, s3 = make_bucket(moto), moto.client()

    def encryption(key: str) -> str | None:
        return s3.head_object(Bucket=bucket.name, Key=key).get("ServerSideEncryption")

    bare = mount(bucket, name="bare")
    (bare.path / "old").write_bytes(b"1")
    assert encryption("old") is None
    mounted = mount(bucket, "--sse", method)
    (mounted.path / "small").write_bytes(b"1")
    (mounted.path / "large").write_bytes(os.urandom(17 * MIB))
    assert encryption("small") == encryption("large") == method
    assert attribute(mounted.path / "small", "encryption") == method
    (mounted.path / "small").rename(mounted.path / "renamed")
    (mounted.path / "old").rename(mounted.path / "copied")
    assert encryption("renamed") == encryption("copied") == method


# -- what an object has by itself, without any option ------------------------------------------


@pytest.fixture(scope="module")
def plain(sharing) -> Iterator[Shared]:
    """A mount without any of the options; what is archived is reported in its log."""
    with sharing("--metadata-ttl", "minimal", "--negative-ttl", "0", server="moto") as shared:
        shared.mounter.expect_log(ARCHIVED, optional=True)
        yield shared


@pytest.fixture
def place(plain: Shared) -> Path:
    path = plain.root / f"place-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def put(shared: Shared, path: Path, body: bytes, **how) -> None:
    """Put an object as somebody else does, and wait until the mount looks again."""
    shared.put(path, body, **how)
    time.sleep(0.3)


HOW = {
    "StorageClass": "STANDARD_IA",
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": "somebody's",
    "Tagging": urlencode({"a": "b c"}),
    "CacheControl": "max-age=9",
}


def check_kept(shared: Shared, path: Path) -> None:
    head = shared.head(path)
    found = {name: head.get(name) for name in HOW if name != "Tagging"}
    assert found == {name: value for name, value in HOW.items() if name != "Tagging"}
    assert tags_of(shared, path) == {"a": "b c"}


def test_a_changed_file_stays_stored_as_it_was(plain: Shared, place: Path):
    path = place / "file"
    put(plain, path, b"old", **HOW)
    with path.open("ab") as file:
        file.write(b" and new")
    assert plain.get(path) == b"old and new"
    check_kept(plain, path)
    before = plain.head(path)["Metadata"]["mode"]
    path.chmod(0o640)
    wait_for(lambda: plain.head(path)["Metadata"]["mode"] != before, True)
    check_kept(plain, path)


def test_a_renamed_file_stays_stored_as_it_was(plain: Shared, place: Path):
    put(plain, place / "file", b"1", **HOW)
    (place / "file").rename(place / "other")
    check_kept(plain, place / "other")


def test_files_in_a_renamed_directory_keep_class_and_tags(plain: Shared, place: Path):
    (place / "dir").mkdir()
    put(plain, place / "dir" / "file", b"1", **HOW)
    (place / "dir").rename(place / "new")
    head = plain.head(place / "new" / "file")
    assert head["StorageClass"] == "STANDARD_IA"
    assert tags_of(plain, place / "new" / "file") == {"a": "b c"}


def test_attributes_tell_how_a_file_is_stored(plain: Shared, place: Path):
    path = place / "file"
    put(plain, path, b"1", **HOW)
    assert attribute(path, "storage-class") == "STANDARD_IA"
    assert attribute(path, "encryption") == "aws:kms"
    assert attribute(path, "kms-key") == "somebody's"
    assert parse_qsl(attribute(path, "tags")) == [("a", "b c")]
    assert attribute(path, "tag.a") == "b c"
    assert attribute(path, "cache-control") == "max-age=9"
    for name in ("tag.b", "restore", "retention", "legal-hold"):
        assert error_of(attribute, path, name) == "ENODATA"
    assert os.listxattr(path) == []


def test_attributes_change_how_a_file_is_stored(plain: Shared, place: Path):
    path = place / "file"
    path.write_bytes(b"1")
    set_attribute(path, "storage-class", "STANDARD_IA")
    assert plain.head(path)["StorageClass"] == "STANDARD_IA"
    set_attribute(path, "tags", "a=1&b=x%20y")
    set_attribute(path, "tag.c", "3")
    os.removexattr(path, "user.s3.tag.a")
    assert tags_of(plain, path) == {"b": "x y", "c": "3"}
    set_attribute(path, "acl", "public-read")
    assert public(plain, path)
    set_attribute(path, "cache-control", "no-store")
    assert plain.head(path)["CacheControl"] == "no-store"
    path.write_bytes(b"new bytes")
    head = plain.head(path)
    assert (head["StorageClass"], head["CacheControl"]) == ("STANDARD_IA", "no-store")
    assert tags_of(plain, path) == {"b": "x y", "c": "3"}
    set_attribute(path, "storage-class", "STANDARD")
    assert plain.head(path).get("StorageClass", "STANDARD") == "STANDARD"
    os.removexattr(path, "user.s3.tags")
    assert tags_of(plain, path) == {}
    assert plain.get(path) == b"new bytes"


def test_attributes_of_nonsense_are_refused(plain: Shared, place: Path):
    path = place / "file"
    path.write_bytes(b"1")
    for name, text in {
        "storage-class": "NONSENSE",
        "tags": "a",
        "acl": "everybody",
        "restore": "soon",
        "legal-hold": "maybe",
        "retention": "COMPLIANCE tomorrow",
    }.items():
        assert error_of(set_attribute, path, name, text) == "EINVAL", name
    assert error_of(set_attribute, path, "encryption", "AES256") == "EPERM"
    assert error_of(set_attribute, place, "storage-class", "STANDARD_IA") == "EPERM"
    path.chmod(0o640)  # What was refused is in nobody's way.
    wait_for(lambda: plain.head(path)["Metadata"]["mode"], str(0o100640))
    assert plain.head(path).get("StorageClass", "STANDARD") == "STANDARD"


# -- archives --------------------------------------------------------------------------------


def test_an_archived_file_says_try_again_and_why(plain: Shared, place: Path):
    path = place / "asleep"
    put(plain, path, b"zzz", StorageClass="GLACIER")
    assert names(place) == ["asleep"]
    assert path.stat().st_size == 3
    assert error_of(path.read_bytes) == "EAGAIN"
    assert error_of(path.rename, place / "elsewhere") == "EAGAIN"
    assert "restore=auto" in plain.mounts[0].log
    assert attribute(path, "restore").startswith("archived: set this to a number of days")
    set_attribute(path, "restore", "2")
    assert attribute(path, "restore").startswith("readable until ")
    assert path.read_bytes() == b"zzz"


def test_new_bytes_of_an_archived_file_are_awake(plain: Shared, place: Path):
    path = place / "asleep"
    put(plain, path, b"zzz", StorageClass="DEEP_ARCHIVE")
    path.write_bytes(b"awake")
    assert plain.head(path).get("StorageClass", "STANDARD") == "STANDARD"


def test_an_archived_file_is_restored_for_whoever_may_wait(plain: Shared, place: Path):
    waiting = plain.mounter(plain.bucket, "--restore", "auto", "--restore-days", "3")
    path = waiting.path / plain.key(place) / "asleep"
    put(plain, place / "asleep", b"zzz", StorageClass="GLACIER")
    assert names(path.parent) == ["asleep"]
    assert path.stat().st_size == 3
    assert "Restore" not in plain.head(place / "asleep")  # Nobody has read it yet.
    assert path.read_bytes() == b"zzz"
    assert 'ongoing-request="false"' in plain.head(place / "asleep")["Restore"]
    path.chmod(0o600)  # A copy needs the bytes, too.
    wait_for(lambda: plain.head(place / "asleep")["Metadata"].get("mode"), str(0o100600))
    assert waiting.umount() == 0


class Restorations(Weakness):
    """No weakness: notes the bodies of the requests that restore objects."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def ask(self, request: Request) -> None:
        if "restore" in request.query:
            self.asked.append(request.body)


def test_a_restoration_is_asked_for_as_the_options_say(
    moto: Server, make_bucket: Callable[[Server], Bucket], mount: Mounter
):
    """A body is all that tells of the tier: moto keeps the days only."""
    bucket, noted = make_bucket(moto), Restorations()
    moto.client().put_object(Bucket=bucket.name, Key="asleep", Body=b"z", StorageClass="GLACIER")
    options = ("--restore", "auto", "--restore-days", "3", "--restore-tier", "bulk")
    with OldStore(moto, noted) as store:
        mounted = mount(bucket, *options, url=store.url)
        assert (mounted.path / "asleep").read_bytes() == b"z"
        assert mounted.umount() == 0
    (body,) = noted.asked
    assert b"<Days>3</Days>" in body
    assert b"<Tier>Bulk</Tier>" in body
    told = moto.client().head_object(Bucket=bucket.name, Key="asleep")["Restore"]
    until = parsedate_to_datetime(re.search('expiry-date="(.*?)"', told)[1])
    assert 2 < (until - datetime.now(UTC)).total_seconds() / 86400 < 4


# -- Object Lock, on RustFS --------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(server_of, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A bucket with Object Lock, and a mount of it."""
    if reason := why_no_mounts():
        unavailable(reason)
    server = server_of("rustfs")
    bucket = Bucket(f"locked-{secrets.token_hex(6)}", server.url, server.credentials)
    server.client().create_bucket(Bucket=bucket.name, ObjectLockEnabledForBucket=True)
    mounter = Mounter(tmp_path_factory.mktemp("locked"))
    try:
        yield Shared(bucket, server, mounter, (mounter(bucket),))
        mounter.expect_log("Object Lock holds it until")
    finally:
        mounter.finish()


def test_a_held_file_is_not_removed(locked: Shared):
    path = locked.root / "held"
    path.write_bytes(b"evidence")
    assert error_of(attribute, path, "legal-hold") == "ENODATA"
    set_attribute(path, "legal-hold", "ON")
    name = locked.bucket.name
    hold = locked.s3.get_object_legal_hold(Bucket=name, Key="held")
    assert hold["LegalHold"]["Status"] == "ON"
    assert attribute(path, "legal-hold") == "ON"
    assert error_of(path.unlink) == "EPERM"
    assert path.read_bytes() == b"evidence"
    set_attribute(path, "legal-hold", "OFF")
    path.unlink()
    assert not path.exists()


def test_a_retained_file_is_not_removed_and_its_attribute_says_until_when(locked: Shared):
    path = locked.root / "retained"
    path.write_bytes(b"1")
    set_attribute(path, "retention", "GOVERNANCE 2999-01-01T00:00:00Z")
    assert attribute(path, "retention").startswith("GOVERNANCE 2999-01-01T00:00:00")
    assert error_of(path.unlink) == "EPERM"
    path.write_bytes(b"2")  # A new version, which nothing holds, covers it.
    path.unlink()
    versions = locked.s3.list_object_versions(Bucket=locked.bucket.name, Prefix="retained")
    assert len(versions["Versions"]) == 2


def test_a_mount_may_leave_held_files_to_the_store(locked: Shared):
    path = locked.root / "left"
    path.write_bytes(b"1")
    set_attribute(path, "legal-hold", "ON")
    other = locked.mounter(locked.bucket, "--object-lock", "allow")
    (other.path / "left").unlink()
    versions = locked.s3.list_object_versions(Bucket=locked.bucket.name, Prefix="left")
    assert len(versions["Versions"]) == 1
    assert len(versions["DeleteMarkers"]) == 1
    assert other.umount() == 0


def test_a_deletion_that_the_store_refuses_is_about_the_hold_if_there_is_one(locked: Shared):
    name = locked.bucket.name
    locked.s3.put_object(Bucket=name, Key="gone", Body=b"1")
    locked.s3.put_object(Bucket=name, Key="kept", Body=b"1", ObjectLockLegalHoldStatus="ON")

    async def remove_both() -> None:
        leaving = Features(FeatureChoices(refuse_held=False))
        async with client_for(locked.bucket, url=proxy.url, features=leaving) as client:
            with pytest.raises(Held):
                await client.remove("kept")
            with pytest.raises(Denied):
                await client.remove("gone")

    with FaultProxy(locked.server.url) as proxy:
        proxy.inject(Answer(403, "AccessDenied"), method="DELETE")
        trio.run(remove_both)


# -- customer keys, on RustFS with TLS ---------------------------------------------------------


class SecureRustFS(RustFSServer):
    """RustFS behind a certificate that signs itself: customer keys go over TLS only."""

    name = "rustfs-tls"

    def command(self, port: int):
        return [*super().command(port), "--tls-path", str(self.directory)]

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def client(self):
        if self._client is None:
            self._client = boto3.client(
                "s3",
                endpoint_url=self.url,
                region_name=REGION,
                aws_access_key_id=self.credentials.access_key,
                aws_secret_access_key=self.credentials.secret_key,
                verify=str(self.directory / "rustfs_cert.pem"),
                config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
            )
        return self._client


@pytest.fixture(scope="module")
def secure(
    credentials: Credentials, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureRustFS]:
    program = find_rustfs()
    if program is None:
        pytest.skip("rustfs is not installed")
    directory = tmp_path_factory.mktemp("secure")
    certificate, key = make_certificate(directory, "127.0.0.1")
    shutil.copy(certificate, directory / "rustfs_cert.pem")
    shutil.copy(key, directory / "rustfs_key.pem")
    with SecureRustFS(directory, credentials, program) as server:
        yield server


def test_customer_keys_are_rotated(secure: SecureRustFS, mount: Mounter, tmp_path: Path):
    bucket = Bucket(f"keys-{secrets.token_hex(6)}", secure.url, secure.credentials)
    s3 = secure.client()
    s3.create_bucket(Bucket=bucket.name)
    old, new, other = (secrets.token_bytes(32) for _ in range(3))

    def mounted(*keys: bytes, name: str = "m"):
        path = tmp_path / "keys"
        path.write_text("".join(base64.b64encode(key).decode() + "\n" for key in keys))
        path.chmod(0o600)
        options = ["--ca-bundle", str(secure.directory / "rustfs_cert.pem"), "--part-size", "5M"]
        if keys:
            options += ["--sse-c-key-file", str(path)]
        return mount(bucket, *options, name=name)

    def opens(key: bytes, name: str) -> bytes:
        how = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
        return s3.get_object(Bucket=bucket.name, Key=name, **how)["Body"].read()

    first = mounted(old)
    data = os.urandom(11 * MIB)
    (first.path / "small").write_bytes(b"secret")
    (first.path / "large").write_bytes(data)
    (first.path / "kept").write_bytes(b"old")
    (first.path / "kept").chmod(0o600)
    assert attribute(first.path / "small", "encryption") == "SSE-C"
    assert first.umount() == 0
    assert opens(old, "small") == b"secret"
    assert opens(old, "large") == data

    both = mounted(new, old)
    assert (both.path / "small").read_bytes() == b"secret"
    assert (both.path / "large").read_bytes() == data
    (both.path / "small").rename(both.path / "renamed")
    with (both.path / "large").open("r+b") as file:
        file.write(b"x")
    assert both.umount() == 0
    assert opens(new, "renamed") == b"secret"
    assert opens(new, "large") == b"x" + data[1:]
    assert opens(old, "kept") == b"old"
    kept = [path for path in (tmp_path / "m.state").rglob("*") if path.is_file()]
    assert kept  # The journal is there, and has heard of no key.
    written = b"".join([first.log.encode(), both.log.encode(), *map(Path.read_bytes, kept)])
    for key in (old, new):
        assert key not in written
        assert base64.b64encode(key) not in written

    mount.expect_log("no key of sse-c-key-file opens it")
    wrong = mounted(other)
    assert names(wrong.path) == ["kept", "large", "renamed"]
    assert error_of((wrong.path / "kept").read_bytes) == "EACCES"
    assert error_of((wrong.path / "large").read_bytes) == "EACCES"
    assert wrong.umount() == 0

    async def look_without_a_key() -> None:
        bundle = str(secure.directory / "rustfs_cert.pem")
        async with client_for(bucket, ca_bundle=bundle) as client:
            with pytest.raises(Denied):
                await client.head("kept")

    trio.run(look_without_a_key)


# -- what is refused at once -------------------------------------------------------------------


def test_rules_that_nobody_can_read_are_refused_with_their_line(plain: Shared, tmp_path: Path):
    path = tmp_path / "headers"
    path.write_text("* Cache-Control: no-cache\n* Host: elsewhere\n")
    with pytest.raises(MountFailed) as caught:
        plain.mounter(plain.bucket, "--headers-file", str(path))
    assert "line 2: host is no header that a file may be given" in caught.value.output
