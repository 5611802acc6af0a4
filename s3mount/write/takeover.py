"""Taking over what dead daemons left: their records become ours, their staged files move here."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from s3mount.write.frames import Checksum
from s3mount.write.journal import Contents, Record
from s3mount.write.records import (
    FAILED,
    FILE,
    KIND,
    PENDING,
    REMOVAL,
    TREE,
    UPLOAD,
    FileRecord,
    RemovalRecord,
    TreeRecord,
    UploadRecord,
)
from s3mount.write.slots import Slot, sync_directory

log = logging.getLogger(__name__)

T = TypeVar("T")

UNCERTAIN = (
    "the journal is damaged behind the record of this file: it may have been uploaded, changed or "
    "removed since"
)


@dataclass(slots=True)
class Left:
    """What dead daemons left, by record name; `blobs` are bytes that stood in the journal.

    `slots` are to be removed, and `damaged` ones to be set aside, as soon as all of this stands
    in the journal of somebody else.
    """

    files: dict[str, FileRecord] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, UploadRecord] = field(default_factory=dict)
    trees: dict[str, TreeRecord] = field(default_factory=dict)
    removals: dict[str, RemovalRecord] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    damaged: list[Slot] = field(default_factory=list)


def collect(slots: Sequence[Slot], checksum: Checksum, staged: Path) -> Left:
    """Read the journals of *slots*, and link their staged files into *staged*.  Blocks."""
    left = Left()
    for slot in slots:
        contents = slot.read(checksum)
        _collect(left, slot, contents, staged)
        unused = contents.torn and _has_unused(slot, left.files)
        if contents.damaged or unused:
            log.error("%s: this journal is damaged; what is certain in it is used", slot.path)
            left.damaged.append(slot)
        else:
            left.slots.append(slot)
    _drop_superseded(left)
    if left.files:
        sync_directory(staged)  # Before our journal names what was linked there.
    return left


def _collect(left: Left, slot: Slot, contents: Contents, staged: Path) -> None:
    for record in contents.records.values():
        certain = record.name not in contents.uncertain
        kind = record.fields.get(KIND)
        if kind == FILE and (file := _parse(FileRecord.parse, record, contents)):
            left.files[record.name] = _move(file, slot, staged, certain)
            left.blobs[record.name] = record.blob
        elif kind == UPLOAD and (upload := _parse(UploadRecord.parse, record, contents)):
            left.uploads[record.name] = upload
        elif kind == REMOVAL and (removal := _parse(RemovalRecord.parse, record, contents)):
            if certain:
                left.removals[record.name] = removal
        elif kind == TREE and (tree := _parse(TreeRecord.parse, record, contents)):
            if certain:
                left.trees[record.name] = tree
            else:
                log.error("it is not certain whether %s was renamed to %s", tree.old, tree.new)


def _parse(
    parse: Callable[[Mapping[str, object]], T], record: Record, contents: Contents
) -> T | None:
    try:
        return parse(record.fields)
    except ValueError as error:
        log.error("record %s of a journal: %s", record.name, error)
        contents.damaged = True
        return None


def _move(file: FileRecord, slot: Slot, staged: Path, certain: bool) -> FileRecord:
    """Give a staged file a second name, in our own slot."""
    if not certain and file.state == PENDING:
        file = replace(file, state=FAILED, reason=UNCERTAIN)
    if not file.staged:
        return file
    try:
        with contextlib.suppress(FileExistsError):
            os.link(slot.staged / file.staged, staged / file.staged, follow_symlinks=False)
    except OSError as error:
        reason = f"its staged bytes cannot be read: {error.strerror}"
        return replace(file, state=FAILED, reason=reason)
    return file


def _has_unused(slot: Slot, files: Mapping[str, FileRecord]) -> bool:
    """Whether there are staged files that no record speaks of: its frame may be the torn one."""
    used = {file.staged for file in files.values()}
    try:
        return any(entry.name not in used for entry in os.scandir(slot.staged))
    except FileNotFoundError:
        return False


def _drop_superseded(left: Left) -> None:
    """Of several files of one name the last one holds, as of those that a program writes."""
    newest: dict[str, str] = {}
    for name, file in sorted(left.files.items(), key=lambda item: item[1].time):
        if file.state != PENDING:
            continue
        if (older := newest.get(file.key)) is not None:
            log.info("%s: an older version that was not uploaded is superseded", file.key)
            del left.files[older], left.blobs[older]
        newest[file.key] = name
