"""HTTP/1.1 as far as S3 needs it: heads, the framing of bodies, and one exchange.

Strict where a mistake could shift bytes between answers: whatever is not plain HTTP breaks
the connection, and the attempt with it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import trio

from s3mount.s3.connection import SHORT_BODY, Broken, Connection
from s3mount.s3.store import Body, FileSlice

FIRST_BYTE_SECONDS = 15.0
MAX_TEXT = 16 << 20
_CONTINUE_SECONDS = 1.0
_LARGE_BODY = 256 << 10
_MAX_DISCARD = 1 << 20
_PIECE = 64 << 10
_END_OF_TIME = 1 << 35  # In the year 3058; what comes after the year 9999 cannot be written.


class Head(NamedTuple):
    """The head of an answer.

    `length` is that of the body in bytes; None means chunked, or up to the end of the
    connection (`until_close`).
    """

    status: int
    headers: Mapping[str, str]
    length: int | None
    until_close: bool
    keep_alive: bool


class Answer(NamedTuple):
    """An answer with its body, which is empty when it went elsewhere."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Receiver = Callable[[Connection, Head], Awaitable[None]]


def body_size(body: Body) -> int:
    """Bytes in a body that is to be sent."""
    if isinstance(body, FileSlice):
        return body.stop - body.start
    return sum([memoryview(part).nbytes for part in body])


def is_short(body: Body) -> bool:
    """Whether a body is sent at once, together with the head."""
    return not body or (not isinstance(body, FileSlice) and body_size(body) <= SHORT_BODY)


def parse_head(data: bytes, method: str) -> Head:
    """Parse the head of an answer to *method*; raises `Broken` when it is not sound."""
    lines = data.decode("latin-1").split("\r\n")
    status, version = _parse_status(lines[0])
    headers: dict[str, str] = {}
    for line in lines[1:]:
        raw, colon, value = line.partition(":")
        name = _NAMES.get(raw) or _header_name(raw, colon)
        value = value.strip(" \t")
        if name in headers:
            value = _merged(name, headers[name], value)
        headers[name] = value
    return _framed(status, version, headers, method)


_NAMES: dict[str, str] = {}  # Header names as stores write them, once checked, in lower case.
_UNIQUE = frozenset({"content-length", "content-range", "etag"})


def _header_name(raw: str, colon: str) -> str:
    if not colon or not raw.isprintable() or not raw.isascii() or not raw or " " in raw:
        raise Broken("a header line of the answer is malformed")
    name = raw.lower()
    if len(_NAMES) < 1000:
        _NAMES[raw] = name
    return name


def _merged(name: str, old: str, new: str) -> str:
    """The value of a header that is there twice."""
    if name not in _UNIQUE:
        return f"{old}, {new}"
    if old != new:
        raise Broken(f"the answer contradicts itself about {name}")
    return new


def _parse_status(line: str) -> tuple[int, str]:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit()):
        raise Broken("the answer is not HTTP")
    if len(code) != 3 or (len(rest) > 3 and rest[3] != " ") or code < "100":
        raise Broken("the answer has no sound status")
    return int(code), version


def _framed(status: int, version: str, headers: dict[str, str], method: str) -> Head:
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
    length = _content_length(headers)
    coding = headers.get("transfer-encoding", "").lower()
    if method == "HEAD" or status in (204, 304) or status < 200:
        return Head(status, headers, 0, False, keep_alive)
    if coding:
        if coding != "chunked" or length is not None:
            raise Broken("the length of the answer is ambiguous")
        return Head(status, headers, None, False, keep_alive)
    if length is None:
        return Head(status, headers, None, True, False)
    return Head(status, headers, length, False, keep_alive)


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Broken("the answer has an absurd Content-Length")
    return int(text)


def moment_of(text: str | None) -> float | None:
    """The time of a header like Date, in seconds since 1970; None if it is none, or absurd."""
    try:
        moment = parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError):
        return None
    return moment if 0 <= moment < _END_OF_TIME else None


def host_of(headers: Mapping[str, str]) -> str | None:
    """The host that Location leads to; None if there is none."""
    try:
        return urlsplit(headers.get("location", "")).hostname
    except ValueError:
        return None


async def exchange(
    connection: Connection,
    method: str,
    head: bytes,
    body: Body,
    *,
    first_byte: float,
    ask_first: bool,
    receiver: Receiver | None,
) -> tuple[Answer, bool]:
    """Send one request and read its answer; tell also whether the connection can be reused.

    Once the body is sent the answer has to begin within *first_byte* seconds.
    *receiver* reads the body of a success (2xx) itself; all other bodies are returned.  With
    *ask_first* the body is only sent when the store wants it (``100-continue``).
    """
    answer = await _ask_first(connection, method, head) if ask_first else None
    complete = True
    if answer is None:
        if body and not is_short(body):
            started = trio.current_time()
            complete = await _send(connection, b"" if ask_first else head, body)
            if complete and body_size(body) >= _LARGE_BODY:
                await _drain(connection)
            connection.watch.moving += trio.current_time() - started
            connection.watch.allow(first_byte)
        else:
            complete = await _send(connection, b"" if ask_first else head, body)
        answer = await read_final_head(connection, method)
    else:
        complete = False
    if receiver is not None and 200 <= answer.status < 300:
        await receiver(connection, answer)
        text = b""
    else:
        text = b"" if answer.length == 0 else await read_text(connection, answer)
    reusable = complete and answer.keep_alive and not connection.spoiled
    return Answer(answer.status, answer.headers, text), reusable


async def _send(connection: Connection, head: bytes, body: Body) -> bool:
    if isinstance(body, FileSlice):
        return (not head or await connection.send(head, ())) and await connection.send_file(body)
    return await connection.send(head, body)


