"""What requests of the kernel are about, as people know it: paths in the mount, and programs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from s3mount.fs.directories import Directories
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode

ROOT = "."
FILE_OPERATIONS = frozenset({"read", "write", "flush", "fsync", "release"})
DIRECTORY_OPERATIONS = frozenset({"readdir", "releasedir", "fsyncdir"})
REMEMBERED = 1000  # Programs whose names are known.
RECENT = 1.0  # Seconds for which a process keeps its name: it may run another program then.


def path_of(inode: Inode) -> str:
    """The path of an inode from the mount point on; that of one that is gone is marked."""
    names: list[bytes] = []
    node = inode
    while node.parent is not None:
        names.append(node.name)
        node = node.parent
    path = os.fsdecode(b"/".join(reversed(names))) or ROOT
    return f"{path} (deleted)" if inode.gone else path


class Subjects:
    """Finds the path, and the process, that a request is about.

    What a request is about is a name in the directory *parent*, or if that is 0 an inode, or a
    handle, which of them depends on the operation; a renaming is about two names.
    """

    def __init__(self, filesystem: FileSystem, directories: Directories) -> None:
        self._fs = filesystem
        self._directories = directories
        self._programs: dict[int, tuple[str, float]] = {}

    def path(self, operation: str, what: object, parent: int) -> str:
        """The path; what cannot be found, or has gone, is shown as it is known to us."""
        try:
            if isinstance(what, tuple):
                old, new_parent, new = what
                return f"{self._name(parent, old)} -> {self._name(new_parent, new)}"
            if isinstance(what, bytes):
                return self._name(parent, what)
            if isinstance(what, int):
                return path_of(self._inode(operation, what))
        except KeyError:
            pass  # Forgotten, or closed, before the request was answered.
        return str(what)

    def process(self, operation: str, what: object) -> int:
        """The thread that has opened the file of a handle, 0 if this is about none."""
        if operation not in FILE_OPERATIONS or not isinstance(what, int):
            return 0
        try:
            return self._fs.handles.opener(what)
        except KeyError:
            return 0  # Closed already.

    def program(self, process_id: int) -> str:
        """The name of a program that runs; empty when it has ended."""
        now = time.monotonic()
        name, since = self._programs.get(process_id, ("", 0.0))
        if name and now - since < RECENT:
            return name
        try:
            name = Path(f"/proc/{process_id}/comm").read_text(errors="replace").rstrip("\n")
        except OSError:
            return name
        if len(self._programs) >= REMEMBERED:
            self._programs.clear()
        self._programs[process_id] = name, now
        return name

    def _name(self, parent: int, name: bytes) -> str:
        above = path_of(self._fs.inodes.get(parent)) if parent else ROOT
        return os.fsdecode(name) if above == ROOT else f"{above}/{os.fsdecode(name)}"

    def _inode(self, operation: str, number: int) -> Inode:
        if operation in FILE_OPERATIONS:
            return self._fs.handles.file(number).inode
        if operation in DIRECTORY_OPERATIONS:
            return self._directories.inode(number)
        return self._fs.inodes.get(number)
