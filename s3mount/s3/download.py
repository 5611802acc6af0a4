"""One GET into buffers, over as many attempts as it takes: each asks for what is missing."""

from collections.abc import Callable, Mapping, Sequence

import trio

from s3mount.errors import Changed, Corrupt, Unsupported
from s3mount.s3 import checksum
from s3mount.s3.calls import Request
from s3mount.s3.connection import Broken, Connection
from s3mount.s3.http import Head, discard, pieces_of, receive_into

_MAX_SKIP = 8 << 20


class Download:
    """The bytes from *start* on of one version of an object, into *views*.

    The version is the one of *etag*, or else the one that the first answer is of; `headers`
    and `size` are what that answer told; `received` counts the bytes that are in place.
    """

    def __init__(
        self,
        request: Request,
        start: int,
        views: Sequence[memoryview],
        etag: str | None,
        progress: Callable[[int], None] | None,
        size: int | None,
    ) -> None:
        self._request = request
        self._start = start
        self._views = views
        self._room = sum([len(view) for view in views])
        self._etag = etag
        self._progress = progress
        self.received = self._told = 0
        # Only of a version that is pinned: another one may be much longer.
        self._whole = not start and etag is not None and size is not None and size <= self._room
        self.size = -1
        self.headers: dict[str, str] = {}

    def request(self) -> Request:
        """The request for what is still missing."""
        first = self._start + self.received
        headers = dict(self._request.headers)
        if first or not self._whole:
            headers["range"] = f"bytes={first}-{self._start + self._room - 1}"
        if self._etag is not None:
            headers["if-match"] = self._etag
        if self._start == 0:
            headers["x-amz-checksum-mode"] = "ENABLED"
        return self._request._replace(headers=headers)

    def ask_with(self, headers: Mapping[str, str]) -> None:
        """Make the requests from now on with these headers: those of another key."""
        self._request = self._request._replace(headers=headers)

    def restart(self) -> None:
        """Forget what has arrived."""
        self.received = 0

    async def receive(self, connection: Connection, head: Head) -> None:
        """Take the body of a 2xx answer."""
        first, size = self._extent(head)
        self._pin(head, size)
        position = self._start + self.received
        stop = min(self._start + self._room, size)
        wanted = pieces_of(self._views, self.received, stop - position)
        begun = trio.current_time()
        try:
            if first == position and head.length in (None, stop - position):
                await receive_into(connection, head, wanted, self._moved)
            else:
                await self._receive_inside(connection, head, wanted, position - first)
        finally:
            connection.watch.moving += trio.current_time() - begun

    async def _receive_inside(
        self, connection: Connection, head: Head, wanted: Sequence[memoryview], skip: int
    ) -> None:
        """Take the wanted bytes out of a whole object: the store does not know ranges."""
        size = sum([len(view) for view in wanted])
        rest = (head.length or 0) - skip - size
        if skip > _MAX_SKIP or head.length is None or rest < 0:
            raise Unsupported(f"{self._request.what}: the store does not send ranges")
        await discard(connection, skip)
        part = head._replace(length=size)
        await receive_into(connection, part, wanted, self._moved)
        if rest > _MAX_SKIP:
            connection.spoiled = True
        else:
            await discard(connection, rest)

    def _extent(self, head: Head) -> tuple[int, int]:
        """Where the body begins in the object, and how long the object is."""
        text = head.headers.get("content-range")
        if text is None:
            if head.status == 206 or head.length is None:
                raise Broken("the answer does not say which range it is")
            return 0, head.length
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        first, _, last = span.partition("-")
        numbers = (first, last, total)
        if unit != "bytes" or not all(text.isdecimal() and len(text) <= 18 for text in numbers):
            raise Broken("the answer has a malformed Content-Range")
        begin, end, size = int(first), int(last) + 1, int(total)
        if (
            begin != self._start + self.received
            or end != min(self._start + self._room, size)
            or head.length not in (None, end - begin)
        ):
            raise Broken("the answer is another range than the one asked for")
        return begin, size

    def _pin(self, head: Head, size: int) -> None:
        """Hold on to the version of the first answer."""
        etag = head.headers.get("etag", "")
        if not etag and "last-modified" not in head.headers:
            # Some stores answer 200 and an error.
            raise Broken("the answer does not describe an object")
        if self._etag is not None and etag != self._etag:
            raise Changed(f"{self._request.what}: the object was replaced")
        if self.received and size != self.size:
            raise Changed(f"{self._request.what}: the object was replaced")
        self._etag = etag or None
        self.size = size
        self.headers = dict(head.headers)

    def _moved(self, count: int) -> None:
        self.received += count
        if self._progress is not None and self.received > self._told:
            self._told = self.received
            self._progress(self.received)

    def damaged(self) -> bool:
        """Whether a whole object arrived that is not what its checksum says."""
        if self._start or self.received != self.size:
            return False
        stored = checksum.stored(self.headers)
        if stored is None:
            return False
        algorithm, expected = stored
        return checksum.of_buffers(algorithm, pieces_of(self._views, 0, self.size)) != expected

    def corrupt(self) -> Corrupt:
        """The error for a body that stays damaged."""
        return Corrupt(f"{self._request.what}: the bytes do not match the object's checksum")
