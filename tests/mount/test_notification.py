"""Changes by others are seen at once where the store tells of them, and never outlive a gap.

Names would count for an hour in all of these mounts: what is seen earlier was told.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import boto3
import pytest

from s3mount.cli.statustext import describe
from s3mount.controlclient import Connection, find_socket
from s3mount.demo.weed import REGION
from tests.mount.conftest import Shared
from tests.mount.trees import names as names_in
from tests.mounts import Bucket, Mount, Mounter
from tests.servers import Server

# How often one mount replaces a file that the other one reads: 1000 shows it for certain.
ROUNDS = int(os.environ.get("NOTIFICATION_ROUNDS", "100"))
PATIENT = ("--metadata-ttl", "1h", "--negative-ttl", "1h")
TOLD = 15.0  # Seconds for what takes milliseconds, on a machine that does other things.
AT_ONCE = 0.1  # Seconds from a close to the first read of what was closed.
LATE = ROUNDS // 50  # How often other programs may have had the processor meanwhile.
# It goes there itself: between fork and exec our threads stand still, and the proxy is one.
WORKING = """if True:
    import os, sys
    os.chdir(sys.argv[1])
    print("there", flush=True)
    sys.stdin.readline()
    print(os.getcwd(), os.listdir("."))
"""


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    options = ("--notify", "auto", *PATIENT)
    with sharing(*options, mounts=2, server="rustfs", proxied=True) as shared:
        for mount in shared.mounts:
            listening(mount)
        yield shared


@pytest.fixture
def here(shared: Shared) -> Path:
    """A directory in the first mount that both know."""
    path = shared.root / f"d-{secrets.token_hex(4)}"
    path.mkdir()
    eventually(lambda: (shared.mounts[1].path / path.name).is_dir())
    return path


@pytest.fixture
def there(shared: Shared, here: Path) -> Path:
    """The same directory in the second mount."""
    return shared.mounts[1].path / here.name


def status(mount: Mount) -> dict:
    """What a daemon says of itself; a process that asks for it takes a second."""
    where = {"XDG_RUNTIME_DIR": mount.environment["XDG_RUNTIME_DIR"]}
    with patch.dict(os.environ, where):
        socket = find_socket(mount.path, os.geteuid())
    assert socket is not None
    with Connection(socket, timeout=30) as connection:
        found = connection.ask("status", timeout=30)
    assert isinstance(found, dict)
    return found


def listening(mount: Mount, gaps: int = 0) -> None:
    """Wait until a mount hears of changes, after at least so many *gaps*."""

    def is_listening() -> bool:
        notify = status(mount)["notify"]
        return notify["state"] == "listening" and notify["gaps"] >= gaps

    eventually(is_listening)


def eventually(condition: Callable[[], bool], seconds: float = TOLD) -> None:
    """Wait until *condition* returns true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.002)


