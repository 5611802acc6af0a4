"""Changes in a tree and a renaming of that tree: neither happens in the middle of the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

Where = Callable[[], str]  # Keys and prefixes are asked for anew after a wait: they have changed.


class TreeGate:
    """Has whoever changes objects wait while the tree that they are in is copied, and the reverse.

    A tree is renamed object by object; what is saved under its old name meanwhile would be missing
    under the new one, although a program was told that it is safe.  A task that has begun a
    change may begin others within it: the renaming waits for the first one.
    """

    def __init__(self) -> None:
        self._moving: list[Sequence[str]] = []
        self._changing: dict[trio.lowlevel.Task, Sequence[str]] = {}
        self._changed = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def changing(self, *keys: Where) -> AsyncIterator[None]:
        """Change the objects of these keys: not while a tree that they are in is copied."""
        task = trio.lowlevel.current_task()
        if task in self._changing:
            yield
            return
        while self._moving and any(_are_in([key() for key in keys], one) for one in self._moving):
            await self._changed.park()
        self._changing[task] = [key() for key in keys]
        try:
            yield
        finally:
            del self._changing[task]
            if self._moving:
                self._changed.unpark_all()

    @asynccontextmanager
    async def moving(self, *prefixes: Where) -> AsyncIterator[Sequence[str]]:
        """Copy the first tree to the second one, while nobody changes anything in them.

        Gives the prefixes as they are then; changes go on at the end, under the names of then.
        """
        while True:
            trees = [prefix() for prefix in prefixes]
            if not any(_are_in(trees, one) or _are_in(one, trees) for one in self._moving):
                break
            await self._changed.park()
        self._moving.append(trees)
        try:
            while any(_are_in(keys, trees) for keys in self._changing.values()):
                await self._changed.park()
            yield trees
        finally:
            self._moving.remove(trees)
            self._changed.unpark_all()


def _are_in(keys: Sequence[str], trees: Sequence[str]) -> bool:
    """Whether any of some keys, or of the directories of such prefixes, is in any of some trees."""
    return any(key.startswith(tree) for key in keys for tree in trees)
