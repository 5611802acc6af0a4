"""What the files of the benchmark hold, and how many there are: one place for all its sizes."""

import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

MIB = 1 << 20
PAGE_SIZE = 4096
SMALL_SIZE = 4096
PATCH_SIZE = 4096
APPEND_SIZE = 1024
PART_SIZE = 64 * MIB
FILES_PER_FOLDER = 100  # in trees that are unpacked or removed
LISTED_MTIME = 1_600_000_000
LISTED_METADATA = {"mode": "33188", "uid": "0", "gid": "0", "mtime": str(LISTED_MTIME)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much the workloads do: sizes in bytes, times in seconds, numbers of files."""

    large: int = 1024 * MIB
    pieces: int = 64 * MIB
    random_reads: int = 500  # a thread alone; 16 threads share four times as many
    time_box: float = 10.0
    listed: int = 5000
    names: int = 100_000
    small: int = 1000
    renamed: int = 500
    removed: int = 2000
    unpacked: int = 3000


FULL = Scale()
QUICK = Scale(
    large=128 * MIB,
    pieces=8 * MIB,
    random_reads=50,
    time_box=3.0,
    listed=500,
    names=5000,
    small=200,
    renamed=50,
    removed=200,
    unpacked=300,
)


def through_proxy(scale: Scale) -> Scale:
    """The same with fewer files to unpack, which cost some mounts ten round trips each."""
    return replace(scale, unpacked=scale.unpacked // 10)


def small_name(number: int) -> str:
    """The name of a small file."""
    return f"file-{number:06d}"


def tree_name(number: int) -> str:
    """The path of a file in a tree of folders."""
    return f"folder-{number // FILES_PER_FOLDER:03d}/{small_name(number)}"


def stamped(size: int, first_page: int) -> bytearray:
    """Bytes that do not compress, with its number at the start of each page.

    The number counts from *first_page*, so that a reader knows where what it got comes from.
    """
    filler = random.Random(size).randbytes(min(size, MIB))
    content = bytearray(filler * (size // len(filler)))
    for page in range(size // PAGE_SIZE):
        start = page * PAGE_SIZE
        content[start : start + 8] = (first_page + page).to_bytes(8, "little")
    return content


def page_number(page: bytearray) -> int:
    """The number that `stamped` has put at the start of a page."""
    return int.from_bytes(page[:8], "little")


def large_parts(size: int) -> Iterator[bytes]:
    """The parts of a large file, to be uploaded."""
    for start in range(0, size, PART_SIZE):
        yield bytes(stamped(min(PART_SIZE, size - start), start // PAGE_SIZE))


def write_archive(path: Path, count: int) -> None:
    """Write a tar archive of *count* files of 1 to 7 KiB in folders."""
    sizes = random.Random(count)
    body = bytes(stamped(2 * SMALL_SIZE, 0))
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            member = tarfile.TarInfo(tree_name(number))
            member.size = sizes.randint(1024, 7168)
            member.mtime = LISTED_MTIME
            archive.addfile(member, BytesIO(body[: member.size]))
