"""Fixtures: real servers once a session, a bucket and mounts for each test, nothing left over.

A test fails that logs a warning it did not announce; a session fails that leaves a mount, a
process, a descriptor or a journal behind, or in which nothing was tested.
"""

import ctypes
import gc
import logging
import os
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from s3mount.demo.weed import Credentials, use_clean_environment
from tests.faultproxy import FaultProxy
from tests.mounts import (
    Bucket,
    Expectations,
    Mounter,
    journals_of_mounts_below,
    mounted_below,
    why_no_mounts,
)
from tests.servers import DEFAULT_SERVER, REQUIRED_SERVERS, SERVERS, Server, make_server

IN_CI = os.environ.get("CI", "").lower() in ("true", "1")
PR_SET_CHILD_SUBREAPER = 36
EXPECTATIONS = pytest.StashKey[Expectations]()
# Fixtures behind which there is a server: what uses none of them is quick.
SERVER_FIXTURES = frozenset({"server_of", "server", "mount", *SERVERS})


def unavailable(reason: str) -> None:
    """Skip a test for what this machine lacks; in CI that is a failure."""
    if IN_CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "server: needs a real server or mount (set by itself)")
    config.addinivalue_line("markers", "slow: runs only when S3MOUNT_TEST_SLOW is set")
    adopt_orphans()
    use_clean_environment()


def pytest_sessionstart(session: pytest.Session) -> None:
    def end(*_: object) -> None:
        # What is raised may be swallowed by the library in which the signal arrives.
        session.shouldstop = "ended by SIGTERM"
        pytest.exit("ended by SIGTERM", 1)

    # Teardown has to run when somebody ends us: servers and mounts depend on it.
    signal.signal(signal.SIGTERM, end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("server")
        if item.get_closest_marker("slow") and not os.environ.get("S3MOUNT_TEST_SLOW"):
            item.add_marker(pytest.mark.skip(reason="slow: set S3MOUNT_TEST_SLOW"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return  # One of several processes, which report to another.
    tested = any(reporter.stats.get(kind) for kind in ("passed", "failed", "error", "xfailed"))
    if exitstatus == pytest.ExitCode.OK and not tested and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


class Collector(logging.Handler):
    """Keeps the records of one test that somebody would have to explain."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    collector = Collector()
    logging.getLogger().addHandler(collector)
    try:
        result = yield
    finally:
        logging.getLogger().removeHandler(collector)
    expectations = item.stash.get(EXPECTATIONS, Expectations())
    if complaints := expectations.complaints(collector.lines):
        pytest.fail("\n".join(complaints), pytrace=False)
    return result


@pytest.fixture
def expect_log(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``expect_log(pattern)``: this test makes code in this process log it as a warning."""
    return request.node.stash.setdefault(EXPECTATIONS, Expectations()).expect


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, so that none gets lost."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def descriptors() -> Counter[str]:
    """Return what this process has open, by what it is and not by its number."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # That was the directory itself.
        found[re.sub(r":\[\d+\]$", "", target)] += 1
    return found


def children() -> dict[int, str]:
    """Return the processes whose parent we are; adopted ones that have ended are reaped."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # It has ended while we looked.
            if int(status[1]) != os.getpid():
                continue
            if status[0] == "Z":
                os.waitpid(int(entry.name), os.WNOHANG)
            else:
                found[int(entry.name)] = command[:200]
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session when it leaves a mount, a process, a descriptor or a journal behind."""
    before = descriptors()
    processes = set(children())
    yield
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        # A process that ends takes a moment, and what a descriptor was is gone by then.  What
        # nobody can reach any more, such as the pool of a client, is closed when it is collected.
        gc.collect()
        left = {one: text for one, text in children().items() if one not in processes}
        opened = descriptors() - before
        if not left and not opened:
            break
        time.sleep(0.1)
    # Other runs on this machine have mounts too, each below a directory of its own.
    ours = tmp_path_factory.getbasetemp()
    leaks = {
        "still mounted": mounted_below(ours),
        "still running": left,
        "still open": dict(opened),
        "left where people's mounts keep their state": journals_of_mounts_below(ours),
    }
    assert not any(leaks.values()), leaks


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the directory of this test."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(scope="session")
def credentials() -> Credentials:
    """A key pair for this session's servers."""
    return Credentials.random()


@pytest.fixture(scope="session")
def server_of(
    credentials: Credentials, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Server]]:
    """``server_of(name)``: that server, started when it is asked for first; see `SERVERS`."""
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def get(name: str) -> Server:
            if name not in running:
                server = make_server(name, tmp_path_factory.mktemp(name), credentials)
                if server is None:
                    missing = f"{name} is not installed"
                    asked_for = name in REQUIRED_SERVERS or name == DEFAULT_SERVER
                    unavailable(missing) if asked_for else pytest.skip(missing)
                running[name] = stack.enter_context(server)
            return running[name]

        yield get


@pytest.fixture
def server(server_of: Callable[[str], Server]) -> Server:
    """The server for tests that need just some store: S3MOUNT_TEST_STORE names it."""
    return server_of(DEFAULT_SERVER)


@pytest.fixture
def weed(server_of: Callable[[str], Server]) -> Server:
    """SeaweedFS."""
    return server_of("weed")


@pytest.fixture
def moto(server_of: Callable[[str], Server]) -> Server:
    """The moto server."""
    return server_of("moto")


@pytest.fixture
def rclone(server_of: Callable[[str], Server]) -> Server:
    """``rclone serve s3``, the weak store."""
    return server_of("rclone")


@pytest.fixture
def rustfs(server_of: Callable[[str], Server]) -> Server:
    """RustFS, where there is one."""
    return server_of("rustfs")


@pytest.fixture
def minio(server_of: Callable[[str], Server]) -> Server:
    """MinIO, where there is one."""
    return server_of("minio")


@pytest.fixture(params=sorted(SERVERS))
def any_server(request: pytest.FixtureRequest, server_of: Callable[[str], Server]) -> Server:
    """Each server in turn: what is true of one store has to be true of all."""
    return server_of(request.param)


@pytest.fixture
def make_bucket() -> Iterator[Callable[[Server], Bucket]]:
    """``make_bucket(server)``: a new, empty bucket there, until the end of the test."""
    made: list[tuple[Server, str]] = []

    def make(server: Server) -> Bucket:
        name = f"test-{secrets.token_hex(6)}"
        server.client().create_bucket(Bucket=name)
        made.append((server, name))
        return Bucket(name, server.url, server.credentials)

    yield make
    for server, name in made:
        # SeaweedFS deletes what is in it, too.  The others may refuse, or may be down by now;
        # their buckets cost nothing, and end with the session.
        with suppress(BotoCoreError, ClientError):
            server.client().delete_bucket(Bucket=name)


@pytest.fixture
def bucket(server: Server, make_bucket: Callable[[Server], Bucket]) -> Bucket:
    """A new, empty bucket on the server that tests use which need just some."""
    return make_bucket(server)


@pytest.fixture
def s3(server: Server):
    """A boto3 client for the server of `bucket`."""
    return server.client()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A fault proxy before the server of `bucket`: mount with ``url=proxy.url``."""
    with FaultProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def mount(tmp_path: Path, make_bucket: object) -> Iterator[Mounter]:
    """``mount(bucket, *options)``: a real mount of it, see `Mounter`.

    It asks for `make_bucket` so that buckets outlive their mounts.
    """
    if reason := why_no_mounts():
        unavailable(reason)
    mounter = Mounter(tmp_path)
    try:
        yield mounter
    finally:
        mounter.finish()
