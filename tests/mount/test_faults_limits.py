"""Too much of everything: names, files, bytes, programs; slower perhaps, and nothing breaks.

The numbers are those of the table in docs/reliability.md.
"""

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import INTERNAL_ERROR, Throttle
from tests.mount.conftest import Shared
from tests.mount.trees import names

MIB = 1 << 20
MEMORY = 32
BASE_MEMORY = 160  # MiB of the interpreter and its libraries, and some more.


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    options = ("--memory", f"{MEMORY}M", "--part-size", "5M", "--timeout", "8s")
    with sharing(*options, proxied=True) as shared:
        shared.mounter.expect_log(r"injected by the fault proxy", optional=True)
        yield shared


def resident(shared: Shared) -> int:
    """MiB of memory that the daemon has at the moment."""
    for line in Path(f"/proc/{shared.mounts[0].process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) >> 10
    raise AssertionError("the daemon is gone")


def test_check_36_more_than_the_largest_object_is_refused_before_it_is_written(work: Path):
    with (work / "file").open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="File too large") as caught:
            os.ftruncate(file.fileno(), 1 << 50)
        assert caught.value.errno == errno.EFBIG
        file.write(b"as much as there is room for")
    assert (work / "file").read_bytes() == b"as much as there is room for"


STORM = """
import os, sys
for number in range(int(sys.argv[2])):
    for kind in ("file", "missing"):
        try:
            os.stat(f"{sys.argv[1]}/{kind}-{number}")
        except FileNotFoundError:
            if kind == "file":
                raise
"""


def test_check_42_a_storm_of_stats_is_asked_for_once(shared: Shared, proxy: FaultProxy, work: Path):
    count, programs = 100, 24
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: shared.put(work / f"file-{n}", b"content"), range(count)))
    time.sleep(5.5)  # What is not there is remembered for five seconds.
    proxy.forget()
    before = resident(shared)
    command = [sys.executable, "-c", STORM, work, str(count)]
    storm = [subprocess.Popen(command) for _ in range(programs)]
    began = time.monotonic()
    names(shared.root)
    assert time.monotonic() - began < 10
    assert [one.wait(60) for one in storm] == [0] * programs
    assert len(proxy.log) < 6 * count  # Not once for each of the programs.
    assert resident(shared) < before + 50


def test_check_43_more_open_files_than_the_daemon_may_have(shared: Shared, work: Path):
    limits = resource.prlimit(shared.mounts[0].process_id, resource.RLIMIT_NOFILE)
    resource.prlimit(shared.mounts[0].process_id, resource.RLIMIT_NOFILE, (256, limits[1]))
    opened = []
    try:
        for number in range(600):
            file = (work / f"file-{number}").open("wb", buffering=0)
            opened.append(file)
            file.write(b"%d" % number)
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda file: file.close(), opened))
    finally:
        for file in opened:
            file.close()
        resource.prlimit(shared.mounts[0].process_id, resource.RLIMIT_NOFILE, limits)
    assert len(names(work)) == 600
    assert (work / "file-599").read_bytes() == b"599"


def test_check_44_writers_are_slowed_and_memory_is_kept(
    shared: Shared, proxy: FaultProxy, work: Path
):
    (work / "small").write_bytes(b"small")
    proxy.inject(Throttle(4.0 * MIB), operation="UploadPart")
    most = 0
    with ThreadPoolExecutor(6) as pool:
        writers = [
            pool.submit((work / f"file-{number}").write_bytes, bytes([number]) * 40 * MIB)
            for number in range(6)
        ]
        while not all(writer.done() for writer in writers):
            most = max(most, resident(shared))
            began = time.monotonic()
            assert (work / "small").read_bytes() == b"small"
            assert time.monotonic() - began < 10
            time.sleep(0.2)
        assert [writer.result() for writer in writers] == [40 * MIB] * 6
    assert most < MEMORY + BASE_MEMORY
    for number in range(6):
        assert shared.get(work / f"file-{number}") == bytes([number]) * 40 * MIB


def test_check_53_an_error_has_a_line_that_names_key_and_request(
    shared: Shared, proxy: FaultProxy, work: Path
):
    shared.put(work / "file", b"content")
    time.sleep(5.5)
    assert (work / "file").stat().st_size == 7
    before = len(shared.mounts[0].log)
    proxy.inject(INTERNAL_ERROR, operation="GetObject")
    with pytest.raises(OSError, match="Input/output"):
        (work / "file").read_bytes()
    lines = shared.mounts[0].log[before:].splitlines()
    told = [line for line in lines if " WARNING " in line]
    assert told
    assert f"GetObject {work.name}/file" in told[0]
    assert "request FAULT" in told[0]
