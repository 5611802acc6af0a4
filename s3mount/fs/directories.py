"""Reading directories: what the store lists, and what it does not have yet."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from s3mount.attributes import may_be_special
from s3mount.cache.metadata import Absent, Entry
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.history import hidden_below
from s3mount.fs.inodes import Inode
from s3mount.fs.listing import Listed, Reader
from s3mount.fs.status import Stat

CHUNK = 512  # Rows for one request of the kernel: 6 ms.
FIRST_CHUNK = 32
LEARNT_CHUNK = 256


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
    """One open directory: its listing, and the files that are not in the store yet.

    `hidden` are the names that are not shown; `shown` are those that unsaved files were shown by,
    each with the index of its file.  `tried` tells whether names were shown to see what becomes
    of them, `walked` whether they were looked at one after the other.
    """

    __slots__ = ("hidden", "inode", "listing", "shown", "tried", "unsaved", "walked")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.hidden = hidden_below(inode)
        self.listing: Reader | None = None
        self.unsaved: list[Inode] = []
        self.shown: dict[str, int] = {}
        self.tried = False
        self.walked = False

    def close(self) -> None:
        """Read no more."""
        if self.listing is not None:
            self.listing.close()
            self.listing = None


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

    def inode(self, handle: int) -> Inode:
        """The directory that a handle is of."""
        return self._open[handle].inode

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        self._open.pop(handle).close()

    async def fsync(self, handle: int) -> None:
        """Write down what chmod, chown and utimens changed of a directory."""
        await self._fs.markers.save(self._open[handle].inode)

    async def rows(self, handle: int, start: int) -> Iterator[Row]:
        """Some entries from offset *start* on, none after the last.  Raises `StoreError`.

        What is at hand: whoever reads does not wait for the pages that come later.
        """
        reading = self._open[handle]
        if start == 0 or reading.listing is None:
            self._rewind(reading, start)
        assert reading.listing is not None
        unsaved = self._unsaved_rows(reading, start)
        first = next(unsaved, None)
        if first is not None:  # What they are shown by decides what the listing shows.
            return itertools.chain((first,), unsaved)
        index = max(start - len(reading.unsaved), 0)
        while listed := await reading.listing.rows(index, CHUNK):
            listed = await self._learn(reading, listed, index)
            rows = self._listed_rows(reading, listed, index)
            first = next(rows, None)
            if first is not None:
                return itertools.chain((first,), rows)
            index += len(listed)
        return iter(())

    async def _learn(
        self, reading: _Reading, listed: Sequence[Listed], index: int
    ) -> Sequence[Listed]:
        """See to the attributes of names that are about to be shown, the row *index* first.

        After a while only a few names are shown, without attributes: whoever looks at those is
        shown the next ones with theirs, and looks at them for nothing.  For whoever does not,
        the kernel makes no inodes, and nobody is asked for anything.
        """
        learner, prefix = self._fs.learner, reading.inode.prefix
        unknown = self._fs.namespace.keep_attributes and listed[0].entry.attributes is None
        reading.walked = reading.walked or learner.is_walked(prefix)
        if reading.walked:
            if unknown:
                listed = listed[:LEARNT_CHUNK]
                shown = [row.segment for row in listed if row.segment not in reading.hidden]
                await learner.learn(prefix, shown, index + len(listed))
        elif not reading.tried and (unknown or index > 0):
            reading.tried = True
            listed = listed[:FIRST_CHUNK]
        return listed

    def _unsaved_rows(self, reading: _Reading, start: int) -> Iterator[Row]:
        """The unsaved files from *start* on, by the names that they have now, each name once."""
        if start < len(reading.unsaved):  # The kernel had no room for what was beyond that.
            reading.shown = {name: at for name, at in reading.shown.items() if at < start}
        filesystem, directory = self._fs, reading.inode
        for index in range(start, len(reading.unsaved)):
            unsaved = reading.unsaved[index]
            name, segment = unsaved.name, unsaved.segment
            if unsaved.parent is not directory or segment in reading.shown:
                continue
            # Over one that is gone perhaps another one was renamed.
            inode = filesystem.inodes.find(directory, name) if unsaved.gone else unsaved
            file = None if inode is None else filesystem.files.get(inode)
            entry = filesystem.cache.peek(directory.prefix, segment)
            if inode is not None and file is not None:
                found = filesystem.stat_file(inode, file)
            elif entry is not None:  # Saved meanwhile, perhaps too late for the listing.
                # Nothing has kept the inode since.
                inode = filesystem.inode_of(directory, name, segment, entry)
                found = filesystem.stat_entry(inode, entry)
            else:
                continue
            reading.shown[segment] = index
            yield Row(name, found, 0, index + 1)

    def _rewind(self, reading: _Reading, start: int) -> None:
        reading.close()
        reading.listing = self._fs.namespace.read(reading.inode.prefix)
        # What the store may have of a dirty file is no reason to look for it in the listing.
        reading.unsaved = [
            inode
            for inode, file in self._fs.files.items()
            if inode.parent is reading.inode and not inode.gone
            if file.dirty or not file.stored_key
        ]
        before = reading.unsaved[:start]
        reading.shown = {inode.segment: index for index, inode in enumerate(before)}

    def _listed_rows(
        self, reading: _Reading, listed: Sequence[Listed], index: int
    ) -> Iterator[Row]:
        """What the rows from *index* on show by now.

        Our own changes may be younger than the listing.  12 us a row.
        """
        filesystem, directory = self._fs, reading.inode
        prefix = directory.prefix
        names = filesystem.cache.names(prefix)
        certain = not filesystem.namespace.keep_attributes
        shy = index > 0 and not reading.walked
        following = len(reading.unsaved) + index
        assert reading.listing is not None
        passed = reading.listing.passed
        for name, segment, entry in listed:
            following += 1
            # An unsaved file may have another name by now, and has not been shown by that.
            if segment in reading.hidden or segment in reading.shown or segment in passed:
                continue
            inode = filesystem.inodes.find(directory, name)
            file = filesystem.files.get(inode) if inode is not None else None
            if inode is not None and file is not None:
                yield Row(name, filesystem.stat_file(inode, file), 0, following)
                continue
            known = names.get(segment)
            if known is not None and known.checked >= entry.checked:
                if isinstance(known, Absent):
                    continue
                entry = known
            outdated = filesystem.cache.is_outdated(prefix, segment, entry.checked)
            if shy or outdated or (entry.attributes is None and not certain):
                yield Row(name, None, _listed_kind(entry), following)
                continue
            inode = filesystem.inode_of(directory, name, segment, entry)
            yield Row(name, filesystem.stat_entry(inode, entry), 0, following)


def _listed_kind(entry: Entry) -> int:
    if entry.directory:
        return stat.S_IFDIR
    if entry.attributes is not None:
        return stat.S_IFMT(entry.attributes.mode)
    return 0 if may_be_special(entry.size) else stat.S_IFREG
