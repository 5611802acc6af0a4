"""Bytes of one block of a staged file in memory: buffers as they came, or one that may change."""

from __future__ import annotations

from collections.abc import Iterator

MOST_PIECES = 16  # Buffers of one block; more and smaller ones are copied into one.


class StagedBlock:
    """Bytes from the beginning of a block on; `len` tells how many.

    What is appended is not copied.  The kernel sends 1 MiB at once, but rarely from where a block
    begins: copying each request into two blocks cost a fifth of all that a write of a large file
    takes.  What is written over older bytes is copied into one buffer with them, and so are many
    small pieces.
    """

    __slots__ = ("_flat", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[memoryview] = []  # Of `bytes`: nobody changes them.
        self._flat: bytearray | None = None  # All of it, in their place.
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def write(self, low: int, data: memoryview) -> None:
        """Put *data*, a view of `bytes`, at offset *low*; what lies between is zero."""
        end = low + len(data)
        if low == 0 and end >= self._size:
            self._pieces, self._flat = [data], None
        elif low == self._size and self._flat is None and len(self._pieces) < MOST_PIECES:
            self._pieces.append(data)
        else:
            flat = self._made_flat(max(end, self._size))
            flat[low:end] = data
        self._size = max(self._size, end)

    def _made_flat(self, size: int) -> bytearray:
        """One buffer of *size* bytes, which begins with what is here."""
        flat = bytearray().join(self._pieces) if self._flat is None else self._flat
        missing = bytes(size - len(flat))
        try:
            flat.extend(missing)
        except BufferError:  # A part is leaving that has the beginning of this block.
            flat = flat + missing
        self._pieces, self._flat = [], flat
        return flat

    def cut(self, size: int) -> None:
        """Forget what is behind the first *size* bytes."""
        if size >= self._size:
            return
        if self._flat is not None:
            self._flat = self._flat[:size]  # A part that is leaving has the old one.
        else:
            self._pieces = list(self.views(0, size))
        self._size = size

    def views(self, low: int, high: int) -> Iterator[memoryview]:
        """The bytes ``low <= i < high``, as far as they are here."""
        if self._flat is not None:
            if view := memoryview(self._flat)[low:high]:
                yield view
            return
        start = 0
        for piece in self._pieces:
            if start >= high:
                return
            if view := piece[max(0, low - start) : high - start]:
                yield view
            start += len(piece)
