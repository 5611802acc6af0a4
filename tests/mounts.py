"""Mounts for tests: the real command on a real mount point, and nothing left behind.

A `Mount` is one running daemon; a `Mounter` makes them, and at the end of a test it unmounts
what is still there and looks into the daemons' logs.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from s3mount import mounts
from s3mount.config import state_directory
from s3mount.demo.weed import REGION, Credentials, clean_environment, ended_with_us
from s3mount.mounts import find_mount
from s3mount.notify import Receiver
from s3mount.write.slots import all_slots, read_about
from tests.servers import CHECKOUT, s3_client

COMMAND = (sys.executable, "-m", "s3mount")
READY_TIMEOUT = 30.0
UMOUNT_TIMEOUT = 120.0
SERIOUS = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback ", re.MULTILINE)
DEFAULT_OPTIONS = ("--log-level", "debug")


class MountFailed(AssertionError):
    """The command did not mount; `exit_code` and `output` are what it gave."""

    def __init__(self, exit_code: int | None, output: str, log: str) -> None:
        super().__init__(f"exit code {exit_code}\n{output}\n{log[-4000:]}")
        self.exit_code = exit_code
        self.output = output


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket that one test has for itself; `server` is whatever holds it."""

    name: str
    url: str
    credentials: Credentials

    def client(self):
        """Return a new boto3 client that talks to the bucket's server; close it after use."""
        return s3_client(self.url, self.credentials)


@dataclass(slots=True)
class Expectations:
    """Which serious lines a log may have, and those that it must have."""

    allowed: list[re.Pattern[str]] = field(default_factory=list)
    demanded: list[re.Pattern[str]] = field(default_factory=list)

    def expect(self, pattern: str, *, optional: bool = False) -> None:
        """Allow serious lines that match *pattern*; unless *optional*, one has to appear."""
        compiled = re.compile(pattern)
        self.allowed.append(compiled)
        if not optional:
            self.demanded.append(compiled)

    def complaints(self, lines: Sequence[str]) -> list[str]:
        """Return what is wrong with *lines*, the serious ones of a log."""
        wrong = [f"not expected: {line}" for line in lines if not self._is_allowed(line)]
        wrong += [
            f"not logged: {pattern.pattern}"
            for pattern in self.demanded
            if not any(pattern.search(line) for line in lines)
        ]
        return wrong

    def _is_allowed(self, line: str) -> bool:
        return any(pattern.search(line) for pattern in self.allowed)


@dataclass(slots=True)
class Mount:
    """One mounted bucket: `path` is where, `process_id` who serves it, `log_path` what it says.

    `process` is None when the command went to the background by itself; `may_fail` says that
    the test expects it to end with a failure.
    """

    path: Path
    process_id: int
    log_path: Path
    process: subprocess.Popen[bytes] | None
    environment: Mapping[str, str]
    exit_code: int | None = None
    may_fail: bool = False

    @property
    def log(self) -> str:
        """What the daemon has logged so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def umount(self, timeout: float = UMOUNT_TIMEOUT) -> int:
        """Unmount with the real command, wait for the daemon and return its exit code."""
        done = run_command(["umount", str(self.path)], self.environment, timeout)
        if done.returncode != 0:
            raise AssertionError(f"umount: {done.returncode}: {done.stdout}\n{self.log[-4000:]}")
        assert not is_mounted(self.path), "umount returned, and it is still mounted"
        return self.wait(timeout)

    def terminate(self, timeout: float = UMOUNT_TIMEOUT) -> int:
        """Send SIGTERM, wait until the daemon has unmounted, and return its exit code."""
        os.kill(self.process_id, signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End the daemon as a crash would; the dead mount point is cleared away."""
        os.kill(self.process_id, signal.SIGKILL)
        self.wait(10)
        detach(self.path)

    def wait(self, timeout: float) -> int:
        """Wait until the daemon has ended; return its exit code, negative for a signal."""
        deadline = time.monotonic() + timeout
        while self._poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the daemon {self.process_id} still runs after {timeout} s")
            time.sleep(0.01)
        assert self.exit_code is not None
        return self.exit_code

    def _poll(self) -> int | None:
        if self.exit_code is None and self.process is not None:
            self.exit_code = self.process.poll()
        elif self.exit_code is None:
            # An orphan is ours to reap: see `adopt_orphans` in conftest.
            ended, status = os.waitpid(self.process_id, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status) if ended else None
        return self.exit_code

    @property
    def is_alive(self) -> bool:
        """Whether the daemon runs."""
        return self._poll() is None


