"""What a mount logs of operations that fail, or are slow: path, errno, request id; once."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import ACCESS_DENIED, Delay
from tests.mount.conftest import Shared

SLOW = 0.2  # seconds


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    options = ("--log-format", "json", "--log-slow", f"{SLOW}s", "--log-level", "info")
    with sharing(*options, proxied=True) as shared:
        yield shared


def records(shared: Shared, word: str) -> list[dict[str, object]]:
    """What was logged with *word* in its text."""
    found = [json.loads(line) for line in shared.mounts[0].log.splitlines()]
    return [one for one in found if word in str(one["message"])]


def test_a_failure_names_path_errno_and_request(shared: Shared, work: Path):
    shared.put(work / "file", b"secret")
    os.setxattr(work, "user.s3mount.refresh", b"1")
    assert shared.proxy is not None
    shared.proxy.inject(ACCESS_DENIED, operation="GetObject")
    for _ in range(5):
        with pytest.raises(PermissionError):
            (work / "file").read_bytes()
    shared.proxy.clear()
    found = records(shared, f"{work.name}/file: EACCES")
    assert found[0]["path"] == f"{work.name}/file"
    assert found[0]["errno"] == errno.errorcode[errno.EACCES]
    assert found[0]["operation"] in ("lookup", "getattr", "open", "read")
    assert found[0]["request_id"] == "FAULT"
    told = [(one["operation"], one["errno"]) for one in found]
    assert len(told) == len(set(told)), "the same was told again"


def test_what_is_slow_is_told_with_its_path_and_its_time(shared: Shared, work: Path):
    assert shared.proxy is not None
    shared.proxy.inject(Delay(3 * SLOW), operation="PutObject")
    (work / "late").write_bytes(b"x")
    shared.proxy.clear()
    (found,) = records(shared, f"slow: flush {work.name}/late")
    assert found["level"] == "info"
    assert (found["operation"], found["path"]) == ("flush", f"{work.name}/late")
    assert float(str(found["seconds"])) >= SLOW
