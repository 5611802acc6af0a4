"""Who was slower: where its bytes go, and what its names and its open handles show from then on."""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import Answer
from tests.mount.conftest import Shared
from tests.mount.test_consistency import close_error, content
from tests.mount.test_writeback import body_of, wait_until
from tests.mount.trees import digest
from tests.mounts import Bucket, Mounter

MIB = 1 << 20
KEPT = "`s3mount recover` has"
HOUR = ("--metadata-ttl", "1h")  # Nothing is right by waiting.


def expect_refusal(mounter: Mounter) -> None:
    """A file is kept, and those who call hear of it, each time."""
    mounter.expect_log(KEPT)
    mounter.expect_log(r"(flush|fsync|write) .*: ", optional=True)


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    """Two mounts that believe for an hour what they know, unless they have reason not to."""
    with sharing(*HOUR, "--negative-ttl", "1s", mounts=2) as shared:
        expect_refusal(shared.mounter)
        yield shared


@pytest.fixture
def path(shared: Shared) -> Path:
    """A file that the first mount has looked at."""
    path = shared.root / f"file-{os.urandom(4).hex()}"
    shared.put(path, b"A" * 1000)
    wait_until(path.exists)
    return path


@pytest.fixture
def other(shared: Shared, path: Path) -> Path:
    """The same file in the second mount."""
    return shared.mounts[1].path / path.name


class Recover:
    """``s3mount recover`` for one key of a mount."""

    def __init__(self, mounter: Mounter, bucket: str, key: str, label: str, directory: Path):
        state = directory / f"{label}.state"
        self._command = ("recover", bucket, f"{bucket}/{key}", "--state-dir", str(state))
        self._run = mounter.run
        self._place = Path(bucket, key)

    def rows(self) -> list[list[str]]:
        """What is listed: path, size, age and reason of each."""
        done = self._run(*self._command)
        assert done.returncode == 0, done.stdout
        return [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]

    def upload(self) -> None:
        """Have it made the object of its key."""
        done = self._run(*self._command, "--upload", "--yes")
        assert done.returncode == 0, done.stdout

    def export(self, target: Path) -> bytes:
        """What was kept."""
        done = self._run(*self._command, "--export", str(target))
        assert done.returncode == 0, done.stdout
        return (target / self._place).read_bytes()


def recover_of(shared: Shared, path: Path) -> Recover:
    """``s3mount recover`` for what the first mount has kept of *path*."""
    root = shared.root
    return Recover(shared.mounter, shared.bucket.name, shared.key(path), root.name, root.parent)


# -- the loser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [os.close, os.fsync])
def test_the_name_shows_the_winner_while_others_have_the_loser_open(
    shared: Shared, path: Path, other: Path, tmp_path: Path, call: Callable[[int], None]
):
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    os.pwrite(writer, b"mine", 100)
    other.write_bytes(b"theirs")
    with pytest.raises(OSError, match="Stale"):
        call(writer)
    try:
        # It is there when the call returns, so that nobody need wait for it.
        rows = recover_of(shared, path).rows()
        assert [row[:2] for row in rows] == [[f"{shared.bucket.name}/{path.name}", "1000 bytes"]]
        assert rows[0][2].endswith("seconds ago")
        assert path.name in rows[0][3]
        wait_until(lambda: path.stat().st_size == 6)
        assert path.read_bytes() == b"theirs"
        assert _read(reader) in (b"A" * 100 + b"mine" + b"A" * 896, errno.ESTALE)
    finally:
        if call is os.fsync:
            assert close_error(writer) == errno.ESTALE
    assert close_error(reader) == 0
    assert path.read_bytes() == b"theirs" == shared.get(path)
    kept = recover_of(shared, path).export(tmp_path)
    assert (len(kept), kept[100:104]) == (1000, b"mine")
    # The name is as good as any other.
    path.write_bytes(b"next")
    assert shared.get(path) == b"next"


def _read(descriptor: int) -> bytes | int:
    try:
        return os.pread(descriptor, 5000, 0)
    except OSError as error:
        return error.errno or -1


