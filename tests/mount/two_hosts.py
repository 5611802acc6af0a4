"""Two mounts of one bucket, as on two hosts, and what docs/semantics.md lets each of them see.

A seed decides what happens.  After every change the bucket itself is asked what is true now;
what a host sees has to be true, or to have been true within the time that is documented, and
nothing older than what that host has done itself.
"""

import errno
import os
import stat
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

FILES = ("f0", "f1", "f2", "d/f0", "d/f1")
DIRECTORIES = (".", "d")
TREES = ("t0", "t1")
SIZES = (1, 100, 5000, 70_000)
MODES = (0o600, 0o640, 0o755)
SLACK = 0.4  # Seconds: what the kernel's clock, and a busy machine, add to a time to live.
KERNEL = 0.03  # Seconds in which the kernel hears that it has renamed another version.
MEMORY = 40  # Steps that a failure shows.
MAX_HELD = 6


class Wrong(AssertionError):
    """A host has seen, or done, what it must not; the message tells the last steps."""


class Version(NamedTuple):
    """What a file held (None: nothing of that name) from `since` on, and who made it so."""

    content: bytes | None
    since: float
    host: int


@dataclass(frozen=True, slots=True)
class Staleness:
    """For how many seconds a host may go on seeing what is not true any more."""

    names: float  # Names, sizes: metadata-ttl.
    absence: float  # That there is nothing of a name: negative-ttl.
    opened: float  # What `open` of a name that is known gives.
    attributes: float  # After an own write: what others do to the attributes alone.


@dataclass(slots=True)
class Held:
    """A file that a host has open for reading: what it may hold, and by which names it went."""

    host: int
    descriptor: int
    seen: set[bytes | None]
    since: float
    paths: set[str] = field(default_factory=set)


