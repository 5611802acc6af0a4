"""All that is unsaved: saving it, for sync and umount, and keeping it at the end of a mount."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from s3mount.errors import PosixError, StoreError
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.openfile import OpenFile

log = logging.getLogger(__name__)

PARALLEL = 32  # Files at once.


async def save_all(filesystem: FileSystem) -> Sequence[OpenFile]:
    """Make the store have everything; return the files that could not be saved."""
    left: list[OpenFile] = []
    slots = trio.CapacityLimiter(PARALLEL)

    async def save(file: OpenFile) -> None:
        async with slots:
            try:
                await filesystem.open_files.save(file)
            except (StoreError, PosixError) as error:
                if not file.dirty:  # Attributes of a version that is not there any more.
                    text = "%s: its attributes could not be saved: %s"
                    log.warning(text, file.inode.key, error)
                    return
                log.error("%s: could not be saved: %s", file.inode.name, error)
                left.append(file)
                filesystem.open_files.settle(file)  # It may have been refused for good.

    for directory in list(filesystem.markers.unsaved):
        try:
            await filesystem.markers.save(directory)
        except StoreError as error:
            log.error("%s: could not be saved: %s", directory.prefix, error)
    async with trio.open_nursery() as nursery:
        for file in list(filesystem.files.values()):
            if file.dirty and not file.given_up:
                nursery.start_soon(save, file)
    return left


async def leave_all(filesystem: FileSystem) -> Sequence[OpenFile]:
    """Keep on this machine what could not be saved, and say so; nobody may save meanwhile."""
    await filesystem.open_files.all_kept()
    dirty = [file for file in filesystem.files.values() if file.dirty]
    left = [file for file in dirty if not (file.given_up and file.is_kept)]
    for file in left:
        log.error("%s: not uploaded: %s", file.inode.key, await _leave(file))
    return left


async def _leave(file: OpenFile) -> str:
    """Leave a file on this machine; say where."""
    if not file.changed:
        return "its attributes are lost"
    try:
        if file.acknowledged and not file.given_up:
            await file.acknowledge()
            return "the next mount goes on with it"
        await file.keep()
        file.leave()
    except OSError as error:
        return f"and it cannot be kept: {error}"
    return "`s3mount recover` has what was written"
