"""Segments that are too long for a name, and are shown by their digest."""

from __future__ import annotations

from collections.abc import Callable

from s3mount.fs.listing import Listing
from s3mount.fs.names import BESIDE, FILE, MAX_NAME, key_size, long_name

MAX_KNOWN = 10_000


class LongNames:
    """Which segment a digest is that of: found by *listing* the directory, and remembered."""

    def __init__(self, listing: Callable[[str], Listing]) -> None:
        self._listing = listing
        self._known: dict[tuple[str, bytes], str] = {}

    async def segment(self, prefix: str, name: bytes) -> str | None:
        """The segment under *prefix* that is shown as *name*.  Raises `StoreError`."""
        if (prefix, name) in self._known:
            return self._known[prefix, name]
        listing, index = self._listing(prefix), 0
        while (row := await listing.row(index)) is not None:
            index += 1
            segment = row.segment.removeprefix(BESIDE)
            if key_size(segment) > MAX_NAME - len(FILE) and long_name(segment) == name:
                if len(self._known) > MAX_KNOWN:
                    self._known.clear()
                self._known[prefix, name] = segment
                return segment
        return None
