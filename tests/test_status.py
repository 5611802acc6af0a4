"""``s3mount status`` tells the truth of real mounts, in words, in JSON and in a live view."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount import prices
from s3mount.cli.status import gather
from s3mount.cli.statustext import describe, describe_duration, describe_time
from s3mount.metrics import Operation
from tests.faultproxy import FaultProxy
from tests.faults import Answer, Throttle
from tests.mounts import Bucket, Mount, Mounter, detach, is_mounted
from tests.terminal import watched

MIB = 1 << 20
PATIENCE = 60.0


# -- counting ----------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_percentile_is_right_within_half_an_octave(times, share):
    operation = Operation()
    for seconds in times:
        operation.took(seconds)
    exact = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    assert exact / 1.42 - 1e-6 <= operation.percentile(share) <= exact * 1.42 + 1e-6


def test_what_was_answered_at_once_counts_as_no_time():
    operation = Operation()
    operation.count += 98
    operation.took(1.0)
    operation.took(1.0)
    assert operation.percentile(0.5) == 0.0
    assert 0.7 <= operation.percentile(0.99) <= 1.42
    assert Operation().percentile(0.5) == 0.0


def test_requests_cost_what_aws_takes_for_them():
    counted = {"PutObject": 1000, "ListObjectsV2": 1000, "GetObject": 10_000, "DeleteObject": 10**6}
    assert prices.dollars(counted) == pytest.approx(0.005 + 0.005 + 0.004)


def test_times_are_told_with_units():
    told = [describe_time(seconds) for seconds in (-0.01, 0, 119, 120, 7200, 400_000)]
    assert told == ["0 s", "0 s", "119 s", "2 min", "2 h", "5 d"]
    assert [describe_duration(s) for s in (0.00025, 0.05, 1.5)] == ["0.25 ms", "50 ms", "1.5 s"]


# -- real mounts -------------------------------------------------------------------------------


def status_of(mount: Mounter, mounted: Mount) -> dict:
    done = mount.run("status", "--json", str(mounted.path))
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(done.stdout)["mounts"]
    return found


def test_status_tells_what_a_mount_has_done(mount: Mounter, bucket: Bucket, server):
    mount.expect_log("AccessDenied")
    with FaultProxy(server.url) as proxy:
        mounted = mount(bucket, url=proxy.url, name="told")
        (mounted.path / "a").write_bytes(b"x" * 100_000)
        with (mounted.path / "a").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(file.read()) == 100_000
        server.client().put_object(Bucket=bucket.name, Key="d/large", Body=b"x" * (2 * MIB))
        assert (mounted.path / "d" / "large").stat().st_size == 2 * MIB
        denied = proxy.inject(Answer(403, "AccessDenied"), method="GET")
        with pytest.raises(PermissionError):
            (mounted.path / "d" / "large").read_bytes()
        proxy.remove(denied)
        proxy.inject(Answer(503, "SlowDown"), operation="PutObject", count=1)
        (mounted.path / "b").write_bytes(b"again")
        found = status_of(mount, mounted)
        text = mount.run("status", str(mounted.path)).stdout
        mounted.umount()
    assert (found["source"], found["mountpoint"]) == (bucket.name, str(mounted.path))
    assert (found["state"], found["read_only"], found["pid"]) == (
        "serving", False, mounted.process_id,
    )  # fmt: skip
    assert found["endpoint"] == proxy.url
    assert found["credentials"] == {"source": "env", "expires": None}
    write = found["operations"]["write"]
    assert write["bytes"] == 100_005
    assert 0 < write["p50"] <= write["p99"] < 60
    assert found["operations"]["read"]["failed"] + found["operations"]["open"]["failed"] >= 1
    assert found["requests"]["requests"]["PutObject"] >= 3
    assert found["requests"]["retried"] == {"PutObject": 1}
    assert found["requests"]["dollars"] > 0
    assert found["cache"]["read_bytes"] == 100_000
    assert 0 <= found["cache"]["hit_rate"] <= 1
    assert found["dirty_files"] == 0
    # FAULT is the request id that the proxy has made up.
    assert any("AccessDenied, request FAULT" in error["message"] for error in found["errors"])
    for words in (bucket.name, "serving", "flush ", "PutObject", "all is uploaded", "AccessDenied"):
        assert words in text
    assert bucket.credentials.secret_key not in json.dumps(found)


def test_status_shows_what_is_not_uploaded_and_how_far_it_is(
    mount: Mounter, bucket: Bucket, server
):
    with FaultProxy(server.url) as proxy:
        mounted = mount(bucket, "--part-size", "5M", url=proxy.url)
        slow = proxy.inject(Throttle(2 * MIB), method="PUT")
        with (mounted.path / "large").open("wb") as file:
            file.write(os.urandom(20 * MIB))
            file.flush()
            # The kernel begins to write back what nobody needs any more.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                # Not by a command: a new process closes its copy of our descriptor, which
                # means to a file system that the file shall be saved.
                (found,) = gather([mounted.path])
                if found["dirty_files"] and found["dirty"][0]["sent"] and found["dirty_age"]:
                    break
            (dirty,) = found["dirty"]
            assert dirty["key"] == "large"
            assert 0 < dirty["sent"] <= dirty["bytes"] == 20 * MIB == found["dirty_bytes"]
            assert "large  20.0 MiB" in describe(found, time.time())
            proxy.remove(slow)
        mounted.umount()


def test_what_the_store_has_refused_for_good_is_not_waiting_any_more(
    mount: Mounter, bucket: Bucket, s3, tmp_path: Path
):
    mount.expect_log("recover|condition|ESTALE", optional=True)
    s3.put_object(Bucket=bucket.name, Key="file", Body=b"A" * 1000)
    where = ("--state-dir", str(tmp_path / "state"))
    mounted = mount(bucket, *where)
    descriptor = os.open(mounted.path / "file", os.O_RDWR)
    try:
        os.pwrite(descriptor, b"mine", 0)
        s3.put_object(Bucket=bucket.name, Key="file", Body=b"theirs")
        with pytest.raises(OSError, match="Stale"):
            os.fsync(descriptor)
        found = status_of(mount, mounted)
        assert (found["dirty_files"], found["dirty_bytes"], found["given_up_files"]) == (0, 0, 1)
        assert found["given_up"][0]["key"] == "file"
        text = describe(found, time.time())
        assert "unsaved     nothing" in text
        assert "given up    1 open file; s3mount recover has what was written" in text
    finally:
        with suppress(OSError):
            os.close(descriptor)
    end = time.monotonic() + PATIENCE
    while status_of(mount, mounted)["given_up_files"] and time.monotonic() < end:
        time.sleep(0.1)
    found = status_of(mount, mounted)
    assert (found["given_up_files"], found["kept_files"]) == (0, 1)
    (kept,) = found["kept"]
    assert (kept["key"], kept["size"]) == ("file", 1000)
    text = describe(found, time.time())
    assert "kept        1 file that could not be uploaded; see s3mount recover" in text
    assert "all is uploaded" not in text
    discard = ("recover", bucket.name, "--discard", "--yes", *where)
    done = mount.run(*discard, env=mounted.environment)
    assert done.returncode == 0, done.stdout
    assert status_of(mount, mounted)["kept_files"] == 0


def test_status_sees_a_daemon_that_still_uploads_when_the_mount_is_gone(
    mount: Mounter, bucket: Bucket, server
):
    with FaultProxy(server.url) as proxy:
        # So long an unmounting waits for what the kernel has of a file that is open.
        mounted = mount(bucket, "-o", "timeout=10", url=proxy.url)
        mount.expect_log("PutObject late: the store did not answer in time", optional=True)
        file = (mounted.path / "late").open("wb")
        file.write(b"x" * (4 * MIB))
        slow = proxy.inject(Throttle(MIB), method="PUT")
        assert mount.run("umount", "--lazy", str(mounted.path), timeout=90).returncode == 0
        assert not is_mounted(mounted.path)
        file.write(b"y" * (4 * MIB))
        closer = threading.Thread(target=file.close)
        closer.start()
        (found,) = gather([mounted.path])
        assert (found["pid"], found["dirty_files"]) == (mounted.process_id, 1)
        proxy.remove(slow)
        closer.join()
        mounted.wait(PATIENCE)


def test_a_daemon_that_has_died_is_told_and_is_a_failure(mount: Mounter, bucket: Bucket):
    mounted = mount(bucket)
    os.kill(mounted.process_id, signal.SIGKILL)
    mounted.wait(10)
    done = mount.run("status", str(mounted.path))
    assert done.returncode == 32
    assert f"{bucket.name} at {mounted.path}: no daemon" in done.stdout
    assert f"s3mount umount {mounted.path}" in done.stdout
    detach(mounted.path)


def test_a_daemon_that_hangs_does_not_hold_status_up(mount: Mounter, bucket: Bucket):
    stuck, other = mount(bucket), mount(bucket)
    os.kill(stuck.process_id, signal.SIGSTOP)
    try:
        done = mount.run("status", str(stuck.path), str(other.path))
        # Who was not asked for is not asked, and nobody is asked twice: 2 s is the limit.
        began = time.monotonic()
        (found,) = gather([other.path])
        assert (found["state"], time.monotonic() - began < 1.5) == ("serving", True)
        began = time.monotonic()
        assert len(gather([stuck.path, other.path])) == 2
        assert time.monotonic() - began < 3.5
    finally:
        os.kill(stuck.process_id, signal.SIGCONT)
    assert done.returncode == 32
    assert f"{stuck.path}: not answering" in done.stdout
    assert f"{other.path}: serving" in done.stdout


def test_what_is_no_mount_has_no_status(mount: Mounter, tmp_path: Path):
    done = mount.run("status", str(tmp_path))
    assert done.returncode == 32
    assert done.stdout == f"s3mount: {tmp_path} is not a mount of s3mount\n"
    assert mount.run("status", "--watch", "--json").returncode == 1
    assert mount.run("status", "--interval", "0").returncode == 1


def test_the_live_view_shows_the_same(mount: Mounter, bucket: Bucket):
    from rich.console import Console

    from s3mount.cli.statusview import draw

    mounted = mount(bucket)
    (mounted.path / "a").write_bytes(b"a")
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with console.file:
        found = status_of(mount, mounted)
        console.print(draw([{**found, "notes": ["[red]x[/red]\x1b[2J"]}], time.time()))
        text = console.export_text()
    for words in (bucket.name, "serving for", "PutObject", "[red]x[/red]\\x1b[2J"):
        assert words in text


def test_the_live_view_goes_on_until_ctrl_c(mount: Mounter, bucket: Bucket):
    mounted = mount(bucket)
    arguments = ["status", "--watch", "--interval", "0.1", str(mounted.path)]
    # The second picture is drawn over the first one.
    again = r"(?s)serving for.*\x1b\[H.*serving for"
    code, shown = watched(arguments, mounted.environment, until=again)
    assert code == 0
    assert bucket.name in shown
    assert shown.index("\x1b[?1049h") < shown.index("\x1b[?1049l")  # what was there comes back


def test_many_mounts_are_shown_in_lines_the_urgent_ones_first(mount: Mounter, bucket: Bucket):
    from rich.console import Console

    from s3mount.cli.statusview import MAX_PANELS, draw

    serving = status_of(mount, mount(bucket))
    waiting = {**serving, "source": "waiting", "dirty_files": 3, "dirty_age": 60.0,
               "dirty_bytes": 5 * MIB}  # fmt: skip
    failed = {**serving, "source": "failed", "errors": [
        {"time": time.time() - 5, "level": "error", "message": "[b]AccessDenied\x07"}]}  # fmt: skip
    dead = {"source": "dead", "mountpoint": "/mnt/dead", "state": "no daemon"}
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(draw([serving] * MAX_PANELS + [failed, waiting, dead], time.time()))
        title, *lines = console.export_text().splitlines()
    assert title.split()[:2] == ["mount", "state"]
    assert [line.split()[0] for line in lines[:2]] == ["dead", "waiting"]
    assert "3 for 60 s, 5.0 MiB" in lines[1]
    assert len(lines) == MAX_PANELS + 3
    (line,) = (line for line in lines if "AccessDenied" in line)
    assert "5 s ago: [b]AccessDenied\\x07" in line


def test_the_end_of_credentials_is_told(mount: Mounter, bucket: Bucket, tmp_path: Path):
    end = int(time.time()) + 7200
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    answer = {"Version": 1, "AccessKeyId": bucket.credentials.access_key, "Expiration": moment,
              "SecretAccessKey": bucket.credentials.secret_key}  # fmt: skip
    keys, config = tmp_path / "keys.json", tmp_path / "config"
    keys.write_text(json.dumps(answer))
    config.write_text(f"[profile short]\ncredential_process = cat {keys}\n")
    mounted = mount(bucket, "--profile", "short", env={"AWS_CONFIG_FILE": str(config)})
    found = status_of(mount, mounted)
    assert found["credentials"] == {"source": "custom-process", "expires": end}
    assert "credentials: custom-process, good for 2 h" in describe(found, end - 7200)
    assert "credentials: custom-process, expired" in describe(found, end + 1)


def test_the_cache_on_disk_is_measured(mount: Mounter, bucket: Bucket, s3, tmp_path: Path):
    s3.put_object(Bucket=bucket.name, Key="file", Body=os.urandom(3 * MIB))
    cache = ("--cache", str(tmp_path / "cache"), "--max-cache-size", "100M")
    for attempt in range(2):
        mounted = mount(bucket, *cache)
        assert (status_of(mount, mounted)["cache"]["disk"]["bytes"] > 3 * MIB) == (attempt == 1)
        assert len((mounted.path / "file").read_bytes()) == 3 * MIB
        mounted.umount()
    mounted = mount(bucket, *cache)
    text = describe(status_of(mount, mounted), time.time())
    assert f"3.0 MiB of 100.0 MiB in {tmp_path}/cache (0 bytes read from there)" in text
    assert mount.run("cache", "--clear", str(mounted.path)).returncode == 0
    assert status_of(mount, mounted)["cache"]["disk"]["bytes"] == 0


def test_odd_names_play_no_tricks_with_the_terminal(mount: Mounter, bucket: Bucket):
    mounted = mount(bucket)
    found = status_of(mount, mounted)
    file = {"key": "a\x1b[2J\n", "bytes": 0, "sent": 0, "age": 1.0, "error": "\x07"}
    text = describe({**found, "dirty_files": 1, "dirty": [file]}, time.time())
    assert "a\\x1b[2J\\n  0 bytes  0%  1 s: \\x07" in text
