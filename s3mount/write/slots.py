"""Where journals live: a directory for each store, bucket and prefix, in it a slot for each mount.

A slot is locked by flock(2) as long as its daemon lives, so two daemons never share one; a slot
that nobody locks was left by a dead one, and the next mount takes over what is in it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from s3mount.errors import MountError
from s3mount.private import open_private
from s3mount.write.frames import Checksum
from s3mount.write.journal import Contents, read_file, read_log
from s3mount.write.logfile import LOG

log = logging.getLogger(__name__)

ABOUT = "about.json"  # Whose slots these are, and how to reach the daemon of one, for people.
STAGED = "staged"
SLOT, DAMAGED = "slot-", "damaged-"


@dataclass(slots=True)
class Slot:
    """One slot that is ours to use as long as `descriptor` is open."""

    path: Path
    descriptor: int

    @property
    def staged(self) -> Path:
        """Where its staged files are."""
        return self.path / STAGED

    def read(self, checksum: Checksum) -> Contents:
        """What its journal holds.  Blocks."""
        return read_log(read_file(self.path / LOG), checksum)

    def describe(self, about: Mapping[str, object]) -> None:
        """Write down what a person, or `s3mount recover`, needs to know of the mount."""
        _write(self.path / ABOUT, json.dumps(about))

    def release(self) -> None:
        """Let others have the slot."""
        os.close(self.descriptor)

    def remove(self) -> None:
        """Remove the slot and all that is in it; nothing there is needed any more."""
        # The log goes first: without it, nothing else there means anything.  And for good: after
        # a power loss it would bring back what has been uploaded, changed and removed since.
        (self.path / LOG).unlink(missing_ok=True)
        with suppress(OSError):
            sync_directory(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def set_aside(self) -> Path:
        """Keep a damaged slot for people; nobody takes it over again."""
        target = self.path.with_name(DAMAGED + self.path.name.removeprefix(SLOT))
        self.path.rename(target)
        self.release()
        return target


class Slots:
    """The slots of one store, bucket and prefix in a state directory.  All methods may block."""

    def __init__(self, state_dir: Path, identity: str) -> None:
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = state_dir / "journals" / digest[:24]

    @classmethod
    def at(cls, path: Path) -> Slots:
        """The slots in a directory that is known already."""
        slots = cls(path.parent.parent, "")
        slots.path = path
        return slots

    def open(self) -> Slot:
        """Make a new slot; raises `MountError` when the directory is not safely ours."""
        self.path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.path.parent, self.path):
            os.close(open_private(path))
        with _alone(self.path):
            path = self.path / f"{SLOT}{secrets.token_hex(6)}"
            path.mkdir(mode=0o700)
            (path / STAGED).mkdir(mode=0o700)
            for above in (path, self.path, self.path.parent, self.path.parent.parent):
                sync_directory(above)
            slot = _lock(path)
        if slot is None:
            raise MountError(f"{path}: somebody else has locked it", 2)
        return slot

    def dead(self, but: Slot | None = None) -> list[Slot]:
        """Lock and return the slots that dead daemons left; *but* is our own."""
        if not self.path.is_dir():
            return []
        with _alone(self.path):
            paths = sorted(self.path.glob(f"{SLOT}*"))
            paths = [path for path in paths if but is None or path != but.path]
            found = [slot for path in paths if (slot := _lock(path)) is not None]
        return found


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk.  Blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others from looking at slots that are just being made, or looked at."""
    descriptor = open_private(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path) -> Slot | None:
    """Take a slot, unless somebody has it, or it is not safely ours."""
    try:
        descriptor = open_private(path)
    except MountError as error:
        log.warning("a journal is left alone: %s", error)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return None
    return Slot(path, descriptor)


def is_locked(path: Path) -> bool:
    """Whether a daemon has the slot."""
    with _alone(path.parent):
        slot = _lock(path)
        if slot is None:
            return True
        slot.release()
        return False


def read_about(path: Path) -> Mapping[str, object]:
    """What `Slot.describe` wrote; empty when it is missing or makes no sense."""
    try:
        about = json.loads((path / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _write(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w") as file:
        file.write(text)


def all_slots(state_dir: Path) -> list[Path]:
    """Every slot in a state directory, and what was put aside of damaged ones."""
    found = (state_dir / "journals").glob("*/*")
    return sorted(path for path in found if path.name.startswith((SLOT, DAMAGED)))