def content(path: Path) -> bytes | None:
    """What a file holds, None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def requests_of(mount: Mount) -> Counter[str]:
    """The requests that a mount has made so far, by their kind."""
    return Counter(status(mount)["requests"]["requests"])


def events_settled(mount: Mount, count: int) -> None:
    """Wait until a mount has heard *count* events more than nothing, its own ones included."""

    def heard() -> bool:
        notify = status(mount)["notify"]
        return notify["own"] + notify["events"] >= count

    eventually(heard)


def test_a_file_that_one_mount_replaces_is_read_new_on_the_other_at_once(
    shared: Shared, here: Path, there: Path, record_property: Callable[[str, object], None]
):
    (here / "file").write_bytes(b"first")
    eventually(lambda: content(there / "file") == b"first")
    before, delays, stale = requests_of(shared.mounts[1]), [], 0
    for number in range(ROUNDS):
        new = f"version {number} ".encode() * (1 + number % 7)
        (here / "file").write_bytes(new)
        closed = time.monotonic()
        eventually(lambda new=new: content(there / "file") == new)
        delays.append(time.monotonic() - closed)
        for _ in range(3):
            stale += (there / "file").read_bytes() != new
            stale += (there / "file").stat().st_size != len(new)
    made = requests_of(shared.mounts[1]) - before
    delays.sort()
    told = {"median": delays[len(delays) // 2], "worst": delays[-1]}
    record_property("seconds until a replaced file is read new", str(told))
    print(f"{ROUNDS} replacements, seconds until they are read:", told, dict(made))
    assert sum(delay > AT_ONCE for delay in delays) <= LATE, told
    assert stale == 0, "what was seen new once stays so"
    assert made["HeadObject"] + made["ListObjectsV2"] <= 2 + ROUNDS // 20, "nobody polls"
    assert made["GetObject"] <= 2 + ROUNDS * 1.2


def test_names_come_and_go_with_what_others_do(shared: Shared, here: Path, there: Path):
    names = ["plain", "sp ace+%41 ü&=?", "new\u2028line", "UP_$x"]
    assert list(there.iterdir()) == []
    for name in names:
        assert not (there / name).exists()
        shared.put(here / name, b"1")
        eventually((there / name).exists)
        eventually(lambda name=name: name in names_in(there))
        shared.put(here / name, b"22")
        eventually(lambda name=name: (there / name).stat().st_size == 2)
        shared.delete(here / name)
        eventually(lambda name=name: not (there / name).exists())
        eventually(lambda name=name: name not in names_in(there))
        (there / name).touch(exist_ok=False)


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "%s3esc:x"])
def test_names_that_the_store_keeps_in_another_way_come_and_go(
    shared: Shared, here: Path, there: Path, name: str
):
    """RustFS takes no newline: its events tell of the key by which it knows the file."""
    assert not (there / name).exists()
    (here / name).write_bytes(b"1")
    eventually(lambda: content(there / name) == b"1")
    before = status(shared.mounts[0])["notify"]["events"]
    (here / name).write_bytes(b"22")
    eventually(lambda: content(there / name) == b"22")
    assert status(shared.mounts[0])["notify"]["events"] == before, "it was our own"
    (here / name).unlink()
    eventually(lambda: name not in names_in(there))
    assert not (there / name).exists()


def test_directories_come_and_go_with_what_others_do(shared: Shared, here: Path, there: Path):
    assert not (there / "a").exists()
    shared.put(here / "a" / "b" / "c", b"deep")
    eventually(lambda: content(there / "a" / "b" / "c") == b"deep")
    assert names_in(there) == ["a"]
    shared.delete(here / "a" / "b" / "c")
    eventually(lambda: not (there / "a" / "b" / "c").exists())
    (here / "made").mkdir()
    eventually((there / "made").is_dir)
    (here / "made").chmod(0o700)
    os.sync()
    eventually(lambda: (there / "made").stat().st_mode & 0o777 == 0o700)
    (here / "made").rmdir()
    eventually(lambda: not (there / "made").exists())
    (there / "made").mkdir()


def test_a_rename_and_a_multipart_upload_are_seen(shared: Shared, here: Path, there: Path):
    large = os.urandom(1 << 20) * 17
    (here / "old").write_bytes(large)
    eventually(lambda: content(there / "old") == large)
    (here / "old").rename(here / "new")
    eventually(lambda: not (there / "old").exists())
    eventually(lambda: content(there / "new") == large)


def test_attributes_that_another_changes_are_seen(here: Path, there: Path):
    (here / "file").write_bytes(b"the same bytes")
    eventually(lambda: content(there / "file") == b"the same bytes")
    number = (there / "file").stat().st_ino
    (here / "file").chmod(0o640)
    eventually(lambda: (there / "file").stat().st_mode & 0o777 == 0o640)
    assert (there / "file").stat().st_ino == number, "it is the same version"


def test_our_own_writes_do_not_make_us_ask_again(shared: Shared, here: Path):
    count = 30
    first = status(shared.mounts[0])["notify"]
    for number in range(count):
        (here / f"f{number}").write_bytes(b"x")
    (here / "f0").unlink()
    (here / "f1").rename(here / "g1")
    events_settled(shared.mounts[0], first["own"] + first["events"] + count + 3)
    second = status(shared.mounts[0])["notify"]
    assert second["events"] == first["events"], "none of them was another's"
    before = requests_of(shared.mounts[0])
    for number in range(2, count):
        assert (here / f"f{number}").stat().st_size == 1
    assert not (here / "f0").exists()
    assert (here / "g1").exists()
    assert requests_of(shared.mounts[0]) == before


def test_who_reads_keeps_the_version_that_was_opened(shared: Shared, here: Path, there: Path):
    old, new = b"old " * 1000, b"new " * 1000
    (here / "file").write_bytes(old)
    eventually(lambda: content(there / "file") == old)
    with (there / "file").open("rb", buffering=0) as reader:
        assert reader.read(4) == b"old "
        (here / "file").write_bytes(new)
        eventually(lambda: content(there / "file") == new)
        assert reader.read(100_000) == old[4:]
        assert os.fstat(reader.fileno()).st_size == len(old)


def test_what_is_not_saved_yet_is_not_harmed(here: Path, there: Path):
    (here / "file").write_bytes(b"before")
    eventually(lambda: content(there / "file") == b"before")
    with (there / "file").open("wb", buffering=0) as writer:
        writer.write(b"ours, ")
        (here / "other").write_bytes(b"1")
        (here / "file").write_bytes(b"theirs")
        eventually(lambda: content(there / "other") == b"1")
        writer.write(b"whole")
        assert (there / "file").read_bytes() == b"ours, whole"
    assert (there / "file").read_bytes() == b"ours, whole"
    eventually(lambda: content(here / "file") == b"ours, whole")


def test_two_that_write_in_turns_see_each_other(here: Path, there: Path):
    for number in range(20):
        writer, reader = (here, there) if number % 2 else (there, here)
        new = b"%d" % number
        (writer / "ball").write_bytes(new)
        eventually(lambda reader=reader, new=new: content(reader / "ball") == new)


def test_nothing_stale_outlives_the_reconnect_after_a_cut(shared: Shared, here: Path, there: Path):
    proxy, count = shared.proxy, 40
    assert proxy is not None
    for number in range(count):
        (here / f"f{number}").write_bytes(b"old")
    shared.put(here / "gone" / "file", b"old")
    (here / "stays").mkdir()
    eventually(lambda: len(names_in(there)) == count + 2)
    for number in range(count):
        assert (there / f"f{number}").read_bytes() == b"old"
    assert (there / "gone" / "file").read_bytes() == b"old"
    assert not (there / "new").exists()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKING, str(there / "stays")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "there\n"
    gaps = [status(mount)["notify"]["gaps"] for mount in shared.mounts]
    proxy.down()
    try:
        for number in range(0, count, 2):
            shared.put(here / f"f{number}", b"newer")
        shared.delete(here / "f1")
        shared.delete(here / "gone" / "file")
        shared.put(here / "new", b"new")
    finally:
        proxy.up()
    for mount, before in zip(shared.mounts, gaps, strict=True):
        listening(mount, before + 1)
    left = {f"f{number}" for number in range(2, count)}
    for where in (there, here):
        assert (where / "new").read_bytes() == b"new"
        assert not (where / "f1").exists()
        assert not (where / "gone" / "file").exists()
        for number in (0, *range(2, count)):
            expected = b"old" if number % 2 else b"newer"
            assert (where / f"f{number}").stat().st_size == len(expected)
            assert (where / f"f{number}").read_bytes() == expected
        assert set(names_in(where)) == {"new", "stays", "f0", *left}
    (there / "f1").touch(exist_ok=False)
    with worker:
        told, _ = worker.communicate("\n", timeout=60)
    assert told.strip() == f"{there / 'stays'} []", "nobody has lost the ground under the feet"
    text = describe(status(shared.mounts[1]), time.time())
    assert "listen, listening for" in text
    assert "the last one" in text


def test_who_does_not_listen_goes_on_seeing_the_old(shared: Shared, here: Path):
    """So that the tests above say something: nothing else would have told within the hour."""
    deaf = shared.mounter(shared.bucket, "--notify", "off", *PATIENT, name="deaf")
    assert status(deaf)["notify"]["state"] == "off"
    path = deaf.path / here.name / "file"
    (here / "file").write_bytes(b"old")
    assert path.read_bytes() == b"old"
    assert not (path.parent / "later").exists()
    (here / "file").write_bytes(b"new, and longer")
    (here / "later").write_bytes(b"x")
    eventually(lambda: content(shared.mounts[1].path / here.name / "later") == b"x")
    time.sleep(10 * AT_ONCE)
    assert path.stat().st_size == len(b"old")
    assert not (path.parent / "later").exists()
    assert "ListenNotification" not in requests_of(deaf)
    assert "ListenNotification" in requests_of(shared.mounts[1])
    assert deaf.umount() == 0


# -- other stores ------------------------------------------------------------------------------


def test_a_store_that_does_not_tell_is_asked_once_and_mounted_as_ever(
    mount: Mounter, weed: Server, make_bucket: Callable[[Server], Bucket]
):
    mounted = mount(make_bucket(weed))
    eventually(lambda: status(mounted)["notify"]["state"] == "off")
    notify = status(mounted)["notify"]
    assert "ListenNotification: " in notify["error"]
    (mounted.path / "file").write_bytes(b"x")
    assert (mounted.path / "file").read_bytes() == b"x"


def test_who_asks_for_what_a_store_cannot_do_is_told(
    mount: Mounter, weed: Server, make_bucket: Callable[[Server], Bucket]
):
    mount.expect_log("changes by others are not heard of: ListenNotification: ")
    mounted = mount(make_bucket(weed), "--notify", "listen")
    eventually(lambda: status(mounted)["notify"]["error"])


def test_minio_is_listened_to_where_it_says_anything(
    mount: Mounter, minio: Server, make_bucket: Callable[[Server], Bucket]
):
    """Releases since October 2025 keep what they have to say until it is 4 KiB."""
    bucket = make_bucket(minio)
    mounted = mount(bucket, "--metadata-ttl", "2s", "--negative-ttl", "1s")
    client = minio.client()
    for number in range(3):
        client.put_object(Bucket=bucket.name, Key="file", Body=b"%d" % number)
        eventually(lambda n=number: content(mounted.path / "file") == b"%d" % n)
    assert status(mounted)["notify"]["state"] in ("connecting", "listening", "off")


def test_a_queue_tells_of_changes(
    mount: Mounter, moto: Server, make_bucket: Callable[[Server], Bucket]
):
    bucket = make_bucket(moto)
    queues = boto3.client(
        "sqs",
        endpoint_url=moto.url,
        region_name=REGION,
        aws_access_key_id=moto.credentials.access_key,
        aws_secret_access_key=moto.credentials.secret_key,
    )
    with contextlib.closing(queues):
        url = queues.create_queue(QueueName=bucket.name)["QueueUrl"]
        arn = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        wanted = {
            "QueueArn": arn["Attributes"]["QueueArn"],
            "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        }
        client = moto.client()
        client.put_bucket_notification_configuration(
            Bucket=bucket.name, NotificationConfiguration={"QueueConfigurations": [wanted]}
        )
        mounted = mount(bucket, "--notify", f"sqs:{url}", *PATIENT)
        eventually(lambda: status(mounted)["notify"]["state"] == "listening")
        assert names_in(mounted.path) == []
        client.put_object(Bucket=bucket.name, Key="a b", Body=b"new")
        eventually(lambda: names_in(mounted.path) == ["a b"])

        def removal(key: str) -> str:
            about = {"bucket": {"name": bucket.name}, "object": {"key": key}}
            return json.dumps({"Records": [{"eventName": "ObjectRemoved:Delete", "s3": about}]})

        client.put_bucket_notification_configuration(
            Bucket=bucket.name, NotificationConfiguration={}
        )
        client.delete_object(Bucket=bucket.name, Key="a b")
        queues.send_message(QueueUrl=url, MessageBody="no JSON")
        queues.send_message(QueueUrl=url, MessageBody=removal("\ud800"))
        inner = {"Type": "Notification", "Message": removal("a+b")}
        queues.send_message(QueueUrl=url, MessageBody=json.dumps(inner))
        eventually(lambda: names_in(mounted.path) == [])

        def is_empty() -> bool:
            names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
            found = queues.get_queue_attributes(QueueUrl=url, AttributeNames=names)
            return {int(one) for one in found["Attributes"].values()} == {0}

        eventually(is_empty)
        assert status(mounted)["notify"]["malformed"] == 2
