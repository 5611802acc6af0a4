"""What the tests of other mounts ask for (s3fs, geesefs, rclone), as far as ours do not yet.

Each case is done on the mount and on a disk, and has to end in the same way.
"""

# System calls are what is tested here, one by one.
# ruff: noqa: PTH208

import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from tests.mount.conftest import Shared
from tests.mount.programs import run
from tests.mount.trees import differences, names

MIB = 1 << 20
PART = 8 * MIB  # What is sent at once.
LONG_AGO_NS = 10**18


def shell(root: Path, script: str) -> str:
    """Run a script in a directory; what it prints."""
    return run("sh", "-c", script, cwd=root)


def redirects(root: Path) -> object:
    shell(
        root, "echo one > f; echo two >> f; echo three >> f; (echo four; echo five >&2) >> f 2>&1"
    )
    shell(root, "cat < f > g; : > f; echo six > f; cat f g > h")
    return (root / "h").read_text()


def skipping_writes(root: Path) -> object:
    with (root / "f").open("wb", buffering=0) as file:
        for offset in (0, 4 * MIB, 4 * MIB + 10, 21 * MIB + 3):
            file.seek(offset)
            file.write(b"data at %d" % offset)
    return (root / "f").stat().st_size


def many_offsets_backwards(root: Path) -> None:
    with (root / "f").open("wb", buffering=0) as file:
        for number in range(20, -1, -1):
            file.seek(number * MIB)
            file.write(bytes([number]) * (MIB - number))


def borders_of_parts(root: Path) -> None:
    random = Random(0)
    (root / "f").write_bytes(random.randbytes(3 * PART))
    with (root / "f").open("r+b", buffering=0) as file:
        for border in (PART, 2 * PART, 3 * PART):
            file.seek(border - 100)
            file.write(random.randbytes(200))


def overwriting_a_range(root: Path) -> None:
    (root / "f").write_bytes(Random(1).randbytes(3 * PART))
    shell(root, "dd if=/dev/zero of=f bs=1000 seek=5000 count=9000 conv=notrunc status=none")


def truncating_while_parts_leave(root: Path) -> object:
    with (root / "f").open("wb", buffering=0) as file:
        file.write(Random(2).randbytes(3 * PART))
        os.truncate(root / "f", PART + 5)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    return (root / "f").stat().st_size


def mode_and_times_while_parts_leave(root: Path) -> object:
    with (root / "f").open("wb", buffering=0) as file:
        file.write(bytes(3 * PART))
        (root / "f").chmod(0o604)
        file.write(b"more")
        os.utime(root / "f", ns=(1, LONG_AGO_NS))
    status = (root / "f").stat()
    return stat.S_IMODE(status.st_mode), status.st_mtime_ns


def renaming_while_parts_leave(root: Path) -> object:
    with (root / "f").open("wb", buffering=0) as file:
        file.write(Random(3).randbytes(3 * PART))
        (root / "f").rename(root / "g")
        file.write(b"more")
    return names(root)


def deleting_while_parts_leave(root: Path) -> object:
    with (root / "f").open("w+b", buffering=0) as file:
        file.write(Random(4).randbytes(3 * PART))
        (root / "f").unlink()
        (root / "f").write_bytes(b"another")
        file.seek(2 * PART)
        return len(file.read()), (root / "f").read_bytes()


def a_second_descriptor(root: Path) -> object:
    (root / "f").write_bytes(b"old")
    with (root / "f").open("r+b", buffering=0) as first, (root / "f").open("rb") as second:
        first.write(b"newer")
        return second.read()


def a_doubled_descriptor(root: Path) -> object:
    descriptor = os.open(root / "f", os.O_CREAT | os.O_RDWR)
    other = os.dup(descriptor)
    os.write(descriptor, b"one")
    os.close(descriptor)
    os.write(other, b"two")
    os.lseek(other, 0, os.SEEK_SET)
    found = os.read(other, 10)
    os.close(other)
    return found, (root / "f").read_bytes()


def opening_to_write_without_writing(root: Path) -> object:
    (root / "old").write_bytes(b"old")
    os.utime(root / "old", ns=(1, LONG_AGO_NS))
    for name, flags in (("old", os.O_WRONLY), ("new", os.O_CREAT | os.O_WRONLY)):
        os.close(os.open(root / name, flags))
    return (root / "old").stat().st_mtime_ns, (root / "new").stat().st_size


def touching_and_deleting(root: Path) -> object:
    shell(root, "for n in 1 2 3; do touch f; rm f; done; touch -d @1000000000 g; touch -a g")
    return (root / "g").stat().st_mtime_ns


