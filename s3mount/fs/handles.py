"""Handles: what an open file descriptor is to us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from s3mount.cache.readahead import ReadAhead
from s3mount.fs.openfile import OpenFile


class Opener(NamedTuple):
    """Who has opened a file: its thread, and whether it is root."""

    process_id: int
    unprivileged: bool


NOBODY = Opener(0, unprivileged=False)


@dataclass(slots=True)
class Handle:
    """One open file: who reads ahead for it, and what it may do."""

    file: OpenFile
    reader: ReadAhead
    writable: bool
    readable: bool
    opener: Opener
