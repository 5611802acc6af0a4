"""What all servers of the tests have in common; which there are is in `tests.servers`."""

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s3mount.demo.weed import REGION, Credentials

TCP_TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")


class ServerError(Exception):
    """A server did not start: the message holds the end of its log."""


def s3_client(url: str, credentials: Credentials):
    """Return a boto3 client for the server at *url* that retries nothing by itself."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=10,
            read_timeout=120,
            max_pool_connections=32,
        ),
    )


class Server:
    """What all servers have in common: a process, an address, a log, a boto3 client."""

    name = ""

    def __init__(self, directory: Path, credentials: Credentials) -> None:
        self.directory = directory
        self.credentials = credentials
        self.log_path = directory / f"{self.name}.log"
        self._client = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    def client(self):
        """Return the one boto3 client of this server; it ends with the server."""
        if self._client is None:
            self._client = s3_client(self.url, self.credentials)
        return self._client

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.forget_client()
        self.stop()

    def forget_client(self) -> None:
        """Close the boto3 client and its connections; the next use makes another."""
        if self._client is not None:
            self._client.close()
            self._client = None


def answers(server: Server, deadline: float, is_alive: Callable[[], bool] = lambda: True) -> bool:
    """Wait until a server answers, and say whether it did before it ended or *deadline* came."""
    while time.monotonic() < deadline and is_alive():
        try:
            # Some answer long before they are ready, so they are asked for real work.
            server.client().list_buckets()
        except (BotoCoreError, ClientError):
            time.sleep(0.05)
        else:
            return True
    return False


def await_orphaned_requests(url: str, seconds: float = 20.0) -> None:
    """Return when the server at *url* has done what clients have asked that are gone by now.

    Until then it may still write what a dead daemon has sent, and undo what is done next; that is
    tested by itself, in `tests.mount.test_late_requests`.  A connection stays in CLOSE_WAIT for as
    long as a server that has heard of its end works on its request.
    """
    port, close_wait = f":{urlsplit(url).port:04X}", "08"
    deadline = time.monotonic() + seconds
    while True:
        lines = [line for path in TCP_TABLES for line in path.read_text().splitlines()[1:]]
        states = [line.split()[3] for line in lines if line.split()[1].endswith(port)]
        if close_wait not in states:
            return
        assert time.monotonic() < deadline, f"{url} still works for clients that are gone"
        time.sleep(0.02)
