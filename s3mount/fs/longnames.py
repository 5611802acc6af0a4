"""Segments that are too long for a name, and are shown by their digest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from s3mount.fs.listing import Reader
from s3mount.fs.names import BESIDE, FILE, MAX_NAME, key_size, long_name

MAX_KNOWN = 10_000
CHUNK = 512  # Rows that are looked at before a page that comes is waited for.


class LongNames:
    """Which segment a digest is that of: found by *reading* the directory, and remembered."""

    def __init__(self, reading: Callable[[str], Reader]) -> None:
        self._reading = reading
        self._known: dict[tuple[str, bytes], str] = {}

    async def segment(self, prefix: str, name: bytes) -> str | None:
        """The segment under *prefix* that is shown as *name*.  Raises `StoreError`."""
        if (prefix, name) in self._known:
            return self._known[prefix, name]
        index = 0
        with closing(self._reading(prefix)) as reader:
            while rows := await reader.rows(index, CHUNK):
                index += len(rows)
                for row in rows:
                    segment = row.segment.removeprefix(BESIDE)
                    if key_size(segment) > MAX_NAME - len(FILE) and long_name(segment) == name:
                        if len(self._known) > MAX_KNOWN:
                            self._known.clear()
                        self._known[prefix, name] = segment
                        return segment
        return None
