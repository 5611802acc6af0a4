"""Requests that something on the way delivers twice: the client hears the second answer.

The numbers are those of the table in docs/reliability.md.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.faultproxy import FaultProxy
from tests.faults import Twice
from tests.mount.conftest import Shared
from tests.mount.trees import names

MIB = 1 << 20


@pytest.fixture(scope="module", params=["weed", "rustfs"])
def shared(sharing, request: pytest.FixtureRequest) -> Iterator[Shared]:
    with sharing("--part-size", "5M", server=request.param, proxied=True) as shared:
        yield shared


@pytest.fixture
def doubled(proxy: FaultProxy) -> None:
    """All that changes something is delivered twice."""
    for method in ("PUT", "POST", "DELETE"):
        proxy.inject(Twice(), method=method)


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("size", [0, 1000, 11 * MIB])
def test_check_19_a_file_is_made_once_though_the_store_hears_it_twice(
    shared: Shared, work: Path, size: int
):
    body = Random(size).randbytes(size)
    file = os.open(work / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(file, body)
    os.fsync(file)
    os.close(file)
    assert shared.get(work / "file") == body
    with (work / "file").open("ab") as again:
        again.write(b"more")
    with (work / "file").open("r+b") as again:
        again.write(b"THE")
    assert shared.get(work / "file") == b"THE" + (body + b"more")[3:]
    (work / "file").write_bytes(b"another")
    assert shared.get(work / "file") == b"another"


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("size", [1000, 11 * MIB])
def test_check_19_names_and_attributes_change_once(shared: Shared, work: Path, size: int):
    body = Random(size).randbytes(size)
    (work / "directory").mkdir()
    (work / "directory" / "file").write_bytes(body)
    for mode in (0o600, 0o640):
        with (work / "directory" / "file").open("rb") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    assert shared.head(work / "directory" / "file")["Metadata"]["mode"] == str(0o100640)
    (work / "directory" / "file").rename(work / "directory" / "renamed")
    (work / "directory").rename(work / "moved")
    assert shared.get(work / "moved" / "renamed") == body
    assert names(work / "moved") == ["renamed"]
    (work / "moved" / "renamed").unlink()
    (work / "moved").rmdir()
    assert names(work) == []
    assert shared.all_keys(work) == [f"{work.name}/"]
