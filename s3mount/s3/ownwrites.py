"""Which events tell of what this mount has done itself."""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from s3mount.s3.changes import Change, Hear, News
from s3mount.s3.events import Event
from s3mount.s3.http import Answer

WRITES = frozenset(
    {"PutObject", "CopyObject", "DeleteObject", "DeleteObjects", "CompleteMultipartUpload"}
)
MAX_REMEMBERED = 20_000  # Requests, and keys: far more than are made before their events come.
MAX_HELD = 1000  # Events that wait for the answer to a request of ours.
ECHO = 0.25  # Seconds after the answer in which we note down what we have written.

_ETAG = re.compile(rb"<ETag>(?:&quot;|&#34;|\")?([^<&\"]+)")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class OwnWrites:
    """Tells events of our own requests from those of others.

    An event names the request that caused it, and so did the answer to that request: that is
    certain, whatever somebody else writes to the same key in between.  Where a store names no
    requests, key and ETag decide, once for each write.  An event may come before the answer;
    then it waits for that.  *clock* is in seconds; *plain* reads a key as the store keeps it.
    """

    def __init__(
        self, prefix: str, clock: Callable[[], float], plain: Callable[[str], str] = str
    ) -> None:
        self._prefix = prefix
        self._clock = clock
        self._plain = plain
        self._under_way: Counter[str] = Counter()  # Empty: of many keys.
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._written: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._nameless = False  # Whether answers name no requests, whatever events do.
        self._touched: OrderedDict[str, float] = OrderedDict()
        self._held: list[Event] = []
        self._hear: Hear | None = None

    def tell(self, hear: Hear | None) -> None:
        """Whom to tell, without a checkpoint, of events that have waited for an answer.

        What waits when there is nobody any more is forgotten.
        """
        self._hear = hear
        if hear is None:
            self._held.clear()

    # -- our requests ----------------------------------------------------------------------

    def begin(self, key: str) -> None:
        """A request that changes *key* is about to be sent (empty: of many keys)."""
        self._under_way[key] += 1

    def answered(self, key: str, answer: Answer | None) -> None:
        """The answer to a request for *key* has come; None when it has failed."""
        if answer is None:
            self.end(key, "", None)
        else:
            self.end(key, answer.headers.get("x-amz-request-id", ""), _etag_of(answer))

    def end(self, key: str, request_id: str, etag: str | None) -> None:
        """Its answer has come; None where it has failed, or nobody knows.

        *etag* is that of the object that is there now, empty where there is none.
        """
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]
        if etag is not None:
            self._nameless = not request_id
            if request_id:
                _remember(self._answered, request_id, None)
            pair = (key, etag.strip('"'))
            _remember(self._written, pair, self._written.get(pair, 0) + 1)
        _remember(self._touched, key, self._clock())
        if self._held:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        news = self.sift(held)
        if self._hear is not None and (news.changes or news.own):
            self._hear(news)

    # -- their events ----------------------------------------------------------------------

    def sift(self, events: Iterable[Event]) -> News:
        """What others have done, and how many events were of our own making."""
        changes: list[Change] = []
        own = 0
        for event in events:
            known = map(self._plain, event.keys)
            keys = tuple(key[len(self._prefix) :] for key in known if key.startswith(self._prefix))
            if not keys:
                continue
            if self._is_ours(event, keys):
                own += 1
            elif self._may_be_ours(keys) and len(self._held) < MAX_HELD:
                self._held.append(event)
            else:
                etag = f'"{event.etag}"' if event.etag else ""
                contested = any(self._is_touched(key) for key in (*keys, ""))
                changes.append(Change(keys, event.removed, etag, event.size, contested))
        return News(tuple(changes), own)

    def _is_ours(self, event: Event, keys: tuple[str, ...]) -> bool:
        if event.request_id in self._answered:
            return True
        if event.request_id and not self._nameless:
            return False
        for key in keys:
            count = self._written.pop((key, event.etag), 0)
            if count > 1:
                self._written[key, event.etag] = count - 1
            if count:
                return True
        return False

    def _may_be_ours(self, keys: tuple[str, ...]) -> bool:
        under_way = self._under_way
        return bool(under_way) and ("" in under_way or any(key in under_way for key in keys))

    def _is_touched(self, key: str) -> bool:
        moment = self._touched.get(key)
        return key in self._under_way or (moment is not None and self._clock() - moment < ECHO)


def _etag_of(answer: Answer) -> str:
    """The ETag in the head of an answer, or in its body where the request was long."""
    if etag := answer.headers.get("etag"):
        return etag
    found = _ETAG.search(answer.body)
    return found[1].decode("ascii", "replace") if found else ""


def _remember(known: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
