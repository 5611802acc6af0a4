"""Extended attributes: those of users travel with the object, the others tell about it."""

import base64
import contextlib
import errno
import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, unquote

import pytest

from s3mount.controlclient import Connection, find_socket
from tests.mount.conftest import Shared
from tests.mount.programs import has, run
from tests.mount.trees import names
from tests.servers import Server

REFRESH = "user.s3mount.refresh"
SAVED = 5.0  # Seconds within which a change of attributes is in the store.
CHANGING = ("CopyObject", "PutObject", "DeleteObject", "CreateMultipartUpload")


def error_of(operation: Callable, *arguments, **how) -> str:
    """The name of the error that an operation ends with."""
    try:
        operation(*arguments, **how)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "none"


def daemon(shared: Shared, command: str) -> Mapping:
    """What the daemon answers to *command*."""
    path = find_socket(shared.root, os.getuid())
    assert path is not None
    with Connection(path) as connection:
        return connection.ask(command)


def save_all(shared: Shared) -> None:
    """Have the daemon write down what it would write down in a moment."""
    assert daemon(shared, "sync") == {"left": []}


def requests(shared: Shared, *kinds: str) -> int:
    """How many requests the daemon has made so far: of *kinds*, or in all."""
    counts = daemon(shared, "status")["requests"]["requests"]
    return sum(count for kind, count in counts.items() if not kinds or kind in kinds)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so in the store."""
    deadline = time.monotonic() + SAVED
    while not condition():
        assert time.monotonic() < deadline, "the store has not heard of it"
        time.sleep(0.05)


def header(shared: Shared, path: Path) -> dict[str, bytes]:
    """The attributes in an object's metadata, read as s3fs reads them."""
    text = shared.head(path)["Metadata"].get("xattr", "%7B%7D")
    assert text == quote(unquote(text), safe="/")
    return {name: base64.b64decode(value) for name, value in json.loads(unquote(text)).items()}


def place(shared: Shared, path: Path, body: bytes, **how) -> None:
    """Put an object where the mount has seen nothing a moment ago."""
    shared.put(path, body, **how)
    os.setxattr(path.parent, REFRESH, b"")


@pytest.fixture
def file(shared: Shared, work: Path) -> Path:
    """A file of five bytes that somebody else has put there."""
    path = work / "file.txt"
    place(shared, path, b"12345", ContentType="text/x-five", Metadata={"project": "apollo"})
    return path


# -- those of users ----------------------------------------------------------------------------


def test_what_is_set_is_there_and_in_the_store(shared: Shared, file: Path):
    values = {"user.a": b"one", "user.b": b"", "user.c": bytes(range(256)), "user.ü,:": b"x"}
    for name, value in values.items():
        os.setxattr(file, name, value)
    assert sorted(os.listxattr(file)) == sorted(values)
    assert {name: os.getxattr(file, name) for name in values} == values
    wait_for(lambda: header(shared, file) == values)
    found = shared.head(file)
    assert found["Metadata"]["project"] == "apollo"
    assert found["ContentType"] == "text/x-five"
    assert shared.get(file) == b"12345"


def test_names_need_not_be_utf8(file: Path):
    os.setxattr(file, b"user.\xff\xfe", b"x")
    os.setxattr(file, b'user.a"b\\c', b"y")
    os.setxattr(file, REFRESH, b"")
    assert os.getxattr(file, b"user.\xff\xfe") == b"x"
    assert os.getxattr(file, b'user.a"b\\c') == b"y"
    assert sorted(map(os.fsencode, os.listxattr(file))) == [b'user.a"b\\c', b"user.\xff\xfe"]


def test_several_changes_of_attributes_are_one_request(shared: Shared, file: Path):
    save_all(shared)
    before = requests(shared, *CHANGING)
    for number in range(5):
        os.setxattr(file, f"user.{number}", b"x")
    file.chmod(0o600)
    os.utime(file, ns=(1, 10**18))
    os.removexattr(file, "user.0")
    wait_for(lambda: len(header(shared, file)) == 4)
    assert requests(shared, *CHANGING) == before + 1


