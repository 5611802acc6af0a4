"""The unit under a real systemd: started, reloaded, hung, restarted, stopped.

It is a manager of a user (root's), in namespaces of its own: it sees the unit of this checkout and
no other, cannot write to this machine's files, and cannot reach its processes.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.mounts import Bucket, why_no_mounts
from tests.servers import CHECKOUT

SYSTEMD = Path("/lib/systemd/systemd")
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE = 60.0  # seconds

# The root is read-only before systemd starts.  $1: the interpreter; $2: the checkout.
ENTER = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/systemd/system /run/layer/etc /run/layer/work /run/user /run/units /run/bin /run/home
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/layer/etc,workdir=/run/layer/work /etc
mount -t proc proc /proc
mount -o remount,bind,ro /
for directory in / /tmp /var /home /root; do
    if touch "$directory/.s3mount-test" 2>/dev/null; then
        echo "$directory can be written to"
        exit 1
    fi
done
mount -t tmpfs tmpfs /mnt
mkdir -p /etc/s3mount /mnt/data
printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -P -m s3mount "$@"\n' "$2" "$1" >/run/bin/s3mount
chmod 755 /run/bin/s3mount
sed 's#/usr/local/bin/s3mount#/run/bin/s3mount#' "$2/systemd/s3mount@.service" \
    >'/run/units/s3mount@.service'
mkdir '/run/units/s3mount@.service.d'
printf '[Service]\nWatchdogSec=5\nRestartSec=0\n' >'/run/units/s3mount@.service.d/quick.conf'
for target in default basic sysinit shutdown exit; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" >"/run/units/$target.target"
done
/lib/systemd/systemd --user --log-target=console >/run/manager.log 2>&1 &
while [ ! -S /run/user/systemd/private ]; do sleep 0.1; done
echo ready
cat
"""
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/run/home",
    "XDG_RUNTIME_DIR": "/run/user",
    "SYSTEMD_UNIT_PATH": "/run/units",
}


