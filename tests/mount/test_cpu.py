"""What the work of programs costs the daemon in CPU time, so that it cannot grow unseen.

The unit is what a fixed piece of Python costs on the same machine at the same moment: a slow
or busy machine makes both dearer.  Wall time is measured by ``scripts/bench`` only.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Shared
from tests.mount.programs import run

MIB = 1 << 20
ATTEMPTS = 4  # The best one counts: others may have been disturbed.
FILES = 300

# In units for each file, name or MiB: about twice what it was when this was written.  What is
# read is mostly copied by the kernel, which takes up to twice as long when memory is short.
CREATE, READ_SMALL, LIST_LONG, REMOVE, WRITE, READ = 13, 9, 3, 7, 26, 26


class Piece:
    """Something to make, to call and to throw away, as the daemon does for each request."""

    __slots__ = ("number", "text")

    def __init__(self, number: int) -> None:
        self.number = number
        self.text: dict[str, int] = {}

    async def note(self, name: str) -> "Piece":
        self.text[name] = self.number
        return self


def unit() -> float:
    """Seconds of CPU for a hundred turns of making, calling and joining: about 0.1 ms."""
    began = time.thread_time()
    for number in range(20_000):
        piece = Piece(number)
        with contextlib.suppress(StopIteration):
            piece.note(f"name-{number % 7}").send(None)
        ", ".join([f"{name}: {value}" for name, value in piece.text.items()])
    return (time.thread_time() - began) / 200


def spent(process_id: int) -> float:
    """Seconds of CPU that a process has used so far, all its threads together."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def cost(shared: Shared, work: Callable[[int], object]) -> float:
    """What *work* (told which attempt it is) costs the daemon, in units."""
    found = []
    for attempt in range(ATTEMPTS):
        before, began = unit(), spent(shared.mounts[0].process_id)
        work(attempt)
        used = spent(shared.mounts[0].process_id) - began
        found.append(used / ((before + unit()) / 2))
    return min(found)


def limited(what: str, units: float, limit: float) -> None:
    """Fail where something costs more than it may; the figures are shown with ``-rA``."""
    print(f"{what}: {units:.1f} units, at most {limit}")
    assert units <= limit, f"{what} costs {units:.1f} units of CPU, and {limit} is the limit"


def fill(directory: Path) -> None:
    directory.mkdir()
    for number in range(FILES):
        (directory / f"file{number:03d}").write_bytes(b"x" * 4096)


def test_creating_small_files(shared: Shared, work: Path):
    units = cost(shared, lambda attempt: fill(work / str(attempt)))
    limited("a new file of 4 KiB", units / FILES, CREATE)


def test_reading_small_files(shared: Shared, cold: Path):
    def read(attempt: int) -> None:
        directory = cold / str(attempt)
        for number in range(FILES):
            assert (directory / f"file{number:03d}").read_bytes() == b"content" * 500

    for attempt in range(ATTEMPTS):
        for number in range(FILES):
            shared.put(cold / str(attempt) / f"file{number:03d}", b"content" * 500)
    limited("a small file that is read", cost(shared, read) / FILES, READ_SMALL)


def test_listing_with_attributes(shared: Shared, cold: Path):
    for attempt in range(ATTEMPTS):
        for number in range(FILES):
            name = cold / str(attempt) / f"file{number:03d}"
            shared.put(name, b"content", Metadata={"mode": "33184"})

    def list_long(attempt: int) -> None:
        assert run("ls", "-l", cold / str(attempt)).count("-rw-r-----") == FILES

    limited("a name in ls -l", cost(shared, list_long) / FILES, LIST_LONG)


def test_removing_a_tree(shared: Shared, work: Path):
    for attempt in range(ATTEMPTS):
        fill(work / str(attempt))
    units = cost(shared, lambda attempt: run("rm", "-r", work / str(attempt)))
    limited("a file that is removed", units / FILES, REMOVE)


@pytest.mark.parametrize("size", [MIB, 4096], ids=["1 MiB", "4 KiB"])
def test_writing_in_order(shared: Shared, work: Path, size: int):
    piece = os.urandom(size)

    def write(attempt: int) -> None:
        with (work / f"{size}-{attempt}").open("wb", buffering=0) as file:
            for _ in range(64 * MIB // size):
                file.write(piece)

    limited(f"a MiB that is written {size} at once", cost(shared, write) / 64, WRITE)


def test_reading_in_order(shared: Shared, cold: Path):
    body = os.urandom(64 * MIB)
    for attempt in range(ATTEMPTS):
        shared.put(cold / f"large{attempt}", body)

    def read(attempt: int) -> None:
        with (cold / f"large{attempt}").open("rb", buffering=0) as file:
            while file.read(MIB):
                pass

    limited("a MiB that is read", cost(shared, read) / 64, READ)