def times_of_an_open_writer(root: Path) -> object:
    with (root / "f").open("wb", buffering=0) as file:
        os.utime(root / "f", ns=(1, LONG_AGO_NS))
        before = (root / "f").stat().st_mtime_ns
        file.write(b"x")
        during = (root / "f").stat().st_mtime_ns
        os.utime(root / "f", ns=(1, LONG_AGO_NS + 1))
    return before, during > LONG_AGO_NS, (root / "f").stat().st_mtime_ns


def reading_byte_by_byte(root: Path) -> object:
    (root / "f").write_bytes(bytes(range(256)))
    with (root / "f").open("rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(1), b""))


def rewinding_a_directory(root: Path) -> object:
    (root / "a").touch()
    descriptor = os.open(root, os.O_RDONLY)
    try:
        first = sorted(os.listdir(descriptor))
        (root / "b").touch()
        os.lseek(descriptor, 0, os.SEEK_SET)
        return first, sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def removing_while_reading_a_directory(root: Path) -> object:
    for number in range(1200):
        (root / f"file{number}").touch()
    with os.scandir(root) as entries:
        for entry in entries:
            os.unlink(entry)  # noqa: PTH108
    return names(root)


def a_directory_over_an_empty_one(root: Path) -> object:
    (root / "full" / "deep").mkdir(parents=True)
    (root / "full" / "deep" / "f").write_bytes(b"x")
    (root / "empty").mkdir()
    (root / "full").rename(root / "empty")
    (root / "empty").rename(root / "back")
    return (root / "back" / "deep" / "f").read_bytes()


def names_that_look_escaped(root: Path) -> object:
    for name in ("a%20b", "%", "100%", "%2F", "a+b", "cr\rlf\n", "q?x=1&y", "<", "d$folder$"):
        (root / name).write_bytes(name.encode())
        (root / name).rename(root / f"{name}.")
    return [(path.name, path.read_bytes()) for path in sorted(root.iterdir())]


def a_file_and_a_directory_in_turn(root: Path) -> object:
    for number in range(3):
        (root / "x").write_bytes(b"file")
        (root / "x").unlink()
        (root / "x").mkdir()
        (root / "x" / f"inside{number}").touch()
        shell(root, "rm -r x")
    return names(root)


def a_working_directory(root: Path) -> object:
    (root / "d").mkdir()
    return shell(root / "d", "echo x > f; mv f ../g; mkdir e; cd e; cp ../../g h; cat h; pwd -P")[
        :2
    ]


def many_at_once(root: Path) -> object:
    """Directories that come and go, and files that are written and read, at the same time."""

    def work(number: int) -> bytes:
        own = root / f"own{number}"
        for turn in range(8):
            own.mkdir()
            (own / "f").write_bytes(b"%d" % turn * 1000)
            (own / "f").rename(root / f"f{number}")
            own.rmdir()
        return (root / f"f{number}").read_bytes()[:1]

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(work, range(6))), names(root)


CASES: tuple[Callable[[Path], object], ...] = (
    redirects,
    skipping_writes,
    many_offsets_backwards,
    borders_of_parts,
    overwriting_a_range,
    truncating_while_parts_leave,
    mode_and_times_while_parts_leave,
    renaming_while_parts_leave,
    deleting_while_parts_leave,
    a_second_descriptor,
    a_doubled_descriptor,
    opening_to_write_without_writing,
    touching_and_deleting,
    times_of_an_open_writer,
    reading_byte_by_byte,
    rewinding_a_directory,
    removing_while_reading_a_directory,
    a_directory_over_an_empty_one,
    names_that_look_escaped,
    a_file_and_a_directory_in_turn,
    a_working_directory,
    many_at_once,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_ends_as_on_a_disk(shared: Shared, work: Path, tmp_path: Path, case: Callable):
    assert case(work) == case(tmp_path)
    os.sync()
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    assert differences(work, tmp_path) == []


# -- of objects that others made ---------------------------------------------------------------


def test_a_large_object_of_others_keeps_its_bytes_under_new_attributes(shared: Shared, work: Path):
    body = Random(5).randbytes(3 * PART)
    shared.put(work / "large", body, Metadata={"color": "green"})
    os.setxattr(work, "user.s3mount.refresh", b"")
    (work / "large").chmod(0o600)
    os.setxattr(work / "large", "user.a", b"b")
    os.sync()
    end = time.monotonic() + 5
    while "xattr" not in shared.head(work / "large")["Metadata"]:
        assert time.monotonic() < end, "the store has not heard of it"
        time.sleep(0.05)
    assert shared.get(work / "large") == body
    assert shared.head(work / "large")["Metadata"]["color"] == "green"


def test_the_mount_point_has_times(shared: Shared, work: Path):
    now = time.time()
    assert abs(shared.root.stat().st_mtime - now) < 600
    os.utime(shared.root, ns=(1, LONG_AGO_NS))
    assert shared.root.stat().st_mtime_ns == LONG_AGO_NS
    (work.parent / f"{work.name}-new").touch()
    assert abs(shared.root.stat().st_mtime - now) < 600
