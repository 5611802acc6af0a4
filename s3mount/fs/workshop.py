"""What every open file works with: the mount's shared parts, handed around as one value."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from s3mount.attributes import Attributes, encode
from s3mount.cache.blocks import BlockCache
from s3mount.memory import MemoryBudget
from s3mount.rules import HeaderRules
from s3mount.s3.store import ObjectStore
from s3mount.write.backlog import Backlog
from s3mount.write.extents import PartGrid
from s3mount.write.journal import Journal
from s3mount.write.pieces import Checksum
from s3mount.write.staging import StagingDirectory

log = logging.getLogger(__name__)

DIRECTORY_TYPE = "application/x-directory"  # As s3fs writes it.


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every open file works with."""

    store: ObjectStore
    blocks: BlockCache
    staging: StagingDirectory
    budget: MemoryBudget
    nursery: trio.Nursery
    grid: PartGrid
    checksum: Checksum
    max_window: int
    keep_attributes: bool
    header_rules: HeaderRules
    journal: Journal
    backlog: Backlog

    def report(self, key: str, error: Exception) -> None:
        """Say that something which nobody waits for has failed."""
        log.error("%s: could not be saved: %s", key, error)

    def marker_headers(self, attributes: Attributes) -> dict[str, str]:
        """What the marker object of a directory says about itself."""
        headers = {"content-type": DIRECTORY_TYPE}
        if self.keep_attributes:
            headers.update(encode(attributes))
        return headers
