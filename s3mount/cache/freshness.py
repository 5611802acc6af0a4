"""What has changed lately, and how long knowledge counts while somebody tells of changes."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

LONG = 600.0  # Seconds that names count while a source vouches: what it loses ends then.
IMPATIENT = 1.0  # Who wants names to be fresher than this is not made to rely on anybody.
MAX_CHANGES = 10_000


class Hint(NamedTuple):
    """What an object was said to be after a change: enough to ask for it in one request."""

    etag: str
    size: int


class Freshness:
    """When the changes of names were heard of, and what does not count any more.

    An answer to a question that was asked before a change may be older than that: `is_outdated`.
    Only so many changes are remembered; what is older than the oldest forgotten one is in doubt,
    and so is all from before the *floor*, the end of the last time in which nobody told.
    What we have dropped ourselves, such as a tree that was renamed, is remembered apart: answers
    from before that are too old (`is_overtaken`), while what was learnt before may move along.
    Where we have added names ourselves, what was asked before lacks them (`added_at`).
    All moments are on the clock of the cache.
    """

    def __init__(self) -> None:
        self.vouched_until = -math.inf
        self._floor = -math.inf
        self._doubtful = -math.inf  # Whether names changed before this is forgotten.
        self._last = -math.inf
        self._changes: OrderedDict[tuple[str, str], tuple[float, Hint | None]] = OrderedDict()
        self._dropped: OrderedDict[str, float] = OrderedDict()  # Names, and trees that end in "/".
        self._dropped_last = self._dropped_doubtful = -math.inf
        self._added: OrderedDict[str, float] = OrderedDict()
        self._added_doubtful = -math.inf

    @property
    def floor(self) -> float:
        """What was learnt before this does not count."""
        return self._floor

    def raise_floor(self, moment: float) -> None:
        """Nobody has told of changes until *moment*."""
        self._floor = max(self._floor, moment)

    def changed(self, prefix: str, segment: str, moment: float, hint: Hint | None) -> None:
        """Take note of a change that was heard of at *moment*."""
        place = (prefix, segment)
        self._last = moment
        self._changes[place] = (moment, hint)
        self._changes.move_to_end(place)
        if len(self._changes) > MAX_CHANGES:
            self._doubtful = self._changes.popitem(last=False)[1][0]

    def is_outdated(self, prefix: str, segment: str, asked: float) -> bool:
        """Whether the answer to a question from the moment *asked* may be older than a change."""
        if asked >= self._last and asked >= self._floor:
            return False
        if asked < self._floor or asked < self._doubtful:
            return True
        change = self._changes.get((prefix, segment))
        return change is not None and change[0] > asked

    def dropped(self, path: str, moment: float) -> None:
        """Take note that a name, or with a slash at its end a tree, was dropped at *moment*."""
        self._dropped_last = moment
        self._dropped_doubtful = _remember(self._dropped, path, moment, self._dropped_doubtful)

    def added(self, prefix: str, moment: float) -> None:
        """Take note that a name of ours has appeared under *prefix* at *moment*."""
        self._added_doubtful = _remember(self._added, prefix, moment, self._added_doubtful)

    def added_at(self, prefix: str) -> float:
        """The last moment at which a name of ours may have appeared under *prefix*."""
        return self._added.get(prefix, self._added_doubtful)

    def is_overtaken(self, prefix: str, segment: str, asked: float) -> bool:
        """Whether the answer to a question from then may be older than a change or a drop."""
        if self.is_outdated(prefix, segment, asked):
            return True
        if asked >= self._dropped_last:
            return False
        return self._was_dropped(prefix + segment, asked) or self._tree_dropped(prefix, asked)

    def _was_dropped(self, path: str, since: float) -> bool:
        return since < self._dropped_doubtful or self._dropped.get(path, -math.inf) > since

    def _tree_dropped(self, prefix: str, since: float) -> bool:
        """Whether any tree that *prefix* lies in has been dropped."""
        while not self._was_dropped(prefix, since):
            if not prefix:
                return False
            prefix = prefix[: prefix.rfind("/", 0, -1) + 1]
        return True

    def outdated_under(self, prefix: str, asked: float) -> set[str] | None:
        """The names under *prefix* that have changed since; None when all are in doubt."""
        found = set()
        if asked < self._dropped_last:
            if self._tree_dropped(prefix, asked):
                return None
            found |= self._names_dropped(prefix, asked)
        if asked >= self._last and asked >= self._floor:
            return found
        if asked < self._floor or asked < self._doubtful:
            return None
        for place, (moment, _) in reversed(self._changes.items()):
            if moment <= asked:
                break
            if place[0] == prefix:
                found.add(place[1])
        return found

    def _names_dropped(self, prefix: str, since: float) -> set[str]:
        found = set()
        for path, moment in reversed(self._dropped.items()):
            if moment <= since:
                break
            if path.startswith(prefix) and "/" not in path[len(prefix) :]:
                found.add(path[len(prefix) :])
        return found

    def changed_at(self, prefix: str, segment: str) -> float:
        """When a name was last heard to have changed, as far as that is remembered."""
        change = self._changes.get((prefix, segment))
        return -math.inf if change is None else change[0]

    def hint(self, prefix: str, segment: str) -> Hint | None:
        """What was last said of an object that has changed."""
        change = self._changes.get((prefix, segment))
        return None if change is None else change[1]

    def lifetime(self, ttl: float, now: float) -> float:
        """How long knowledge counts that would count for *ttl* if nobody told of changes."""
        return max(ttl, LONG) if now < self.vouched_until and ttl >= IMPATIENT else ttl


def _remember(moments: OrderedDict[str, float], name: str, moment: float, doubtful: float) -> float:
    """Put a name last among `MAX_CHANGES`; the moment before which some are forgotten by now."""
    moments[name] = moment
    moments.move_to_end(name)
    return moments.popitem(last=False)[1] if len(moments) > MAX_CHANGES else doubtful
