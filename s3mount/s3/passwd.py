"""The key file of s3fs: lines ``KEY:SECRET`` or ``BUCKET:KEY:SECRET``, for its owner only."""

import os
from pathlib import Path

from s3mount.errors import MountError
from s3mount.private import why_not_private
from s3mount.s3.endpoint import Credentials

# Where s3fs looks when it is told nothing.
USUAL_PLACES = (Path("~/.passwd-s3fs"), Path("/etc/passwd-s3fs"))


def check_private(path: Path) -> None:
    """Raise `MountError` unless *path* is a file that nobody else can read."""
    try:
        reason = why_not_private(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}", 1) from error
    if reason is not None:
        raise MountError(f"{path}: {reason}", 1)


def usual_file() -> Path | None:
    """The key file at one of the usual places, if there is one that we may read."""
    found = (place.expanduser() for place in USUAL_PLACES)
    return next((place for place in found if os.access(place, os.R_OK)), None)


def read_keys(path: Path, bucket: str) -> Credentials:
    """The keys for *bucket*: its own, else those for all; raises `MountError`, without secrets."""
    check_private(path)
    general: Credentials | None = None
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith(("#", "[")):
            continue
        parts = line.strip().split(":")
        if len(parts) == 3 and parts[0] == bucket:
            return Credentials(parts[1], parts[2], None)
        if len(parts) == 2:
            general = general or Credentials(parts[0], parts[1], None)
        elif len(parts) != 3:
            raise MountError(f"{path}, line {number}: not KEY:SECRET or BUCKET:KEY:SECRET", 1)
    if general is None:
        raise MountError(f"{path} has no keys for the bucket {bucket}", 1)
    return general


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MountError(
            f"{path}: {getattr(error, 'strerror', None) or 'not a text'}", 1
        ) from error