class TwoHosts:
    """Does random things on two *roots* of one bucket.

    *truth* tells what the bucket holds under a name, *settle* makes one host forget whatever
    may be out of date, by waiting or otherwise.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        truth: Callable[[str], bytes | None],
        settle: Callable[[Path], None],
        staleness: Staleness,
        seed: int,
    ) -> None:
        self._roots = roots
        self._truth = truth
        self._settle = settle
        self._staleness = staleness
        self._random = Random(seed)
        self._steps: deque[str] = deque(maxlen=MEMORY)
        self._count = 0
        self._host = 0
        self._began = time.monotonic()
        self._history = {path: [Version(None, 0.0, 0)] for path in FILES}
        self._own: dict[tuple[int, str], float] = defaultdict(float)
        self._modes: dict[str, int] = {}
        self._trees: dict[str, dict[str, bytes]] = {}
        self._held: list[Held] = []
        names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
        self._moves = [getattr(self, f"_{name}") for name in names]
        (roots[0] / "d").mkdir()
        settle(roots[1])

    def step(self) -> None:
        """Let one of the hosts do one random thing."""
        self._count += 1
        if self._random.random() < 0.4:
            self._host = 1 - self._host
        self._random.choice(self._moves)()

    def compare(self) -> None:
        """Check that both hosts, once settled, see exactly what is true."""
        for host, root in enumerate(self._roots):
            self._host = host
            self._settle(root)
            self._tell("compare")
            for path in FILES:
                content = self._current(path)
                self._note(f"content of {path}", _attempt((root / path).read_bytes), content)
            for path, wanted in self._modes.items():
                mode = stat.S_IMODE((root / path).stat().st_mode)
                self._demand(mode == wanted, f"mode of {path}: {mode:o}, not {wanted:o}")
            for name in (*DIRECTORIES, *TREES):
                self._note(f"names in {name}", _attempt(_listing(root / name)), self._names(name))
            for name, files in self._trees.items():
                for file, content in files.items():
                    found = _attempt((root / name / file).read_bytes)
                    self._note(f"content of {name}/{file}", found, content)

    def close_all(self) -> None:
        """Close every file that is open."""
        while self._held:
            with suppress(OSError):
                os.close(self._held.pop().descriptor)

    # -- what may be seen ----------------------------------------------------------------------

    def _current(self, path: str) -> bytes | None:
        return self._history[path][-1].content

    def _visible(
        self, path: str, staleness: float, absence: float | None = None
    ) -> set[bytes | None]:
        """What the host at work may find: what is true, and what was so not long ago."""
        absence = self._staleness.absence if absence is None else absence
        now, own = time.monotonic(), self._own[self._host, path]
        visible = {self._current(path)}
        for older, newer in pairwise(self._history[path]):
            age = absence if older.content is None else staleness
            if newer.since > max(own, now - age - SLACK):
                visible.add(older.content)
        return visible

    def _names(self, directory: str) -> list[str] | int:
        """What is in a directory, or the errno of whoever lists it."""
        if directory in TREES:
            files = self._trees.get(directory)
            return errno.ENOENT if files is None else sorted(files)
        if directory == "d":
            inside = [path[2:] for path in FILES if path.startswith("d/")]
            return sorted(name for name in inside if self._current(f"d/{name}") is not None)
        files = [path for path in FILES if "/" not in path and self._current(path) is not None]
        return sorted([*files, *self._trees, "d"])

    def _changed(self, path: str, content: bytes | None) -> None:
        now = time.monotonic()
        self._history[path].append(Version(content, now, self._host))
        self._own[self._host, path] = now
        self._modes.pop(path, None)

    def _changed_by_other(self, held: Held) -> bool:
        return any(
            version.since >= held.since and version.host != held.host
            for path in held.paths
            for version in self._history[path]
        )

    # -- what is told of a failure -------------------------------------------------------------

    def _tell(self, text: str) -> None:
        moment = time.monotonic() - self._began
        self._steps.append(f"{self._count} {moment:.2f} s: host {self._host}: {text}")

    def _demand(self, condition: bool, text: str) -> None:
        if not condition:
            raise Wrong("\n".join((*self._steps, f"wrong: {text}")))

    def _note(self, text: str, found: object, expected: object) -> None:
        """Check what was found of something that can only be one thing, or an absence."""
        expected = errno.ENOENT if expected is None else expected
        self._demand(found == expected, f"{text}: {_short(found)}, not {_short(expected)}")

    def _do(self, text: str, operation: Callable[[], object]) -> object:
        """Do something, and return what comes of it: the value, or the errno."""
        found = _attempt(operation)
        self._tell(f"{text} -> {_short(found)}")
        return found

    # -- what is random ------------------------------------------------------------------------

    @property
    def _root(self) -> Path:
        return self._roots[self._host]

    def _file(self) -> str:
        return self._random.choice(FILES)

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice(SIZES))

    # -- looking -------------------------------------------------------------------------------

    def _read(self) -> None:
        path = self._file()
        visible = self._visible(path, self._staleness.opened)
        found = self._do(f"read {path}", (self._root / path).read_bytes)
        self._judge(f"read {path}", found, visible)

    def _judge(self, text: str, found: object, visible: set[bytes | None]) -> None:
        if found == errno.ESTALE:
            self._demand(len(visible) > 1, f"{text}: nobody has changed it")
        else:
            seen = None if found == errno.ENOENT else found
            self._demand(seen in visible, f"{text}: {_short(found)} is not what it was lately")

    def _stat(self) -> None:
        path = self._file()
        visible = self._visible(path, self._staleness.names)
        found = self._do(f"stat {path}", lambda: (self._root / path).stat().st_size + 1000)
        sizes = {errno.ENOENT if one is None else len(one) + 1000 for one in visible}
        self._demand(found in sizes, f"stat {path}: it was not lately of that size")

    def _list(self) -> None:
        directory = self._random.choice(DIRECTORIES)
        files = [path for path in FILES if str(Path(path).parent) == directory]
        age = self._staleness.names  # Of a name that is not in a listing, too.
        visible = {path: self._visible(path, age, age) for path in files}
        found = self._do(
            f"list {directory}", lambda: {path.name for path in (self._root / directory).iterdir()}
        )
        for path, contents in visible.items():
            shown = Path(path).name in found
            possible = {content is not None for content in contents}
            self._demand(shown in possible, f"list {directory}: {path} shown: {shown}")

    def _hold(self) -> None:
        path = self._file()
        visible = self._visible(path, self._staleness.opened)
        found = self._do(f"open {path}", lambda: -os.open(self._root / path, os.O_RDONLY))
        if isinstance(found, int) and found < 0:
            self._held.append(Held(self._host, -found, visible, time.monotonic(), {path}))
            if len(self._held) > MAX_HELD:
                os.close(self._held.pop(0).descriptor)
        else:
            self._judge(f"open {path}", found, visible)

    def _read_held(self) -> None:
        if not self._held:
            return
        held = self._random.choice(self._held)
        self._host = held.host
        text = f"read handle of {sorted(held.paths)}"
        found = self._do(text, lambda: _content(held.descriptor))
        if found == errno.ESTALE:
            stale = len(held.seen) > 1 or self._changed_by_other(held)
            self._demand(stale, f"{text}: nobody else has changed it")
        else:
            self._demand(found in held.seen, f"{text}: {_short(found)} is not what was opened")

    def _let_go(self, path: str) -> None:
        """Close what this host has open of a file whose bytes it is about to change."""
        for held in [h for h in self._held if h.host == self._host and path in h.paths]:
            self._held.remove(held)
            with suppress(OSError):
                os.close(held.descriptor)

    # -- changing, whatever the other host has done meanwhile ----------------------------------

    def _rewrite(self) -> None:
        """The last close wins."""
        path, data = self._file(), self._data()
        self._let_go(path)
        found = self._do(
            f"rewrite {path} with {len(data)}",
            lambda: (self._root / path).write_bytes(data) and None,
        )
        self._demand(found is None, "a file can always be written anew")
        self._demand(self._truth(path) == data, f"{path} is not what was written")
        self._changed(path, data)

    def _replace(self) -> None:
        """As editors save: a temporary file, renamed."""
        path, data = self._file(), self._data()
        temporary = self._root / f"{path}.tmp{self._host}"

        def replace() -> None:
            temporary.write_bytes(data)
            temporary.rename(self._root / path)

        found = self._do(f"replace {path} with {len(data)}", replace)
        self._demand(found is None, "a file can always be replaced")
        self._demand(self._truth(path) == data, f"{path} is not what was written")
        self._changed(path, data)

    def _append(self) -> None:
        path, data = self._file(), self._data()
        self._let_go(path)
        before, visible = self._current(path), self._visible(path, self._staleness.opened)

        def append() -> None:
            with (self._root / path).open("ab") as file:
                file.write(data)

        found = self._do(f"append {len(data)} to {path}", append)
        if found is None:
            # To whom there is nothing, the file begins with this: the last close wins.
            possible = [(old or b"") + data for old in visible if old in (None, before)]
            self._completed(path, possible)
        else:
            self._refused(path, found, {errno.ESTALE}, visible)

    def _patch(self) -> None:
        path, data = self._file(), self._random.randbytes(10)
        self._let_go(path)
        offset = self._random.choice((0, 50, 10_000))
        before, visible = self._current(path), self._visible(path, self._staleness.opened)

        def patch() -> None:
            with (self._root / path).open("r+b") as file:
                file.seek(offset)
                file.write(data)

        found = self._do(f"patch {path} at {offset}", patch)
        if found is None:
            self._demand(before is not None, f"{path} is not there")
            self._completed(path, [_patched(before or b"", offset, data)])
        else:
            self._refused(path, found, {errno.ESTALE, errno.ENOENT}, visible)

    def _create(self) -> None:
        """Of two that create a name one wins, whatever they believe."""
        path, data = self._file(), self._data()
        before, visible = self._current(path), self._visible(path, self._staleness.names)

        def create() -> None:
            with (self._root / path).open("xb") as file:
                file.write(data)

        found = self._do(f"create {path}", create)
        if found is None:
            self._demand(before is None, f"{path} was there")
            self._completed(path, [data])
        else:
            self._demand(visible != {None}, f"{path} was not there")
            self._refused(path, found, {errno.EEXIST}, visible)

    def _completed(self, path: str, possible: Sequence[bytes]) -> None:
        after = self._truth(path)
        self._demand(after in possible, f"{path}: an update of the other host is lost")
        self._changed(path, after)

    def _refused(
        self, path: str, found: object, errors: set[int], visible: set[bytes | None]
    ) -> None:
        """Check that an operation that failed had reason to, and did not change anything."""
        self._demand(found in errors, f"{path}: {_short(found)} is no answer")
        if found == errno.ESTALE:
            self._demand(len(visible) > 1, f"{path}: nobody has changed it")
        if found == errno.ENOENT:
            self._demand(None in visible, f"{path}: it was there all the time")
        self._demand(self._truth(path) == self._current(path), f"{path} has changed all the same")
        time.sleep(KERNEL)

    def _unlink(self) -> None:
        path = self._file()
        visible = self._visible(path, self._staleness.names)
        found = self._do(f"unlink {path}", (self._root / path).unlink)
        if found is None:
            self._demand(visible != {None}, f"{path} was not there")
            self._demand(self._truth(path) is None, f"{path} is still there")
            self._changed(path, None)
        else:
            self._refused(path, found, {errno.ENOENT}, visible)

    def _rename(self) -> None:
        source, target = self._random.sample(FILES, 2)
        before, visible = self._current(source), self._visible(source, self._staleness.names)
        found = self._do(
            f"rename {source} to {target}",
            lambda: (self._root / source).rename(self._root / target) and None,
        )
        if found is None:
            self._demand(before is not None, f"{source} was not there")
            self._completed(target, [before or b""])
            self._demand(self._truth(source) is None, f"{source} is still there")
            self._changed(source, None)
            time.sleep(KERNEL)
            for held in self._held:
                if held.host == self._host and source in held.paths:
                    held.paths.add(target)
        else:
            self._refused(source, found, {errno.ENOENT, errno.ESTALE}, visible)
            self._demand(self._truth(target) == self._current(target), f"{target} has changed")

    # -- changing, after what the other host has done was seen ---------------------------------

    def _chmod(self) -> None:
        path, mode = self._file(), self._random.choice(MODES)
        if self._current(path) is None:
            return
        self._settle(self._root)

        def chmod() -> None:
            with (self._root / path).open("rb") as file:
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())

        self._note(f"chmod {path}", self._do(f"chmod {mode:o} {path}", chmod) or 0, 0)
        written = self._own[1 - self._host, path]
        if time.monotonic() - written > self._staleness.attributes:
            self._modes[path] = mode
        else:
            self._modes.pop(path, None)

    def _mkdir(self) -> None:
        name = self._random.choice(TREES)
        self._settle(self._root)
        found = self._do(f"mkdir {name}", (self._root / name).mkdir)
        self._note(f"mkdir {name}", found or 0, errno.EEXIST if name in self._trees else 0)
        self._trees.setdefault(name, {})

    def _rmdir(self) -> None:
        name = self._random.choice(TREES)
        self._settle(self._root)
        files = self._trees.get(name)
        expected = errno.ENOENT if files is None else (errno.ENOTEMPTY if files else 0)
        found = self._do(f"rmdir {name}", (self._root / name).rmdir)
        self._note(f"rmdir {name}", found or 0, expected)
        if expected == 0:
            del self._trees[name]

    def _fill_tree(self) -> None:
        name, file = self._random.choice(TREES), self._random.choice(("a", "b"))
        data = self._data()
        self._settle(self._root)
        path = self._root / name / file
        found = self._do(f"write {name}/{file}", lambda: path.write_bytes(data) and None)
        self._note(f"write {name}", found or 0, 0 if name in self._trees else errno.ENOENT)
        if name in self._trees:
            self._trees[name][file] = data

    def _rename_tree(self) -> None:
        source, target = self._random.sample(TREES, 2)
        self._settle(self._root)
        expected = 0
        if source not in self._trees:
            expected = errno.ENOENT
        elif self._trees.get(target):
            expected = errno.ENOTEMPTY
        found = self._do(
            f"rename {source} to {target}",
            lambda: (self._root / source).rename(self._root / target) and None,
        )
        self._note(f"rename {source}", found or 0, expected)
        if expected == 0:
            self._trees[target] = self._trees.pop(source)

    def _wait(self) -> None:
        pause = self._random.choice((0.02, 0.1, 0.3))
        self._tell(f"{pause} s later")
        time.sleep(pause)


WEIGHTS: Mapping[str, int] = {
    "read": 12,
    "stat": 6,
    "list": 5,
    "hold": 4,
    "read_held": 6,
    "rewrite": 6,
    "replace": 3,
    "append": 6,
    "patch": 4,
    "create": 4,
    "unlink": 4,
    "rename": 5,
    "chmod": 1,
    "mkdir": 1,
    "rmdir": 1,
    "fill_tree": 2,
    "rename_tree": 1,
    "wait": 3,
}


def _attempt(operation: Callable[[], object]) -> object:
    """What an operation returns, or the errno that it fails with."""
    try:
        return operation()
    except OSError as error:
        return error.errno


def _listing(directory: Path) -> Callable[[], list[str]]:
    """The question what is in a directory."""
    return lambda: sorted(path.name for path in directory.iterdir())


def _content(descriptor: int) -> bytes:
    """All bytes; a read that fails in the middle returns what came before."""
    content = b""
    while piece := os.pread(descriptor, 1 << 20, len(content)):
        content += piece
    return content


def _patched(old: bytes, offset: int, data: bytes) -> bytes:
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def _short(found: object) -> str:
    if isinstance(found, bytes):
        return f"{len(found)} bytes ({found[:4].hex()})"
    if isinstance(found, int) and found in errno.errorcode:
        return errno.errorcode[found]
    return str(found)
