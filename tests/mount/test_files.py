"""What single system calls on files mean: handles, appending, mapping, truncating, removing."""

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.mount.trees import names

MIB = 1 << 20


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor, closed at the end of the block."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fails_with(number: int):
    """Expect an `OSError` with this errno."""
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


# -- handles -----------------------------------------------------------------------------------


def test_what_one_handle_writes_another_reads_at_once(work: Path):
    with opened(work / "file", os.O_RDWR | os.O_CREAT) as one:
        with opened(work / "file", os.O_RDWR) as other:
            os.write(one, b"hello world")
            assert os.read(other, 100) == b"hello world"
            os.pwrite(other, b"W", 6)
            assert os.pread(one, 100, 0) == b"hello World"
            assert os.fstat(one).st_size == os.fstat(other).st_size == 11
        assert (work / "file").read_bytes() == b"hello World"


def test_handles_that_append_never_overwrite_each_other(work: Path):
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with opened(work / "log", flags) as one, opened(work / "log", flags) as other:
        for number in range(50):
            os.write(one, b"one %03d\n" % number)
            os.write(other, b"two %03d\n" % number)
        os.pwrite(one, b"appended too\n", 0)  # As Linux does it with O_APPEND.
    lines = (work / "log").read_bytes().splitlines()
    assert lines[:4] == [b"one 000", b"two 000", b"one 001", b"two 001"]
    assert len(lines) == 101
    assert lines[-1] == b"appended too"


def test_open_flags(work: Path):
    path = work / "file"
    with fails_with(errno.ENOENT):
        os.open(path, os.O_RDWR)
    path.write_bytes(b"content")
    with fails_with(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL)
    with fails_with(errno.ENOTDIR):
        os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with fails_with(errno.EISDIR):
        os.open(work, os.O_RDWR)
    with opened(path, os.O_WRONLY) as writer, fails_with(errno.EBADF):
        os.read(writer, 1)
    with opened(path, os.O_RDONLY) as reader, fails_with(errno.EBADF):
        os.write(reader, b"x")
    with opened(path, os.O_RDWR | os.O_TRUNC) as truncated:
        assert os.fstat(truncated).st_size == 0
    assert path.read_bytes() == b""


def test_o_direct_reads_and_writes(work: Path):
    path = work / "file"
    buffer = mmap.mmap(-1, 2 * MIB)  # Anonymous memory, so aligned as O_DIRECT may demand.
    buffer.write(Random(0).randbytes(2 * MIB))
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT) as direct:
        assert os.writev(direct, [buffer]) == 2 * MIB
        back = mmap.mmap(-1, 2 * MIB)
        assert os.preadv(direct, [back], 0) == 2 * MIB
        assert back[:] == buffer[:]
    assert path.read_bytes() == buffer[:]


def test_seeking_reads_of_a_large_file(work: Path):
    body = Random(1).randbytes(20 * MIB)
    (work / "file").write_bytes(body)
    random = Random(2)
    with opened(work / "file", os.O_RDONLY) as reader:
        for _ in range(200):
            start, size = random.randrange(len(body) + 10), random.choice((1, 4096, 300_000))
            assert os.pread(reader, size, start) == body[start : start + size]
        assert os.lseek(reader, 0, os.SEEK_END) == len(body)
        assert os.read(reader, 1) == b""


# -- sizes -------------------------------------------------------------------------------------


def test_truncate_shrinks_and_grows(work: Path):
    path = work / "file"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    os.truncate(path, 8)
    assert path.read_bytes() == b"0123\0\0\0\0"
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    with opened(path, os.O_RDWR) as file:
        os.ftruncate(file, 3)
        os.pwrite(file, b"x", 5)
        os.ftruncate(file, 5)
        os.ftruncate(file, 7)
        assert os.pread(file, 100, 0) == b"\0" * 7
    assert path.read_bytes() == b"\0" * 7


def test_truncate_inside_a_large_file(work: Path):
    body = Random(3).randbytes(20 * MIB)
    path = work / "file"
    path.write_bytes(body)
    os.truncate(path, 17 * MIB + 5)
    assert path.read_bytes() == body[: 17 * MIB + 5]
    os.truncate(path, 19 * MIB)
    assert path.read_bytes() == body[: 17 * MIB + 5] + bytes(2 * MIB - 5)


