"""How a mount ends while programs write, or while the store is away: checks 6, 7 and 8."""

import hashlib
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.conftest import keys_of
from tests.mounts import Bucket, Mount, Mounter, is_mounted, run_command

MIB = 1 << 20
SIZE = (2048 if os.environ.get("S3MOUNT_TEST_SLOW") else 200) * MIB
WRITEBACK = ("-o", "writeback")
SIGNALS = ("SIGTERM", "SIGINT twice")
ENDINGS = ("umount", "umount --lazy", *SIGNALS)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of the mounts of a test."""
    return tmp_path / "state"


def end(mount: Mount, how: str) -> None:
    """End a mount as people do, without waiting for it."""
    if how.startswith("umount"):
        subprocess.Popen(
            ["fusermount3", "-u", *(["-z"] if "lazy" in how else []), str(mount.path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).wait(60)
        return
    name, _, twice = how.partition(" ")
    os.kill(mount.process_id, signal.Signals[name])
    if twice:
        time.sleep(0.3)
        with suppress(ProcessLookupError):
            os.kill(mount.process_id, signal.Signals[name])


class Writer(threading.Thread):
    """Writes one large file, and remembers how that ended."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.begun = threading.Event()
        self.digest = ""
        self.failed = False

    def run(self) -> None:
        digest = hashlib.sha256()
        block = os.urandom(MIB)
        try:
            with self.path.open("wb", buffering=0) as file:
                for number in range(SIZE // MIB):
                    piece = number.to_bytes(8, "big") + block[8:]
                    file.write(piece)
                    digest.update(piece)
                    if number == SIZE // MIB // 2:
                        self.begun.set()
        except OSError:
            self.failed = True
        finally:
            self.begun.set()
        self.digest = digest.hexdigest()


def digest_of(s3, bucket: Bucket, key: str) -> str:
    digest = hashlib.sha256()
    for chunk in s3.get_object(Bucket=bucket.name, Key=key)["Body"].iter_chunks(MIB):
        digest.update(chunk)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("how", "options"), [*((how, WRITEBACK) for how in ENDINGS), *((how, ()) for how in SIGNALS)]
)
def test_an_end_in_the_middle_of_a_large_write(
    mount: Mounter, s3, bucket: Bucket, state: Path, how: str, options
):
    mount.expect_log("told to stop twice|not uploaded|files are still open", optional=True)
    mount.expect_log("of an earlier mount", optional=True)
    one = mount(bucket, *options, "--state-dir", str(state))
    one.may_fail = how == "SIGINT twice"
    writer = Writer(one.path / "file")
    writer.start()
    assert writer.begun.wait(60)
    end(one, how)
    writer.join(120)
    assert not writer.is_alive()
    if how == "umount":
        assert not writer.failed
        if is_mounted(one.path):  # It was busy, and told so.
            assert one.umount() == 0
    exit_code = one.wait(120)
    if not writer.failed:  # What was acknowledged is there, now or after the next mount.
        if exit_code != 0:
            assert mount(bucket, *options, "--state-dir", str(state)).umount() == 0
        assert digest_of(s3, bucket, "file") == writer.digest
    elif keys_of(bucket, s3) == []:
        kept = mount.run("recover", bucket.name, "--state-dir", str(state))
        assert f"{bucket.name}/file" in kept.stdout
    if how == "SIGTERM":
        assert (exit_code, writer.failed) == (0, False)


@pytest.mark.parametrize("how", ENDINGS)
def test_an_end_with_500_dirty_files(mount: Mounter, s3, bucket: Bucket, state: Path, how: str):
    mount.expect_log("told to stop twice|not uploaded|of an earlier mount", optional=True)
    one = mount(bucket, *WRITEBACK, "--state-dir", str(state))
    one.may_fail = how == "SIGINT twice"
    bodies = {f"file{number}": b"%d" % number * 1000 for number in range(500)}
    for name, body in bodies.items():
        (one.path / name).write_bytes(body)
    end(one, how)
    if one.wait(120) != 0:
        assert one.may_fail
        assert mount(bucket, "--state-dir", str(state)).umount() == 0
    found = {
        key: s3.get_object(Bucket=bucket.name, Key=key)["Body"].read()
        for key in keys_of(bucket, s3)
    }
    assert found == bodies
    assert not list(state.rglob("slot-*"))


@pytest.mark.parametrize("options", [(), WRITEBACK], ids=["durable", "writeback"])
def test_check_6_an_end_without_the_store_is_in_time_and_keeps_everything(
    mount: Mounter, proxy, s3, bucket: Bucket, state: Path, options
):
    mount.expect_log("file: not uploaded: ")
    mount.expect_log("not uploaded|could not be saved|: flush", optional=True)
    one = mount(
        bucket,
        *options,
        "-o",
        "timeout=3",
        "--shutdown-timeout",
        "6s",
        "--state-dir",
        str(state),
        url=proxy.url,
    )
    one.may_fail = True
    body = os.urandom(20 * MIB)
    file = os.open(one.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(file, body)
    proxy.down()
    with suppress(OSError):  # With writeback it is acknowledged.
        os.close(file)
    began = time.monotonic()
    assert one.terminate() != 0
    assert time.monotonic() - began < 30
    proxy.up()
    options = ["recover", bucket.name, "--state-dir", str(state)]
    listed = run_command(options, one.environment, 30)
    assert f"{bucket.name}/file\t20.0 MiB" in listed.stdout
    done = run_command([*options, "--upload"], one.environment, 60)
    assert done.returncode == 0, done.stdout
    assert digest_of(s3, bucket, "file") == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("how", ["--force", "--lazy"])
def test_an_unmounting_that_must_be_waits_for_no_store(
    mount: Mounter, proxy, bucket: Bucket, state: Path, how: str
):
    mount.expect_log("not uploaded|could not be saved", optional=True)
    mount.expect_log("of an earlier mount are uploaded now")
    options = ("-o", "writeback,hard", "--shutdown-timeout", "3s", "--state-dir", str(state))
    one = mount(bucket, *options, url=proxy.url)
    one.may_fail = True
    (one.path / "file").write_bytes(b"content")
    proxy.down()
    began = time.monotonic()
    run_command(["umount", how, str(one.path)], one.environment, 60)
    assert one.wait(60) != 0
    assert time.monotonic() - began < 40
    proxy.up()
    two = mount(bucket, "--state-dir", str(state), url=proxy.url)
    assert (two.path / "file").read_bytes() == b"content"
