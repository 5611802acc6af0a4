"""What a store tells when others change the bucket, in our words: values, and who tells them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol


class Change(NamedTuple):
    """One object is not what it was.

    `keys` are relative to the mounted prefix: mostly one, two where the store's escaping leaves
    a doubt.  `etag` (quotes included) and `size` are those of the object now, empty and None
    where they were not told.  A change is `contested` when this mount was writing the same key:
    what it notes down of its own write a moment later may be older.
    """

    keys: tuple[str, ...]
    removed: bool
    etag: str
    size: int | None
    contested: bool = False


class News(NamedTuple):
    """What was heard at once: changes by others, how many were our own, how many made no sense.

    Nothing at all is a sign of life, too.
    """

    changes: tuple[Change, ...] = ()
    own: int = 0
    malformed: int = 0


Hear = Callable[[News], None]


class ChangeSource(Protocol):
    """Somebody who tells of changes.

    `name` is for people.  `lease` is how long after each sign of life the source vouches that
    nothing has changed which it did not tell (seconds, 0: never); `gapless` says that it keeps
    what happens while nobody listens.
    """

    name: str
    lease: float
    gapless: bool

    async def follow(self, hear: Hear) -> None:
        """Tell *hear* of all changes until that fails; raises the `StoreError` that says why.

        *hear* has no checkpoint.  `Unsupported`, `InvalidRequest`, `NotFound` and `Denied` say
        that the store will not tell.
        """
        ...
