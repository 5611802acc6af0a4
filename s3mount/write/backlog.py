"""How much may wait in the journal to be uploaded, and how much does."""

from __future__ import annotations

import os
from pathlib import Path

ASK_FROM = 1 << 20  # Bytes: smaller files do not fill a disk by themselves.
MAX_FILES = 10_000  # About 5 KiB of memory each, beside their bytes.


class Backlog:
    """Counts files that wait, and their bytes; at most *max_size* bytes may, 0: nothing ever.

    They leave *min_free* bytes free on the disk of *path*.
    """

    def __init__(
        self, max_size: int, min_free: int, path: Path, max_files: int = MAX_FILES
    ) -> None:
        self._min_free = min_free
        self._path = path
        self.max_size = max_size
        self.max_files = max_files
        self.files = 0
        self.size = 0

    def takes(self, size: int) -> bool:
        """Whether a file of *size* bytes may wait, too."""
        if self.files >= self.max_files or self.size + size >= self.max_size:
            return False
        if size < ASK_FROM:
            return True
        try:
            disk = os.statvfs(self._path)
        except OSError:  # The directory is gone: closes wait for the store.
            return False
        return disk.f_bavail * disk.f_frsize > self._min_free

    @property
    def crowded(self) -> bool:
        """Whether half of what may wait does: time to send whatever programs do meanwhile."""
        return 2 * self.files > self.max_files or 2 * self.size > self.max_size
