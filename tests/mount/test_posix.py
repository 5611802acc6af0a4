"""Operations and their errors: the mount does, step by step, what a local disk does."""

# System calls are what is tested here, one by one.
# ruff: noqa: PTH104, PTH106, PTH115, PTH116, PTH208, PTH211

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Shared
from tests.mount.programs import run

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
OTHER_USER = 65534
MOMENT = 0.02  # Seconds: longer than the clock of any file system is coarse.

libc = ctypes.CDLL(None, use_errno=True)


class Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def outcome(operation: Callable, *arguments, **how) -> object:
    """What an operation returns, or the name of its error."""
    try:
        return operation(*arguments, **how)
    except OSError as error:
        return errno.errorcode[error.errno]


def renameat2(source: Path, target: Path, flags: int) -> None:
    paths = os.fsencode(source), os.fsencode(target)
    if libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def opened(path: Path, flags: int, then: Callable[[int], object] = lambda _: "opened") -> object:
    """Open, and say what *then* makes of the descriptor."""
    descriptor = os.open(path, flags, 0o644)
    try:
        return then(descriptor)
    finally:
        os.close(descriptor)


def grow(root: Path) -> None:
    """What the cases below find."""
    (root / "file").write_bytes(b"hello")
    (root / "other").write_bytes(b"other")
    (root / "empty").mkdir()
    (root / "full" / "inner").mkdir(parents=True)
    (root / "full" / "leaf").write_bytes(b"leaf")
    (root / "link").symlink_to("file")
    (root / "loop").symlink_to("loop")


