"""What stat(2) shows, and what setattr changes of it.  Pure."""

from __future__ import annotations

import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from s3mount.attributes import META, Attributes, link_target
from s3mount.cache.metadata import Entry
from s3mount.fs.inodes import Inode


@dataclass(frozen=True, slots=True)
class Stat:
    """What stat(2) shows; `certain` is False while only a listing has spoken."""

    inode: Inode
    attributes: Attributes
    size: int
    certain: bool = True
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr changes; None: stays.  Times in nanoseconds.

    `unprivileged` tells that the caller is not root.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    unprivileged: bool = False

    @property
    def drops_set_id(self) -> bool:
        """Whether setuid and setgid bits go: a new owner, or new content by a plain user."""
        if self.mode is not None:
            return False
        owner = self.uid is not None or self.gid is not None
        return owner or (self.size is not None and self.unprivileged)

    @property
    def only_times(self) -> bool:
        """Whether this sets mtime and ctime and nothing else, as the kernel does by itself."""
        others = (self.mode, self.uid, self.gid, self.size)
        return others == (None,) * 4 and None not in (self.mtime_ns, self.ctime_ns)


def other_kind(inode: Inode, entry: Entry) -> bool:
    """Whether an entry is of another type than the kernel was told; it takes that for damage."""
    if entry.attributes is None or inode.kind == 0:
        return False
    return stat.S_IFMT(entry.attributes.mode) != inode.kind


def target_of(kept: Mapping[str, str] | None) -> bytes | None:
    """The target of a symlink whose object is empty: other tools keep it in the metadata."""
    return None if kept is None else link_target(kept, META)


def shown_size(attributes: Attributes, size: int, kept: Mapping[str, str] | None) -> int:
    """st_size of an object of *size* bytes: of a symlink always the length of its target."""
    if size or not stat.S_ISLNK(attributes.mode):
        return size
    return len(target_of(kept) or b"")


def inherited(attributes: Attributes, above: Attributes | None) -> Attributes:
    """*attributes* of what is made in a directory with those *above*: setgid hands its group on."""
    if above is None or not above.mode & stat.S_ISGID:
        return attributes
    mode = attributes.mode | (stat.S_ISGID if stat.S_ISDIR(attributes.mode) else 0)
    return replace(attributes, mode=mode, gid=above.gid)


def without_set_id(mode: int) -> int:
    """The mode of a regular file that somebody without privileges has changed (POSIX)."""
    if not stat.S_ISREG(mode):
        return mode
    dropped = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    return mode & ~dropped


def changed(attributes: Attributes, changes: Changes) -> Attributes:
    """*attributes* after a setattr; any change moves ctime."""
    mode = attributes.mode
    if changes.mode is not None:
        mode = stat.S_IFMT(mode) | stat.S_IMODE(changes.mode)
    elif changes.drops_set_id:
        mode = without_set_id(mode)
    return replace(
        attributes,
        mode=mode,
        uid=attributes.uid if changes.uid is None else changes.uid,
        gid=attributes.gid if changes.gid is None else changes.gid,
        mtime_ns=attributes.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
        ctime_ns=time.time_ns() if changes.ctime_ns is None else changes.ctime_ns,
    )