def test_sparse_files_read_as_zeros(work: Path):
    path = work / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"end", 40 * MIB)
        assert os.pread(file, 10, 20 * MIB) == bytes(10)
    assert path.stat().st_size == 40 * MIB + 3
    body = path.read_bytes()
    assert body[: 40 * MIB] == bytes(40 * MIB)
    assert body[40 * MIB :] == b"end"
    with opened(path, os.O_RDWR) as file:
        os.pwrite(file, b"middle", 10 * MIB)
    assert path.read_bytes()[10 * MIB - 2 : 10 * MIB + 8] == b"\0\0middle\0\0"


# -- mapping -----------------------------------------------------------------------------------


def test_a_mapping_reads_the_file(work: Path):
    body = Random(4).randbytes(3 * MIB + 17)
    (work / "file").write_bytes(body)
    with (
        (work / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping,
    ):
        assert mapping[:] == body
        assert mapping.find(body[2 * MIB : 2 * MIB + 20]) == 2 * MIB


def test_a_shared_mapping_writes_the_file(work: Path, shared):
    path = work / "file"
    path.write_bytes(bytes(2 * MIB))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[5:10] = b"hello"
        mapping[MIB + 1 : MIB + 6] = b"world"
        mapping.flush()
        assert os.pread(file.fileno(), 5, 5) == b"hello"
        os.fsync(file.fileno())
        assert shared.get(path)[5:10] == b"hello"
        mapping[0:1] = b"!"
    assert path.read_bytes()[:10] == b"!\0\0\0\0hello"
    assert path.read_bytes()[MIB + 1 : MIB + 6] == b"world"


def test_a_mapping_outlives_its_descriptor(work: Path, shared):
    path = work / "file"
    path.write_bytes(bytes(MIB))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    mapping[100:105] = b"later"
    mapping.flush()
    mapping.close()
    assert path.read_bytes()[100:105] == b"later"
    os.sync()
    with opened(path, os.O_RDONLY) as file:
        os.fsync(file)
    assert shared.get(path)[100:105] == b"later"


# -- names of open files -----------------------------------------------------------------------


@pytest.mark.parametrize("saved", [True, False])
def test_an_unlinked_file_lives_until_it_is_closed(work: Path, saved: bool):
    path = work / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"before")
        if saved:
            os.fsync(file)
        path.unlink()
        assert names(work) == []
        os.pwrite(file, b"after", 6)
        assert os.pread(file, 100, 0) == b"beforeafter"
        os.ftruncate(file, 3)
        assert os.fstat(file).st_size == 3
        path.write_bytes(b"another file")
        assert os.pread(file, 100, 0) == b"bef"
        os.fsync(file)
    assert path.read_bytes() == b"another file"


def test_an_unlinked_large_file_can_still_be_read(work: Path):
    body = Random(5).randbytes(20 * MIB)
    path = work / "file"
    path.write_bytes(body)
    with opened(path, os.O_RDONLY) as file:
        path.unlink()
        assert os.pread(file, 1000, 19 * MIB) == body[19 * MIB : 19 * MIB + 1000]
        assert os.pread(file, len(body), 0) == body


@pytest.mark.parametrize("saved", [True, False])
def test_a_renamed_open_file_keeps_what_is_written(work: Path, shared, saved: bool):
    with opened(work / "old", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"before ")
        if saved:
            os.fsync(file)
        (work / "old").rename(work / "new")
        os.write(file, b"after")
        assert os.pread(file, 100, 0) == b"before after"
    assert names(work) == ["new"]
    assert (work / "new").read_bytes() == b"before after"
    assert shared.all_keys(work) == [f"{work.name}/", f"{work.name}/new"]


def test_a_file_in_a_renamed_directory_stays_open(work: Path):
    (work / "old").mkdir()
    with opened(work / "old" / "file", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"before ")
        (work / "old").rename(work / "new")
        os.write(file, b"after")
    assert (work / "new" / "file").read_bytes() == b"before after"
    assert names(work) == ["new"]