LONG = "n" * 256
CREATE = os.O_CREAT | os.O_WRONLY
CASES: dict[str, Callable[[Path], object]] = {
    "rename NOREPLACE over a file": lambda r: renameat2(r / "file", r / "other", RENAME_NOREPLACE),
    "rename NOREPLACE over a directory": lambda r: renameat2(r / "file", r / "empty", 1),
    "rename NOREPLACE to a new name": lambda r: renameat2(r / "file", r / "new", RENAME_NOREPLACE),
    "rename with unknown flags": lambda r: renameat2(r / "file", r / "new", 8),
    "rename into its own subtree": lambda r: (r / "full").rename(r / "full" / "inner" / "x"),
    "rename onto itself": lambda r: os.rename(r / "full", r / "full"),
    "rename onto its parent": lambda r: (r / "full" / "inner").rename(r / "full"),
    "rename a file over a directory": lambda r: os.rename(r / "file", r / "empty"),
    "rename a directory over a file": lambda r: os.rename(r / "full", r / "file"),
    "rename over a full directory": lambda r: os.rename(r / "empty", r / "full"),
    "rename over an empty directory": lambda r: os.rename(r / "full", r / "empty"),
    "rename a file over a file": lambda r: os.rename(r / "file", r / "other"),
    "rename of nothing": lambda r: os.rename(r / "none", r / "new"),
    "rename to a name too long": lambda r: os.rename(r / "file", r / LONG),
    "rename of dot": lambda r: os.rename(f"{r}/full/.", r / "new"),
    "rmdir of a full directory": lambda r: (r / "full").rmdir(),
    "rmdir of a file": lambda r: (r / "file").rmdir(),
    "rmdir of nothing": lambda r: (r / "none").rmdir(),
    "rmdir of dot": lambda r: os.rmdir(f"{r}/empty/."),
    "rmdir of dot dot": lambda r: os.rmdir(f"{r}/empty/.."),
    "unlink of a directory": lambda r: (r / "empty").unlink(),
    "unlink of nothing": lambda r: (r / "none").unlink(),
    "a file as a directory": lambda r: (r / "file" / "x").stat(),
    "create below a file": lambda r: opened(r / "file" / "x", CREATE),
    "create below nothing": lambda r: opened(r / "none" / "x", CREATE),
    "create with a slash": lambda r: os.open(f"{r}/new/", CREATE),
    "stat of a file with a slash": lambda r: os.stat(f"{r}/file/"),
    "stat of an empty name": lambda _: os.stat(""),
    "mkdir over a file": lambda r: (r / "file").mkdir(),
    "mkdir over a directory": lambda r: (r / "full").mkdir(),
    "mkdir below nothing": lambda r: (r / "none" / "new").mkdir(),
    "open of a directory to write": lambda r: opened(r / "full", os.O_WRONLY),
    "create over a directory": lambda r: opened(r / "full", os.O_CREAT | os.O_RDWR),
    "exclusive creation of a file that exists": lambda r: opened(r / "file", CREATE | os.O_EXCL),
    "exclusive creation of a link that dangles": lambda r: opened(r / "loop", CREATE | os.O_EXCL),
    "O_DIRECTORY of a file": lambda r: opened(r / "file", os.O_DIRECTORY),
    "O_NOFOLLOW of a link": lambda r: opened(r / "link", os.O_NOFOLLOW),
    "a link to itself": lambda r: (r / "loop").stat(),
    "a link over a file": lambda r: (r / "file").symlink_to("x"),
    "a link to nothing at all": lambda r: os.symlink("", r / "new"),
    "a link that is too long": lambda r: (r / "new").symlink_to("a" * 4096),
    "a link as long as can be": lambda r: (
        (r / "new").symlink_to("a/" * 2046) or len(os.readlink(r / "new"))
    ),
    "readlink of a file": lambda r: os.readlink(r / "file"),
    "a fifo over a file": lambda r: os.mkfifo(r / "file"),
    "listing of a file": lambda r: os.listdir(r / "file"),
    "a name of 255 bytes": lambda r: (r / ("n" * 255)).write_bytes(b"x"),
    "a name of 256 bytes": lambda r: (r / LONG).write_bytes(b"x"),
    "a name of 128 times two bytes": lambda r: (r / ("ü" * 128)).write_bytes(b"x"),
    "stat of a name too long": lambda r: (r / LONG).stat(),
    "mkdir of a name too long": lambda r: (r / LONG).mkdir(),
    "unlink of a name too long": lambda r: (r / LONG).unlink(),
    "rmdir of a name too long": lambda r: (r / LONG).rmdir(),
    "symlink of a name too long": lambda r: (r / LONG).symlink_to("x"),
    "truncate to less than nothing": lambda r: os.truncate(r / "file", -1),
    "truncate of a directory": lambda r: os.truncate(r / "full", 0),
    "write to a descriptor to read": lambda r: opened(
        r / "file", os.O_RDONLY, lambda fd: os.write(fd, b"x")
    ),
    "read from a descriptor to write": lambda r: opened(
        r / "file", os.O_WRONLY, lambda fd: os.read(fd, 1)
    ),
    "read of a directory": lambda r: opened(r / "full", os.O_RDONLY, lambda fd: os.read(fd, 1)),
    "fsync of a directory": lambda r: opened(r / "full", os.O_RDONLY, os.fsync),
    "posix_fallocate": lambda r: opened(
        r / "new",
        os.O_CREAT | os.O_RDWR,
        lambda fd: (os.posix_fallocate(fd, 0, 5000), os.fstat(fd).st_size),
    ),
    "a lock": lambda r: opened(
        r / "file", os.O_RDWR, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_as_on_a_disk(work: Path, tmp_path: Path, case: str):
    results = []
    for root in (work, tmp_path):
        grow(root)
        left = outcome(CASES[case], root)
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        results.append((str(left).replace(str(root), ""), names))
    assert results[0] == results[1]


def test_what_an_object_store_does_not_have(work: Path):
    grow(work)
    assert outcome(os.link, work / "file", work / "hard") == "EPERM"
    assert outcome(renameat2, work / "file", work / "other", RENAME_EXCHANGE) == "EINVAL"
    assert outcome(renameat2, work / "file", work / "new", RENAME_WHITEOUT) == "EINVAL"
    assert outcome(os.open, work, os.O_TMPFILE | os.O_RDWR) == "ENOTSUP"
    assert (work / "file").read_bytes() == b"hello"


def test_links_of_directories_are_not_counted(work: Path):
    """One link tells find(1) and others not to conclude from it how many directories are below."""
    (work / "a" / "b").mkdir(parents=True)
    assert (work.stat().st_nlink, (work / "a").stat().st_nlink) == (1, 1)
    assert run("find", work, "-type", "d").count("\n") == 3
    (work / "file").touch()
    assert (work / "file").stat().st_nlink == 1


# -- special files and modes -------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_special_files_are_what_they_are_after_they_were_forgotten(shared: Shared, work: Path):
    os.mkfifo(work / "fifo", 0o640)
    os.mknod(work / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(work / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    os.mknod(work / "plain", stat.S_IFREG | 0o604)
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(work):
        server.bind("socket")
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in work.iterdir()}
    assert kinds == {
        "fifo": stat.S_IFIFO,
        "null": stat.S_IFCHR,
        "block": stat.S_IFBLK,
        "plain": stat.S_IFREG,
        "socket": stat.S_IFSOCK,
    }
    assert (work / "null").stat().st_rdev == os.makedev(1, 3)
    assert (work / "block").stat().st_rdev == os.makedev(7, 300)
    assert stat.S_IMODE((work / "fifo").stat().st_mode) == 0o640
    fifo = os.open(work / "fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"through the kernel")
    assert os.read(fifo, 100) == b"through the kernel"
    os.close(fifo)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0, 0o7777, 0o644])
def test_all_bits_of_a_mode_are_kept(shared: Shared, work: Path, mode: int):
    file, directory = work / "file", work / "directory"
    file.write_bytes(b"x")
    directory.mkdir()
    file.chmod(mode)
    directory.chmod(mode | 0o700)
    os.sync()
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert stat.S_IMODE(directory.stat().st_mode) == mode | 0o700


def test_a_saved_mode_of_a_directory_survives_a_refresh(shared: Shared, work: Path):
    directory = work / "directory"
    directory.mkdir()
    directory.chmod(0o2741)
    time.sleep(0.6)  # Changes of attributes are collected for a moment before they are written.
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o2741


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_setgid_directory_hands_its_group_on(work: Path):
    os.chown(work, 0, 123)
    work.chmod(0o2775)
    (work / "file").write_bytes(b"x")
    (work / "directory").mkdir()
    assert (work / "file").stat().st_gid == 123
    made = (work / "directory").stat()
    assert (made.st_gid, made.st_mode & stat.S_ISGID) == (123, stat.S_ISGID)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_chown_clears_setuid(work: Path):
    (work / "file").write_bytes(b"x")
    (work / "file").chmod(0o4755)
    os.chown(work / "file", 124, 456)
    found = (work / "file").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (124, 456, 0o755)


# -- times -------------------------------------------------------------------------------------


def utimensat(path: Path, access: tuple[int, int], modification: tuple[int, int]) -> None:
    times = (Time * 2)(Time(*access), Time(*modification))
    if libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0) != 0:
        raise OSError(ctypes.get_errno(), "utimensat")


@pytest.mark.parametrize("wanted", [0, 222, 10**18 + 123_456_789, -3 * 10**9 + 7])
def test_times_are_kept_to_the_nanosecond(shared: Shared, work: Path, wanted: int):
    (work / "file").write_bytes(b"x")
    (work / "directory").mkdir()
    (work / "link").symlink_to("nowhere")
    for path in work.iterdir():
        os.utime(path, ns=(1, wanted), follow_symlinks=False)
    os.sync()
    os.setxattr(shared.root, "user.s3mount.refresh", b"")
    assert {path.name: path.lstat().st_mtime_ns for path in work.iterdir()} == dict.fromkeys(
        ("file", "directory", "link"), wanted
    )


def test_utime_now_and_omit(work: Path):
    file = work / "file"
    file.write_bytes(b"x")
    os.utime(file, ns=(10**18, 10**18))
    utimensat(file, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert file.stat().st_mtime_ns == 10**18
    utimensat(file, (7, 7), (0, UTIME_OMIT))
    assert file.stat().st_mtime_ns == 10**18
    utimensat(file, (0, UTIME_OMIT), (0, UTIME_NOW))
    assert abs(file.stat().st_mtime - time.time()) < 5
    assert outcome(utimensat, file, (0, 2 * 10**9), (0, 0)) == "EINVAL"


CTIME_CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o640),
    "utime": lambda path: os.utime(path, (1, 1)),
    "write": lambda path: path.write_bytes(b"other"),
    "truncate": lambda path: os.truncate(path, 2),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"b"),
    "rename": lambda path: path.rename(path.with_name("x")) and path.with_name("x").rename(path),
}


