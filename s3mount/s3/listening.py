"""The listen API of RustFS and MinIO: one GET whose answer never ends, a line for each event."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import trio

from s3mount.errors import InvalidRequest, Unavailable, Unsupported
from s3mount.s3.calls import Request
from s3mount.s3.changes import Hear, News
from s3mount.s3.connection import Broken, Connection
from s3mount.s3.events import Event, Lines, Malformed, parse
from s3mount.s3.http import Head, LongBody
from s3mount.s3.ownwrites import OwnWrites
from s3mount.s3.sigv4 import canonical_query
from s3mount.s3.streaming import StreamingCalls

log = logging.getLogger(__name__)

PING = 1  # Seconds between signs of life; servers take whole ones.
LEASE = 2.5  # Seconds that one of them is good for.
SILENCE = 8.0  # Seconds without one after which the stream is dead.
OWN_PAUSE = 0.01  # Seconds without looking after an event of our own: many come at once then.

_COMMON = ("s3:ObjectCreated:*", "s3:ObjectRemoved:*")
# What a lifecycle rule removes has other names; a store refuses those that it does not know.
_KINDS = (
    (*_COMMON, "s3:LifecycleExpiration:*"),
    (*_COMMON, "s3:LifecycleDelMarkerExpiration:Delete"),
    _COMMON,
)
# RustFS compares a prefix with the key as it stands in the event, percent-encoded.
_SAFE = re.compile(r"[A-Za-z0-9]*")


class Listener:
    """Follows the stream of one bucket, on a connection of its own."""

    name = "listen"
    lease = LEASE
    gapless = False

    def __init__(self, calls: StreamingCalls, bucket: str, prefix: str, own: OwnWrites) -> None:
        self._calls = calls
        self._bucket = bucket
        self._own = own
        found = _SAFE.match(prefix)
        self._prefix = found[0] if found else ""
        self._kinds = 0

    async def follow(self, hear: Hear) -> None:
        """Tell of changes until the stream ends; see `ChangeSource.follow`."""
        try:
            with trio.fail_after(SILENCE):
                connection, head = await self._open()
            try:
                self._own.tell(hear)
                await self._read(LongBody(connection, head), hear)
            finally:
                self._own.tell(None)
                connection.close()
        except trio.TooSlowError:
            raise Unavailable(f"ListenNotification: nothing is heard for {SILENCE:.0f} s") from None
        except Broken as error:
            raise Unavailable(f"ListenNotification: {error}") from error

    async def _open(self) -> tuple[Connection, Head]:
        while True:
            try:
                connection, head = await self._calls.ask_for_stream(self._request())
            except InvalidRequest:
                if self._kinds + 1 == len(_KINDS):
                    raise
                self._kinds += 1
                continue
            if head.headers.get("content-type", "").startswith("text/event-stream"):
                return connection, head
            connection.close()  # It has listed the bucket, most likely.
            raise Unsupported("ListenNotification: the store does not know the listen API")

    def _request(self) -> Request:
        query = [("events", kind) for kind in _KINDS[self._kinds]]
        query += [("ping", str(PING)), ("prefix", self._prefix), ("suffix", "")]
        path = self._calls.settings.root or "/"
        return Request("ListenNotification", "GET", "", path, canonical_query(query))

    async def _read(self, body: LongBody, hear: Hear) -> None:
        lines = Lines()
        while True:
            with trio.fail_after(SILENCE):
                data = await body.read()
            if not data:
                raise Broken("the stream has ended")
            dropped = lines.dropped
            found = lines.feed(data)
            news = self._news(found, lines.dropped - dropped)
            hear(news)
            # A flood leaves the others their turns.
            await trio.sleep(OWN_PAUSE if news.own and not news.changes else 0.0)

    def _news(self, lines: Sequence[bytes], malformed: int) -> News:
        events: list[Event] = []
        for line in lines:
            try:
                events += parse(line, self._bucket)
            except Malformed as error:
                log.debug("ListenNotification: %s", error)
                malformed += 1
        return self._own.sift(events)._replace(malformed=malformed)
