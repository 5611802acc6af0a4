"""Writes under a condition: when one that does not hold is renewed, and which writes were ours.

A request whose connection broke may be carried out much later, and then undo what was done
since.  So even a write that replaces whatever is there says what it expects there (a *lenient*
condition): where that is not so any more, a late request is refused, and the write that somebody
waits for is made again over what there is.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from s3mount.errors import Changed, Denied, Exists, Unrecognised
from s3mount.s3.store import ALWAYS, ObjectInfo, Precondition

_T = TypeVar("_T")
_RENEWALS = 4  # Somebody else may be writing, too; then it is made without a condition.
_MAX_KEYS = 1000
_MAX_WRITES = 8  # Of one key.

Judgement = Callable[[ObjectInfo], bool]
Look = Callable[[], Awaitable[ObjectInfo | None]]


class OwnWrites:
    """Writes that have failed for want of an answer, and may have been done all the same.

    By key, each with what tells whether an object is its work; the oldest are forgotten.
    """

    def __init__(self) -> None:
        self._writes: dict[str, list[Judgement]] = {}

    def add(self, key: str, judgement: Judgement) -> None:
        """Remember a write that nobody has answered."""
        writes = self._writes.pop(key, [])
        self._writes[key] = [*writes[1 - _MAX_WRITES :], judgement]
        if len(self._writes) > _MAX_KEYS:
            del self._writes[next(iter(self._writes))]

    def forget(self, key: str) -> None:
        """A later write has been answered."""
        self._writes.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self._writes

    def have_made(self, key: str, info: ObjectInfo) -> bool:
        """Whether what is at *key* is the work of one of them."""
        return any(judgement(info) for judgement in self._writes.get(key, ()))


async def over_what_is_there(
    condition: Precondition, look: Look, write: Callable[[Precondition], Awaitable[_T]]
) -> _T:
    """Write under *condition*; a lenient one is renewed when it does not hold.

    *look* describes what is there.
    """
    for _ in range(_RENEWALS if condition.lenient else 0):
        try:
            return await write(condition)
        except (Changed, Exists):
            condition = _renewed(condition, await look())
        except Denied as error:
            # To compare versions may take a permission to read, which the write itself does not.
            if condition.etag is None or isinstance(error, Unrecognised):
                raise
            condition = ALWAYS
        if condition == ALWAYS:
            break
    return await write(ALWAYS if condition.lenient else condition)


def _renewed(condition: Precondition, found: ObjectInfo | None) -> Precondition:
    """What to expect next, when *condition* has not held."""
    if found is None:
        # Some stores take a directory that has lost its last object for an object.
        return ALWAYS if condition.absent else Precondition(absent=True, lenient=True)
    if not found.etag or found.etag == condition.etag:
        return ALWAYS
    return Precondition(etag=found.etag, lenient=True)