class Mounter:
    """Mounts buckets for one test, and cleans up after it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounts: list[Mount] = []
        self._expectations = Expectations()

    def __call__(
        self,
        bucket: Bucket,
        *options: str,
        prefix: str = "",
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        background: bool = False,
        name: str | None = None,
    ) -> Mount:
        """Mount *bucket* and wait until it answers; raise `MountFailed` when it does not.

        *options* are added to the command line; *url* is another way to the server, such as
        a fault proxy; *env* is added to the environment; *name* names the mount point and the
        daemon's directories, so that the same name mounts again what a crash left.  Unless
        *options* name a state directory, the mount has one of its own.
        """
        label = name or f"mount{len(self._mounts) + 1}"
        path = self._directory / label
        path.mkdir(exist_ok=True)
        environment = self._environment(bucket, label) | dict(env or {})
        log_path = self._directory / f"{label}.{len(self._mounts)}.log"
        source = f"{bucket.name}/{prefix}" if prefix else bucket.name
        arguments = [source, str(path), "--endpoint-url", url or bucket.url, "--region", REGION]
        arguments += ["--log-file", str(log_path), *DEFAULT_OPTIONS, *options]
        if url not in (None, bucket.url) and "--notify" not in options:
            # Nobody but the test asks for anything on the way to the store.
            arguments += ["--notify", "off"]
        if "--state-dir" not in options:
            arguments += ["--state-dir", str(self._directory / f"{label}.state")]
        start = self._start_in_background if background else self._start_in_foreground
        mount = start(arguments, path, log_path, environment)
        self._mounts.append(mount)
        if outside := opened_below(mount.process_id, state_directory()):
            raise AssertionError(f"a test keeps its state where people's mounts do: {outside}")
        return mount

    def expect_log(self, pattern: str, *, optional: bool = False) -> None:
        """Say that this test makes daemons log *pattern* at WARNING or above."""
        self._expectations.expect(pattern, optional=optional)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60):
        """Run ``s3mount ARGUMENTS`` to its end; return it with output and exit code."""
        return run_command(arguments, self._base_environment("command") | dict(env or {}), timeout)

    def finish(self) -> None:
        """Unmount what is mounted; raise AssertionError for whatever did not end well."""
        complaints: list[str] = []
        for mount in reversed(self._mounts):
            complaints += _ended_well(mount)
        lines = [line for mount in self._mounts for line in serious_lines(mount.log)]
        complaints += self._expectations.complaints(lines)
        if complaints:
            raise AssertionError("\n".join(complaints))

    def _base_environment(self, label: str) -> dict[str, str]:
        home = self._directory / f"{label}.home"
        runtime = home / "run"
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        return clean_environment() | {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_RUNTIME_DIR": str(runtime),
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONWARNINGS": "default",
        }

    def _environment(self, bucket: Bucket, label: str) -> dict[str, str]:
        return self._base_environment(label) | bucket.credentials.environment()

    @staticmethod
    def _start_in_foreground(
        arguments: Sequence[str], path: Path, log_path: Path, environment: Mapping[str, str]
    ) -> Mount:
        output_path = log_path.with_suffix(".output")
        with Receiver() as receiver, output_path.open("wb") as output:
            process = subprocess.Popen(
                ended_with_us([*COMMAND, *arguments, "--foreground"]),
                env={**environment, "NOTIFY_SOCKET": receiver.address},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            mount = Mount(path, process.pid, log_path, process, environment)
            deadline = time.monotonic() + READY_TIMEOUT
            while "READY=1" not in receiver.read(process.pid):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    detach(path)
                    text = output_path.read_text(errors="replace")
                    raise MountFailed(process.returncode, text, mount.log)
                time.sleep(0.01)
        return mount

    @staticmethod
    def _start_in_background(
        arguments: Sequence[str], path: Path, log_path: Path, environment: Mapping[str, str]
    ) -> Mount:
        done = run_command(arguments, environment, READY_TIMEOUT)
        log = log_path.read_text(errors="replace") if log_path.exists() else ""
        if done.returncode != 0:
            raise MountFailed(done.returncode, done.stdout, log)
        assert is_mounted(path), "the command returned 0, and nothing is mounted"
        servers = processes_naming(path)
        assert len(servers) == 1, f"processes that serve {path}: {servers}"
        return Mount(path, servers[0], log_path, None, environment)


def _ended_well(mount: Mount) -> list[str]:
    """Unmount if that has not been done; return what is wrong with how the daemon ended."""
    try:
        if is_mounted(mount.path):
            mount.umount()
        code = mount.wait(UMOUNT_TIMEOUT)
    except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        force_end(mount)
        return [f"{mount.path}: {error}", mount.log[-4000:]]
    # A test that killed the daemon knows that it did.
    expected = code in (0, -signal.SIGKILL) or mount.may_fail
    return [] if expected else [f"{mount.path}: the daemon's exit code: {code}"]


def force_end(mount: Mount) -> None:
    """End a mount that does not want to, without waiting for anything inside it."""
    abort_connection(mount.path)
    if mount.is_alive:
        os.kill(mount.process_id, signal.SIGKILL)
        mount.wait(10)
    detach(mount.path)


def run_command(arguments: Sequence[str], environment: Mapping[str, str], timeout: float):
    """Run ``s3mount ARGUMENTS``, standard output and error in one text."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def serious_lines(log: str) -> list[str]:
    """Return the lines of a daemon's log that a passing test has to explain."""
    return [line for line in log.splitlines() if SERIOUS.search(line)]


