"""Writeback mode: close returns when the journal has the file, and the store gets it soon."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.faults import Answer, Delay, Flip
from tests.mount.conftest import keys_of
from tests.mounts import Bucket, Mount, Mounter, run_command

MIB = 1 << 20


def wait_until(true: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait until something is true; fail when it is not in time."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def body_of(s3, bucket: Bucket, key: str) -> bytes:
    return s3.get_object(Bucket=bucket.name, Key=key)["Body"].read()


def requests_for(proxy, key: str) -> list[str]:
    """The operations that changed *key*, in order."""
    changes = ("PutObject", "DeleteObject", "CopyObject", "CreateMultipartUpload")
    return [
        one.operation
        for one in proxy.log
        if one.operation in changes and one.request.path.endswith(f"/{key}")
    ]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of the mounts of a test."""
    return tmp_path / "state"


@pytest.fixture
def waiting(proxy, mount: Mounter, bucket: Bucket, state: Path) -> Mount:
    """A mount in writeback mode, with the proxy between it and the store."""
    return mount(bucket, "-o", "writeback", "--state-dir", str(state), url=proxy.url)


def test_close_returns_before_the_store_has_it(waiting: Mount, proxy, s3, bucket: Bucket):
    path = waiting.path / "file"
    path.write_bytes(b"content")
    assert requests_for(proxy, "file") == []
    assert path.read_bytes() == b"content"
    assert path.stat().st_size == 7
    assert [path.name for path in waiting.path.iterdir()] == ["file"]
    wait_until(lambda: keys_of(bucket, s3) == ["file"])
    assert body_of(s3, bucket, "file") == b"content"
    assert path.read_bytes() == b"content"


def being_uploaded(proxy, path: Path) -> None:
    """Write a file whose upload has just begun, and takes two seconds more."""
    slow = proxy.inject(Delay(2.0), operation="PutObject", path=f"/{path.name}$")
    path.write_bytes(b"what is on its way")
    wait_until(lambda: bool(slow.hits))
    proxy.clear()


@pytest.mark.parametrize("again", [b"", b"and what comes after"])
def test_a_file_is_emptied_while_it_is_uploaded(
    waiting: Mount, proxy, s3, bucket: Bucket, again: bytes
):
    """Whoever waits for the upload, to go on with the file, is one of those that have it open."""
    path = waiting.path / "file"
    being_uploaded(proxy, path)
    path.write_bytes(again)
    assert path.read_bytes() == again
    assert path.stat().st_size == len(again)
    wait_until(lambda: body_of(s3, bucket, "file") == again)
    being_uploaded(proxy, path)
    path.write_bytes(again)
    path.unlink()
    time.sleep(2.0)  # As long as it takes until an upload begins.
    assert keys_of(bucket, s3) == [], "what is removed does not come back"


def test_a_file_that_is_renamed_is_uploaded_once_under_its_last_name(
    waiting: Mount, proxy, s3, bucket: Bucket
):
    (waiting.path / "file").write_bytes(b"old")
    wait_until(lambda: keys_of(bucket, s3) == ["file"])
    proxy.forget()
    temporary = waiting.path / "file.tmp"
    with temporary.open("wb") as file:
        file.write(b"new content")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(waiting.path / "file")
    assert (waiting.path / "file").read_bytes() == b"new content"
    assert [path.name for path in waiting.path.iterdir()] == ["file"]
    wait_until(lambda: body_of(s3, bucket, "file") == b"new content")
    assert requests_for(proxy, "file") == ["PutObject"]
    assert requests_for(proxy, "file.tmp") == []


def test_a_file_that_is_removed_at_once_costs_no_request(waiting: Mount, proxy):
    path = waiting.path / "file"
    path.write_bytes(b"content")
    path.unlink()
    assert not path.exists()
    time.sleep(2)
    assert requests_for(proxy, "file") == []


def test_what_replaced_an_object_is_removed_with_it(waiting: Mount, s3, bucket: Bucket):
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"stored")
    (waiting.path / "new").write_bytes(b"waiting")
    (waiting.path / "new").replace(waiting.path / "file")
    (waiting.path / "file").unlink()
    assert not list(waiting.path.iterdir())
    assert keys_of(bucket, s3) == []


