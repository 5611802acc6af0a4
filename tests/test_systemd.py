"""What systemd gets to hear over its socket, what its signals do, and that the units are good."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from s3mount.demo.weed import REGION, ended_with_us
from s3mount.service import Report, keep_informed
from tests.conftest import unavailable
from tests.faultproxy import FaultProxy
from tests.faults import Throttle
from tests.mounts import COMMAND, Bucket, Mount, Mounter, force_end, is_mounted, serious_lines
from tests.servers import CHECKOUT

UNITS = CHECKOUT / "systemd"
PATIENCE = 60.0  # seconds; all of these happen at once on a machine that is not busy


class Systemd:
    """What systemd does for a service: a socket that it reads, and signals."""

    def __init__(self, listener: socket.socket, mount: Mount) -> None:
        self._listener = listener
        self.mount = mount
        self.lines: list[str] = []

    def wait_for(self, beginning: str) -> str:
        """Wait for a line of a message, which is then counted as read."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for index, line in enumerate(self.lines):
                if line.startswith(beginning):
                    del self.lines[: index + 1]
                    return line
            with contextlib.suppress(TimeoutError):
                self.lines += self._listener.recv(4096).decode().splitlines()
        raise AssertionError(f"systemd did not hear {beginning}\n{self.mount.log}")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.mount.process_id, number)

    def wait_for_log(self, words: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.mount.log.splitlines():
                if words in line:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"not logged: {words}\n{self.mount.log}")


