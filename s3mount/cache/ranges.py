"""Which bytes of an object version are cached on disk, found by looking for each block."""

from __future__ import annotations

import trio

from s3mount.cache.blocks import BLOCK_SIZE, PIECE_SIZE
from s3mount.cache.disk import BlockDisk
from s3mount.cache.version import ObjectVersion
from s3mount.write.extents import Extents

MAX_LOOKS = 200_000  # A second or so: 190 GiB of blocks, or 6 GiB of pieces.


async def on_disk(disk: BlockDisk, version: ObjectVersion) -> Extents:
    """The bytes of *version* that are on *disk*; of a huge object only those at its beginning."""
    return await trio.to_thread.run_sync(_look, disk, version)


def _look(disk: BlockDisk, version: ObjectVersion) -> Extents:
    found = Extents()
    looks = MAX_LOOKS
    for start in range(0, version.size, BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, version.size)
        if _has(disk, version, BLOCK_SIZE, start):
            found.add(start, stop)
            looks -= 1
        else:
            for piece in range(start, stop, PIECE_SIZE):
                if _has(disk, version, PIECE_SIZE, piece):
                    found.add(piece, min(piece + PIECE_SIZE, stop))
            looks -= 1 + BLOCK_SIZE // PIECE_SIZE
        if looks <= 0:
            break
    return found


def _has(disk: BlockDisk, version: ObjectVersion, unit: int, start: int) -> bool:
    return disk.has(disk.name(version.key, version.etag, version.size, unit, start // unit))
