"""kill -9 at any moment: what was acknowledged is there, and trees are whole."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from tests.crashload import Worker, planted, successors
from tests.faults import ACCESS_DENIED, Answer, Delay, Hang, Late, Point
from tests.mount.conftest import keys_of
from tests.mounts import Bucket, Mount, Mounter, abort_connection
from tests.server import await_orphaned_requests

MIB = 1 << 20
BUDGET = 25.0  # Seconds for the random crashes; `scripts/soak --crashes 200` takes longer.

WRITEBACK = ("-o", "writeback")


@pytest.fixture
def again(mount: Mounter, bucket: Bucket, tmp_path: Path) -> Callable[..., Mount]:
    """``again(*options)``: mount the bucket as the mount that has crashed."""
    mount.expect_log("of an earlier mount are uploaded now", optional=True)

    def start(*options: str, **how) -> Mount:
        return mount(bucket, *options, "--state-dir", str(tmp_path / "state"), name="one", **how)

    return start


def body_of(s3, bucket: Bucket, key: str) -> bytes:
    return s3.get_object(Bucket=bucket.name, Key=key)["Body"].read()


def uploads_of(s3, bucket: Bucket) -> list[str]:
    found = s3.list_multipart_uploads(Bucket=bucket.name).get("Uploads", ())
    return [one["Key"] for one in found]


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """A file that is being written: the daemon has its bytes, and nobody has closed it."""
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        # The kernel would keep them for half a minute.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield
        with suppress(OSError):
            file.close()


def requests_for(proxy, operation: str) -> int:
    """How many requests of this kind were made for the object ``file``."""
    return sum(
        one.operation == operation and one.request.path.endswith("/file") for one in proxy.log
    )


def wait_for(true: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def gives_a_notice(process_id: int) -> bool:
    """Whether a child of a daemon waits in the kernel for what no signal ends."""
    of_threads = Path(f"/proc/{process_id}/task").glob("*/children")
    children = [child for one in of_threads for child in one.read_text().split()]
    statuses = [one for child in children for one in Path(f"/proc/{child}/task").glob("*/stat")]
    return any(one.read_text().rpartition(")")[2].split()[0] == "D" for one in statuses)


@pytest.mark.parametrize("what", ["name", "bytes"])
def test_a_killed_daemon_is_gone_though_a_notice_waits(
    mount: Mounter, bucket: Bucket, proxy, s3, what: str
):
    """The kernel takes a notice when somebody has let go who waits for the daemon's answer."""
    for key in ("file", "other"):
        s3.put_object(Bucket=bucket.name, Key=key, Body=bytes(3 * MIB))
    operation, path, command = {
        "name": ("DeleteObject", "other", "rm"),
        "bytes": ("GetObject", "file", "cat"),
    }[what]
    one = mount(bucket, url=proxy.url)
    opened = os.open(one.path / path, os.O_RDONLY)
    try:
        proxy.inject(Hang(Point.REQUEST), operation=operation, path="/file$")
        waiting = [command, one.path / "file"]
        program = subprocess.Popen(waiting, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(lambda: requests_for(proxy, operation) >= 1)
        s3.delete_object(Bucket=bucket.name, Key="other")
        os.setxattr(opened, "user.s3mount.refresh", b"1")
        wait_for(lambda: gives_a_notice(one.process_id))
        try:
            one.kill()
        except TimeoutError:
            abort_connection(one.path)  # Else this very process would wait in close(2) for ever.
            raise
        _, complaint = program.communicate(timeout=10)
        assert program.returncode != 0, complaint
    finally:
        with suppress(OSError):
            os.close(opened)


@pytest.mark.parametrize("options", [(), WRITEBACK], ids=["durable", "writeback"])
def test_check_1_what_was_closed_survives(again, s3, bucket: Bucket, options):
    one = again(*options)
    body = os.urandom(3 * MIB)
    (one.path / "file").write_bytes(body)
    one.kill()
    two = again(*options)
    assert (two.path / "file").read_bytes() == body
    wait_for(lambda: keys_of(bucket, s3) == ["file"])
    assert body_of(s3, bucket, "file") == body


@pytest.mark.parametrize("options", [(), WRITEBACK], ids=["durable", "writeback"])
def test_check_2_what_was_synced_survives(again, s3, bucket: Bucket, options):
    one = again(*options)
    bodies = {}
    for number in range(200):
        body = os.urandom(Random(number).choice((0, 10, 5000, 100_000)))
        with (one.path / f"file{number}").open("wb") as file:
            file.write(body)
            os.fsync(file.fileno())
        bodies[f"file{number}"] = body
    one.kill()
    two = again(*options)
    assert {path.name: path.read_bytes() for path in two.path.iterdir()} == bodies
    assert two.umount() == 0
    assert {key: body_of(s3, bucket, key) for key in keys_of(bucket, s3)} == bodies


@pytest.mark.parametrize("options", [(), WRITEBACK], ids=["durable", "writeback"])
def test_check_3_an_overwritten_file_is_the_old_or_the_new(again, s3, bucket: Bucket, options):
    old, new = os.urandom(12 * MIB), os.urandom(12 * MIB)
    s3.put_object(Bucket=bucket.name, Key="file", Body=old)
    one = again(*options)
    for part in range(3):
        with (one.path / "file").open("r+b") as file:
            file.write(new[: (2 + part) * MIB])
            os.kill(one.process_id, signal.SIGKILL)
            with suppress(OSError):
                file.close()
        one.kill()
        one = again(*options)
        assert (one.path / "file").read_bytes() == old
    (one.path / "file").write_bytes(new)
    one.kill()
    assert (again(*options).path / "file").read_bytes() == new


@pytest.mark.parametrize("options", [(), WRITEBACK], ids=["durable", "writeback"])
def test_check_4_uploads_that_nobody_will_complete_are_aborted(again, s3, bucket: Bucket, options):
    theirs = s3.create_multipart_upload(Bucket=bucket.name, Key="theirs")
    one = again("--part-size", "5M", "-o", "writeback_limit=1M", *options)
    with writing(one.path / "file", 40 * MIB):
        wait_for(lambda: "file" in uploads_of(s3, bucket))
        os.kill(one.process_id, signal.SIGKILL)
    one.kill()
    again(*options)
    # Ten seconds, if the daemon was killed before it heard of its upload.
    wait_for(lambda: uploads_of(s3, bucket) == ["theirs"], 40)
    assert keys_of(bucket, s3) == []
    s3.abort_multipart_upload(Bucket=bucket.name, Key="theirs", UploadId=theirs["UploadId"])


def test_check_4_an_upload_that_only_the_store_knows_is_aborted(
    again, s3, bucket: Bucket, proxy, tmp_path: Path
):
    where = {"Bucket": bucket.name, "Key": "file"}
    theirs = s3.create_multipart_upload(**where)["UploadId"]
    s3.upload_part(**where, UploadId=theirs, PartNumber=1, Body=b"in use")
    hang = proxy.inject(Hang(Point.ANSWER), operation="CreateMultipartUpload", path="/file$")
    one = again("--part-size", "5M", url=proxy.url)
    with writing(one.path / "file", 40 * MIB):
        wait_for(lambda: hang.hits > 0 and len(uploads_of(s3, bucket)) == 2)
        os.kill(one.process_id, signal.SIGKILL)
    one.kill()
    proxy.clear()
    two = again(url=proxy.url)
    wait_for(lambda: len(uploads_of(s3, bucket)) == 1, 40)
    assert s3.list_parts(**where, UploadId=theirs)["Parts"]
    assert two.umount() == 0
    assert not list(tmp_path.rglob("slot-*"))
    s3.abort_multipart_upload(**where, UploadId=theirs)


def test_an_upload_in_parts_is_resumed(again, s3, bucket: Bucket, proxy):
    options = (*WRITEBACK, "--part-size", "5M")
    body = os.urandom(52 * MIB)
    proxy.inject(Hang(Point.REQUEST), operation="UploadPart", path="/file$", skip=5)
    one = again(*options, url=proxy.url)
    (one.path / "file").write_bytes(body)
    wait_for(lambda: requests_for(proxy, "UploadPart") >= 6)
    time.sleep(0.5)
    one.kill()
    proxy.clear()
    proxy.forget()
    two = again(*options, url=proxy.url)
    assert (two.path / "file").read_bytes() == body
    wait_for(lambda: keys_of(bucket, s3) == ["file"], 40)
    assert body_of(s3, bucket, "file") == body
    assert 1 <= requests_for(proxy, "UploadPart") < 10
    assert requests_for(proxy, "CreateMultipartUpload") == 0
    assert uploads_of(s3, bucket) == []
    assert two.umount() == 0


def test_check_30_a_damaged_staged_file_is_not_uploaded(
    again, mount: Mounter, s3, bucket: Bucket, tmp_path: Path
):
    one = again(*WRITEBACK)
    (one.path / "good").write_bytes(b"g" * 3 * MIB)
    (one.path / "bad").write_bytes(b"b" * 3 * MIB)
    one.kill()
    damaged = 0
    for staged in (tmp_path / "state").rglob("staged/*"):
        body = bytearray(staged.read_bytes())
        if body[0] == ord("b"):
            body[2 * MIB + 17] ^= 1
            staged.write_bytes(body)
            damaged += 1
    assert damaged == 1
    mount.expect_log("bad: staged bytes .* are damaged")
    two = again(*WRITEBACK)
    wait_for(lambda: "good" in keys_of(bucket, s3))
    wait_for(lambda: "bad: staged bytes" in two.log)
    assert two.umount() == 0
    assert keys_of(bucket, s3) == ["good"]
    listed = mount.run("recover", bucket.name, "--state-dir", str(tmp_path / "state"))
    assert f"{bucket.name}/bad" in listed.stdout
    assert "damaged" in listed.stdout


def test_what_is_in_the_store_already_is_not_sent_again(again, s3, bucket: Bucket, proxy):
    one = again(*WRITEBACK, url=proxy.url)
    (one.path / "file").write_bytes(b"content")
    # The store has it, and the daemon dies before it hears so.
    hang = proxy.inject(Hang(Point.ANSWER), operation="PutObject", path="/file$")
    wait_for(lambda: hang.hits > 0 and keys_of(bucket, s3) == ["file"])
    one.kill()
    proxy.clear()
    proxy.forget()
    two = again(*WRITEBACK, url=proxy.url)
    assert (two.path / "file").read_bytes() == b"content"
    assert two.umount() == 0
    assert requests_for(proxy, "PutObject") == 0


def test_a_durable_mount_finishes_what_writeback_began(again, s3, bucket: Bucket):
    one = again(*WRITEBACK)
    (one.path / "file").write_bytes(b"content")
    one.kill()
    two = again()
    assert (two.path / "file").read_bytes() == b"content"
    assert two.umount() == 0
    assert body_of(s3, bucket, "file") == b"content"


@pytest.mark.parametrize("moment", ["copying", "deleting"])
def test_a_renamed_directory_is_whole_under_one_name(
    again, mount: Mounter, s3, bucket: Bucket, proxy, moment: str
):
    mount.expect_log("its renaming to new/ is brought to its end", optional=True)
    names = [f"{number}" for number in range(40)] + ["sub/a", "sub/b"]
    for name in names:
        s3.put_object(Bucket=bucket.name, Key=f"old/{name}", Body=name.encode())
    one = again(url=proxy.url)
    operation = "CopyObject" if moment == "copying" else "DeleteObjects"
    hang = proxy.inject(
        Hang(Point.REQUEST), operation=operation, skip=20 if moment == "copying" else 0
    )

    def rename() -> None:
        with suppress(OSError):
            (one.path / "old").rename(one.path / "new")

    renaming = threading.Thread(target=rename)
    renaming.start()
    wait_for(lambda: hang.hits > 0)
    one.kill()
    renaming.join()
    proxy.clear()
    two = again(url=proxy.url)
    assert [path.name for path in two.path.iterdir()] == ["new"]
    for name in names:
        assert (two.path / "new" / name).read_text() == name
    assert not [key for key in keys_of(bucket, s3) if key.startswith("old/")]


def test_a_renaming_whose_deletions_fail_is_finished_by_the_same_daemon(
    again, mount: Mounter, s3, bucket: Bucket, proxy, tmp_path: Path
):
    mount.expect_log("old/: renamed, and not all of it is deleted yet")
    mount.expect_log("rename new -> old: ")
    for number in range(20):
        s3.put_object(Bucket=bucket.name, Key=f"old/{number}", Body=b"%d" % number)
    one = again("-o", "timeout=2", url=proxy.url)
    proxy.inject(Answer(503, "SlowDown"), operation="DeleteObjects")
    (one.path / "old").rename(one.path / "new")
    assert len(list((one.path / "new").iterdir())) == 20
    with pytest.raises(
        OSError, match="Input/output error"
    ):  # Or the deletion that is still to come would remove it.
        (one.path / "new").rename(one.path / "old")
    proxy.clear()
    wait_for(lambda: all(key.startswith("new/") for key in keys_of(bucket, s3)), 60)
    (one.path / "new").rename(one.path / "old")
    for number in range(20):
        assert (one.path / "old" / f"{number}").read_text() == f"{number}"
    assert one.umount() == 0
    assert not list(tmp_path.rglob("slot-*"))


def test_a_renaming_whose_deletions_are_refused_leaves_both_trees_for_good(
    again, mount: Mounter, s3, bucket: Bucket, proxy
):
    """Neither this daemon nor the next one removes what a program was told is there."""
    mount.expect_log("rename old -> new: .*AccessDenied")
    for number in range(20):
        s3.put_object(Bucket=bucket.name, Key=f"old/{number}", Body=b"%d" % number)
    one = again(url=proxy.url)
    proxy.inject(ACCESS_DENIED, operation="DeleteObjects")
    with pytest.raises(PermissionError):
        (one.path / "old").rename(one.path / "new")
    proxy.clear()
    time.sleep(2.5)  # What is to follow later is tried after a second.
    one.kill()
    two = again(url=proxy.url)
    for number in range(20):
        assert (two.path / "old" / f"{number}").read_text() == f"{number}"
        assert (two.path / "new" / f"{number}").read_text() == f"{number}"


def test_a_renaming_that_has_failed_is_not_made_after_a_crash(
    again, mount: Mounter, s3, bucket: Bucket, proxy
):
    mount.expect_log("its renaming to new/ is undone")
    mount.expect_log("rename old -> new: ", optional=True)
    for number in range(20):
        s3.put_object(Bucket=bucket.name, Key=f"old/{number}", Body=b"%d" % number)
    one = again(url=proxy.url)
    proxy.inject(Answer(403, "AccessDenied"), operation="CopyObject", skip=15)
    hang = proxy.inject(Hang(Point.REQUEST), operation="DeleteObjects")

    def rename() -> None:
        with suppress(OSError):
            (one.path / "old").rename(one.path / "new")

    renaming = threading.Thread(target=rename)
    renaming.start()
    wait_for(lambda: hang.hits > 0)
    one.kill()
    renaming.join()
    proxy.clear()
    two = again(url=proxy.url)
    assert [path.name for path in two.path.iterdir()] == ["old"]
    assert len(list((two.path / "old").iterdir())) == 20
    assert not [key for key in keys_of(bucket, s3) if key.startswith("new/")]


def test_a_file_that_is_closed_while_its_directory_is_renamed_is_under_the_new_name(
    again, s3, bucket: Bucket, proxy
):
    s3.put_object(Bucket=bucket.name, Key="old/there", Body=b"there")
    one = again(*WRITEBACK, url=proxy.url)
    directory = os.open(one.path / "old", os.O_RDONLY | os.O_DIRECTORY)
    delay = proxy.inject(Delay(1.0), operation="CopyObject")
    renaming = threading.Thread(target=(one.path / "old").rename, args=(one.path / "new",))
    renaming.start()
    wait_for(lambda: delay.hits > 0)
    file = os.open("late", os.O_WRONLY | os.O_CREAT, dir_fd=directory)
    os.write(file, b"late")
    os.close(file)
    renaming.join()
    os.close(directory)
    proxy.down()  # Nothing is uploaded from here on.
    one.kill()
    proxy.clear()
    proxy.up()
    two = again(*WRITEBACK, url=proxy.url)
    assert (two.path / "new" / "late").read_bytes() == b"late"
    assert two.umount() == 0
    assert body_of(s3, bucket, "new/late") == b"late"


def test_what_is_changed_before_the_store_was_asked_is_not_taken_for_old(
    again, s3, bucket: Bucket, proxy
):
    one = again(*WRITEBACK, url=proxy.url)
    for name in ("renamed", "removed", "longer"):
        (one.path / name).write_bytes(b"content")
    # The store has them, and the daemon dies before it hears so.
    paths = "/(renamed|removed|longer)$"
    hang = proxy.inject(Hang(Point.ANSWER), operation="PutObject", path=paths)
    wait_for(lambda: hang.hits >= 3 and len(keys_of(bucket, s3)) == 3)
    one.kill()
    proxy.clear()
    proxy.inject(Delay(2.0), operation="HeadObject", path=paths)
    two = again(*WRITEBACK, url=proxy.url)
    (two.path / "renamed").rename(two.path / "new")
    (two.path / "removed").unlink()
    with (two.path / "longer").open("ab") as file:
        file.write(b" and more")
    time.sleep(2.5)
    assert (two.path / "longer").read_bytes() == b"content and more"
    assert two.umount() == 0
    found = {key: body_of(s3, bucket, key) for key in keys_of(bucket, s3)}
    assert found == {"new": b"content", "longer": b"content and more"}


def test_an_older_version_does_not_come_back(again, s3, bucket: Bucket, proxy):
    """What the journal had of a file is gone from the disk before its next version is safe."""
    for number in range(5):
        one = again(*WRITEBACK, url=proxy.url)
        proxy.inject(Delay(5.0), operation="PutObject", path="/file$")
        (one.path / "file").write_bytes(b"old")
        one.kill()
        proxy.clear()
        two = again(url=proxy.url)
        (two.path / "file").write_bytes(b"new %d" % number)
        os.kill(two.process_id, signal.SIGKILL)
        two.kill()
        three = again(url=proxy.url)
        assert (three.path / "file").read_bytes() == b"new %d" % number
        assert three.umount() == 0
        assert body_of(s3, bucket, "file") == b"new %d" % number


@pytest.mark.parametrize(
    ("operation", "size"), [("PutObject", 100), ("CompleteMultipartUpload", 20 * MIB)]
)
def test_what_the_dead_daemon_had_sent_arrives_while_the_next_one_uploads_the_same(
    again, s3, bucket: Bucket, proxy, operation: str, size: int
):
    """That is no conflict with somebody else: not one byte of it has to be recovered by hand."""
    body = Random(9).randbytes(size)
    one = again(*WRITEBACK, "--part-size", "5M", url=proxy.url)
    sent = proxy.inject(Late(), operation=operation, path="/file$")
    (one.path / "file").write_bytes(body)
    wait_for(lambda: sent.hits > 0)
    one.kill()
    proxy.clear()
    slow = proxy.inject(Delay(1.0), operation=operation, path="/file$", count=1)
    two = again(*WRITEBACK, "--part-size", "5M", url=proxy.url)
    wait_for(lambda: slow.hits == 1)  # It has looked what is there, and sends it.
    assert proxy.deliver_late()[0] == 200
    assert two.umount() == 0
    assert body_of(s3, bucket, "file") == body


def renamed_until_the_deletion(one: Mount, proxy, when: Point) -> None:
    """Rename ``old`` to ``new``, and kill the daemon while it deletes the object ``old``."""

    def rename() -> None:
        with suppress(OSError):
            (one.path / "old").rename(one.path / "new")

    deletion = proxy.inject(Hang(when), operation="DeleteObject", path="/old$")
    thread = threading.Thread(target=rename)
    thread.start()
    wait_for(lambda: deletion.hits == 1)
    os.kill(one.process_id, signal.SIGKILL)
    one.kill()
    thread.join()
    proxy.clear()


@pytest.mark.parametrize("when", [Point.REQUEST, Point.ANSWER])
def test_a_change_does_not_come_undone_under_the_old_name(again, s3, bucket: Bucket, proxy, when):
    """A changed file that waits to be uploaded is renamed: put there, and then deleted here."""
    s3.put_object(Bucket=bucket.name, Key="old", Body=b"before")
    one = again(*WRITEBACK, url=proxy.url)
    (one.path / "old").write_bytes(b"after")
    renamed_until_the_deletion(one, proxy, when)
    two = again(*WRITEBACK, url=proxy.url)
    found = {path.name: path.read_bytes() for path in two.path.iterdir()}
    assert found == {"new": b"after"}
    assert two.umount() == 0
    assert keys_of(bucket, s3) == ["new"]


def test_what_somebody_writes_under_an_old_name_after_a_crash_stays(
    again, s3, bucket: Bucket, proxy
):
    s3.put_object(Bucket=bucket.name, Key="old", Body=b"before")
    one = again(*WRITEBACK, url=proxy.url)
    (one.path / "old").write_bytes(b"after")
    renamed_until_the_deletion(one, proxy, Point.REQUEST)
    s3.put_object(Bucket=bucket.name, Key="old", Body=b"of somebody else")
    two = again(*WRITEBACK, url=proxy.url)
    found = {path.name: path.read_bytes() for path in two.path.iterdir()}
    assert found == {"new": b"after", "old": b"of somebody else"}
    assert two.umount() == 0


def test_random_crashes_lose_nothing(again, mount: Mounter, s3, bucket: Bucket):
    mount.expect_log("its renaming to .* is (undone|brought to its end)", optional=True)
    random = Random(7)
    deadline = time.monotonic() + BUDGET
    workers: list[Worker] = []
    steps = crashes = 0
    while time.monotonic() < deadline:
        one = again(*(WRITEBACK if crashes % 3 else ()))
        assert not [wrong for worker in workers for wrong in worker.complaints(one.path)]
        workers = successors(workers, one.path, crashes) or planted(one.path)
        for worker in workers:
            worker.start()
        time.sleep(random.uniform(0.1, 2.0))
        one.kill()
        await_orphaned_requests(bucket.url)
        for worker in workers:
            worker.join()
        steps += sum(worker.steps for worker in workers)
        crashes += 1
    assert again(*WRITEBACK).umount() == 0
    two = again()
    assert not [wrong for worker in workers for wrong in worker.complaints(two.path)]
    assert two.umount() == 0
    assert crashes >= 3
    assert steps > 100
    assert uploads_of(s3, bucket) == []