@pytest.mark.parametrize("change", CTIME_CHANGES)
def test_ctime_moves(work: Path, change: str):
    (work / "file").write_bytes(b"hello")
    before = (work / "file").stat().st_ctime_ns
    time.sleep(MOMENT)
    CTIME_CHANGES[change](work / "file")
    assert (work / "file").stat().st_ctime_ns > before


def test_reading_moves_no_time(work: Path):
    (work / "file").write_bytes(b"hello")
    before = (work / "file").stat()
    time.sleep(MOMENT)
    assert (work / "file").read_bytes() == b"hello"
    after = (work / "file").stat()
    assert (after.st_ctime_ns, after.st_mtime_ns) == (before.st_ctime_ns, before.st_mtime_ns)


DIRECTORY_CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda path: (path / "new").write_bytes(b"x"),
    "unlink": lambda path: (path / "leaf").unlink(),
    "mkdir": lambda path: (path / "new").mkdir(),
    "rmdir": lambda path: (path / "inner").rmdir(),
    "symlink": lambda path: (path / "new").symlink_to("x"),
    "rename in": lambda path: (path.parent / "file").rename(path / "file"),
    "rename out": lambda path: (path / "leaf").rename(path.parent / "leaf"),
}


@pytest.mark.parametrize("change", DIRECTORY_CHANGES)
@pytest.mark.parametrize("set_before", [False, True])
def test_a_change_of_names_moves_the_times_of_a_directory(
    work: Path, change: str, set_before: bool
):
    grow(work)
    directory = work / "full"
    if set_before:  # Not in the store yet, when the names change.
        os.utime(directory, ns=(1, 10**18))
    before = directory.stat()
    time.sleep(MOMENT)
    DIRECTORY_CHANGES[change](directory)
    after = directory.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_a_change_in_a_file_does_not_move_its_directory(work: Path):
    grow(work)
    before = (work / "full").stat().st_mtime_ns
    time.sleep(MOMENT)
    (work / "full" / "leaf").write_bytes(b"changed")
    assert (work / "full").stat().st_mtime_ns == before


