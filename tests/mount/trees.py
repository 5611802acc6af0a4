"""Trees of files: how to make one, and what to compare of two."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

SUFFIXES = (".txt", ".json", ".html", ".py", ".bin", "")
PIECE = 1 << 20


class Seen(NamedTuple):
    """What a tree shows under one name; `content` is a digest, a symlink's target or empty."""

    mode: int
    size: int
    content: str
    mtime_ns: int


def grow(root: Path, files: int, *, seed: int = 0) -> None:
    """Make a tree of *files* files under *root*, with symlinks and an empty directory."""
    random = Random(seed)
    directories = [root]
    for number in range(max(1, files // 40)):
        directory = random.choice(directories[-8:]) / f"directory {number}"
        directory.mkdir(parents=True)
        directories.append(directory)
    for number in range(files):
        size = random.choice((0, 1, 100, 1000, 5000, 20_000))
        name = f"file-{number}{random.choice(SUFFIXES)}"
        path = random.choice(directories) / name
        path.write_bytes(random.randbytes(size))
        path.chmod(random.choice((0o644, 0o600, 0o755)))
        stamp = random.randrange(10**18, 17 * 10**17)
        os.utime(path, ns=(stamp, stamp))
    for name, target in (("link", "directory 0"), ("broken link", "no/such/file")):
        (root / name).symlink_to(target)
        os.utime(root / name, ns=(10**18, 10**18), follow_symlinks=False)
    (root / "empty").mkdir()


def adorn(root: Path, *, seed: int = 0) -> None:
    """Give a tree owners (as root), modes and times of directories, and extended attributes."""
    random = Random(seed)
    below = sorted(walk(root), key=lambda path: -len(path.parts))
    for path in below:
        if os.geteuid() == 0:
            os.chown(path, random.randrange(5000), random.randrange(5000), follow_symlinks=False)
        if path.is_symlink() or path.is_fifo():
            continue
        for name in random.sample(("user.a", "user.colour", "user.ünï"), random.randrange(3)):
            os.setxattr(path, name, random.randbytes(random.choice((0, 5, 100))))
        if path.is_dir():
            path.chmod(random.choice((0o755, 0o700, 0o2750, 0o1777)))
    for path in below:
        stamp = random.randrange(10**18, 17 * 10**17)
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def adorned(root: Path) -> Mapping[str, tuple[object, ...]]:
    """Every name below *root*, with all that `grow` and `adorn` have made."""
    found = {}
    for path in walk(root):
        status = path.lstat()
        content = "" if path.is_dir() and not path.is_symlink() else seen(path).content
        attributes = os.listxattr(path, follow_symlinks=False)
        values = {name: os.getxattr(path, name, follow_symlinks=False) for name in attributes}
        owner = (status.st_uid, status.st_gid)
        shown = (oct(status.st_mode), owner, status.st_mtime_ns, content, values)
        found[str(path.relative_to(root))] = shown
    return found


def names(directory: Path) -> list[str]:
    """What a directory lists, sorted."""
    return sorted(path.name for path in directory.iterdir())


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(root: Path) -> Iterator[Path]:
    """Everything below *root*; links are not followed."""
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            yield Path(directory, name)


def seen(path: Path) -> Seen:
    """What is to be seen of one path: all that its kind makes comparable."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Seen(status.st_mode, status.st_size, str(path.readlink()), status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        return Seen(status.st_mode, status.st_size, digest(path), status.st_mtime_ns)
    return Seen(status.st_mode, 0, "", 0)


def described(root: Path) -> Mapping[str, Seen]:
    """Every name below *root*, and what is to be seen of it."""
    return {str(path.relative_to(root)): seen(path) for path in walk(root)}


def differences(one: Path, other: Path, *, times: bool = False) -> list[str]:
    """Say where two trees differ: names, kinds, modes, sizes, contents; *times* if asked."""
    first, second = described(one), described(other)
    found = []
    for name in sorted(set(first) | set(second)):
        left, right = first.get(name), second.get(name)
        if left and right and not times:
            left, right = left._replace(mtime_ns=0), right._replace(mtime_ns=0)
        if left != right:
            found.append(f"{name}: {left} and {right}")
    return found