def test_attributes_that_are_changed_after_the_close_arrive(waiting: Mount, s3, bucket: Bucket):
    path = waiting.path / "file"
    path.write_bytes(b"content")
    path.chmod(0o600)
    os.utime(path, ns=(5, 1_000_000_007))
    wait_until(lambda: keys_of(bucket, s3) == ["file"])
    assert path.stat().st_mtime_ns == 1_000_000_007

    def arrived() -> bool:
        found = s3.head_object(Bucket=bucket.name, Key="file")["Metadata"]
        return (found["mode"], found["mtime"]) == (str(0o100600), "1.000000007")

    wait_until(arrived)


def test_a_change_in_a_waiting_file_keeps_what_was_promised(waiting: Mount, s3, bucket: Bucket):
    random = Random(1)
    model = bytearray(random.randbytes(3 * MIB))
    path = waiting.path / "file"
    path.write_bytes(model)
    for _ in range(20):
        start, piece = random.randrange(3 * MIB), random.randbytes(random.randrange(1, 5000))
        with path.open("r+b") as file:
            file.seek(start)
            file.write(piece)
        model[start : start + len(piece)] = piece
        assert path.read_bytes() == model
    os.truncate(path, 2 * MIB + 3)
    del model[2 * MIB + 3 :]
    assert path.read_bytes() == model
    wait_until(lambda: keys_of(bucket, s3) == ["file"])
    assert waiting.umount() == 0
    assert body_of(s3, bucket, "file") == model


def test_sync_waits_for_the_uploads(waiting: Mount, s3, bucket: Bucket):
    for number in range(20):
        (waiting.path / f"file{number}").write_bytes(b"%d" % number)
    synced = run_command(["sync", str(waiting.path)], waiting.environment, 60)
    assert synced.returncode == 0, synced.stdout
    assert len(keys_of(bucket, s3)) == 20


def test_check_7_umount_waits_for_the_uploads(waiting: Mount, s3, bucket: Bucket):
    bodies = {f"file{number}": os.urandom(20_000) for number in range(500)}
    for name, body in bodies.items():
        (waiting.path / name).write_bytes(body)
    assert waiting.umount() == 0
    assert {key: body_of(s3, bucket, key) for key in keys_of(bucket, s3)} == bodies


def test_check_6_sigterm_waits_for_the_uploads(waiting: Mount, s3, bucket: Bucket):
    body = os.urandom(20 * MIB)
    (waiting.path / "file").write_bytes(body)
    assert waiting.terminate() == 0
    assert body_of(s3, bucket, "file") == body


def test_check_8_a_lazy_umount_lets_a_writer_finish(waiting: Mount, s3, bucket: Bucket):
    with (waiting.path / "file").open("wb") as file:
        file.write(b"before ")
        done = run_command(["umount", "--lazy", str(waiting.path)], waiting.environment, 60)
        assert done.returncode == 0, done.stdout
        file.write(b"and after")
    assert waiting.wait(60) == 0
    assert body_of(s3, bucket, "file") == b"before and after"


def test_when_more_waits_than_may_a_close_uploads(
    proxy, mount: Mounter, bucket: Bucket, state: Path
):
    options = ("-o", "writeback,writeback_limit=1M", "--state-dir", str(state))
    one = mount(bucket, *options, url=proxy.url)
    (one.path / "small").write_bytes(b"x" * 1000)
    assert requests_for(proxy, "small") == []
    (one.path / "large").write_bytes(b"x" * 2 * MIB)
    assert requests_for(proxy, "large") == ["PutObject"]


def test_one_file_that_grows_heeds_the_limit_too(
    proxy, mount: Mounter, s3, bucket: Bucket, state: Path
):
    options = ("-o", "writeback,writeback_limit=1M", "--state-dir", str(state))
    one = mount(bucket, *options, url=proxy.url)
    with (one.path / "growing").open("wb", buffering=0) as file:
        file.write(bytes(700_000))
        os.fsync(file.fileno())
        file.write(bytes(700_000))
        os.fsync(file.fileno())
        # The journal may hold so much; the store has the rest by now, or everything.
        stored = s3.head_object(Bucket=bucket.name, Key="growing")["ContentLength"]
        assert 1_400_000 - stored <= 1 << 20


