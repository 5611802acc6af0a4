"""Every fault of the network and of the store, while a checker writes, changes, renames and reads.

What was acknowledged is there and right afterwards, what failed has failed with a proper errno,
and nothing hangs.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import (
    ACCESS_DENIED,
    ERROR_IN_OK,
    EXPIRED_TOKEN,
    INTERNAL_ERROR,
    LOST_ANSWER,
    SKEWED_CLOCK,
    SLOW_DOWN,
    Cut,
    Delay,
    Fault,
    Flip,
    Hang,
    Point,
    Reset,
    Twice,
    slow_down,
)
from tests.mount.conftest import Shared
from tests.mounts import run_command

MIB = 1 << 20
TIMEOUT = 4  # Seconds that the mount tries a failing store.
LONGEST = 40.0  # Seconds that a call may take: several requests, each tried for so long.
SECONDS = 2.0  # Of each fault.
SIZES = (0, 100, 70_000, 11 * MIB)
WRITES = "PutObject", "UploadPart", "CopyObject", "CompleteMultipartUpload", "DeleteObject"
# Whoever completes an upload may be kept waiting for minutes, as S3 says, and a proxy on the way
# may have megabytes to pass on before there is an answer.
QUICK = "PutObject", "CopyObject", "DeleteObject", "GetObject", "HeadObject"
DENIED = frozenset({errno.EACCES})
FAILED = frozenset({errno.EIO})


class Case(NamedTuple):
    """A fault, of which calls of S3 (none: of all), how often, and what programs may hear of it."""

    fault: Fault
    operations: tuple[str, ...] = ()
    probability: float = 0.3
    errors: frozenset[int] = FAILED


CASES = {
    "delay": Case(Delay(0.4), errors=frozenset()),
    "hang before": Case(Hang(Point.REQUEST), QUICK, probability=0.1),
    "hang after the work": Case(Hang(Point.ANSWER), QUICK, probability=0.1),
    "hang after half a body": Case(Hang(Point.BODY, 3000), ("GetObject",), probability=0.1),
    "reset before": Case(Reset(Point.REQUEST)),
    "reset in the headers": Case(Reset(Point.HEAD)),
    "reset after the work": Case(LOST_ANSWER),
    "reset in an upload": Case(Reset(Point.REQUEST_BODY, 3000), ("UploadPart",)),
    "reset after half a body": Case(Reset(Point.BODY, 3000), ("GetObject",)),
    "cut body": Case(Cut(3000), ("GetObject",)),
    "cut body of another length": Case(Cut(3000, honest=True), ("GetObject",)),
    "flipped byte": Case(Flip(50), ("GetObject",)),
    "flipped byte in an upload": Case(Flip(50, request=True), ("PutObject", "UploadPart")),
    "500": Case(INTERNAL_ERROR),
    "503": Case(SLOW_DOWN),
    "503 with a pause": Case(slow_down(1), probability=0.1),
    "403 in an upload": Case(ACCESS_DENIED, ("PutObject", "UploadPart"), errors=DENIED),
    "error in a 200": Case(ERROR_IN_OK, ("CopyObject", "CompleteMultipartUpload")),
    "expired token": Case(EXPIRED_TOKEN, probability=0.1, errors=DENIED),
    "skewed clock": Case(SKEWED_CLOCK, probability=0.1, errors=DENIED),
    "delivered twice": Case(Twice(), WRITES, probability=1.0, errors=frozenset()),
}


@pytest.fixture(scope="module", params=["durable", "writeback"])
def shared(sharing, request: pytest.FixtureRequest) -> Iterator[Shared]:
    options = ("--timeout", f"{TIMEOUT}s", "--part-size", "5M", "--negative-ttl", "0s")
    writeback = ("-o", "writeback") if request.param == "writeback" else ()
    with sharing(*options, *writeback, proxied=True) as shared:
        shared.mounter.expect_log(".", optional=True)  # All faults are in the log.
        yield shared


class Checker(threading.Thread):
    """Works in a directory, and knows what may be in each file (None: that there is none)."""

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__()
        self.directory = directory
        self.may: dict[Path, set[bytes | None]] = {}
        self.errors: set[int] = set()
        self.wrong: list[str] = []
        self.longest = 0.0
        self._random = Random(seed)
        self._seed = seed
        self._end = time.monotonic() + SECONDS

    def run(self) -> None:
        """Work on one file after the other, each until a call fails."""
        number = 0
        while time.monotonic() < self._end:
            number += 1
            self._work(self.directory / f"{self._seed}-{number}", SIZES[number % len(SIZES)])

    def _work(self, path: Path, size: int) -> None:
        body, more = self._random.randbytes(size), self._random.randbytes(1000)
        renamed = path.with_name(f"{path.name}-renamed")
        steps: list[tuple[Callable[[], object], dict[Path, bytes | None]]] = [
            (lambda: path.write_bytes(body), {path: body}),
            (lambda: append(path, more), {path: body + more}),
            (lambda: path.rename(renamed), {path: None, renamed: body + more}),
            (lambda: self._compare(renamed, body + more), {}),
        ]
        for step, becomes in steps:
            if not self._succeeds(step, becomes):
                return
        if self._random.random() < 0.3:
            self._succeeds(renamed.unlink, {renamed: None})

    def _succeeds(self, step: Callable[[], object], becomes: dict[Path, bytes | None]) -> bool:
        for path, body in becomes.items():
            self.may.setdefault(path, {None, b""}).add(body)
        began = time.monotonic()
        try:
            step()
        except OSError as error:
            self.errors.add(error.errno or -1)
            return False
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
        for path, body in becomes.items():
            self.may[path] = {body}
        return True

    def _compare(self, path: Path, body: bytes) -> None:
        if path.read_bytes() != body:
            self.wrong.append(f"{path.name} was read wrong")

    def look(self, found: Callable[[Path], bytes | None]) -> None:
        """Take note of files that are not what they have to be."""
        for path, bodies in self.may.items():
            if found(path) not in bodies:
                self.wrong.append(f"{path.name} is not what was acknowledged")


def append(path: Path, more: bytes) -> None:
    """Change a file in part."""
    with path.open("ab") as file:
        file.write(more)


def in_mount(path: Path) -> bytes | None:
    """What a program finds."""
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("name", CASES)
def test_what_is_acknowledged_is_right_whatever_goes_wrong(
    shared: Shared, proxy: FaultProxy, work: Path, name: str
):
    case = CASES[name]
    for operation in case.operations or (None,):
        proxy.inject(case.fault, operation=operation, probability=case.probability)
    checkers = [Checker(work, seed) for seed in range(3)]
    for checker in checkers:
        checker.start()
    for checker in checkers:
        checker.join(2 * LONGEST)
        assert not checker.is_alive(), "it hangs"
    proxy.clear()
    mounted = shared.mounts[0]
    for checker in checkers:
        checker.look(in_mount)
    assert run_command(["sync", str(work)], mounted.environment, 60).returncode == 0
    keys = set(shared.all_keys(work))
    for checker in checkers:
        checker.look(lambda path: shared.get(path) if shared.key(path) in keys else None)
    assert [wrong for checker in checkers for wrong in checker.wrong] == []
    assert set().union(*(checker.errors for checker in checkers)) <= case.errors
    assert max(checker.longest for checker in checkers) < LONGEST