def test_a_replaced_file_lives_until_it_is_closed(work: Path):
    (work / "target").write_bytes(b"the old bytes")
    (work / "source").write_bytes(b"new")
    with opened(work / "target", os.O_RDONLY) as old:
        (work / "source").rename(work / "target")
        assert os.pread(old, 100, 0) == b"the old bytes"
        assert os.fstat(old).st_size == 13
        assert (work / "target").read_bytes() == b"new"
    assert names(work) == ["target"]


# -- names -------------------------------------------------------------------------------------


def test_rename_refuses_what_posix_refuses(work: Path):
    (work / "directory").mkdir()
    (work / "directory" / "inner").mkdir()
    (work / "empty").mkdir()
    (work / "file").write_bytes(b"")
    for source, target, number in (
        ("file", "directory", errno.EISDIR),
        ("directory", "file", errno.ENOTDIR),
        ("empty", "directory", errno.ENOTEMPTY),
        ("directory", "directory/inner/below", errno.EINVAL),
        ("missing", "file", errno.ENOENT),
        ("file", "missing/file", errno.ENOENT),
    ):
        with fails_with(number):
            (work / source).rename(work / target)
    assert names(work) == ["directory", "empty", "file"]
    (work / "directory").rename(work / "empty")
    assert names(work) == ["empty", "file"]
    assert names(work / "empty") == ["inner"]


def test_directories_refuse_what_posix_refuses(work: Path):
    (work / "full").mkdir()
    (work / "full" / "file").write_bytes(b"")
    for refused, number in (
        (lambda: (work / "full").rmdir(), errno.ENOTEMPTY),
        (lambda: (work / "full").mkdir(), errno.EEXIST),
        (lambda: (work / "full" / "file").mkdir(), errno.EEXIST),
        (lambda: (work / "full" / "file").rmdir(), errno.ENOTDIR),
        (lambda: (work / "full").unlink(), errno.EISDIR),
        (lambda: (work / "missing").rmdir(), errno.ENOENT),
        (lambda: (work / "full" / "file" / "below").write_bytes(b""), errno.ENOTDIR),
        (lambda: os.link(work / "full" / "file", work / "hard"), errno.EPERM),
        (lambda: (work / ("x" * 256)).write_bytes(b""), errno.ENAMETOOLONG),
    ):
        with fails_with(number):
            refused()
    (work / "full" / "file").unlink()
    assert names(work) == ["full"]
    (work / "full").rmdir()
    assert names(work) == []


# They keep a directory as a file with a longer name, and refuse one whose name has 255 bytes.
SHORT_DIRECTORIES = ("rustfs", "minio")


@pytest.mark.parametrize(
    "name",
    ["with space", "ünïcödé 文件", "a+b&c=d?e#f%20g", "~-._!*'()", "'\"\\x", "x" * 255, ".h"],
)
def test_names_of_all_kinds(work: Path, shared, name: str):
    (work / name).write_bytes(b"content")
    assert names(work) == [name]
    key = os.getxattr(work / name, "user.s3.key").decode()  # Escaped, where the store needs that.
    assert shared.s3.get_object(Bucket=shared.bucket.name, Key=key)["Body"].read() == b"content"
    (work / name).rename(work / f"n{name[:200]}")
    (work / f"n{name[:200]}").unlink()
    if shared.server.name in SHORT_DIRECTORIES:
        name = name[:200]
    (work / name).mkdir()
    (work / name / name).write_bytes(b"inner")
    assert (work / name / name).read_bytes() == b"inner"
    assert names(work / name) == [name]


def test_a_name_that_is_not_utf_8(work: Path):
    path = os.path.join(os.fsencode(work), b"caf\xe9")  # noqa: PTH118  pathlib is for text
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"content")
    assert os.listdir(os.fsencode(work)) == [b"caf\xe9"]  # noqa: PTH208
    with open(path, "rb") as file:  # noqa: PTH123
        assert file.read() == b"content"


def test_special_files(work: Path):
    os.mkfifo(work / "fifo")
    (work / "link").symlink_to("x" * 3000)
    assert stat.S_ISFIFO((work / "fifo").lstat().st_mode)
    assert (work / "link").readlink() == Path("x" * 3000)
    assert names(work) == ["fifo", "link"]