# -- files without a name ----------------------------------------------------------------------


def test_an_unlinked_file_can_be_used_until_it_is_closed(shared: Shared, work: Path):
    with (work / "file").open("w+b") as file:
        file.write(b"abc")
        file.flush()
        (work / "file").unlink()
        file.write(b"def")
        file.seek(0)
        assert file.read() == b"abcdef"
        found = os.fstat(file.fileno())
        assert (found.st_size, found.st_nlink) == (6, 0)
        os.fchmod(file.fileno(), 0o600)
        os.utime(file.fileno(), ns=(1, 10**18))
        os.ftruncate(file.fileno(), 2)
        os.fsync(file.fileno())
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert shared.all_keys(work) == [f"{shared.key(work)}/"]


def test_a_removed_directory_can_be_looked_at_but_not_filled(work: Path):
    (work / "directory").mkdir()
    descriptor = os.open(work / "directory", os.O_RDONLY)
    (work / "directory").rmdir()
    assert os.listdir(descriptor) == []
    assert os.fstat(descriptor).st_nlink == 0
    assert outcome(os.open, "new", CREATE, dir_fd=descriptor) == "ENOENT"
    os.close(descriptor)


def test_a_replaced_file_stays_what_it_was_for_who_has_it_open(work: Path):
    (work / "old").write_bytes(b"old")
    (work / "new").write_bytes(b"new")
    with (work / "old").open("rb") as file:
        (work / "new").rename(work / "old")
        assert file.read() == b"old"
    assert (work / "old").read_bytes() == b"new"


def test_sync_is_quiet_about_files_that_are_gone(shared: Shared, work: Path):
    for number in range(5):
        (work / "file").write_bytes(b"%d" % number)
        (work / "file").rename(work / "other")
        (work / "other").unlink()
    descriptor = os.open(shared.root, os.O_RDONLY)
    assert libc.syncfs(descriptor) == 0
    os.close(descriptor)


# -- bytes -------------------------------------------------------------------------------------