def test_what_is_open_to_be_read_is_uploaded_with_its_last_attributes(
    waiting: Mount, s3, bucket: Bucket
):
    path = waiting.path / "file"
    path.write_bytes(b"content")
    with path.open("rb"):
        path.chmod(0o600)
        wait_until(lambda: keys_of(bucket, s3) == ["file"])
        found = s3.head_object(Bucket=bucket.name, Key="file")["Metadata"]
        assert found["mode"] == str(0o100600)


def test_an_upload_that_somebody_has_aborted_is_begun_anew(
    proxy, mount: Mounter, s3, bucket: Bucket, state: Path
):
    mount.expect_log("file: not uploaded yet")
    options = ("-o", "writeback", "--part-size", "5M", "--state-dir", str(state))
    one = mount(bucket, *options, url=proxy.url)
    proxy.inject(Answer(404, "NoSuchUpload"), operation="UploadPart", count=1)
    body = os.urandom(12 * MIB)
    (one.path / "file").write_bytes(body)
    wait_until(lambda: keys_of(bucket, s3) == ["file"], 40)
    assert body_of(s3, bucket, "file") == body


def test_a_file_that_is_closed_in_an_outage_arrives_after_it(
    waiting: Mount, mount: Mounter, proxy, s3, bucket: Bucket
):
    mount.expect_log("not uploaded yet", optional=True)
    path = waiting.path / "file"
    with path.open("wb") as file:
        proxy.down()
        file.write(b"written in the outage")
    assert path.read_bytes() == b"written in the outage"
    time.sleep(3)
    proxy.up()
    wait_until(lambda: keys_of(bucket, s3) == ["file"], 60)
    assert body_of(s3, bucket, "file") == b"written in the outage"


def test_what_arrives_damaged_again_and_again_is_not_given_up(
    waiting: Mount, mount: Mounter, proxy, s3, bucket: Bucket
):
    """It was, after two attempts: then only `s3mount recover` had what was acknowledged."""
    mount.expect_log("not uploaded yet: .*BadDigest")
    proxy.inject(Flip(3, request=True), operation="PutObject", path="/file$", count=9)
    (waiting.path / "file").write_bytes(b"content")
    wait_until(lambda: keys_of(bucket, s3) == ["file"])
    assert body_of(s3, bucket, "file") == b"content"
    assert (waiting.path / "file").read_bytes() == b"content"


def test_a_conflict_is_kept_for_people(
    waiting: Mount, mount: Mounter, s3, bucket: Bucket, state: Path, tmp_path: Path
):
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"first version")
    with (waiting.path / "file").open("r+b") as file:
        file.write(b"OURS!")
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"theirs")
    mount.expect_log("recover")
    wait_until(lambda: "recover" in waiting.log)
    wait_until(lambda: (waiting.path / "file").read_bytes() == b"theirs")
    options = ["recover", bucket.name, "--state-dir", str(state)]
    listed = run_command(options, waiting.environment, 30)
    assert f"{bucket.name}/file" in listed.stdout
    exported = tmp_path / "exported"
    run_command([*options, "--export", str(exported)], waiting.environment, 30)
    assert (exported / bucket.name / "file").read_bytes()[:5] == b"OURS!"
    gone = run_command([*options, "--discard", "--yes"], waiting.environment, 30)
    assert gone.returncode == 0, gone.stdout
    assert "nothing is kept" in run_command(options, waiting.environment, 30).stdout
    assert body_of(s3, bucket, "file") == b"theirs"


def test_what_was_kept_is_uploaded_by_the_daemon_that_has_it(
    waiting: Mount, mount: Mounter, s3, bucket: Bucket, state: Path
):
    body = os.urandom(3 * MIB)
    descriptor = os.open(waiting.path / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(descriptor, body)
    os.close(descriptor)
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"theirs")
    mount.expect_log("recover")
    wait_until(lambda: "recover" in waiting.log)
    assert (waiting.path / "file").read_bytes() == b"theirs"
    options = ["recover", bucket.name, "--state-dir", str(state)]
    done = run_command([*options, "--upload"], waiting.environment, 60)
    assert done.returncode == 0, done.stdout
    assert "uploaded: file" in done.stdout
    assert body_of(s3, bucket, "file") == body
    assert "nothing is kept" in run_command(options, waiting.environment, 30).stdout


