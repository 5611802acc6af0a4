"""A load that is cut off at any moment, and knows what it was told is safe.

Each worker writes, syncs, renames and removes files in a directory of its own, and renames a
directory with files in it.  What a call has acknowledged has to be there after a crash; what a
call was cut off in may have happened or not, and nothing in between.
"""

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

MIB = 1 << 20
SIZES = (0, 100, 4096, 70_000, 2 * MIB)
WEIGHTS = (1, 4, 4, 3, 1)
FILES = 30  # Names that a worker uses.
TREE_FILES = 12


def digest(body: bytes) -> str:
    """What a worker remembers of a file."""
    return hashlib.sha256(body).hexdigest()


@dataclass(slots=True)
class Known:
    """What has to be in a directory.

    `files` are digests by name; `touched` are names that a call without an answer was about, with
    all digests that they may have now (None: no such file).  `moving` are both names and the digest
    of a file whose renaming nobody has answered, `origins` tell where a digest was written.
    """

    files: dict[str, str] = field(default_factory=dict)
    touched: dict[str, set[str | None]] = field(default_factory=dict)
    moving: tuple[str, str, str] | None = None
    origins: dict[str, str] = field(default_factory=dict)

    def complaints(self, directory: Path) -> list[str]:
        """What is wrong in *directory*; what was not certain is known from here on."""
        found = {}
        if directory.exists():
            found = {p.name: digest(p.read_bytes()) for p in directory.iterdir() if p.is_file()}
        wrong = []
        for name in found.keys() | self.files.keys() | self.touched.keys():
            may_be = self.touched.get(name, {self.files.get(name)})
            if found.get(name) not in may_be:
                allowed = " or ".join(map(self._is, may_be))
                wrong.append(f"{directory / name}: {self._is(found.get(name))}, not {allowed}")
        if self.moving is not None:
            old, new, moved = self.moving
            if moved not in (found.get(old), found.get(new)):
                wrong.append(f"{directory / old}: it is nowhere, after a renaming to {new}")
        self.files, self.touched, self.moving = found, {}, None
        return wrong

    def _is(self, found: str | None) -> str:
        if found is None:
            return "not there"
        return f"what was written to {self.origins.get(found, 'none')}"


class Worker(threading.Thread):
    """Works in ``ROOT/workerN`` until a call fails, or until it is told to stop."""

    def __init__(self, root: Path, number: int, seed: int, known: "Worker | None" = None) -> None:
        super().__init__()
        self.directory = root / f"worker{number}"
        self.number = number
        self.steps = 0
        self.failure: OSError | None = None
        self.stopping = threading.Event()
        self._random = Random(f"{number} {seed}")
        self._known = known._known if known else Known()
        self._tree = known._tree if known else "tree"
        self._next_tree = known._next_tree if known else ""
        self._tree_files = known._tree_files if known else {}

    def run(self) -> None:
        """Work."""
        try:
            while not self.stopping.is_set():
                self._step()
                self.steps += 1
        except OSError as error:
            self.failure = error

    def plant(self) -> None:
        """Make the directory, and the tree in it that is renamed now and then."""
        tree = self.directory / self._tree
        tree.mkdir(parents=True)
        for number in range(TREE_FILES):
            body = self._random.randbytes(200)
            (tree / f"leaf{number}").write_bytes(body)
            self._tree_files[f"leaf{number}"] = digest(body)

    def _step(self) -> None:
        name = f"file{self._random.randrange(FILES)}"
        choice = self._random.randrange(40)
        if choice == 0:
            self._rename_tree()
        elif choice < 26 or not self._known.files:
            self._write(name, sync=choice < 8)
        elif choice < 34:
            self._rename(self._random.choice(list(self._known.files)), name)
        else:
            self._remove(self._random.choice(list(self._known.files)))

    def _write(self, name: str, *, sync: bool) -> None:
        body = self._random.randbytes(self._random.choices(SIZES, WEIGHTS)[0])
        files, touched = self._known.files, self._known.touched
        self._known.origins[digest(body)] = f"{name} by {self.name} at step {self.steps}"
        # O_TRUNC alone may have happened, too.
        touched[name] = {files.get(name), digest(body), digest(b"")}
        with (self.directory / name).open("wb") as file:
            file.write(body)
            if sync:
                file.flush()
                os.fsync(file.fileno())
                files[name] = digest(body)
                del touched[name]
        if not sync:
            files[name] = digest(body)
            del touched[name]

    def _rename(self, old: str, new: str) -> None:
        if old == new:
            return
        files, touched = self._known.files, self._known.touched
        moved = files[old]
        # A file is copied, and then deleted: both names may have it for a moment.
        touched[old], touched[new] = {moved, None}, {files.get(new), moved}
        self._known.moving = old, new, moved
        (self.directory / old).rename(self.directory / new)
        files[new] = files.pop(old)
        del touched[old], touched[new]
        self._known.moving = None

    def _remove(self, name: str) -> None:
        files, touched = self._known.files, self._known.touched
        touched[name] = {files[name], None}
        (self.directory / name).unlink()
        del files[name], touched[name]

    def _rename_tree(self) -> None:
        self._next_tree = f"tree{self._random.randrange(10**9)}"
        (self.directory / self._tree).rename(self.directory / self._next_tree)
        self._tree, self._next_tree = self._next_tree, ""

    def complaints(self, root: Path) -> list[str]:
        """What is wrong in the worker's directory below *root*, where it can be looked at now."""
        directory = root / self.directory.name
        return self._known.complaints(directory) + self._tree_complaints(directory)

    def _tree_complaints(self, directory: Path) -> list[str]:
        trees = [path for path in directory.iterdir() if path.is_dir()]
        names = [path.name for path in trees]
        if len(trees) != 1 or names[0] not in (self._tree, self._next_tree):
            return [f"{directory}: {names} for {self._tree} or {self._next_tree}"]
        self._tree, self._next_tree = names[0], ""
        found = {path.name: digest(path.read_bytes()) for path in trees[0].iterdir()}
        return [] if found == self._tree_files else [f"{trees[0]} is not whole: {sorted(found)}"]


WORKERS = 4


def planted(root: Path) -> list[Worker]:
    """New workers, each with a directory that has a tree in it."""
    workers = [Worker(root, number, 0) for number in range(WORKERS)]
    for worker in workers:
        worker.plant()
    return workers


def successors(workers: Sequence[Worker], root: Path, seed: int) -> list[Worker]:
    """Workers that go on where others were cut off, by what was found there since."""
    return [Worker(root, worker.number, seed, worker) for worker in workers]


def end(workers: Sequence[Worker]) -> None:
    """Have workers stop after what they are at, and wait for them."""
    for worker in workers:
        worker.stopping.set()
    for worker in workers:
        worker.join()
