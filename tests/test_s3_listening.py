"""The listen API against a server that says what no server should: nothing of it does harm."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from s3mount.errors import Denied, StoreError, Unavailable, Unsupported
from s3mount.s3 import listening
from s3mount.s3.changes import News
from s3mount.s3.endpoint import EndpointSettings
from s3mount.s3.events import MAX_LINE
from s3mount.s3.listening import Listener
from s3mount.s3.ownwrites import OwnWrites
from s3mount.s3.streaming import StreamingCalls

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSAL = b"<Error><Code>%s</Code><Message>no</Message></Error>"
PING = b'{"Records":[]}\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(key: str) -> bytes:
    s3 = {"bucket": {"name": "b"}, "object": {"key": key}}
    return json.dumps({"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": s3}]}).encode()


def refusal(status: int, code: bytes) -> bytes:
    body = REFUSAL % code
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@asynccontextmanager
async def serving(
    *answers: Sequence[bytes | float], prefix: str = ""
) -> AsyncIterator[tuple[Listener, list[str]]]:
    """A listener for a server that gives each request the next of *answers*, in pieces.

    A number is a pause in seconds.  The targets of the requests are the second value.
    """
    left, targets = list(answers), []

    async def answer(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(65536)
        targets.append(head.split(b" ")[1].decode())
        for piece in left.pop(0):
            if isinstance(piece, bytes):
                await stream.send_all(piece)
            else:
                await trio.sleep(piece)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await answer(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # Who listened has gone away, as it may.

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        settings = EndpointSettings(
            scheme="http", host="127.0.0.1", port=port, root="/b", region="us-east-1"
        )
        calls = StreamingCalls(settings, None, timeout=10, max_connections=1, headers={})
        yield Listener(calls, "b", prefix, OwnWrites(prefix, trio.current_time)), targets
        calls.close()
        nursery.cancel_scope.cancel()


async def heard_from(
    *answers: Sequence[bytes | float], prefix: str = ""
) -> tuple[list[News], StoreError, list[str]]:
    """What was heard until the stream failed, the error, and what was asked for."""
    heard: list[News] = []
    async with serving(*answers, prefix=prefix) as (source, targets):
        with trio.fail_after(60), pytest.raises(StoreError) as failure:
            await source.follow(heard.append)
    return heard, failure.value, targets


def keys_in(heard: Sequence[News]) -> list[str]:
    return [change.keys[0] for news in heard for change in news.changes]


def flat(count: Callable[[News], int], heard: Sequence[News]) -> int:
    return sum(count(news) for news in heard)


async def test_events_are_told_however_they_are_cut_into_chunks():
    lines = b"".join(event(f"k{number}") + b"\n" for number in range(30)) + PING
    for size in (1, 7, 1000, len(lines)):
        pieces = [chunk(lines[at : at + size]) for at in range(0, len(lines), size)]
        heard, error, _ = await heard_from([HEAD, b"".join(pieces) + chunk(b"")])
        assert keys_in(heard) == [f"k{number}" for number in range(30)]
        assert isinstance(error, Unavailable)


async def test_what_makes_no_sense_is_counted_and_skipped():
    nonsense = [b"no JSON", b"[1]", b'{"Records":[{}]}', b"\xff\x00", b"x" * (MAX_LINE + 1)]
    nonsense.append(event("half a character \ud800"))
    lines = b"".join(line + b"\n" + event("k") + b"\n" for line in nonsense)
    heard, _, _ = await heard_from([HEAD, chunk(lines), chunk(b"")])
    assert keys_in(heard) == ["k"] * len(nonsense)
    assert flat(lambda news: news.malformed, heard) == len(nonsense)


async def test_a_flood_is_told_in_pieces_and_leaves_others_their_turns():
    flood = b"".join(event(f"k{number}") + b"\n" for number in range(5000))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        heard, _, _ = await heard_from([HEAD, chunk(flood), chunk(b"")])
        nursery.cancel_scope.cancel()
    assert flat(lambda news: len(news.changes), heard) == 5000
    assert max(len(news.changes) for news in heard) < 2000
    assert turns > 5


async def test_a_store_that_lists_the_bucket_instead_does_not_know_the_api():
    listing = b"<ListBucketResult></ListBucketResult>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s"
    heard, error, _ = await heard_from([answer % (len(listing), listing)])
    assert heard == []
    assert isinstance(error, Unsupported)


async def test_kinds_that_a_store_does_not_know_are_left_out():
    bad = [refusal(400, b"InvalidArgument")]
    heard, _, targets = await heard_from(bad, bad, [HEAD, chunk(PING), chunk(b"")])
    assert len(heard) == 1
    assert ["Lifecycle" in target for target in targets] == [True, True, False]
    assert all("ping=1" in target for target in targets)


async def test_a_refusal_is_told_as_what_it_is():
    _, error, _ = await heard_from([refusal(403, b"AccessDenied")])
    assert isinstance(error, Denied)


async def test_of_a_prefix_only_what_no_store_escapes_is_asked_for():
    lines = event("data%2Fa+b/x") + b"\n" + event("data/other") + b"\n"
    heard, _, targets = await heard_from([HEAD, chunk(lines), chunk(b"")], prefix="data/a b/")
    assert "prefix=data&" in targets[0]
    assert keys_in(heard) == ["x"]


async def test_a_stream_that_falls_silent_is_dead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listening, "SILENCE", 0.5)
    heard, error, _ = await heard_from([HEAD, chunk(PING), 30.0])
    assert len(heard) == 1
    assert "nothing is heard" in str(error)


async def test_a_stream_that_never_begins_is_dead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listening, "SILENCE", 0.5)
    heard, error, _ = await heard_from([30.0])
    assert heard == []
    assert "nothing is heard" in str(error)


@pytest.mark.parametrize("garbage", [b"zz\r\n", b"-1\r\n", b"5\r\nab", b"fffffffffffffffff\r\n"])
async def test_a_body_that_is_no_http_ends_the_stream(garbage: bytes):
    _, error, _ = await heard_from([HEAD, chunk(PING), garbage])
    assert isinstance(error, Unavailable)
