"""Which trees are being copied to another name, and who changes something in them meanwhile.

A change that the store hears of while a tree is copied would be made under the old name, and
deleted there.  So changes wait for the copies, and copies wait for changes that were begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio


class Move(NamedTuple):
    """The prefixes between which a tree is moved."""

    old: str
    new: str

    def meets(self, other: Move) -> bool:
        """Whether one of the trees holds the other, or is the same."""
        return any(a.startswith(b) or b.startswith(a) for a in self for b in other)


class MovingTrees:
    """Lets either changes below a prefix go on, or one renaming of that.

    Keys and prefixes are asked for anew after each wait: a renaming may have changed them.  Who
    waits here holds up no renaming, so a change must not wait for another one.
    """

    def __init__(self) -> None:
        self._moves: list[Move] = []
        self._changes: dict[object, tuple[str, ...]] = {}
        self._ended = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def change(self, keys: Callable[[], tuple[str, ...]]) -> AsyncIterator[None]:
        """Change the objects of some keys, which stay where they are until that is done."""
        while self._is_moving(found := keys()):
            await self._ended.park()
        token = object()
        self._changes[token] = found
        try:
            yield
        finally:
            del self._changes[token]
            self._ended.unpark_all()

    @asynccontextmanager
    async def move(self, move: Callable[[], Move]) -> AsyncIterator[Move]:
        """Move a tree in which nobody changes anything."""
        while any(other.meets(move()) for other in self._moves):
            await self._ended.park()
        mine = move()
        self._moves.append(mine)
        try:
            while any(_below(mine, keys) for keys in self._changes.values()):
                await self._ended.park()
            yield mine
        finally:
            self._moves.remove(mine)
            self._ended.unpark_all()

    def _is_moving(self, keys: Iterable[str]) -> bool:
        return any(_below(move, keys) for move in self._moves)


def _below(move: Move, keys: Iterable[str]) -> bool:
    return any(key.startswith(move.old) for key in keys)
