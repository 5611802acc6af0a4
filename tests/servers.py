"""The real S3 servers that tests run against, each on free loopback ports of its own.

Every server is a context manager with `url`, `credentials`, `log_path` and `client()`, and it
is ended by its own process id.  Which of them are there is for `available_servers` to say.
"""

import lzma
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from s3mount.demo.weed import (
    LOOPBACK,
    Credentials,
    Weed,
    clean_environment,
    end_process,
    ended_with_us,
    find_program,
    free_ports,
)
from tests.ceph import CephServer, find_ceph
from tests.server import Server, ServerError, answers

START_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0
ATTEMPTS = 3
ENDPOINT_KEYS = ("S3MOUNT_TEST_ACCESS_KEY", "S3MOUNT_TEST_SECRET_KEY")
CHECKOUT = Path(__file__).resolve().parent.parent


class WeedServer(Server):
    """SeaweedFS: the server of the demo, and of tests that need just some S3 server."""

    name = "weed"

    def __init__(self, directory: Path, credentials: Credentials) -> None:
        super().__init__(directory, credentials)
        self._weed = Weed(directory, credentials)
        self.log_path = self._weed.log_path

    @property
    def url(self) -> str:
        return self._weed.url

    @property
    def process_id(self) -> int:
        return self._weed.process_id

    def start(self) -> None:
        self._weed.start()

    def stop(self) -> None:
        self._weed.stop()

    def kill(self) -> None:
        """End the server as a crash would."""
        self._weed.kill()