@pytest.mark.parametrize("size", [0, 1000, 20 * MIB])
def test_what_a_dead_daemon_left_is_uploaded_without_one(
    waiting: Mount, s3, bucket: Bucket, state: Path, size: int
):
    body = os.urandom(size)
    (waiting.path / "file").write_bytes(body)
    waiting.kill()
    options = ["recover", bucket.name, "--state-dir", str(state)]
    listed = run_command(options, waiting.environment, 30)
    assert "waits for the next mount" in listed.stdout
    done = run_command([*options, "--upload"], waiting.environment, 60)
    assert done.returncode == 0, done.stdout
    assert body_of(s3, bucket, "file") == body
    assert "nothing is kept" in run_command(options, waiting.environment, 30).stdout
    assert not list(state.rglob("slot-*"))


@pytest.fixture
def conflicts(waiting: Mount, mount: Mounter, s3, bucket: Bucket) -> dict[str, bytes]:
    """Two conflict copies of the mount `waiting`: what was written into them."""
    mount.expect_log("recover")
    bodies = {"dir/small": b"ours", "large": os.urandom(2 * MIB)}
    (waiting.path / "dir").mkdir()
    for key, body in bodies.items():
        descriptor = os.open(waiting.path / key, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, body)
        os.close(descriptor)
        s3.put_object(Bucket=bucket.name, Key=key, Body=b"theirs")
    wait_until(lambda: waiting.log.count("`s3mount recover` has") == 2)
    return bodies


def answer(arguments: list[str], environment, *answers: bytes) -> tuple[int, str]:
    """Run ``s3mount`` on a terminal, type *answers*, and return its exit code and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "s3mount", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
    )
    os.close(theirs)
    try:
        os.write(ours, b"".join(text + b"\n" for text in answers))
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(ours)
    return process.returncode, output.decode()


def test_conflict_copies_are_listed_with_size_age_and_reason(
    waiting: Mount, bucket: Bucket, state: Path, conflicts
):
    options = ["recover", bucket.name, "--state-dir", str(state)]
    lines = run_command(options, waiting.environment, 30).stdout.splitlines()
    found = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    assert set(found) == {f"{bucket.name}/{key}" for key in conflicts}
    size, age, reason = found[f"{bucket.name}/large"]
    assert (size, age[-4:]) == ("2.0 MiB", " ago")
    assert "large" in reason
    chosen = run_command([*options, f"{bucket.name}/dir"], waiting.environment, 30)
    assert chosen.stdout.startswith(f"{bucket.name}/dir/small\t")
    assert "large" not in chosen.stdout


def test_conflict_copies_are_exported_and_uploaded(
    waiting: Mount, s3, bucket: Bucket, state: Path, tmp_path: Path, conflicts
):
    options = ["recover", bucket.name, "--state-dir", str(state)]
    target = tmp_path / "exported"
    done = run_command([*options, "--export", str(target)], waiting.environment, 30)
    assert done.returncode == 0, done.stdout
    assert {key: (target / bucket.name / key).read_bytes() for key in conflicts} == conflicts
    again = run_command([*options, "--export", str(target)], waiting.environment, 30)
    assert again.returncode == 32  # Nothing is overwritten.
    done = run_command([*options, "--upload"], waiting.environment, 60)
    assert done.returncode == 0, done.stdout
    assert {key: body_of(s3, bucket, key) for key in conflicts} == conflicts
    assert "nothing is kept" in run_command(options, waiting.environment, 30).stdout


def test_conflict_copies_are_discarded_after_asking_twice(
    waiting: Mount, s3, bucket: Bucket, state: Path, conflicts
):
    options = ["recover", bucket.name, "--state-dir", str(state)]
    discard = [*options, "--discard"]
    assert run_command(discard, waiting.environment, 30).returncode == 1  # Nobody to be asked.
    for answers in ((b"no", b""), (b"y", b"2"), (b"yes", b"3"), (b"yes", b"")):
        code, output = answer(discard, waiting.environment, *answers)
        assert (code, "exist nowhere else" in output) == (1, True)
    assert len(run_command(options, waiting.environment, 30).stdout.splitlines()) == 2
    code, output = answer(discard, waiting.environment, b"yes", b"2")
    assert (code, output.count("discarded: ")) == (0, 2)
    assert "nothing is kept" in run_command(options, waiting.environment, 30).stdout
    assert {key: body_of(s3, bucket, key) for key in conflicts} == dict.fromkeys(
        conflicts, b"theirs"
    )
