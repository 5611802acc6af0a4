"""What `s3mount doctor` has found out about stores, kept for the mounts of the next day."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from s3mount import __version__
from s3mount.private import open_private
from s3mount.s3.store import Capabilities

log = logging.getLogger(__name__)

FOLDER = "stores"
GOOD_FOR = 86400.0  # seconds: a store may be replaced by another one, or get an update
VERSION, WHEN, FOUND = "version", "time", "capabilities"


def remember(state_dir: Path, url: str, bucket: str, found: Capabilities) -> None:
    """Keep what a store can do; raises `MountError` or `OSError` when that is not possible."""
    directory = open_private(state_dir / FOLDER)
    try:
        name = _name(url, bucket)
        record = {VERSION: __version__, WHEN: time.time(), FOUND: asdict(found)}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(f"{name}.new", flags, 0o600, dir_fd=directory), "w") as file:
            json.dump(record, file)
        os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def recall(state_dir: Path, url: str, bucket: str) -> Capabilities | None:
    """Return what was found within the last day by this version, or None.

    What lies there was written by this user: the directory is private, or it does not count.
    """
    path = state_dir / FOLDER / _name(url, bucket)
    try:
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        record = json.loads(path.read_text())
        fresh = 0 <= time.time() - record[WHEN] < GOOD_FOR
        if record[VERSION] != __version__ or not fresh:
            return None
        return _capabilities(record[FOUND])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.info("%s is of no use: %s", path, error)
        return None


def _capabilities(found: dict[str, Any]) -> Capabilities:
    if set(found) != {item.name for item in fields(Capabilities)}:
        raise ValueError("it was written by another version")
    lists = {name: tuple(found[name]) for name in ("notes", "refused_names")}
    return Capabilities(**{**found, **lists})


def _name(url: str, bucket: str) -> str:
    return hashlib.sha256(f"{url}\0{bucket}".encode()).hexdigest()[:32] + ".json"