def test_what_is_written_after_the_refusal_is_kept_too(
    shared: Shared, path: Path, other: Path, tmp_path: Path
):
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.pwrite(first, b"before", 100)
    other.write_bytes(b"theirs")
    assert close_error(first) == errno.ESTALE
    os.pwrite(second, b"after", 500)
    os.pwrite(second, b"B", 100)
    os.pwrite(second, b"end", 2000)
    assert close_error(second) == errno.ESTALE
    assert path.read_bytes() == b"theirs" == shared.get(path)
    rows = recover_of(shared, path).rows()
    assert len(rows) == 1
    kept = recover_of(shared, path).export(tmp_path)
    assert (kept[100:106], kept[500:505], kept[2000:]) == (b"Before", b"after", b"end")


def test_a_large_loser_whose_parts_have_left(shared: Shared, tmp_path: Path):
    """What had left for the store already is kept, too."""
    path, body = shared.root / "large", os.urandom(40 * MIB)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.write(descriptor, body)
    shared.put(path, b"theirs")
    assert close_error(descriptor) == errno.EEXIST
    wait_until(lambda: content(path) == b"theirs")
    kept = recover_of(shared, path).export(tmp_path)
    assert hashlib.sha256(kept).digest() == hashlib.sha256(body).digest()


def test_a_file_that_was_rewritten_after_the_refusal_does_not_come_back(
    shared: Shared, path: Path, other: Path, tmp_path: Path
):
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"mine", 0)
    other.write_bytes(b"theirs")
    with pytest.raises(OSError, match="Stale"):
        os.fsync(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"written anew", 0)
    assert close_error(descriptor) == errno.ESTALE
    assert shared.get(path) == b"theirs"
    assert recover_of(shared, path).export(tmp_path) == b"written anew"


def test_a_file_is_kept_that_is_open_while_the_journal_waits_to_upload_it(
    mount: Mounter, bucket: Bucket, s3, tmp_path: Path
):
    mounted = mount(bucket, *HOUR, "-o", "writeback", name="one")
    expect_refusal(mount)
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"A" * 1000)
    path = mounted.path / "file"
    wait_until(path.exists)
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.pwrite(first, b"mine", 100)
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"theirs")
    assert close_error(first) == 0  # The journal has it.
    wait_until(lambda: KEPT in mounted.log)
    wait_until(lambda: content(path) == b"theirs")
    os.pwrite(second, b"later", 500)
    assert close_error(second) == errno.ESTALE
    assert body_of(s3, bucket, "file") == b"theirs"
    recover = Recover(mount, bucket.name, "file", "one", tmp_path)
    kept = recover.export(tmp_path / "exported")
    assert (kept[100:104], kept[500:505]) == (b"mine", b"later")
    assert mounted.umount() == 0
    assert len(recover.rows()) == 1


def test_what_a_person_has_discarded_stays_away_unless_it_is_written_to(
    shared: Shared, path: Path, other: Path, tmp_path: Path
):
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"mine", 0)
    other.write_bytes(b"theirs")
    with pytest.raises(OSError, match="Stale"):
        os.fsync(descriptor)
    recover = recover_of(shared, path)
    state = f"{shared.root}.state"
    place = f"{shared.bucket.name}/{path.name}"
    discard = ("recover", shared.bucket.name, place, "--state-dir", state, "--discard", "--yes")
    assert shared.mounter.run(*discard).returncode == 0
    assert close_error(descriptor) == errno.ESTALE
    assert recover.rows() == []


# -- attributes of what is not there any more ----------------------------------------------------


@pytest.mark.parametrize("replaced", [True, False])
def test_attributes_of_a_version_that_is_gone_do_not_keep_a_mount(
    mount: Mounter, bucket: Bucket, s3, replaced: bool
):
    """They are written a moment after the call, and umount does not wait for that."""
    mounted = mount(bucket, *HOUR)
    text = "its attributes could not be saved"
    mount.expect_log(text)
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"A" * 1000)
    path = mounted.path / "file"
    wait_until(path.exists)
    if replaced:
        s3.put_object(Bucket=bucket.name, Key="file", Body=b"theirs")
    else:
        s3.delete_object(Bucket=bucket.name, Key="file")
    path.chmod(0o600)
    assert mounted.umount() == 0
    assert mounted.log.count(text) == 1