async def _drain(connection: Connection) -> None:
    """Wait while what was sent last leaves this machine, as long as it does, or for an answer.

    The kernel takes megabytes at once, which a slow network then needs minutes for.
    """
    waiting = connection.unsent
    while waiting:
        with trio.move_on_after(1.0):
            await connection.wait_readable()
            return
        before, waiting = waiting, connection.unsent
        if waiting < before:
            connection.watch.alive()


async def _ask_first(connection: Connection, method: str, head: bytes) -> Head | None:
    """Send a head that expects ``100 Continue``; return a final answer if one comes instead.

    A store that says nothing for a second is taken to want the body.
    """
    if not await connection.send(head, ()):
        raise Broken("the connection was closed")
    with trio.move_on_after(_CONTINUE_SECONDS) as patience:
        await connection.wait_readable()
    if patience.cancelled_caught:
        return None
    first = parse_head(await connection.read_head(), method)
    return None if first.status == 100 else await _skip_informal(connection, first, method)


async def read_final_head(connection: Connection, method: str) -> Head:
    """Read the head of the answer itself, past any 1xx."""
    return await _skip_informal(
        connection, parse_head(await connection.read_head(), method), method
    )


async def _skip_informal(connection: Connection, head: Head, method: str) -> Head:
    skipped = 0
    while head.status < 200:
        if head.status == 101 or skipped > 8:
            raise Broken("the answer is not one to the request")
        skipped += 1
        head = parse_head(await connection.read_head(), method)
    return head


async def read_text(connection: Connection, head: Head) -> bytes:
    """Read a whole body of at most `MAX_TEXT` bytes."""
    if head.length is not None:
        if head.length > MAX_TEXT:
            raise Broken("the answer is too long")
        data = bytearray(head.length)
        await connection.fill(memoryview(data), None)
        return bytes(data)
    pieces: list[bytes] = []
    total = 0
    while piece := await _next_piece(connection, head):
        total += len(piece)
        if total > MAX_TEXT:
            raise Broken("the answer is too long")
        pieces.append(piece)
        connection.watch.alive()
    return b"".join(pieces)


async def _next_piece(connection: Connection, head: Head) -> bytes:
    if head.until_close:
        return await connection.read_some(1 << 16)
    size = await _chunk_size(connection)
    if size > MAX_TEXT:
        raise Broken("the answer is too long")
    data = bytearray(size)
    if size:
        await connection.fill(memoryview(data), None)
        await _end_chunk(connection)
    return bytes(data)


async def _chunk_size(connection: Connection) -> int:
    """Read the line before a chunk; after the last chunk, the trailer too."""
    text = (await connection.read_line()).partition(b";")[0].strip()
    if not text or len(text) > 15 or text.strip(b"0123456789abcdefABCDEF"):
        raise Broken("a chunk of the answer has no sound size")
    size = int(text, 16)
    if size == 0:
        lines = 0
        while await connection.read_line():
            lines += 1
            if lines > 100:
                raise Broken("the trailer of the answer does not end")
    return size


async def _end_chunk(connection: Connection) -> None:
    if await connection.read_line():
        raise Broken("a chunk of the answer is longer than promised")


class LongBody:
    """The body of an answer that may never end, in pieces as they come."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._chunked = head.length is None and not head.until_close
        self._left = head.length or 0

    async def read(self) -> bytes:
        """Wait for some bytes; empty at the end.  Raises `Broken`."""
        connection = self._connection
        if self._chunked and not self._left:
            self._left = await _chunk_size(connection)
            if not self._left:
                return b""
        data = await connection.read_some(min(_PIECE, self._left) if self._left else _PIECE)
        if self._chunked:
            if not data:
                raise Broken("the connection was closed in the middle of a body")
            self._left -= len(data)
            if not self._left:
                await _end_chunk(connection)
        return data


def pieces_of(views: Sequence[memoryview], start: int, size: int) -> list[memoryview]:
    """The part *start* .. *start* + *size* of the bytes that *views* hold one after the other."""
    pieces = []
    for view in views:
        if size <= 0:
            break
        if start < len(view):
            piece = view[start : start + size]
            pieces.append(piece)
            size -= len(piece)
            start = 0
        else:
            start -= len(view)
    return pieces


async def receive_into(
    connection: Connection, head: Head, views: Sequence[memoryview], moved: Callable[[int], None]
) -> None:
    """Receive a body that fills *views* exactly, in place; *moved* hears each gain in bytes.

    A body with bytes beyond that, or fewer, raises `Broken`.
    """
    room = sum([len(view) for view in views])
    if head.length is not None:
        if head.length != room:
            raise Broken("the body is not as long as it should be")
        for view in views:
            await connection.fill(view, moved)
        return
    if head.until_close:
        raise Broken("the answer does not say how long it is")
    await _receive_chunks(connection, views, room, moved)


async def _receive_chunks(
    connection: Connection, views: Sequence[memoryview], room: int, moved: Callable[[int], None]
) -> None:
    position = 0
    while size := await _chunk_size(connection):
        if position + size > room:
            raise Broken("the body is longer than it should be")
        for piece in pieces_of(views, position, size):
            await connection.fill(piece, moved)
        position += size
        await _end_chunk(connection)
    if position != room:
        raise Broken("the body is shorter than it should be")


async def discard(connection: Connection, size: int) -> None:
    """Receive *size* bytes for nobody."""
    waste = memoryview(bytearray(min(size, _MAX_DISCARD)))
    while size:
        step = min(size, len(waste))
        await connection.fill(waste[:step], None)
        size -= step