class Manager:
    """A systemd that knows one unit."""

    def __init__(self) -> None:
        name = f"s3mount-test-{secrets.token_hex(4)}"
        self._cgroups = [folder / name for folder in own_cgroups()]
        for folder in self._cgroups:
            folder.mkdir()
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self._process = subprocess.Popen(
            [*command, "sh", "-c", ENTER, "sh", sys.executable, CHECKOUT],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=self._join_cgroups,  # before anything of it runs
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            rest = self._process.communicate()[0]
            self.close()
            raise RuntimeError(f"no systemd: {line}{rest}")
        number = self._process.pid
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        self._inside = children[0]

    def _join_cgroups(self) -> None:
        for folder in self._cgroups:
            (folder / "cgroup.procs").write_text("0")

    def close(self) -> None:
        """End it, and with its first process all the others; then remove what it made."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.communicate()
        for top in self._cgroups:
            for folder in [*sorted(top.rglob("*/"), reverse=True), top]:
                if folder.is_dir():
                    retry(folder.rmdir)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run(
            ["nsenter", f"--target={self._inside}", "--mount", "--pid", "--", *command],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def check(self, *command: str) -> str:
        """Run a command that has to succeed, and return its output."""
        done = self.run(*command)
        logs = (
            self.run("sh", "-c", "cat /run/manager.log /run/log").stdout if done.returncode else ""
        )
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}\n{logs}"
        return done.stdout.strip()

    def systemctl(self, *arguments: str) -> str:
        """Ask systemd for something that has to succeed."""
        return self.check("systemctl", "--user", "--no-pager", *arguments)

    def property(self, name: str, unit: str = "s3mount@data") -> str:
        """What systemd knows of the service."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def write(self, path: str, text: str) -> None:
        """Write a file that only it has, and only root can read."""
        self.check("sh", "-c", 'umask 077; printf %s "$1" >"$2"', "sh", text, path)


def own_cgroups() -> list[Path]:
    """Where this process is in the hierarchies that systemd uses."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            base = CGROUPS / ("systemd" if controllers else "unified")
            found.append((base if base.exists() else CGROUPS) / path.lstrip("/"))
    return found


def why_no_manager() -> str | None:
    """Return why systemd cannot be run here, None when it can."""
    if os.geteuid() != 0:
        return "root is needed"
    missing = [name for name in ("unshare", "nsenter", "systemctl") if not shutil.which(name)]
    if missing or not SYSTEMD.exists():
        return f"{missing[0] if missing else SYSTEMD} is missing (packages systemd, util-linux)"
    return why_no_mounts()


def retry(action: Callable[[], None]) -> None:
    """Do it as soon as the kernel has noticed that the processes are gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def manager() -> Iterator[Manager]:
    if reason := why_no_manager():
        unavailable(reason)
    folders = own_cgroups()
    if not folders or not all(os.access(folder, os.W_OK) for folder in folders):
        # As in a container that may mount, but not have groups of processes of its own.
        pytest.skip("systemd needs a control group that can be written to")
    manager = Manager()
    try:
        yield manager
    finally:
        manager.close()


def options(bucket: Bucket, **more: str) -> str:
    """A file of options for the service."""
    values: Mapping[str, str] = {
        "bucket": bucket.name,
        "mountpoint": "/mnt/data",
        "endpoint-url": bucket.url,
        "state-dir": "/run/state",
        "log-file": "/run/log",
        **more,
    }
    keys = bucket.credentials.environment()
    lines = [f'{name} = "{value}"' for name, value in values.items()]
    return "\n".join([*lines, "[env]", *(f'{name} = "{value}"' for name, value in keys.items())])


def stored(bucket: Bucket, key: str) -> bytes:
    with contextlib.closing(bucket.client()) as client:
        return client.get_object(Bucket=bucket.name, Key=key)["Body"].read()


def test_a_real_systemd_runs_the_unit(manager: Manager, bucket: Bucket):
    manager.write("/etc/s3mount/data.toml", options(bucket))
    manager.systemctl("start", "s3mount@data")  # returns with READY
    assert manager.property("ActiveState") == "active"
    manager.check("sh", "-c", "echo first >/mnt/data/first")
    wait_for(lambda: manager.property("StatusText").endswith("/mnt/data: all is uploaded"))
    assert stored(bucket, "first") == b"first\n"

    manager.write("/etc/s3mount/data.toml", options(bucket, **{"metadata-ttl": "1s"}))
    manager.systemctl("reload", "s3mount@data")
    wait_for(lambda: "the options are read again" in manager.check("cat", "/run/log"))
    assert manager.property("ActiveState") == "active"

    # A daemon that hangs is ended by the watchdog, and what it leaves is cleared away.
    hung = manager.property("MainPID")
    manager.check("kill", "-STOP", hung)
    wait_for(lambda: int(manager.property("NRestarts")) >= 1)
    wait_for(lambda: manager.property("ActiveState") == "active")
    assert manager.property("MainPID") != hung
    assert manager.check("cat", "/mnt/data/first") == "first"

    manager.check("sh", "-c", "echo last >/mnt/data/last")
    manager.systemctl("stop", "s3mount@data")
    assert stored(bucket, "last") == b"last\n"
    assert manager.property("ActiveState") == "inactive"
    assert manager.property("Result") == "success"
    assert "/mnt/data" not in manager.check("cat", "/proc/self/mounts")


def test_a_mistake_in_the_options_is_not_tried_again(manager: Manager, bucket: Bucket):
    manager.write("/etc/s3mount/data.toml", options(bucket, nonsense="1"))
    assert manager.run("systemctl", "--user", "start", "s3mount@data").returncode != 0
    assert manager.property("ActiveState") == "failed"
    assert manager.property("NRestarts") == "0"
    assert manager.property("ExecMainStatus") == "1"  # wrong usage
