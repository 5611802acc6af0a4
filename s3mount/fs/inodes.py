"""Who is who: inode numbers for the names that the kernel knows."""

from __future__ import annotations

from collections.abc import Iterator

from s3mount.fs.names import key_of

ROOT = 1  # FUSE_ROOT_ID


class Inode:
    """One file or directory that the kernel knows: where it hangs, and how often it is held.

    `segment` is the slot of its directory that it is in (the last part of its key, see
    `s3mount.fs.names`), `lookups` the kernel's count of references.  `gone`
    is set when the name stands for something else by now (unlinked, or replaced).  `pins`
    counts what else keeps the inode: its children, and its open or unsaved file.  `shown` is
    the ETag that the kernel's pages belong to (empty: none yet), `kind` the type bits that it
    was told (0: none yet).  `opened` tells whether it had an open file, so that the kernel
    may have its bytes; `vanished` is set of a directory that a refresh did not find.
    """

    __slots__ = (
        "directory",
        "gone",
        "kind",
        "lookups",
        "name",
        "number",
        "opened",
        "parent",
        "pins",
        "segment",
        "shown",
        "vanished",
    )

    def __init__(
        self, number: int, parent: Inode | None, name: bytes, segment: str, *, directory: bool
    ) -> None:
        self.number = number
        self.parent = parent
        self.name = name
        self.segment = segment
        self.directory = directory
        self.lookups = 0
        self.gone = False
        self.pins = 0
        self.shown = ""
        self.kind = 0
        self.opened = False
        self.vanished = False

    @property
    def prefix(self) -> str:
        """The key prefix of what is in this directory: empty, or ending in ``/``."""
        parts: list[str] = []
        node: Inode = self
        while node.parent is not None:
            parts.append(node.segment)
            node = node.parent
        parts.reverse()
        return "/".join(parts) + "/" if parts else ""

    @property
    def key(self) -> str:
        """The key of this file."""
        assert self.parent is not None
        return key_of(self.parent.prefix, self.segment)


class InodeTable:
    """All inodes, by number and by place.  An inode lives while it is looked up or pinned."""

    def __init__(self) -> None:
        self.root = Inode(ROOT, None, b"", "", directory=True)
        self.root.lookups = 1
        self._by_number: dict[int, Inode] = {ROOT: self.root}
        self._by_place: dict[tuple[int, bytes], Inode] = {}
        self._last_number = ROOT

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._by_number.values()))

    def get(self, number: int) -> Inode:
        """The inode with this number; the kernel names none that it has forgotten."""
        return self._by_number[number]

    def find(self, parent: Inode, name: bytes) -> Inode | None:
        """The inode at a place, if the kernel knows one."""
        return self._by_place.get((parent.number, name))

    def obtain(self, parent: Inode, name: bytes, segment: str, *, directory: bool) -> Inode:
        """The inode at a place, made where there is none or one of the other kind."""
        inode = self._by_place.get((parent.number, name))
        if inode is not None:
            if inode.directory == directory:
                return inode
            self.detach(inode)
        self._last_number += 1
        inode = Inode(self._last_number, parent, name, segment, directory=directory)
        self._by_number[inode.number] = inode
        self._by_place[(parent.number, name)] = inode
        parent.pins += 1
        return inode

    def detach(self, inode: Inode) -> None:
        """The name stands for something else from now on."""
        inode.gone = True
        if inode.parent is not None and self.find(inode.parent, inode.name) is inode:
            del self._by_place[(inode.parent.number, inode.name)]

    def move(self, inode: Inode, parent: Inode, name: bytes, segment: str) -> None:
        """Hang an inode elsewhere; what was there is detached.

        An inode that was detached itself, while its object was moved, gets no name again.
        """
        assert inode.parent is not None
        replaced = self.find(parent, name)
        if replaced is not None and replaced is not inode:
            self.detach(replaced)
        self._by_place.pop((inode.parent.number, inode.name), None)
        old_parent = inode.parent
        inode.parent, inode.name, inode.segment = parent, name, segment
        if not inode.gone:
            self._by_place[(parent.number, name)] = inode
        parent.pins += 1
        self.unpin(old_parent)

    def forget(self, number: int, count: int) -> None:
        """The kernel gives back *count* references."""
        inode = self._by_number.get(number)
        if inode is not None:
            inode.lookups = max(0, inode.lookups - count)
            self.release(inode)

    def pin(self, inode: Inode) -> None:
        """Keep an inode although the kernel may forget it."""
        inode.pins += 1

    def unpin(self, inode: Inode) -> None:
        """Undo one `pin`."""
        inode.pins -= 1
        self.release(inode)

    def release(self, inode: Inode) -> None:
        """Let go of an inode that nobody holds any more."""
        if inode.lookups > 0 or inode.pins > 0 or inode.number == ROOT:
            return
        if self._by_number.pop(inode.number, None) is None:
            return
        if inode.parent is not None:
            if self.find(inode.parent, inode.name) is inode:
                del self._by_place[(inode.parent.number, inode.name)]
            self.unpin(inode.parent)
