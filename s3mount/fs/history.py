"""What the mount shows beside the bucket: ``.s3mount``, which no listing shows and nobody changes.

Only ``.s3mount/versions`` is ours; what else lies below ``.s3mount/`` are objects like all others.
"""

from __future__ import annotations

import errno

from s3mount.cache.metadata import Absent, Entry, MetaCache
from s3mount.errors import PosixError
from s3mount.fs.inodes import Inode
from s3mount.s3.store import OWN, VERSIONS

_TOP = OWN.rstrip("/")
_BELOW = VERSIONS[len(OWN) : -1]
_PLACES = frozenset({("", _TOP), (OWN, _BELOW)})
NOTHING: frozenset[str] = frozenset()


def is_own(prefix: str, segment: str) -> bool:
    """Whether a name is that of a directory which is there without any object."""
    return (prefix, segment) in _PLACES


def oldest(prefix: str, known: Entry | Absent, fresh: float, cache: MetaCache) -> float:
    """How old knowledge may be: versions never go, but every write makes one."""
    past = isinstance(known, Absent) and prefix.startswith(VERSIONS)
    return cache.clock() if past else fresh


def hidden_below(directory: Inode) -> frozenset[str]:
    """The names in a directory that readdir does not show."""
    if directory.parent is None:
        return frozenset({_TOP})
    own = directory.parent.parent is None and directory.segment == _TOP
    return frozenset({_BELOW}) if own else NOTHING


def refuse_change(directory: Inode, segment: str) -> None:
    """Raise `PosixError` EROFS for a name that stands for, or lies in, the past."""
    node, below = directory, segment
    while node.parent is not None and node.parent.parent is not None:
        node, below = node.parent, node.segment
    above = "" if node.parent is None else f"{node.segment}/"
    if is_own(above, below):
        raise PosixError(errno.EROFS)


def refuse_change_of(inode: Inode) -> None:
    """As `refuse_change`, for what is known already."""
    if inode.parent is not None:
        refuse_change(inode.parent, inode.segment)