@pytest.fixture
def service(tmp_path: Path, mount: Mounter) -> Iterator:
    """``with service(bucket, *options)``: a daemon as systemd would run it, until it ends."""

    @contextlib.contextmanager
    def start(bucket: Bucket, *options: str, url: str = "", watchdog: float = 0.0):
        path, log = tmp_path / "mnt", tmp_path / "log"
        path.mkdir()
        config = tmp_path / "data.toml"
        config.write_text(
            f'bucket = "{bucket.name}"\nmountpoint = "{path}"\n'
            f'endpoint-url = "{url or bucket.url}"\nregion = "{REGION}"\nlog-file = "{log}"\n'
        )
        environment = mount._environment(bucket, "service")
        environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        if watchdog:
            environment["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(environment["NOTIFY_SOCKET"])
            listener.settimeout(0.2)
            state = ("--state-dir", str(tmp_path / "state"))
            process = subprocess.Popen(
                ended_with_us(
                    [*COMMAND, "--foreground", "--config", str(config), *state, *options]
                ),
                env=environment,
                stdin=subprocess.DEVNULL,
            )
            daemon = Mount(path, process.pid, log, process, environment)
            try:
                yield Systemd(listener, daemon)
                daemon.wait(PATIENCE)
            finally:
                if daemon.is_alive:
                    force_end(daemon)

    return start


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_systemd_hears_the_life_of_a_mount(service, bucket: Bucket, tmp_path: Path):
    with service(bucket, watchdog=3) as systemd:
        systemd.wait_for("READY=1")
        assert is_mounted(systemd.mount.path)
        where = f"{bucket.name} at {systemd.mount.path}"
        assert systemd.wait_for("STATUS=") == f"STATUS={where}: all is uploaded"
        assert systemd.wait_for("MAINPID=") == f"MAINPID={systemd.mount.process_id}"
        for _ in range(3):
            systemd.wait_for("WATCHDOG=1")
        (systemd.mount.path / "a").write_bytes(b"a")
        systemd.signal(signal.SIGTERM)
        systemd.wait_for("STOPPING=1")
        assert systemd.mount.wait(PATIENCE) == 0
    assert not is_mounted(tmp_path / "mnt")


def test_an_end_takes_its_time_as_long_as_bytes_move(service, bucket: Bucket, server):
    with FaultProxy(server.url) as proxy, service(bucket, url=proxy.url) as systemd:
        systemd.wait_for("READY=1")
        proxy.inject(Throttle(2 << 20), method="PUT")
        with (systemd.mount.path / "large").open("wb") as file:
            file.write(os.urandom(24 << 20))
            file.flush()
            systemd.signal(signal.SIGTERM)
            systemd.wait_for("STOPPING=1")
            assert systemd.wait_for("EXTEND_TIMEOUT_USEC=") == "EXTEND_TIMEOUT_USEC=60000000"
        assert systemd.mount.wait(PATIENCE) == 0


async def test_a_mount_that_hangs_does_not_feed_the_watchdog(
    mount: Mounter, bucket: Bucket, tmp_path: Path, monkeypatch, expect_log, nursery
):
    expect_log("the mount did not answer a request within 0.5 s")
    mounted = mount(bucket)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        await listener.bind(str(tmp_path / "notify"))

        async def fed(seconds: float) -> bool:
            with trio.move_on_after(seconds):
                while await listener.recv(4096) != b"WATCHDOG=1":
                    pass
                return True
            return False

        nursery.start_soon(keep_informed, lambda: Report("x", False, False), mounted.path)
        assert await fed(PATIENCE)
        os.kill(mounted.process_id, signal.SIGSTOP)
        try:
            while await fed(1.5):
                pass  # sent before it hung
        finally:
            os.kill(mounted.process_id, signal.SIGCONT)
        assert await fed(PATIENCE)
        nursery.cancel_scope.cancel()


def test_sighup_reads_the_options_again_and_drops_what_is_known(service, bucket: Bucket, tmp_path):
    client = bucket.client()
    with contextlib.closing(client), service(bucket, "--metadata-ttl", "1h") as systemd:
        systemd.wait_for("READY=1")
        client.put_object(Bucket=bucket.name, Key="f", Body=b"old")
        assert (systemd.mount.path / "f").read_bytes() == b"old"
        assert names(systemd.mount.path) == ["f"]
        client.put_object(Bucket=bucket.name, Key="f", Body=b"newer")
        client.put_object(Bucket=bucket.name, Key="g", Body=b"")
        with (tmp_path / "data.toml").open("a") as file:
            file.write('log-level = "error"\npart-size = "16M"\n')
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        systemd.signal(signal.SIGHUP)
        systemd.wait_for("RELOADING=1")
        moment = int(systemd.wait_for("MONOTONIC_USEC=").partition("=")[2])
        assert before <= moment <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        systemd.wait_for("READY=1")
        assert names(systemd.mount.path) == ["f", "g"]
        assert (systemd.mount.path / "f").read_bytes() == b"newer"
        systemd.wait_for_log("these options change when it is mounted again: part-size")
        assert "the options are read again" not in systemd.mount.log  # that is not an error
        (tmp_path / "data.toml").write_text("nonsense = 1\n")
        systemd.signal(signal.SIGHUP)
        systemd.wait_for_log("the options stay as they are")
        systemd.wait_for("READY=1")
        systemd.signal(signal.SIGTERM)


def test_sighup_takes_relative_paths_for_those_that_they_were(
    service, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    more = Path("more.toml")
    more.write_text('cache = "cache"\n')
    options = ("--config", "more.toml", "--log-file", "log", "--state-dir", "state")
    with service(bucket, bucket.name, "mnt", *options) as systemd:
        systemd.wait_for("READY=1")
        more.write_text('cache = "cache"\npart-size = "16M"\n')
        systemd.signal(signal.SIGHUP)
        systemd.wait_for_log("the options are read again")
        (line,) = serious_lines(systemd.mount.log)
        assert line.endswith("these options change when it is mounted again: part-size")
        systemd.signal(signal.SIGTERM)


def test_sigusr1_dumps_the_state_and_sigusr2_toggles_debug(service, bucket: Bucket):
    with service(bucket, "--log-level", "error") as systemd:
        systemd.wait_for("READY=1")
        systemd.signal(signal.SIGUSR1)
        line = systemd.wait_for_log('"mountpoint"')
        state = json.loads(line[line.index("{") :])
        assert state["source"] == bucket.name
        assert bucket.credentials.secret_key not in line
        systemd.signal(signal.SIGUSR2)
        systemd.wait_for_log("from now on everything is logged")
        assert names(systemd.mount.path) == []
        systemd.signal(signal.SIGUSR2)
        systemd.wait_for_log("from now on error is logged")
        systemd.signal(signal.SIGTERM)


def test_a_second_sigterm_leaves_quickly_and_keeps_what_is_not_uploaded(
    service, bucket: Bucket, server, tmp_path: Path
):
    with FaultProxy(server.url) as proxy, service(bucket, url=proxy.url) as systemd:
        systemd.wait_for("READY=1")
        descriptor = os.open(systemd.mount.path / "kept", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"precious")
        proxy.down()
        systemd.signal(signal.SIGTERM)
        systemd.wait_for("STOPPING=1")
        time.sleep(1)
        began = time.monotonic()
        systemd.signal(signal.SIGTERM)
        code = systemd.mount.wait(PATIENCE)
        assert time.monotonic() - began < 20  # shutdown-timeout is five minutes
        assert code == 1
        with contextlib.suppress(OSError):
            os.close(descriptor)
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert any(b"precious" in path.read_bytes() for path in kept), kept


@pytest.mark.parametrize("unit", ["s3mount@data.service", "mnt-data.mount", "mnt-data.automount"])
def test_the_units_are_good(unit: str, tmp_path: Path):
    if not shutil.which("systemd-analyze"):
        unavailable("systemd-analyze is missing (package systemd)")
    for path in UNITS.iterdir():
        text = path.read_text().replace("/usr/local/bin/s3mount", sys.executable)
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:/lib/systemd/system"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_examples_are_options_that_exist(tmp_path: Path):
    from s3mount.cli.arguments import parse_arguments

    config, warnings = parse_arguments(["--config", str(UNITS / "data.toml")])
    assert (config.bucket, config.mountpoint, warnings) == ("my-bucket", Path("/mnt/data"), [])
    lines = (UNITS / "fstab.example").read_text().splitlines()
    examples = [line.split() for line in lines if line and not line.startswith("#")]
    assert len(examples) == 2
    for source, mountpoint, kind, options, *_ in examples:
        assert kind == "fuse.s3mount"
        given = ",".join(word for word in options.split(",") if not word.startswith("config="))
        assert parse_arguments([source, mountpoint, "-o", given])[1] == []
