"""The journal of one mount, from taking over what dead daemons left to its end."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping

import trio

from s3mount.errors import MountError
from s3mount.write.frames import Checksum
from s3mount.write.journal import Journal
from s3mount.write.slots import Slot, Slots
from s3mount.write.takeover import Left, collect

log = logging.getLogger(__name__)


class MountJournal:
    """A slot with a journal in it.

    `left` is what dead daemons left; it is ours by now.
    """

    def __init__(self, slot: Slot, checksum: Checksum) -> None:
        self.slot = slot
        self.journal = Journal(slot.descriptor, checksum)
        self.checksum = checksum
        self.left = Left()

    @classmethod
    async def open(
        cls, slots: Slots, checksum: Checksum, about: Mapping[str, object], *, adopt: bool
    ) -> MountJournal:
        """Make a slot, and with *adopt* take over what others have left; raises `MountError`."""
        try:
            mine = await trio.to_thread.run_sync(cls._open, slots, checksum, about, adopt)
            if adopt:
                await mine._take_over()
        except OSError as error:
            raise MountError(f"{slots.path}: {error.strerror}", 2) from error
        return mine

    @classmethod
    def _open(
        cls, slots: Slots, checksum: Checksum, about: Mapping[str, object], adopt: bool
    ) -> MountJournal:
        mine = cls(slots.open(), checksum)
        mine.slot.describe({**about, "pid": os.getpid()})
        mine.journal.create()
        if adopt:
            mine.left = collect(slots.dead(but=mine.slot), checksum, mine.slot.staged)
        return mine

    async def _take_over(self) -> None:
        """Write into our journal what was left, and then remove what held it."""
        left = self.left
        for name, file in left.files.items():
            self.journal.put(name, file.fields(), left.blobs[name])
        for name, upload in left.uploads.items():
            self.journal.put(name, upload.fields())
        for name, tree in left.trees.items():
            self.journal.put(name, tree.fields())
        for name, removal in left.removals.items():
            self.journal.put(name, removal.fields())
        await self.journal.commit()
        await trio.to_thread.run_sync(self._remove_slots)

    def _remove_slots(self) -> None:
        for slot in self.left.slots:
            slot.remove()
        for slot in self.left.damaged:
            log.error("the damaged journal is kept in %s", slot.set_aside())
        self.left.slots.clear()
        self.left.damaged.clear()

    async def close(self) -> None:
        """End: the slot stays only when something in it is needed."""
        empty = self.journal.empty
        if not empty:
            with contextlib.suppress(OSError):  # It was told when it happened.
                await self.journal.commit()
        self.journal.close()
        await trio.to_thread.run_sync(self.slot.remove if empty else self.slot.release)
