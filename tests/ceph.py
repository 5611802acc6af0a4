"""Ceph's object gateway, with a whole cluster of one monitor and one store in memory behind it.

Everything is in the server's directory and on loopback; nothing of it outlives the test run.
"""

import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from s3mount.demo.weed import (
    LOOPBACK,
    Credentials,
    clean_environment,
    end_process,
    ended_with_us,
    free_ports,
)
from tests.server import Server, ServerError, answers

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
START_TIMEOUT = 40.0
STOP_TIMEOUT = 10.0
CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:{loopback}:{monitor}]
ms bind msgr1 = false
public addr = {loopback}
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {directory}/keyring
admin socket = {directory}/$name.asok
run dir = {directory}
log file = {directory}/$name.log
log to stderr = false
pid file =
crash dir = {directory}
debug default = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4G
osd data = {directory}/osd
mon data = {directory}/mon
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
rgw data = {directory}/rgw
rgw frontends = beast endpoint={loopback}:{gateway}
rgw gc obj min wait = 10
rgw enable usage log = false
rgw dns name =
"""


def find_ceph() -> str | None:
    """Return the gateway's path when all programs that a cluster needs are there."""
    return shutil.which("radosgw") if all(map(shutil.which, PROGRAMS)) else None


class CephServer(Server):
    """Ceph radosgw on a throw-away cluster of one node."""

    name = "ceph"

    def __init__(self, directory: Path, credentials: Credentials, program: str) -> None:
        super().__init__(directory, credentials)
        self._program = program
        self._conf = directory / "ceph.conf"
        self._port = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Make the cluster, which lives in memory, and wait until the gateway answers."""
        with free_ports(2) as (monitor, self._port):
            pass
        fsid = str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.directory / name).mkdir(exist_ok=True)
        self._conf.write_text(
            CONFIGURATION.format(
                fsid=fsid, loopback=LOOPBACK, monitor=monitor, gateway=self._port,
                directory=self.directory,
            )
        )  # fmt: skip
        try:
            self._start_cluster(fsid, monitor)
            self._start_gateway()
        except (subprocess.SubprocessError, ServerError):
            self.stop()
            raise

    def _start_cluster(self, fsid: str, monitor: int) -> None:
        address = f"[v2:{LOOPBACK}:{monitor}]"
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address,
                  "monmap")  # fmt: skip
        self._run("ceph-authtool", "--create-keyring", "keyring")
        for entity, *kinds in (("mon.", "mon"), ("osd.0", "mon", "osd"),
                               ("client.admin", "mon", "osd", "mgr")):  # fmt: skip
            may = [word for kind in kinds for word in ("--cap", kind, "allow *")]
            self._run("ceph-authtool", "keyring", "--gen-key", "-n", entity, *may)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._spawn("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "--connect-timeout", "30", "osd", "new", osd)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-i", "0")

    def _start_gateway(self) -> None:
        self._run(
            "radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test",
            "--access-key", self.credentials.access_key,
            "--secret-key", self.credentials.secret_key,
        )  # fmt: skip
        self._spawn(self._program, "-n", "client.admin")
        if not answers(self, time.monotonic() + START_TIMEOUT):
            raise ServerError(f"{self.name} does not answer")

    def stop(self) -> None:
        """End the cluster; what it had is gone."""
        for process in reversed(self._processes):
            end_process(process, STOP_TIMEOUT)
        self._processes = []

    @property
    def version(self) -> str:
        """What the gateway calls itself."""
        return self._run(self._program, "--version").stdout.decode().strip()

    def _command(self, program: str, arguments: Sequence[str]) -> list[str]:
        if program in ("monmaptool", "ceph-authtool"):
            return [program, *arguments]
        return [program, "-c", str(self._conf), *arguments]

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            self._command(program, arguments), cwd=self.directory, env=clean_environment(),
            capture_output=True, timeout=START_TIMEOUT, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            end = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise ServerError(f"{program} {arguments[0]}: {done.returncode}: {end}")
        return done

    def _spawn(self, program: str, *arguments: str) -> None:
        with self.log_path.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    ended_with_us([*self._command(program, arguments), "-f"]),
                    cwd=self.directory, env=clean_environment(), stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                )
            )  # fmt: skip
