"""The mounts that are compared: how each is started, unmounted and ended."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.server import Credentials, find_executable

MOUNT_PATIENCE = 30.0  # seconds until a mount must be there
UNMOUNT_PATIENCE = 60.0  # seconds for a system to finish what it owes after the unmount


class MountFailed(Exception):
    """A system could not mount; the text is its own last line about it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is mounted, from where, and on which folders.

    *scratch* is an empty folder for caches and staging files.  *persistent* asks for the
    cache that survives a remount, *writeback* for a close() that does not wait for uploads.
    """

    bucket: str
    url: str
    server_name: str
    credentials: Credentials
    mountpoint: Path
    scratch: Path
    persistent: bool = False
    writeback: bool = False

    @property
    def log_file(self) -> Path:
        """Where a system's output goes."""
        return self.scratch.with_suffix(".log")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a system: ours, but with the credentials of the server."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RCLONE_"))}
        return {
            **kept,
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "TMPDIR": str(self.scratch),
            "XDG_CACHE_HOME": str(self.scratch),
            "XDG_STATE_HOME": str(self.scratch),
        }


Command = tuple[Sequence[str | Path], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class System:
    """One kind of mount: its name, its version, how it is started and unmounted."""

    name: str
    version: Callable[[], str]
    command: Callable[[Target], Command]
    unmount: Callable[[Path], Sequence[str | Path]]
    has_writeback: bool


def _s3mount_program() -> list[str | Path]:
    """The command: installed beside this Python, or run from this checkout."""
    beside = Path(sys.executable).parent / "s3mount"
    if beside.exists():
        return [beside]
    return [sys.executable, "-m", "s3mount"]


def _s3mount_environment(environment: Mapping[str, str]) -> dict[str, str]:
    search_path = [str(processes.REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(search_path)}


def _s3mount_command(target: Target) -> Command:
    # As root the state would go to one place for all runs, and not onto the peers' disk.
    options = [f"state-dir={target.scratch}/state"]
    if target.persistent:
        options.append(f"cache={target.scratch}/cache")
    if target.writeback:
        options.append("writeback")
    command = [*_s3mount_program(), target.bucket, target.mountpoint]
    command += ["--endpoint-url", target.url, "-f", "-o", ",".join(options)]
    return command, _s3mount_environment(target.environment)


def _s3fs_command(target: Target) -> Command:
    # s3fs takes no keys from AWS_* variables in every version, but always from a file.
    password_file = target.scratch / "s3fs-password"
    password_file.touch(mode=0o600)
    password_file.write_text(f"{target.credentials.access_key}:{target.credentials.secret_key}")
    options = [
        f"passwd_file={password_file}",
        f"url={target.url}",
        "use_path_request_style",
        f"tmpdir={target.scratch}",
    ]
    if target.persistent:
        cache = target.scratch / "cache"
        cache.mkdir(exist_ok=True)
        options.append(f"use_cache={cache}")
    command = [_installed("s3fs"), target.bucket, target.mountpoint, "-f"]
    return [*command, "-o", ",".join(options)], target.environment


def _rclone_command(target: Target) -> Command:
    environment = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": {"MinIO": "Minio"}.get(target.server_name, "Other"),
        "RCLONE_CONFIG_BENCH_ENV_AUTH": "true",
        "RCLONE_CONFIG_BENCH_REGION": "us-east-1",
        "RCLONE_CONFIG_BENCH_ENDPOINT": target.url,
    }
    command = [_installed("rclone"), "mount", f"bench:{target.bucket}", target.mountpoint]
    command += ["--vfs-cache-mode", "full", "--cache-dir", target.scratch / "cache"]
    return command, {**target.environment, **environment}


def _installed(name: str) -> Path:
    path = find_executable(name)
    if path is None:
        raise MountFailed(f"{name} is not installed")
    return path


def _fusermount(mountpoint: Path) -> Sequence[str | Path]:
    return [shutil.which("fusermount3") or "fusermount", "-u", mountpoint]


def _s3mount_unmount(mountpoint: Path) -> Sequence[str | Path]:
    return [*_s3mount_program(), "umount", mountpoint]


def _version(program: Callable[[], Sequence[str | Path]], option: str) -> Callable[[], str]:
    def ask() -> str:
        try:
            return processes.first_line([*program(), option])
        except (MountFailed, OSError) as error:
            return str(error)

    return ask


SYSTEMS: Mapping[str, System] = {
    "s3mount": System(
        "s3mount",
        _version(_s3mount_program, "--version"),
        _s3mount_command,
        _s3mount_unmount,
        has_writeback=True,
    ),
    "s3fs": System(
        "s3fs",
        _version(lambda: [_installed("s3fs")], "--version"),
        _s3fs_command,
        _fusermount,
        has_writeback=False,
    ),
    "rclone": System(
        "rclone",
        _version(lambda: [_installed("rclone")], "version"),
        _rclone_command,
        _fusermount,
        has_writeback=True,
    ),
}


@contextlib.contextmanager
def mounted(system: System, target: Target) -> Iterator[int]:
    """Mount *target* with *system* and yield the process id of its daemon."""
    command, environment = system.command(target)
    with target.log_file.open("wb") as log:
        try:
            process = processes.start(command, log=log, environment=environment)
        except OSError as error:
            raise MountFailed(str(error)) from error
        try:
            _wait_until_mounted(target, process)
            yield process.pid
        finally:
            _unmount(system, target, process)


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there; asks the kernel's table, never the file system."""
    table = Path("/proc/self/mountinfo").read_text()
    return any(line.split()[4] == str(mountpoint) for line in table.splitlines())


def _wait_until_mounted(target: Target, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + MOUNT_PATIENCE
    while not is_mounted(target.mountpoint):
        if process.poll() is not None:
            raise MountFailed(last_words(target) or f"exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise MountFailed(f"not mounted after {MOUNT_PATIENCE:.0f} s")
        time.sleep(0.02)


def last_words(target: Target) -> str:
    """The last line that a system has put out, empty when it has been silent."""
    lines = target.log_file.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _unmount(system: System, target: Target, process: subprocess.Popen[str]) -> None:
    """Unmount in order; if that fails detach by force, so that no mount is left behind."""
    if is_mounted(target.mountpoint):
        _run_quietly(system.unmount(target.mountpoint))
    if not is_mounted(target.mountpoint):
        processes.wait_for_exit(process, UNMOUNT_PATIENCE)
    processes.end(process)
    if is_mounted(target.mountpoint):
        _run_quietly([*_fusermount(target.mountpoint), "-z"])
    if is_mounted(target.mountpoint):
        _run_quietly(["umount", "-l", target.mountpoint])


def _run_quietly(command: Sequence[str | Path]) -> None:
    """Run a command whose failure the caller sees by other means."""
    environment = _s3mount_environment(os.environ)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=UNMOUNT_PATIENCE,
            check=False,
        )
