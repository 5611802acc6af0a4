"""``s3mount doctor`` and the store: asks it, and keeps what was found for mounts."""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from s3mount.config import Config
from s3mount.diagnosis import WEAK, Finding
from s3mount.errors import MountError
from s3mount.storecheck import check_store
from s3mount.verdicts import remember


def check(config: Config) -> Sequence[Finding]:
    """Look at the store of a mount, and let the next mounts of it know."""
    os.environ.update(config.environment)
    verdict = trio.run(check_store, config)
    if verdict.capabilities is None:
        return verdict.findings
    try:
        remember(config.state_dir, verdict.url, config.bucket, verdict.capabilities)
    except (MountError, OSError) as error:
        kept = Finding("state", WEAK, f"mounts will not know: {error}")
        return [*verdict.findings, kept]
    return verdict.findings