def test_a_new_file_takes_its_attributes_along(shared: Shared, work: Path):
    save_all(shared)
    before = requests(shared, *CHANGING)
    with (work / "new").open("wb") as new:
        new.write(b"new")
        os.setxattr(new.fileno(), "user.a", b"b")
    assert requests(shared, *CHANGING) == before + 1
    assert header(shared, work / "new") == {"user.a": b"b"}


def test_creating_and_replacing(file: Path):
    assert error_of(os.setxattr, file, "user.a", b"1", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    assert error_of(os.setxattr, file, "user.a", b"2", os.XATTR_CREATE) == "EEXIST"
    os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"3"


def test_what_is_removed_is_gone(shared: Shared, file: Path):
    os.setxattr(file, "user.a", b"1")
    wait_for(lambda: header(shared, file) == {"user.a": b"1"})
    os.removexattr(file, "user.a")
    assert os.listxattr(file) == []
    assert error_of(os.getxattr, file, "user.a") == "ENODATA"
    assert error_of(os.removexattr, file, "user.a") == "ENODATA"
    wait_for(lambda: "xattr" not in shared.head(file)["Metadata"])


def test_more_than_a_store_keeps_is_refused(shared: Shared, file: Path):
    assert error_of(os.setxattr, file, "user.big", bytes(2000)) == "ERANGE"
    os.setxattr(file, "user.first", bytes(700))
    assert error_of(os.setxattr, file, "user.second", bytes(1000)) == "ENOSPC"
    os.chown(file, os.getuid(), os.getgid())
    file.chmod(0o600)
    assert os.listxattr(file) == ["user.first"]
    wait_for(lambda: header(shared, file) == {"user.first": bytes(700)})


def test_directories_have_them_too(shared: Shared, work: Path):
    (work / "directory").mkdir()
    os.setxattr(work / "directory", "user.a", b"b")
    assert os.listxattr(work / "directory") == ["user.a"]
    os.setxattr(shared.root, REFRESH, b"")
    assert os.getxattr(work / "directory", "user.a") == b"b"
    os.removexattr(work / "directory", "user.a")
    assert os.listxattr(work / "directory") == []


def test_an_unlinked_file_keeps_them(work: Path):
    with (work / "new").open("wb") as new:
        (work / "new").unlink()
        os.setxattr(new.fileno(), "user.a", b"b")
        assert os.getxattr(new.fileno(), "user.a") == b"b"


def test_what_s3fs_has_written_is_read(shared: Shared, work: Path):
    text = quote(json.dumps({"user.a": base64.b64encode(b"one").decode()}), safe="")
    place(shared, work / "theirs", b"x", Metadata={"xattr": text})
    assert os.getxattr(work / "theirs", "user.a") == b"one"


@pytest.mark.parametrize(
    "text", ["x", "%7B", "[" * 1500, "%5B1%5D", quote('{"user.a": 5, "user.b": "?"}'), "%FF"]
)
def test_metadata_that_make_no_sense_are_no_attributes(shared: Shared, work: Path, text: str):
    place(shared, work / "odd", b"x", Metadata={"xattr": text})
    assert os.listxattr(work / "odd") == []
    os.setxattr(work / "odd", "user.a", b"b")
    save_all(shared)
    assert header(shared, work / "odd") == {"user.a": b"b"}


def test_a_copy_takes_them_along_but_not_ours(shared: Shared, file: Path):
    os.setxattr(file, "user.a", b"b")
    copy = file.with_name("copy")
    if has("rsync"):
        run("rsync", "-aX", file, copy)
        assert run("rsync", "-aX", "--itemize-changes", file, copy) == ""
    else:
        shutil.copy2(file, copy)
    assert os.listxattr(copy) == ["user.a"]
    wait_for(lambda: header(shared, copy) == {"user.a": b"b"})


# -- other namespaces --------------------------------------------------------------------------


def test_other_namespaces_are_answered_without_a_request(shared: Shared, file: Path):
    save_all(shared)
    file.stat()
    before = requests(shared)
    assert error_of(os.getxattr, file, "security.capability") == "ENODATA"
    assert error_of(os.getxattr, file, "security.selinux") == "ENOTSUP"
    assert error_of(os.getxattr, file, "system.posix_acl_access") == "ENOTSUP"
    assert error_of(os.getxattr, file, "strange.a") == "ENOTSUP"
    assert error_of(os.setxattr, file, "strange.a", b"1") == "ENOTSUP"
    assert requests(shared) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may try")
def test_other_namespaces_cannot_be_written(file: Path):
    assert error_of(os.setxattr, file, "security.a", b"1") == "ENOTSUP"
    assert error_of(os.setxattr, file, "trusted.a", b"1") == "ENOTSUP"
    assert error_of(os.removexattr, file, "trusted.a") == "ENOTSUP"


def test_links_have_facts_but_nothing_of_users(shared: Shared, work: Path):
    (work / "link").symlink_to("nowhere")
    how = {"follow_symlinks": False}
    assert error_of(os.setxattr, work / "link", "user.a", b"1", **how) == "EPERM"
    assert os.listxattr(work / "link", **how) == []
    etag = shared.head(work / "link")["ETag"].strip('"')
    assert os.getxattr(work / "link", "s3.etag", **how).decode() == etag


# -- facts -------------------------------------------------------------------------------------


def test_facts_are_readable_by_name_and_in_no_list(shared: Shared, file: Path):
    key = shared.key(file)
    expected = {
        "user.s3.etag": shared.head(file)["ETag"].strip('"'),
        "s3.etag": shared.head(file)["ETag"].strip('"'),
        "user.s3.storage-class": "STANDARD",
        "s3.storage-class": "STANDARD",
        "user.s3.content-type": "text/x-five",
        "user.s3.key": key,
        "user.s3.url": f"s3://{shared.bucket.name}/{key}",
        "user.s3mount.state": "clean",
    }
    assert {name: os.getxattr(file, name).decode() for name in expected} == expected
    assert os.listxattr(file) == []
    for name in ("user.s3.etag", "user.s3.key", "user.s3mount.state"):
        assert error_of(os.setxattr, file, name, b"x") == "EPERM"
    for name in ("user.s3.strange", REFRESH):
        assert error_of(os.getxattr, file, name) == "ENODATA"


def test_a_version_has_an_id_where_versions_are_kept(sharing: Callable):
    with sharing(server="moto") as shared:
        plain = shared.root / "plain"
        place(shared, plain, b"x")
        assert error_of(os.getxattr, plain, "user.s3.version-id") == "ENODATA"
        enabled = {"Status": "Enabled"}
        shared.s3.put_bucket_versioning(Bucket=shared.bucket.name, VersioningConfiguration=enabled)
        place(shared, shared.root / "versioned", b"x")
        found = shared.head(shared.root / "versioned")["VersionId"]
        assert os.getxattr(shared.root / "versioned", "user.s3.version-id").decode() == found


def test_the_mounted_prefix_is_part_of_the_key(mount, bucket, s3):
    s3.put_object(Bucket=bucket.name, Key="some/where/file", Body=b"x")
    made = mount(bucket, prefix="some/where")
    assert os.getxattr(made.path / "file", "user.s3.key") == b"some/where/file"
    assert os.getxattr(made.path, "user.s3.key") == b"some/where/"
    link = os.getxattr(made.path / "file", "user.s3.presigned-url").decode()
    assert fetched(link) == b"x"


def test_the_content_type_can_be_changed(shared: Shared, file: Path):
    os.setxattr(file, "user.s3.content-type", b"application/x-other; charset=utf-8")
    wait_for(lambda: shared.head(file)["ContentType"] == "application/x-other; charset=utf-8")
    assert shared.head(file)["Metadata"]["project"] == "apollo"
    for value in (b"no slash", b"a/b\nx-evil: 1", "a/ü".encode(), b"a/" + b"b" * 300):
        assert error_of(os.setxattr, file, "user.s3.content-type", value) == "EINVAL"
    os.removexattr(file, "user.s3.content-type")
    assert os.getxattr(file, "user.s3.content-type") == b"text/plain"
    wait_for(lambda: shared.head(file)["ContentType"] == "text/plain")


def test_a_content_type_that_was_chosen_stays(shared: Shared, file: Path):
    os.setxattr(file, "user.s3.content-type", b"text/x-chosen")
    file.write_bytes(b"rewritten")
    file.rename(file.with_name("other.json"))
    assert shared.head(file.with_name("other.json"))["ContentType"] == "text/x-chosen"


def fetched(link: str) -> bytes:
    """What somebody without credentials gets."""
    with urllib.request.urlopen(link, timeout=10) as answer:
        return answer.read()


@pytest.mark.parametrize("name", ["ordinary", "sp ace+%&?#=", "ümläut"])
def test_a_presigned_link_works_for_everybody(shared: Shared, work: Path, name: str):
    place(shared, work / name, b"content")
    link = os.getxattr(work / name, "user.s3.presigned-url").decode()
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link
    assert "X-Amz-Expires=3600" in link
    assert shared.bucket.credentials.secret_key not in link
    assert fetched(link) == b"content"


def test_a_presigned_link_ends_when_it_was_told_to(shared: Shared, file: Path):
    link = os.getxattr(file, "user.s3.presigned-url.1").decode()
    assert "X-Amz-Expires=1&" in link
    time.sleep(2.5)
    with pytest.raises(HTTPError) as caught:
        fetched(link)
    caught.value.close()
    for seconds in ("0", "604801", "x", "", "-1"):
        assert error_of(os.getxattr, file, f"user.s3.presigned-url.{seconds}") == "ENODATA"


def test_the_state_tells_whether_the_store_has_it(work: Path):
    with (work / "new").open("wb") as new:
        new.write(b"x")
        new.flush()
        assert os.getxattr(new.fileno(), "user.s3mount.state") == b"dirty"
        assert error_of(os.getxattr, new.fileno(), "user.s3.etag") == "ENODATA"
        assert error_of(os.getxattr, new.fileno(), "user.s3.presigned-url") == "ENODATA"
        os.fsync(new.fileno())
        assert os.getxattr(new.fileno(), "user.s3mount.state") == b"clean"
    assert os.getxattr(work / "new", "user.s3mount.state") == b"clean"


def test_the_state_tells_why_a_file_could_not_be_saved(mount, bucket, proxy):
    made = mount(bucket, "--timeout", "1", url=proxy.url)
    mount.expect_log("", optional=True)
    with (made.path / "new").open("wb") as new:
        new.write(b"x")
        new.flush()
        proxy.down()
        assert error_of(os.fsync, new.fileno()) == "EIO"
        state = os.getxattr(new.fileno(), "user.s3mount.state").decode()
        assert state.startswith("failed: ")
        assert "PutObject new" in state
        proxy.up()
    assert os.getxattr(made.path / "new", "user.s3mount.state") == b"clean"


def test_directories_have_the_facts_that_they_can_have(shared: Shared, work: Path):
    (work / "directory").mkdir()
    key = f"{shared.key(work)}/directory/"
    assert os.getxattr(work / "directory", "user.s3.key").decode() == key
    assert os.getxattr(work / "directory", "user.s3.url").decode().endswith(key)
    assert os.getxattr(shared.root, "user.s3.url").decode() == f"s3://{shared.bucket.name}/"
    assert os.getxattr(work / "directory", "user.s3mount.state") == b"clean"
    assert error_of(os.getxattr, work / "directory", "user.s3.etag") == "ENODATA"
    assert error_of(os.getxattr, work / "directory", "user.s3.presigned-url") == "ENODATA"


# -- refresh -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient(sharing: Callable):
    """A mount that believes for an hour what it knows."""
    with sharing("--metadata-ttl", "1h", "--negative-metadata-ttl", "1h") as shared:
        yield shared


def test_refresh_of_a_file(patient: Shared):
    path = patient.root / "changed"
    place(patient, path, b"old")
    assert path.stat().st_size == 3
    patient.put(path, b"newer")
    assert path.stat().st_size == 3
    os.setxattr(path, REFRESH, b"")
    assert path.stat().st_size == 5
    assert path.read_bytes() == b"newer"


def test_refresh_of_a_tree(patient: Shared):
    top = patient.root / "top"
    for name in ("changed", "deleted", "below/changed"):
        patient.put(top / name, b"old")
    os.setxattr(patient.root, REFRESH, b"")
    assert names(top) == ["below", "changed", "deleted"]
    assert [path.stat().st_size for path in sorted(top.rglob("changed"))] == [3, 3]
    for name in ("changed", "below/changed", "below/added"):
        patient.put(top / name, b"newer")
    patient.delete(top / "deleted")
    assert not (top / "below" / "added").exists()
    os.setxattr(patient.root, REFRESH, b"")
    assert names(top) == ["below", "changed"]
    assert names(top / "below") == ["added", "changed"]
    assert [path.stat().st_size for path in sorted(top.rglob("changed"))] == [5, 5]
    assert not (top / "deleted").exists()


def test_refresh_shows_what_others_did_to_the_attributes(patient: Shared):
    """At once, and in the same second, which no listing tells."""
    top = patient.root / "attributes"
    for number in range(3):
        patient.put(top / f"file{number}", b"content", Metadata={"mode": "33188"})
    os.setxattr(patient.root, REFRESH, b"")
    assert {path.stat().st_mode for path in top.iterdir()} == {0o100644}
    for number in range(3):
        patient.put(top / f"file{number}", b"content", Metadata={"mode": "33152"})
    os.setxattr(patient.root, REFRESH, b"")
    assert {path.stat().st_mode for path in top.iterdir()} == {0o100600}


def test_refresh_shows_that_a_directory_is_gone(patient: Shared):
    for name in ("removed", "kept", "replaced"):
        (patient.root / name).mkdir()
    (patient.root / "kept" / "below").mkdir()
    for name in ("removed/", "kept/below/", "replaced/"):
        patient.s3.delete_object(Bucket=patient.bucket.name, Key=name)
    patient.put(patient.root / "replaced", b"a file")
    assert error_of((patient.root / "removed").mkdir) == "EEXIST"
    with contextlib.chdir(patient.root / "kept"):
        os.setxattr(patient.root, REFRESH, b"")
        assert Path.cwd() == patient.root / "kept"
    # The kernel hears of it right after setxattr(2) has returned.
    wait_for(lambda: error_of((patient.root / "removed").rmdir) == "ENOENT")
    (patient.root / "removed").mkdir()
    wait_for(lambda: error_of((patient.root / "kept" / "below").stat) == "ENOENT")
    wait_for(lambda: (patient.root / "replaced").is_file())


def test_refresh_of_an_open_file_gives_its_name_to_the_new_version(patient: Shared):
    path = patient.root / "open"
    place(patient, path, b"old")
    with path.open("rb") as reader:
        assert reader.read(1) == b"o"
        patient.put(path, b"newer")
        os.setxattr(path, REFRESH, b"")
        deadline = time.monotonic() + 2
        while path.stat().st_size != 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.read_bytes() == b"newer"
        assert os.fstat(reader.fileno()).st_size == 3


def test_refresh_does_not_touch_what_is_not_saved(patient: Shared):
    path = patient.root / "unsaved"
    place(patient, path, b"old")
    with path.open("r+b") as writer:
        writer.write(b"mine, and longer")
        writer.flush()
        os.setxattr(patient.root, REFRESH, b"")
        assert path.read_bytes() == b"mine, and longer"
    assert patient.get(path) == b"mine, and longer"


# -- without attributes ------------------------------------------------------------------------


def test_without_attributes_there_are_only_facts(sharing: Callable, server: Server):
    with sharing("--attributes", "off") as shared:
        path = shared.root / "file"
        shared.put(path, b"x", ContentType="text/x-one", Metadata={"mode": "33152", "own": "y"})
        assert os.listxattr(path) == []
        assert error_of(os.setxattr, path, "user.a", b"b") == "ENOTSUP"
        assert os.getxattr(path, "user.s3.key") == b"file"
        os.setxattr(path, "user.s3.content-type", b"text/x-two")
        wait_for(lambda: shared.head(path)["ContentType"] == "text/x-two")
        assert shared.head(path)["Metadata"] == {"mode": "33152", "own": "y"}