def mounted_below(directory: Path) -> list[str]:
    """Return the mount points below *directory*, without touching them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    paths = [line.split(" ")[4] for line in lines]
    return [path for path in paths if path.startswith(f"{directory}/")]


def is_mounted(path: Path) -> bool:
    """Say whether something is mounted at *path*, without touching it."""
    return find_mount(path) is not None


def detach(path: Path) -> None:
    """Take *path* out of the tree, whether or not anybody serves it."""
    if mount := find_mount(path):
        mounts.detach(mount, lazy=True)


def abort_connection(path: Path) -> None:
    """Make every request to the mount at *path* fail at once."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(path):
            minor = fields[2].partition(":")[2]
            control = Path(f"/sys/fs/fuse/connections/{minor}/abort")
            if control.exists() and os.access(control, os.W_OK):
                control.write_text("1")


def opened_below(process_id: int, directory: Path) -> list[str]:
    """Return what a process has open below *directory*."""
    found = []
    for entry in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # It was closed while we looked.
        if target.startswith(f"{directory}/"):
            found.append(target)
    return found


def journals_of_mounts_below(directory: Path) -> list[str]:
    """Return the journals that mounts below *directory* have left where people's mounts do."""
    slots = all_slots(state_directory())
    return [
        str(s) for s in slots if str(read_about(s).get("mountpoint")).startswith(f"{directory}/")
    ]


def processes_naming(path: Path) -> list[int]:
    """Return the processes that have *path* as a whole argument, as daemons have."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended while we looked.
        if os.fsencode(path) in arguments:
            found.append(int(entry.name))
    return found


def why_no_mounts() -> str | None:
    """Return the reason why nothing can be mounted here, None when mounting works."""
    try:
        device = Path("/dev/fuse").stat()
    except OSError:
        return "/dev/fuse is missing"
    if not stat.S_ISCHR(device.st_mode) or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return None if shutil.which("fusermount3") else "fusermount3 is missing (package fuse3)"
