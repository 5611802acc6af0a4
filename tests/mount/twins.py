"""Two directories that have to behave alike: one on a mount, one on a disk.

A source of random numbers decides what happens; every step happens to both, and their answers
are compared: the value or the errno, and now and then the whole trees.
"""

import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.mount.trees import walk

FILES = tuple(f"f{number}" for number in range(6))
DIRECTORIES = tuple(f"d{number}" for number in range(3))
SIZES = (0, 1, 100, 5000, 70_000)
OFFSETS = (0, 10, 1000, 100_000, 1 << 20)
MODES = (0o600, 0o644, 0o755, 0o4711)
FLAGS = (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_APPEND)
# Times that are set lie before this, all others are now: so both can be compared.
LONG_AGO_NS = 1_700_000_000 * 10**9
MEMORY = 40  # Steps that a failure shows.

Answer = tuple[str, object]


class Different(AssertionError):
    """The twins answered differently; the message tells the last steps."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One file that is open on both sides."""

    remote: int
    local: int
    writable: bool


class Twins:
    """Does random things to two directories, *remote* and *local*, and compares."""

    def __init__(
        self, remote: Path, local: Path, random: Random, *, directory_modes: bool = True
    ) -> None:
        self.remote, self.local = remote, local
        self._directory_modes = directory_modes
        self._random = random
        self._pairs: list[Pair] = []
        self._steps: deque[str] = deque(maxlen=MEMORY)
        self._count = 0
        names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
        self._moves = [getattr(self, f"_{name}") for name in names]

    def step(self) -> None:
        """Do one random thing to both sides."""
        self._count += 1
        self._random.choice(self._moves)()

    def do(self, move: str, random: Random) -> None:
        """Do one thing to both sides, of which *random* decides the rest."""
        self._count += 1
        self._random = random
        getattr(self, f"_{move}")()

    def compare_trees(self) -> None:
        """Compare everything that both trees show."""
        remote, local = self._show(self.remote), self._show(self.local)
        if remote != local:
            differing = [
                f"{name}: {str(remote.get(name))[:200]} and {str(local.get(name))[:200]}"
                for name in sorted(set(remote) | set(local))
                if remote.get(name) != local.get(name)
            ]
            self._fail("the trees differ (remote and local)", *differing[:10])

    def close_all(self) -> None:
        """Close every file that is open."""
        while self._pairs:
            self._close_pair(self._pairs[0])

    # -- what both sides are asked -------------------------------------------------------------

    def _both(self, name: str, *ask: Callable[[], object]) -> list[Answer]:
        answers = [answered(question) for question in ask]
        self._steps.append(f"{self._count} {name} -> {str(answers[1])[:60]}")
        if answers[0] != answers[1]:
            self._fail(f"remote: {str(answers[0])[:300]}", f"local: {str(answers[1])[:300]}")
        return answers

    def _path(self, name: str, relative: str, ask: Callable[[Path], object]) -> None:
        remote, local = self.remote / relative, self.local / relative
        self._both(f"{name} {relative}", lambda: ask(remote), lambda: ask(local))

    def _handle(self, name: str, ask: Callable[[int], object]) -> None:
        if self._pairs:
            pair = self._random.choice(self._pairs)
            question = f"{name} of handle {pair.local}"
            self._both(question, lambda: ask(pair.remote), lambda: ask(pair.local))

    def _fail(self, *lines: str) -> None:
        raise Different("\n".join((*self._steps, *lines)))

    # -- what is compared ----------------------------------------------------------------------

    def _size_of(self, status: os.stat_result) -> tuple[int, int]:
        """Mode and size; a directory's size is its file system's affair."""
        if not stat.S_ISDIR(status.st_mode):
            return status.st_mode, status.st_size
        return status.st_mode if self._directory_modes else stat.S_IFDIR, 0

    def _shown(self, path: Path) -> tuple[object, ...]:
        """What has to be equal of one path; the time only where it was set, and of files."""
        status = path.lstat()
        was_set = status.st_mtime_ns < LONG_AGO_NS and not stat.S_ISDIR(status.st_mode)
        return (*self._size_of(status), status.st_mtime_ns if was_set else None)

    def _show(self, root: Path) -> dict[str, tuple[object, ...]]:
        """Everything below *root*, with contents and targets."""
        found: dict[str, tuple[object, ...]] = {}
        for path in walk(root):
            content: object = None
            if path.is_symlink():
                content = str(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(root))] = (*self._shown(path), content)
        return found

    # -- what is random ------------------------------------------------------------------------

    def _any(self) -> str:
        depth = self._random.choice((1, 1, 2, 2, 3))
        return "/".join(self._random.choice(FILES + DIRECTORIES) for _ in range(depth))

    def _data(self) -> bytes:
        size = self._random.choice(SIZES)
        return Random(self._count).randbytes(size)

    def _offset(self) -> int:
        return self._random.choice(OFFSETS)

    def _has_size(self, relative: str, size: int) -> bool:
        """Whether a truncation would change nothing: then a mount leaves the times alone."""
        with suppress(OSError):
            return (self.local / relative).stat().st_size == size
        return False

    # -- moves on names ------------------------------------------------------------------------

    def _write(self) -> None:
        data, relative = self._data(), self._any()
        if data or not self._has_size(relative, 0):
            self._path(f"write {len(data)}", relative, lambda path: path.write_bytes(data))

    def _patch(self) -> None:
        data, offset = self._data(), self._offset()

        def patch(path: Path) -> None:
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(data)

        self._path(f"patch {len(data)} at {offset}", self._any(), patch)

    def _append(self) -> None:
        data = self._data()

        def append(path: Path) -> None:
            with path.open("ab") as file:
                file.write(data)

        self._path(f"append {len(data)}", self._any(), append)

    def _create(self) -> None:
        data = self._data()

        def create(path: Path) -> None:
            with path.open("xb") as file:
                file.write(data)

        self._path(f"create {len(data)}", self._any(), create)

    def _truncate(self) -> None:
        size, relative = self._offset(), self._any()
        if not self._has_size(relative, size):
            self._path(f"truncate to {size}", relative, lambda path: os.truncate(path, size))

    def _read(self) -> None:
        self._path("read", self._any(), Path.read_bytes)

    def _stat(self) -> None:
        self._path("stat", self._any(), self._shown)

    def _list(self) -> None:
        relative = self._any() if self._random.random() < 0.7 else "."
        self._path("list", relative, lambda path: sorted(os.listdir(path)))  # noqa: PTH208

    def _rename(self) -> None:
        target = self._any()

        def rename(path: Path) -> None:
            root = self.remote if path.is_relative_to(self.remote) else self.local
            path.rename(root / target)

        self._path(f"rename to {target} from", self._any(), rename)

    def _unlink(self) -> None:
        self._path("unlink", self._any(), Path.unlink)

    def _mkdir(self) -> None:
        self._path("mkdir", self._any(), Path.mkdir)

    def _rmdir(self) -> None:
        self._path("rmdir", self._any(), Path.rmdir)

    def _symlink(self) -> None:
        target = self._random.choice((*FILES, *DIRECTORIES, "d0/f0", "nowhere"))
        self._path(f"symlink to {target}", self._any(), lambda path: path.symlink_to(target))

    def _readlink(self) -> None:
        self._path("readlink", self._any(), lambda path: str(path.readlink()))

    def _chmod(self) -> None:
        mode = self._random.choice(MODES)
        self._path(f"chmod {mode:o}", self._any(), lambda path: path.chmod(mode))

    def _utimens(self) -> None:
        stamp = self._random.randrange(LONG_AGO_NS)
        self._path("utimens", self._any(), lambda path: os.utime(path, ns=(stamp, stamp)))

    # -- moves on handles ----------------------------------------------------------------------

    def _open(self) -> None:
        relative, flags = self._any(), self._random.choice(FLAGS)
        opened: list[int] = []

        def open_it(path: Path) -> None:
            opened.append(os.open(path, flags, 0o644))

        try:
            self._path(f"open with {flags:o}", relative, open_it)
        except Different:
            for descriptor in opened:
                os.close(descriptor)
            raise
        if opened:
            self._pairs.append(Pair(opened[0], opened[1], flags & os.O_ACCMODE != os.O_RDONLY))
        if len(self._pairs) > 12:
            self._close()

    def _write_handle(self) -> None:
        data, offset = self._data(), self._offset()
        self._handle(f"pwrite {len(data)} at {offset}", lambda fd: os.pwrite(fd, data, offset))

    def _read_handle(self) -> None:
        offset = self._offset()
        self._handle(f"pread at {offset}", lambda fd: os.pread(fd, 200_000, offset))

    def _truncate_handle(self) -> None:
        size = self._offset()

        def truncate(descriptor: int) -> None:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)

        self._handle(f"ftruncate to {size}", truncate)

    def _stat_handle(self) -> None:
        self._handle("fstat", lambda fd: self._size_of(os.fstat(fd)))

    def _chmod_handle(self) -> None:
        mode = self._random.choice(MODES)
        self._handle(f"fchmod {mode:o}", lambda fd: os.fchmod(fd, mode))

    def _sync(self) -> None:
        self._handle("fsync", os.fsync)

    def _close(self) -> None:
        if self._pairs:
            self._close_pair(self._random.choice(self._pairs))

    def _close_pair(self, pair: Pair) -> None:
        self._pairs.remove(pair)
        question = f"close handle {pair.local}"
        self._both(question, lambda: os.close(pair.remote), lambda: os.close(pair.local))

    def abandon(self) -> None:
        """Close what is open after a failure, without comparing."""
        for pair in self._pairs:
            for descriptor in (pair.remote, pair.local):
                with suppress(OSError):
                    os.close(descriptor)
        self._pairs.clear()


WEIGHTS = {
    "write": 4,
    "patch": 2,
    "append": 2,
    "create": 2,
    "truncate": 1,
    "read": 3,
    "stat": 2,
    "list": 2,
    "rename": 4,
    "unlink": 2,
    "mkdir": 4,
    "rmdir": 1,
    "symlink": 1,
    "readlink": 1,
    "chmod": 1,
    "utimens": 1,
    "open": 4,
    "write_handle": 3,
    "read_handle": 3,
    "truncate_handle": 1,
    "stat_handle": 1,
    "chmod_handle": 1,
    "sync": 1,
    "close": 3,
}


def answered(question: Callable[[], object]) -> Answer:
    """What a call returned, or the errno that it failed with."""
    try:
        return "returned", question()
    except OSError as error:
        return "failed", error.errno