def test_direct_io(work: Path):
    descriptor = os.open(work / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as out, mmap.mmap(-1, 8192) as back:
        out.write(b"D" * 8192)
        assert os.write(descriptor, out) == 8192
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert os.readv(descriptor, [back]) == 8192
        assert back[:] == b"D" * 8192
    os.close(descriptor)


def test_a_shared_writable_mapping(work: Path):
    descriptor = os.open(work / "file", os.O_CREAT | os.O_RDWR)
    os.ftruncate(descriptor, 10_000)
    with mmap.mmap(descriptor, 10_000) as memory:
        memory[5000:5005] = b"HELLO"
    os.close(descriptor)
    assert (work / "file").read_bytes() == bytes(5000) + b"HELLO" + bytes(4995)


def test_appending_from_two_descriptors(work: Path):
    flags = CREATE | os.O_APPEND
    first, second = (os.open(work / "file", flags) for _ in range(2))
    for text, descriptor in ((b"one ", first), (b"two ", second), (b"three", first)):
        os.write(descriptor, text)
    os.close(first)
    os.close(second)
    assert (work / "file").read_bytes() == b"one two three"


def test_holes(work: Path):
    descriptor = os.open(work / "file", os.O_CREAT | os.O_RDWR)
    os.pwrite(descriptor, b"z", 5000)
    os.ftruncate(descriptor, 4000)
    os.ftruncate(descriptor, 6000)
    assert os.pread(descriptor, 6001, 0) == bytes(6000)
    assert os.lseek(descriptor, 0, os.SEEK_END) == 6000
    os.close(descriptor)
    assert (work / "file").read_bytes() == bytes(6000)


def test_statfs(work: Path):
    found = os.statvfs(work)
    assert found.f_namemax == 255
    assert min(found.f_blocks, found.f_bavail, found.f_favail) > 0


# -- other people ------------------------------------------------------------------------------


def as_somebody(root: Path, operation: Callable[[Path], object]) -> str:
    """What an operation in *root* gives to a user who owns nothing."""
    receiving, sending = os.pipe()
    process = os.fork()
    if process == 0:
        os.chdir(root)  # The way there is for root alone.
        os.setgroups([])
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
        os.write(sending, str(outcome(operation, Path())).encode())
        os._exit(0)
    os.waitpid(process, 0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def public(sharing: Callable) -> Iterator[Shared]:
    """A mount for everybody."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes somebody else")
    with sharing("--allow-other") as shared:
        yield shared


PERMISSIONS: dict[str, Callable[[Path], object]] = {
    "read a private file": lambda r: (r / "private").read_bytes(),
    "create in a directory of others": lambda r: (r / "directory" / "new").write_bytes(b"x"),
    "unlink in a sticky directory": lambda r: (r / "sticky" / "mine").unlink(),
    "rename in a sticky directory": lambda r: (r / "sticky" / "mine").rename(r / "sticky" / "x"),
    "create in a sticky directory": lambda r: (r / "sticky" / "his").touch(),
    "chmod of others": lambda r: (r / "private").chmod(0o777),
    "chown of others": lambda r: os.chown(r / "private", OTHER_USER, OTHER_USER),
    "utime of others": lambda r: os.utime(r / "directory" / "public", (1, 1)),
    "utime now of others": lambda r: os.utime(r / "directory" / "public"),
    "setxattr of others": lambda r: os.setxattr(r / "directory" / "public", "user.a", b"b"),
    "rmdir of others": lambda r: (r / "directory").rmdir(),
    "link over others": lambda r: (r / "sticky" / "mine").symlink_to("x"),
}


@pytest.mark.parametrize("case", PERMISSIONS)
def test_permissions_are_those_of_a_disk(public: Shared, tmp_path: Path, case: str):
    results = []
    for root in (public.root / secrets.token_hex(4), tmp_path / "disk"):
        root.mkdir()
        (root / "private").write_bytes(b"secret")
        (root / "private").chmod(0o600)
        (root / "directory").mkdir()
        (root / "directory" / "public").write_bytes(b"x")
        (root / "sticky").mkdir()
        (root / "sticky").chmod(0o1777)
        (root / "sticky" / "mine").write_bytes(b"x")
        results.append(as_somebody(root, PERMISSIONS[case]))
    assert results[0] == results[1]
    assert results[0] != "None" or case == "create in a sticky directory"
