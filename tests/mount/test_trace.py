"""``s3mount trace``: what programs do, what that asks of the store; nobody waits for it."""

import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from s3mount import tracing
from s3mount.cli.tracetext import lines
from s3mount.controlclient import find_socket
from s3mount.tracing import MAX_WAITING, Attempt, Cause, Trace
from tests.mount.conftest import Shared
from tests.mounts import COMMAND

PATIENCE = 60.0
Event = Mapping[str, Any]


class Listening:
    """A trace that runs: its events as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.events: list[Event] = []

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """Read events until one is *wanted*, and return it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if wanted(event):
                return event
        raise AssertionError(f"not told: {self.events}")

    def stop(self) -> str:
        """Press Ctrl-C; returns what is said at the end."""
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0
        return said


@pytest.fixture
def listen(shared: Shared) -> Iterator[Callable[..., Listening]]:
    """``listen(*options)``: ``s3mount trace --json`` of the mount, when it listens."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str) -> Listening:
        command = [*COMMAND, "trace", str(shared.root), "--json", *options]
        process = subprocess.Popen(
            command,
            env=shared.mounts[0].environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        end = time.monotonic() + PATIENCE
        while not is_watched(shared) and time.monotonic() < end:
            time.sleep(0.05)
        return Listening(process)

    yield start
    for process in running:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def is_watched(shared: Shared) -> bool:
    done = shared.mounter.run("status", "--json", str(shared.root))
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(done.stdout)["mounts"]
    return bool(found["watched"])


def of(operation: str, path: Path) -> Callable[[Event], bool]:
    return lambda event: (
        event.get("operation") == operation
        and str(event["path"]).endswith(path.name)
        and not event.get("late")
    )


def test_an_operation_is_told_with_its_caller_its_time_and_its_requests(
    shared: Shared, work: Path, listen
):
    listening = listen()
    (work / "file").write_bytes(b"content")
    told = listening.until(of("flush", work / "file"))
    assert told["path"] == f"{work.name}/file"
    assert (told["error"], told["program"]) == ("", Path("/proc/self/comm").read_text().strip())
    assert told["pid"] == os.getpid()
    (request,) = told["requests"]
    assert (request["method"], request["status"]) == ("PUT", 200)
    assert (request["kind"], request["key"]) == ("PutObject", f"{work.name}/file")
    assert 0 < request["seconds"] <= told["seconds"] < PATIENCE
    assert request["request_id"]
    assert abs(told["time"] - time.time()) < PATIENCE
    assert "operations, " in listening.stop()


def test_failures_and_two_names_are_told(shared: Shared, work: Path, listen):
    listening = listen()
    with pytest.raises(FileNotFoundError):
        (work / "missing").stat()
    assert listening.until(of("lookup", work / "missing"))["error"] == "ENOENT"
    (work / "old").write_bytes(b"x")
    (work / "old").rename(work / "new")
    told = listening.until(of("rename", work / "new"))
    assert told["path"] == f"{work.name}/old -> {work.name}/new"
    assert "CopyObject" in [request["kind"] for request in told["requests"]]


def test_what_was_fetched_ahead_is_told_with_what_it_was_for(shared: Shared, listen):
    cold = shared.root / f"cold-{secrets.token_hex(4)}"
    shared.put(cold / "large", b"x" * (6 << 20))
    os.setxattr(shared.root, "user.s3mount.refresh", b"1")
    listening = listen("--path", "*/large")
    assert len((cold / "large").read_bytes()) == 6 << 20
    listening.until(of("release", cold / "large"))
    gets = [
        event["operation"]
        for event in listening.events
        for request in event["requests"]
        if request["kind"] == "GetObject"
    ]
    assert gets
    assert set(gets) <= {"lookup", "open", "read"}
    assert {event["path"] for event in listening.events} == {f"{cold.name}/large"}


def test_only_what_is_slow_is_told_on_demand(shared: Shared, work: Path, listen):
    listening = listen("--slow", "60000")
    (work / "quick").write_bytes(b"x")
    assert "0 operations, 0 requests" in listening.stop()
    assert shared.mounter.run("trace", "--slow", "often", str(shared.root)).returncode == 1


def test_who_does_not_read_misses_events_and_holds_nobody_up(
    shared: Shared, work: Path, monkeypatch
):
    runtime = shared.mounts[0].environment["XDG_RUNTIME_DIR"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    (work / "file").write_bytes(b"x")
    path = find_socket(shared.root, os.geteuid())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
        client.sendall(b'{"command": "trace"}\n')
        client.recv(1000)
        # Far more than what the socket and the daemon hold for who does not read.
        for _ in range(4 * MAX_WAITING):
            with suppress(OSError):
                os.getxattr(work / "file", "user.none")
        client.settimeout(PATIENCE)
        buffer, dropped = b"", 0
        while not dropped:
            *done, buffer = (buffer + client.recv(1 << 16)).split(b"\n")
            dropped = max([json.loads(line)["progress"]["dropped"] for line in done], default=0)
    assert dropped > 0


def test_nothing_is_traced_when_nobody_watches_any_more(shared: Shared, listen):
    listening = listen()
    assert is_watched(shared)
    listening.stop()
    assert not is_watched(shared)


def test_what_is_not_there_cannot_be_traced(shared: Shared, tmp_path: Path):
    done = shared.mounter.run("trace", str(tmp_path))
    assert (done.returncode, "is not a mount of s3mount" in done.stdout) == (32, True)


# -- without a mount ---------------------------------------------------------------------------


@contextmanager
def operation(trace: Trace, cause: Cause, error_number: int = 0) -> Iterator[None]:
    token = trace.begin(cause)
    try:
        yield
    finally:
        trace.end(cause, token, 0.5, error_number)


def attempt(key: str, error: str = "") -> Attempt:
    return Attempt("GetObject", "GET", key, "", 0 if error else 200, 0.25, "ID", error)


async def test_a_request_belongs_to_the_operation_that_its_task_was_started_by(nursery):
    trace = Trace()
    go_on = trio.Event()

    async def fetch() -> None:
        await go_on.wait()
        trace.attempted(attempt("late"))

    with trace.watch("", 0.0) as watcher:
        with operation(trace, Cause("read", "file", 7, "cat"), errno.EIO):
            nursery.start_soon(fetch)
            trace.attempted(attempt("early"))
        (told,) = await watcher.take()
        assert (told["error"], [one["key"] for one in told["requests"]]) == ("EIO", ["early"])
        go_on.set()
        (late,) = await watcher.take()
        assert (late["late"], late["operation"], late["path"]) == (True, "read", "file")
        trace.attempted(attempt("nobody's"))
        (alone,) = await watcher.take()
        assert "operation" not in alone
    assert not trace.watched


async def test_an_operation_may_cause_more_requests_than_are_told():
    trace = Trace()
    with trace.watch("", 0.0) as watcher:
        with operation(trace, Cause("rename", "directory", 7, "mv")):
            for number in range(tracing.MAX_ATTEMPTS + 3):
                trace.attempted(attempt(str(number)))
        (told,) = await watcher.take()
    assert (len(told["requests"]), told["more_requests"]) == (tracing.MAX_ATTEMPTS, 3)
    assert list(lines({**told, "requests": []}, colours=False))[1].endswith("and 3 requests more")


async def test_what_waits_is_bounded_and_what_is_left_out_is_counted():
    trace = Trace()
    with trace.watch("*/wanted", 0.1) as watcher:
        for number in range(MAX_WAITING + 5):
            trace.tell(Cause("getattr", f"{number}/wanted", 0, ""), 0.2, 0)
        trace.tell(Cause("getattr", "1/other", 0, ""), 0.2, 0)
        trace.tell(Cause("getattr", "1/wanted", 0, ""), 0.05, 0)
        assert watcher.dropped == 5
        assert len(await watcher.take()) == tracing.MAX_TAKEN


def test_the_lines_are_plain_in_a_pipe_and_no_name_plays_tricks():
    requests = [attempt("a\x1b[2J")._asdict(), attempt("b", "reset by the peer")._asdict()]
    event = {
        "time": 1.5, "operation": "read", "path": "x\n", "pid": 7, "program": "cat",
        "error": "EIO", "seconds": 0.25, "requests": requests,
    }  # fmt: skip
    plain = list(lines(event, colours=False))
    assert "\x1b" not in "".join(plain)
    assert plain[0].split() == [
        plain[0].split()[0], "read", "x\\n", "EIO", "0.25", "s", "cat[7]",
    ]  # fmt: skip
    assert "a\\x1b[2J  200" in plain[1]
    assert "reset by the peer" in plain[2]
    assert "\x1b[31mEIO" in "".join(lines(event, colours=True))
    (alone,) = lines({"time": 1.5, "late": True, "requests": requests[:1]}, colours=False)
    assert alone.endswith("(by itself)")
