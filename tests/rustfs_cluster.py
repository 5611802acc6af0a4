"""Four RustFS processes that are one store, on loopback ports of their own."""

import itertools
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from s3mount.demo.weed import (
    LOOPBACK,
    Credentials,
    clean_environment,
    end_process,
    ended_with_us,
    free_ports,
)
from tests.server import Server, ServerError, answers, s3_client

NODES = 4
START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0


class RustFSCluster(Server):
    """A store of `NODES` nodes with a disk each: any one of them may go."""

    name = "rustfs-cluster"

    def __init__(self, directory: Path, credentials: Credentials, program: str) -> None:
        super().__init__(directory, credentials)
        self._program = program
        self._ports: list[int] = []
        self._nodes: list[subprocess.Popen[bytes] | None] = [None] * NODES

    @property
    def url(self) -> str:
        """The first node."""
        return self.url_of(0)

    def url_of(self, number: int) -> str:
        """The endpoint URL of one node."""
        return f"http://{LOOPBACK}:{self._ports[number]}"

    def start(self) -> None:
        """Start all nodes, and wait until they take an object."""
        with free_ports(NODES) as ports:
            self._ports = list(ports)
        for number in range(NODES):
            (self.directory / f"node{number}").mkdir(mode=0o700)
            self.start_node(number)
        deadline = time.monotonic() + START_TIMEOUT
        if not (answers(self, deadline, self._all_run) and self._works(deadline)):
            log = self.log_path.read_text(errors="replace")[-2000:]
            self.stop()
            raise ServerError(f"the cluster does not work; the end of its log:\n{log}")

    def stop(self) -> None:
        """End all nodes; what they have stays."""
        for number, node in enumerate(self._nodes):
            if node is not None:
                end_process(node, STOP_TIMEOUT)
                self._nodes[number] = None

    def start_node(self, number: int) -> None:
        """Start one node, on the port that it had before."""
        disks = [f"{self.url_of(one)}{self.directory}/node{one}" for one in range(NODES)]
        address = f"{LOOPBACK}:{self._ports[number]}"
        environment = {
            "RUSTFS_ACCESS_KEY": self.credentials.access_key,
            "RUSTFS_SECRET_KEY": self.credentials.secret_key,
            "RUSTFS_CONSOLE_ENABLE": "false",
            # All disks are one here, which it refuses otherwise.
            "RUSTFS_UNSAFE_BYPASS_DISK_CHECK": "true",
            "RUST_LOG": "error",
        }
        with self.log_path.open("ab") as log:
            self._nodes[number] = subprocess.Popen(
                ended_with_us([self._program, "server", "--address", address, *disks]),
                cwd=self.directory,
                env={**clean_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_node(self, number: int) -> None:
        """End one node as a crash would."""
        node, self._nodes[number] = self._nodes[number], None
        assert node is not None
        node.kill()
        node.wait()

    def bytes_from(self, number: int, bucket: str, key: str) -> bytes:
        """An object as one node gives it."""
        client = s3_client(self.url_of(number), self.credentials)
        try:
            return client.get_object(Bucket=bucket, Key=key)["Body"].read()
        finally:
            client.close()

    def _all_run(self) -> bool:
        return all(node is not None and node.poll() is None for node in self._nodes)

    def _works(self, deadline: float) -> bool:
        # It answers before the nodes have found each other, and a bucket that is made then is not
        # on all of them: each attempt is with another one.
        for number in itertools.count():
            if time.monotonic() > deadline:
                break
            with suppress(BotoCoreError, ClientError):
                self.client().create_bucket(Bucket=f"ready-{number}")
                self.client().put_object(Bucket=f"ready-{number}", Key="key", Body=b"x" * 1000)
                return True
            time.sleep(0.2)
        return False
