"""``-o hard`` and ``-o soft``: who waits, for how long, and how to get rid of it.

The numbers are those of the table in docs/reliability.md.
"""

import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import Hang, Point
from tests.mount.conftest import Shared
from tests.mount.faulty import eventually, noise
from tests.mount.programs import READ, python
from tests.mounts import Bucket, Mounter
from tests.servers import Server

MIB = 1 << 20
OUTAGE = 5.0  # Seconds, more than the time limit of these mounts.
BACK = 20.0  # Seconds for five that may pass after the store's return.
DEATH = 10.0  # Seconds for two in which a killed program is gone.


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing("-o", "hard,timeout=3s,negative-ttl=0s", proxied=True) as shared:
        shared.mounter.expect_log(r"process \d+ was killed|cannot connect", optional=True)
        yield shared


WRITE = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b'x' * 100_000)
print('written', flush=True)
time.sleep(1)
os.close(file)
"""


def test_check_10_hard_readers_wait_and_go_on(shared: Shared, proxy: FaultProxy, work: Path):
    body = noise(3 * MIB)
    shared.put(work / "file", body)
    assert (work / "file").stat().st_size == len(body)
    proxy.down()
    with python(READ, work / "file") as reader:
        time.sleep(OUTAGE)
        assert reader.poll() is None
        proxy.up()
        assert reader.communicate(timeout=BACK)[0] == body
        assert reader.returncode == 0


def test_check_09_hard_writers_wait_and_go_on(shared: Shared, proxy: FaultProxy, work: Path):
    with python(WRITE, work / "file") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        proxy.down()
        time.sleep(OUTAGE)
        assert writer.poll() is None
        proxy.up()
        assert writer.wait(BACK) == 0
    assert shared.get(work / "file") == b"x" * 100_000


PROGRAMS = {
    "read": (READ, "known"),
    "close": (WRITE, "new"),
    "stat": ("import os, sys; os.stat(sys.argv[1])", "unknown"),
    "ls": ("import os, sys; os.listdir(sys.argv[1])", "directory"),
}


@pytest.mark.parametrize(
    ("what", "signal_number"),
    [(what, signal.SIGKILL) for what in PROGRAMS] + [("read", signal.SIGTERM)],
)
def test_check_17_who_waits_can_be_killed(
    shared: Shared, proxy: FaultProxy, what: str, signal_number: int
):
    directory = shared.root / f"work-{secrets.token_hex(4)}"  # Not made by us, so not known.
    shared.put(directory / "directory" / "file", b"content")
    shared.put(directory / "known", b"content" * 100_000)
    assert (directory / "known").exists()
    script, name = PROGRAMS[what]
    if what != "close":
        proxy.down()
    with python(script, directory / name) as program:
        if what == "close":
            assert program.stdout is not None
            assert program.stdout.readline() == b"written\n"
            proxy.down()
        time.sleep(2.0)
        assert program.poll() is None, "it did not wait"
        program.send_signal(signal_number)
        assert program.wait(DEATH) == -signal_number
    proxy.up()
    # Nobody else was harmed, and nothing is stuck.
    assert (directory / "known").read_bytes() == b"content" * 100_000


APPEND = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(file, b' and more')
print('written', flush=True)
os.close(file)
"""


def test_check_17_what_the_store_had_when_its_writer_was_killed_is_no_conflict(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "file").write_bytes(b"content")
    hang = proxy.inject(Hang(Point.ANSWER), operation="PutObject", path="/file$")
    with python(APPEND, work / "file") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"written\n"
        eventually(lambda: hang.hits > 0)
        eventually(lambda: shared.get(work / "file") == b"content and more")
        program.kill()
        assert program.wait(DEATH) == -signal.SIGKILL
    proxy.clear()
    with (work / "file").open("ab") as file:
        file.write(b", again")
    assert (work / "file").read_bytes() == b"content and more, again"
    assert shared.get(work / "file") == b"content and more, again"
    assert "recover" not in shared.mounts[0].log


@pytest.mark.parametrize("option", ["soft,timeout=3", "soft,timeout=3s"])
def test_check_10_soft_is_what_it_is_in_nfs(
    mount: Mounter, bucket: Bucket, server: Server, option: str
):
    server.client().put_object(Bucket=bucket.name, Key="file", Body=b"content")
    mount.expect_log(r"cannot connect")
    with FaultProxy(server.url) as proxy:
        mounted = mount(bucket, "-o", option, url=proxy.url)
        assert (mounted.path / "file").stat().st_size == 7
        proxy.down()
        began = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.path / "file").read_bytes()
        assert time.monotonic() - began < 3 + 10
        proxy.up()
        assert (mounted.path / "file").read_bytes() == b"content"