def test_umount_right_after_a_refusal(mount: Mounter, bucket: Bucket, s3):
    mounted = mount(bucket, *HOUR)
    expect_refusal(mount)
    mount.expect_log("its attributes could not be saved", optional=True)
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"A" * 1000)
    path = mounted.path / "file"
    wait_until(path.exists)
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"mine", 0)
    s3.delete_object(Bucket=bucket.name, Key="file")
    assert close_error(descriptor) == errno.ESTALE
    assert mounted.umount() == 0


# -- what the kernel knows -----------------------------------------------------------------------


def test_a_name_is_not_opened_as_the_version_that_somebody_has_open(shared: Shared):
    path, size = shared.root / "open", 40 * MIB
    shared.put(path, b"A" * size)
    wait_until(path.exists)
    with path.open("rb", buffering=0) as file:
        assert file.read(1000) == b"A" * 1000
        shared.put(path, b"B" * 2000)
        with pytest.raises(OSError, match="Stale"):
            os.pread(file.fileno(), 1000, size - 1000)
        # Now the mount knows, and nobody else need find out by an error.
        assert path.read_bytes() == b"B" * 2000
        assert path.read_bytes() == b"B" * 2000
        wait_until(lambda: path.stat().st_size == 2000)


def test_the_kernel_forgets_a_name_that_was_refused(shared: Shared, path: Path, other: Path):
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"mine", 0)
    other.write_bytes(b"theirs")
    assert close_error(descriptor) == errno.ESTALE
    wait_until(lambda: path.stat().st_size == 6)
    assert path.read_bytes() == b"theirs"


def test_the_kernel_forgets_what_it_took_along_in_a_rename(shared: Shared):
    """It renames the version that it knows; the mount has found another one by then."""
    directory = shared.root / "renames"
    directory.mkdir()
    path = directory / "file"
    shared.put(path, b"A" * 1000)
    wait_until(path.exists)
    assert path.stat().st_size == 1000
    time.sleep(0.1)
    shared.put(path, b"theirs")
    for number in range(4):  # Several unknown names are looked up by a listing.
        assert not (directory / f"missing-{number}").exists()
    path.rename(directory / "renamed")
    assert shared.get(directory / "renamed") == b"theirs"
    wait_until(lambda: (directory / "renamed").stat().st_size == 6)
    assert (directory / "renamed").read_bytes() == b"theirs"


# -- a store that copies no parts ----------------------------------------------------------------


def test_a_large_file_is_changed_on_a_store_that_copies_no_parts(
    mount: Mounter, bucket: Bucket, proxy, s3
):
    """What is not changed is fetched and sent; the log has told so, once."""
    refused = proxy.inject(Answer(501, "NotImplemented"), operation="UploadPartCopy")
    mounted = mount(bucket, "--memory", "32M", url=proxy.url)
    mount.expect_log("cannot copy parts")
    assert refused.hits > 0, "the probe did not ask"
    asked = refused.hits
    body = bytearray(os.urandom(40 * MIB))
    s3.put_object(Bucket=bucket.name, Key="file", Body=bytes(body))
    with (mounted.path / "file").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"patch", 20 * MIB + 77)
        os.pwrite(file.fileno(), b"end", 40 * MIB)
    body[20 * MIB + 77 : 20 * MIB + 82] = b"patch"
    body += b"end"
    wanted = hashlib.sha256(body).hexdigest()
    assert hashlib.sha256(body_of(s3, bucket, "file")).hexdigest() == wanted
    assert digest(mounted.path / "file") == wanted
    assert refused.hits == asked
    assert proxy.counts()["UploadPart"] >= 5
    assert mounted.log.count("cannot copy parts") == 1
