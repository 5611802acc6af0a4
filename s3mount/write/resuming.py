"""Going on with a multipart upload of a dead daemon: which of its parts hold what is here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import trio

from s3mount.errors import NotFound
from s3mount.s3.store import ListedPart, ObjectStore
from s3mount.write.extents import PartGrid
from s3mount.write.pieces import Checksum
from s3mount.write.records import FileRecord, SentPart, UploadRecord


async def verified_parts(
    store: ObjectStore,
    grid: PartGrid,
    upload: UploadRecord,
    record: FileRecord,
    path: Path,
    checksum: Checksum,
) -> list[SentPart]:
    """The parts of *upload* whose bytes equal those of the staged file at *path*.

    *checksum* is the one that the store knows parts by.  Raises `StoreError`; an upload that is
    gone has no parts.
    """
    try:
        listed = await store.list_parts(upload.key, upload.upload)
    except NotFound:
        return []
    cells = _cells(grid, record, listed)
    try:
        return await trio.to_thread.run_sync(_compare, path, cells, checksum)
    except OSError:
        return []


def _cells(
    grid: PartGrid, record: FileRecord, listed: Sequence[ListedPart]
) -> list[tuple[int, int, ListedPart]]:
    """The parts that lie on the grid, as those of a new file do, and where they lie."""
    if record.base is not None:
        return []
    found = []
    for part in listed:
        cell = grid.cell(part.number - 1)
        stop = min(cell.stop, record.size)
        if stop - cell.start == part.size:
            found.append((cell.start, stop, part))
    return found


def _compare(
    path: Path, cells: Sequence[tuple[int, int, ListedPart]], checksum: Checksum
) -> list[SentPart]:
    sent = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for start, stop, part in cells:
            data = os.pread(descriptor, stop - start, start)
            crc = checksum(data, 0)
            if len(data) == stop - start and _is_same(data, crc, part):
                known = None if part.crc is None else crc
                sent.append(SentPart(start, stop, part.number, part.etag, known))
    finally:
        os.close(descriptor)
    return sent


def _is_same(data: bytes, crc: int, part: ListedPart) -> bool:
    if part.crc is not None:
        return part.crc == crc
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return part.etag.strip('"') == digest
