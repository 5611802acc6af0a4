"""Reading directories: what the store lists, and what it does not have yet."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from typing import NamedTuple

from s3mount.attributes import may_be_special
from s3mount.cache.metadata import Absent, Entry
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode
from s3mount.fs.listing import Listed, Listing
from s3mount.fs.status import Stat


class Row(NamedTuple):
    """One entry of a directory, and the offset of the one after it.

    `stat` is None while only a listing has spoken; then `kind` holds the type bits, 0 where
    not even those are certain.
    """

    name: bytes
    stat: Stat | None
    kind: int
    following: int


class _Reading:
    """One open directory: its listing, and the files that are not in the store yet."""

    __slots__ = ("inode", "listing", "unsaved")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.listing: Listing | None = None
        self.unsaved: list[Inode] = []


class Directories:
    """opendir, readdir and releasedir on a `FileSystem`.

    An offset is 0 and 1 for ``.`` and ``..``, then counts the unsaved files, then the rows of
    the listing; so it stays good while files are deleted.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem
        self._open: dict[int, _Reading] = {}
        self._last = 0

    def opendir(self, number: int) -> int:
        """Open a directory; nothing is asked before the first readdir."""
        self._last += 1
        self._open[self._last] = _Reading(self._fs.inodes.get(number))
        return self._last

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        del self._open[handle]

    async def fsync(self, handle: int) -> None:
        """Write down what chmod, chown and utimens changed of a directory."""
        await self._fs.markers.save(self._open[handle].inode)

    async def rows(self, handle: int, start: int) -> AsyncIterator[Row]:
        """The entries from offset *start* on.  Raises `StoreError`."""
        reading = self._open[handle]
        if start == 0 or reading.listing is None:
            self._rewind(reading)
        assert reading.listing is not None
        unsaved = reading.unsaved
        for index in range(start, len(unsaved)):
            inode = unsaved[index]
            file = self._fs.files.get(inode)
            if file is not None and not inode.gone and inode.parent is reading.inode:
                yield Row(inode.name, self._fs.stat_file(inode, file), 0, index + 1)
        index = max(start - len(unsaved), 0)
        hidden = {inode.segment for inode in unsaved}
        while (listed := await reading.listing.row(index)) is not None:
            index += 1
            if listed.segment not in hidden:
                row = self._row(reading.inode, listed, len(unsaved) + index)
                if row is not None:
                    yield row

    def _rewind(self, reading: _Reading) -> None:
        reading.listing = self._fs.namespace.listing(reading.inode.prefix)
        reading.unsaved = [
            inode
            for inode, file in self._fs.files.items()
            if inode.parent is reading.inode and not inode.gone and not file.stored_key
        ]

    def _row(self, directory: Inode, listed: Listed, following: int) -> Row | None:
        """What a row shows by now: our own changes may be younger than the listing."""
        inode = self._fs.inodes.find(directory, listed.name)
        file = self._fs.files.get(inode) if inode is not None else None
        if inode is not None and file is not None:
            return Row(listed.name, self._fs.stat_file(inode, file), 0, following)
        known = self._fs.cache.get(directory.prefix, listed.segment)
        if isinstance(known, Absent) and known.checked > listed.entry.checked:
            return None
        entry = listed.entry
        if isinstance(known, Entry) and known.checked >= entry.checked:
            entry = known
        if entry.attributes is None and self._fs.namespace.keep_attributes:
            return Row(listed.name, None, _listed_kind(entry), following)
        inode = self._fs.inode_of(directory, listed.name, listed.segment, entry)
        return Row(listed.name, self._fs.stat_entry(inode, entry), 0, following)


def _listed_kind(entry: Entry) -> int:
    if entry.directory:
        return stat.S_IFDIR
    return 0 if may_be_special(entry.size) else stat.S_IFREG