class ProcessServer(Server):
    """A server that is one program and takes its address as an argument."""

    def __init__(self, directory: Path, credentials: Credentials, program: str) -> None:
        super().__init__(directory, credentials)
        self._program = program
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.data = directory / "data"

    def command(self, port: int) -> Sequence[str]:
        """Return the arguments that make the program serve `data` on *port*."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return how the program is told the credentials."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server, on the port it had before, and wait until it answers."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in range(1, ATTEMPTS + 1):
            if not self._port or attempt > 1:
                self.forget_client()
                with free_ports(1) as (self._port,):
                    pass
            self._spawn()
            if self._wait_until_ready(time.monotonic() + START_TIMEOUT):
                return
            self.stop()
        log = self.log_path.read_text(errors="replace")[-2000:]
        raise ServerError(f"{self.name} does not answer; the end of its log:\n{log}")

    def stop(self) -> None:
        """Stop the server; data stays."""
        if self._process is not None:
            end_process(self._process, STOP_TIMEOUT)
            self._process = None

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _spawn(self) -> None:
        command = [self._program, *self.command(self._port)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ended_with_us(command),
                cwd=self.directory,
                env={**clean_environment(), **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_ready(self, deadline: float) -> bool:
        return answers(
            self, deadline, lambda: self._process is not None and self._process.poll() is None
        )


class MotoServer(ProcessServer):
    """The moto server: closest to AWS in listing and keys; no authentication, data in memory."""

    name = "moto"

    def command(self, port: int) -> Sequence[str]:
        return ["-H", LOOPBACK, "-p", str(port)]

    def environment(self) -> Mapping[str, str]:
        return self.credentials.environment()


class RcloneServer(ProcessServer):
    """``rclone serve s3``: the weak store, which ignores every condition."""

    name = "rclone"

    def command(self, port: int) -> Sequence[str]:
        return ["serve", "s3", "--addr", f"{LOOPBACK}:{port}", str(self.data)]

    def environment(self) -> Mapping[str, str]:
        # The option is a list that is read as CSV: the quotes keep the pair together.
        pair = f'"{self.credentials.access_key},{self.credentials.secret_key}"'
        return {"RCLONE_AUTH_KEY": pair, "RCLONE_CONFIG": os.devnull}


class RustFSServer(ProcessServer):
    """RustFS: a complete store, which RustFS users will mount."""

    name = "rustfs"

    def command(self, port: int) -> Sequence[str]:
        return ["server", "--address", f"{LOOPBACK}:{port}", str(self.data)]

    def environment(self) -> Mapping[str, str]:
        return {
            "RUSTFS_ACCESS_KEY": self.credentials.access_key,
            "RUSTFS_SECRET_KEY": self.credentials.secret_key,
            "RUSTFS_CONSOLE_ENABLE": "false",
            "RUST_LOG": "error",
        }


class MinIOServer(ProcessServer):
    """MinIO, where somebody has installed it."""

    name = "minio"

    def command(self, port: int) -> Sequence[str]:
        # Without an address of its own the console opens a random port on all interfaces.
        return ["server", "--quiet", "--address", f"{LOOPBACK}:{port}", str(self.data)]

    def environment(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": self.credentials.access_key,
            "MINIO_ROOT_PASSWORD": self.credentials.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }


class VersityServer(ProcessServer):
    """versitygw, which makes a store of a directory: files with extended attributes."""

    name = "versitygw"

    def command(self, port: int) -> Sequence[str]:
        return ["--quiet", "--port", f"{LOOPBACK}:{port}", "posix", str(self.data)]

    def environment(self) -> Mapping[str, str]:
        return {
            "ROOT_ACCESS_KEY": self.credentials.access_key,
            "ROOT_SECRET_KEY": self.credentials.secret_key,
        }


class Endpoint(Server):
    """Any store that runs somewhere: AWS, GCS, R2, Wasabi; named by environment variables.

    Tests make buckets there, ``test-...`` and ``shared-...``, and delete them as far as they can.
    """

    name = "endpoint"

    def __init__(self, directory: Path, _credentials: Credentials, url: str) -> None:
        found = (os.environ.get(name, "") for name in ENDPOINT_KEYS)
        super().__init__(directory, Credentials(*found))
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    def start(self) -> None:
        """Nothing: it runs."""

    def stop(self) -> None:
        """Nothing: it goes on running."""


def find_program_of_go(name: str) -> str | None:
    """Return a program from PATH, or from where ``go install`` puts programs."""
    places = [os.environ.get("GOBIN", "")]
    places += [str(Path(root) / "bin") for root in os.environ.get("GOPATH", "").split(":") if root]
    places.append(str(Path.home() / "go" / "bin"))
    path = os.pathsep.join(place for place in places if place)
    return find_program(name) or shutil.which(name, path=path)


def find_rustfs() -> str | None:
    """Return RustFS from PATH, or unpacked from an archive.

    That lies where S3MOUNT_TEST_SERVERS says, or in a folder beside the checkout.
    """
    if program := find_program("rustfs"):
        return program
    beside = CHECKOUT.parent / "shared" / "servers"
    folder = Path(os.environ.get("S3MOUNT_TEST_SERVERS") or beside)
    archives = sorted(folder.glob("rustfs-*.xz"))
    return str(_unpacked(archives[-1])) if archives else None


def _unpacked(archive: Path) -> Path:
    # 320 MiB: once a machine, not once a run, and never inside the checkout.
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "s3mount-tests"
    program = folder / f"{archive.stem}-{archive.stat().st_size}"
    if not program.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f"{program.name}.{os.getpid()}"
        with lzma.open(archive) as packed, partial.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        partial.chmod(0o700)
        partial.rename(program)
    return program


Finder = Callable[[], str | None]
SERVERS: Mapping[str, tuple[type[Server], Finder]] = {
    "weed": (WeedServer, lambda: find_program("weed")),
    "moto": (MotoServer, lambda: find_program("moto_server")),
    "rclone": (RcloneServer, lambda: find_program("rclone")),
    "rustfs": (RustFSServer, find_rustfs),
    "minio": (MinIOServer, lambda: find_program_of_go("minio")),
    "versitygw": (VersityServer, lambda: find_program_of_go("versitygw")),
    "ceph": (CephServer, find_ceph),
    "endpoint": (Endpoint, lambda: os.environ.get("S3MOUNT_TEST_ENDPOINT")),
}
# Without these CI fails: three come with the extra "test", RustFS as CONTRIBUTING.md says.
REQUIRED_SERVERS = frozenset({"weed", "moto", "rclone", "rustfs"})
# The one for tests that need just some store.
DEFAULT_SERVER = os.environ.get("S3MOUNT_TEST_STORE") or "weed"


def make_server(name: str, directory: Path, credentials: Credentials) -> Server | None:
    """Make, but do not start, the server *name*; None when its program is not installed."""
    kind, find = SERVERS[name]
    program = find()
    if program is None:
        return None
    if kind is WeedServer:
        return WeedServer(directory, credentials)
    return kind(directory, credentials, program)
