"""HTTP on the wire: heads and bodies from a peer that follows a script, the sound and the broken.

What no real server can be made to send is sent by hand here; everything that a server can do
is tried on servers, in `test_s3_recovery` and `test_store`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import (
    Changed,
    Corrupt,
    Denied,
    NoCredentials,
    NotFound,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3mount.s3.client import S3Client
from s3mount.s3.connection import Broken
from s3mount.s3.endpoint import Credentials, FixedCredentials
from s3mount.s3.http import parse_head
from s3mount.s3.store import ABSENT, Capabilities
from tests.stores import settings_for

PAIR = FixedCredentials(Credentials("AKID", "secret"))


def ok(
    body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None
) -> bytes:
    """An answer with a body and its Content-Length."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", 'ETag: "e"', *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def error(status: str, code: str, *headers: str) -> bytes:
    """An error as S3 sends it."""
    body = f"<Error><Code>{code}</Code><Message>why</Message><RequestId>R</RequestId></Error>"
    return ok(body.encode(), *headers, status=status)


class Peer:
    """Answers one request after the other from a script, and keeps what it was asked.

    An empty answer closes the connection; so does one that ends in `HANG_UP`.
    """

    def __init__(self, script: Sequence[bytes | Callable[[bytes], bytes]]) -> None:
        self._script = list(script)
        self.asked: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while self._script:
                request = await self._read_request(stream)
                if request is None:
                    return
                self.asked.append(request)
                step = self._script.pop(0)
                answer = step if isinstance(step, bytes) else step(request)
                await stream.send_all(answer.removesuffix(HANG_UP))
                if not answer or answer.endswith(HANG_UP):
                    return

    async def _read_request(self, stream: trio.SocketStream) -> bytes | None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = await stream.receive_some()
            if not piece:
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        size = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        while len(body) < size:
            body += await stream.receive_some()
        return head + b"\r\n\r\n" + body


HANG_UP = b"<<hang up>>"
GOOD = "BjliuQ=="  # CRC32C of "0123"


@asynccontextmanager
async def talking_to(
    *script: bytes | Callable[[bytes], bytes], timeout: float = 5.0, credentials: object = PAIR
) -> AsyncIterator[tuple[S3Client, Peer]]:
    """A client of a peer that follows *script*."""
    peer = Peer(script)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        peer.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        client = S3Client(
            settings_for(f"http://127.0.0.1:{peer.port}", "bucket"),
            credentials,
            "bucket",
            "",
            capabilities=Capabilities(),
            timeout=timeout,
            max_connections=2,
        )
        async with client:
            yield client, peer
        nursery.cancel_scope.cancel()


async def read(client: S3Client, size: int, *, start: int = 0, etag: str | None = None) -> bytes:
    into = bytearray(size)
    info = await client.get("key", start, [memoryview(into)], etag=etag)
    return bytes(into[: max(0, info.size - start)])


# ----------------------------------------------------------------------------- heads


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(data: bytes):
    try:
        head = parse_head(data, "GET")
    except Broken:
        return
    assert 100 <= head.status <= 999
    assert head.length is None or head.length >= 0


BROKEN_HEADS = [
    b"",
    b"ICY 200 OK",
    b"HTTP/2 200 OK",
    b"HTTP/1.1 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 \xb2\xb2\xb2 OK",
    b"HTTP/1.1 099 no",
    b"HTTP/1.1 200 OK\r\nno colon",
    b"HTTP/1.1 200 OK\r\n folded: line",
    b"HTTP/1.1 200 OK\r\nname : value",
    b"HTTP/1.1 200 OK\r\n: nameless",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1e3",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
    b"HTTP/1.1 200 OK\r\nETag: a\r\nETag: b",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
]


@pytest.mark.parametrize("data", BROKEN_HEADS)
def test_a_head_that_is_not_sound_is_refused(data: bytes):
    with pytest.raises(Broken):
        parse_head(data, "GET")


def test_a_sound_head():
    head = parse_head(
        b"HTTP/1.1 206\r\nContent-Length: 5\r\ncontent-length: 5\r\nVary: a\r\nVary: b", "GET"
    )
    assert (head.status, head.length, head.keep_alive) == (206, 5, True)
    assert head.headers["vary"] == "a, b"
    assert not parse_head(b"HTTP/1.1 200 OK\r\nConnection: Close", "GET").keep_alive
    assert not parse_head(b"HTTP/1.0 200 OK\r\nContent-Length: 0", "GET").keep_alive
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5", "HEAD").length == 0
    assert parse_head(b"HTTP/1.1 204 No Content", "DELETE").length == 0


async def test_a_broken_head_is_a_failed_attempt():
    answers = [b"what?\r\n\r\n", ok(b"", "Content-Length: 3"), ok(b"", length=7)]
    async with talking_to(*answers) as (client, peer):
        assert (await client.head("key")).size == 7
        assert client.statistics.failures == 2
        assert peer.connections == 3


async def test_an_endless_head_is_given_up():
    async with talking_to(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, timeout=1.0) as (
        client,
        _,
    ):
        with pytest.raises(Unavailable):
            await client.head("key")


async def test_informal_answers_are_skipped():
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(
        length=7
    )
    async with talking_to(answer, ok(length=8)) as (client, peer):
        assert (await client.head("key")).size == 7
        assert (await client.head("key")).size == 8
        assert peer.connections == 1


# ---------------------------------------------------------------------------- bodies


def part(data: bytes, start: int, total: int, *headers: str) -> bytes:
    """A 206 with a part of an object."""
    extent = f"Content-Range: bytes {start}-{start + len(data) - 1}/{total}"
    return ok(data, extent, *headers, status="206 Partial Content")


async def test_a_chunked_body_is_put_together():
    chunks = b"4\r\n0123\r\n3;note=x\r\n456\r\n0\r\nTrailer: x\r\n\r\n"
    answer = (
        b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n"
        b'ETag: "e"\r\nContent-Range: bytes 0-6/7\r\n\r\n' + chunks
    )
    async with talking_to(answer, ok(length=7)) as (client, peer):
        assert await read(client, 20) == b"0123456"
        await client.head("key")
        assert peer.connections == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"4\r\n0123\r\n0\r\n\r\n",
        b"8\r\n01234567\r\n0\r\n\r\n",
        b"7\r\n0123456789\r\n0\r\n\r\n",
        b"-7\r\n0123456\r\n0\r\n\r\n",
        b"7 \r\n0123",
        b"zz\r\n0123456\r\n0\r\n\r\n",
    ],
)
async def test_broken_chunks_are_a_failed_attempt(chunks: bytes):
    answer = (
        b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n"
        b'ETag: "e"\r\nContent-Range: bytes 0-6/7\r\n\r\n' + chunks + HANG_UP
    )

    def rest(request: bytes) -> bytes:
        start = int(request.lower().split(b"range: bytes=")[1].split(b"-")[0])
        return part(b"0123456"[start:], start, 7)

    async with talking_to(answer, rest) as (client, _):
        assert await read(client, 7) == b"0123456"
        assert client.statistics.failures == 1


async def test_a_broken_body_is_resumed_from_where_it_stopped():
    first = ok(b"0123", "Content-Range: bytes 0-9/10", status="206 x", length=10) + HANG_UP
    async with talking_to(first, part(b"456789", 4, 10)) as (client, peer):
        assert await read(client, 10) == b"0123456789"
        assert b"range: bytes=4-9\r\n" in peer.asked[1]
        assert b'if-match: "e"\r\n' in peer.asked[1]


async def test_a_resumed_body_of_another_version_is_refused():
    first = ok(b"0123", "Content-Range: bytes 0-9/10", status="206 x", length=10) + HANG_UP
    other = part(b"456789", 4, 10).replace(b'"e"', b'"f"')
    async with talking_to(first, other) as (client, _):
        with pytest.raises(Changed):
            await read(client, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        part(b"0123", 1, 10),
        part(b"012", 0, 10),
        ok(b"0123", "Content-Range: bytes 0-9/10", status="206 x"),
        ok(b"0123", "Content-Range: bytes */10", status="206 x"),
        ok(b"0123", "Content-Range: items 0-3/10", status="206 x"),
        ok(b"0123", f"Content-Range: bytes 0-3/{'9' * 5000}", status="206 x"),
        ok(b"0123", status="206 x"),
    ],
)
async def test_another_range_than_the_one_asked_for_is_a_failed_attempt(wrong: bytes):
    async with talking_to(wrong + HANG_UP, part(b"0123", 0, 10)) as (client, _):
        assert await read(client, 4) == b"0123"
        assert client.statistics.failures == 1


async def test_a_whole_object_instead_of_a_range_is_cut_out():
    async with talking_to(ok(b"0123456789"), ok(length=7)) as (client, peer):
        assert await read(client, 3, start=4) == b"456"
        await client.head("key")
        assert peer.connections == 1


async def test_a_large_object_instead_of_a_range_is_too_much():
    async with talking_to(ok(length=1 << 30)) as (client, _):
        with pytest.raises(Unsupported):
            await read(client, 3, start=1 << 29)


async def test_a_body_of_a_known_version_is_never_another():
    async with talking_to(ok(b"0123")) as (client, _):
        with pytest.raises(Changed):
            await read(client, 4, etag='"other"')


async def test_a_body_that_does_not_match_its_checksum_is_fetched_again(expect_log):
    expect_log("does not match its checksum")
    told = f"x-amz-checksum-crc32c: {GOOD}"
    async with talking_to(part(b"0124", 0, 4, told), part(b"0123", 0, 4, told)) as (client, _):
        assert await read(client, 8) == b"0123"


async def test_a_body_that_stays_damaged_is_corrupt(expect_log):
    expect_log("does not match its checksum")
    bad = part(b"0124", 0, 4, f"x-amz-checksum-crc32c: {GOOD}")
    async with talking_to(bad, bad) as (client, _):
        with pytest.raises(Corrupt):
            await read(client, 8)


async def test_a_checksum_of_parts_or_of_more_than_was_read_is_no_judge():
    composite = part(b"0123", 0, 4, "x-amz-checksum-crc32c: AAAAAA==-2")
    marked = part(
        b"0123", 0, 4, "x-amz-checksum-crc32c: AAAAAA==", "x-amz-checksum-type: COMPOSITE"
    )
    partial = part(b"0123", 0, 9, "x-amz-checksum-crc32c: AAAAAA==")
    async with talking_to(composite, marked, partial) as (client, _):
        for _ in range(3):
            assert await read(client, 4) == b"0123"


# ------------------------------------------------------------------ connections


async def test_a_connection_that_died_while_idle_is_nobodys_failure():
    async with talking_to(ok(length=1) + HANG_UP, ok(length=2)) as (client, peer):
        await client.head("key")
        assert (await client.head("key")).size == 2
        assert peer.connections == 2
        assert client.statistics.failures == 0


async def test_what_comes_after_an_answer_spoils_the_connection():
    async with talking_to(ok(length=1) + ok(b"injected"), ok(length=2)) as (client, peer):
        await client.head("key")
        await trio.sleep(0.1)
        assert (await client.head("key")).size == 2
        assert peer.connections == 2


async def test_a_peer_that_says_close_is_believed():
    async with talking_to(ok(b"", "Connection: close", length=1), ok(length=2)) as (client, peer):
        await client.head("key")
        await client.head("key")
        assert peer.connections == 2


async def test_a_cancelled_request_closes_its_connection():
    half = ok(b"0123", "Content-Range: bytes 0-9/10", status="206 x", length=10)
    async with talking_to(half, part(b"0123456789", 0, 10)) as (client, peer):
        with trio.move_on_after(0.2) as scope:
            await read(client, 10)
        assert scope.cancelled_caught
        assert await read(client, 10) == b"0123456789"
        assert peer.connections == 2


# ----------------------------------------------------------- what stores ask to do again


async def test_a_large_body_waits_for_the_word_to_come():
    asked = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            asked.append(head)
            await stream.send_all(error("403 Forbidden", "AccessDenied"))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        client = S3Client(
            settings_for(f"http://127.0.0.1:{port}", "bucket"),
            PAIR,
            "bucket",
            "",
            capabilities=Capabilities(),
            timeout=5,
            max_connections=2,
        )
        async with client:
            with pytest.raises(Denied):
                await client.put("key", [bytes(4 << 20)], headers={})
            assert client.statistics.bytes_sent < 4096
        nursery.cancel_scope.cancel()
    assert b"expect: 100-continue" in asked[0]
    assert asked[0].endswith(b"\r\n\r\n")


async def test_a_skewed_clock_is_corrected_once(expect_log):
    expect_log("clock")
    skewed = error("403 Forbidden", "RequestTimeTooSkewed", "Date: Tue, 01 Jan 2030 00:00:00 GMT")
    async with talking_to(skewed, ok(b"", "x: y")) as (client, peer):
        await client.delete("key")
        assert b"x-amz-date: 20300101T0000" in peer.asked[1]
    async with talking_to(skewed, skewed) as (client, _):
        with pytest.raises(Denied):
            await client.delete("key")


async def test_a_clock_beyond_all_time_is_not_believed(expect_log):
    expect_log("clock of this machine")
    absurd = "Date: Tue, 01 Jan 99999999999 00:00:00 GMT"
    async with talking_to(error("403 Forbidden", "RequestTimeTooSkewed", absurd)) as (client, _):
        with pytest.raises(Denied):
            await client.delete("key")


class Rotating:
    """Credentials that are replaced each time they are refused, or never."""

    def __init__(self, *pairs: Credentials) -> None:
        self._pairs = list(pairs)
        self.refreshed = 0

    def current(self) -> Credentials:
        return self._pairs[0]

    async def refresh(self, refused: Credentials | None) -> Credentials:
        self.refreshed += 1
        if len(self._pairs) > 1:
            self._pairs.pop(0)
        await trio.lowlevel.checkpoint()
        return self._pairs[0]


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
async def test_refused_credentials_are_refreshed_once(code: str):
    source = Rotating(Credentials("OLD", "a"), Credentials("NEW", "b", "token"))
    refused = error("400 Bad Request", code)
    async with talking_to(refused, ok(), credentials=source) as (client, peer):
        await client.delete("key")
        assert b"Credential=NEW/" in peer.asked[1]
        assert b"x-amz-security-token: token\r\n" in peer.asked[1]


async def test_credentials_that_stay_refused_are_not_tried_again():
    source = Rotating(Credentials("ONLY", "a"))
    refused = error("403 Forbidden", "InvalidAccessKeyId")
    async with talking_to(refused, refused, refused, credentials=source) as (client, peer):
        with pytest.raises(Denied, match="InvalidAccessKeyId") as caught:
            await client.delete("key")
        assert len(peer.asked) == 1
        assert source.refreshed == 1
    assert caught.value.request_id == "R"


async def test_a_forbidden_head_is_explained_by_a_get():
    source = Rotating(Credentials("OLD", "a"), Credentials("NEW", "b"))
    bare = ok(status="403 Forbidden")
    expired = error("400 Bad Request", "ExpiredToken")
    async with talking_to(bare, expired, ok(length=5), credentials=source) as (client, peer):
        assert (await client.head("key")).size == 5
        assert peer.asked[1].startswith(b"GET /bucket/key ")
        assert b"Credential=NEW/" in peer.asked[2]


async def test_no_credentials_to_be_had_is_said():
    class Gone(Rotating):
        async def refresh(self, refused: Credentials | None) -> Credentials:
            raise NoCredentials("run aws sso login")

    refused = error("400 Bad Request", "ExpiredToken")
    async with talking_to(refused, credentials=Gone(Credentials("a", "b"))) as (client, _):
        with pytest.raises(NoCredentials, match="sso login"):
            await client.delete("key")


@pytest.mark.parametrize(
    "redirect",
    [
        error("301 Moved", "PermanentRedirect", "x-amz-bucket-region: eu-west-1"),
        error("400 Bad Request", "AuthorizationHeaderMalformed", "x-amz-bucket-region: eu-west-1"),
        error("400 Bad Request", "AuthorizationHeaderMalformed").replace(
            b"<RequestId>R</RequestId>", b"<Region>eu-west-1</Region>"
        ),
    ],
)
async def test_another_region_is_followed_and_remembered(redirect: bytes):
    redirect = redirect.replace(b"Content-Length: ", b"x-old: ").replace(
        b'ETag: "e"', b"Connection: close"
    )
    async with talking_to(redirect + HANG_UP, ok(), ok()) as (client, peer):
        await client.delete("key")
        await client.delete("key")
        for request in peer.asked[1:]:
            assert b"/eu-west-1/s3/aws4_request" in request
        assert client.settings.region == "eu-west-1"


@pytest.mark.parametrize("location", ["http://elsewhere.example/", "http://[oops/"])
async def test_a_region_that_is_not_told_is_an_error(location: str):
    redirect = error("301 Moved", "PermanentRedirect", f"Location: {location}")
    async with talking_to(redirect) as (client, peer):
        with pytest.raises(StoreError, match="PermanentRedirect"):
            await client.delete("key")
        assert len(peer.asked) == 1


async def test_an_error_in_a_200_is_an_error():
    async with talking_to(error("200 OK", "AccessDenied")) as (client, _):
        with pytest.raises(Denied):
            await client.copy("a", "b", headers=None, source_etag=None, stored_as={})


async def test_white_space_before_an_answer_is_no_harm():
    body = b"<CopyObjectResult><ETag>&quot;x&quot;</ETag></CopyObjectResult>"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (b"   ", b"\n", body)
    )
    async with talking_to(answer + b"0\r\n\r\n") as (client, _):
        assert (
            await client.copy("a", "b", headers=None, source_etag=None, stored_as={})
        ).etag == '"x"'


async def test_nothing_in_a_200_is_no_success():
    async with talking_to(ok(), ok()) as (client, _):
        with pytest.raises(Unsupported):
            await client.copy("a", "b", headers=None, source_etag=None, stored_as={})


async def test_a_store_without_the_checksum_is_served_without():
    refused = error("400 Bad Request", "InvalidArgument")
    async with talking_to(refused, ok(), ok()) as (client, peer):
        await client.put("a", [b"x"], headers={})
        await client.put("b", [b"x"], headers={})
        carried = [b"x-amz-checksum-crc64nvme" in request for request in peer.asked]
        assert carried == [True, False, False]
        assert client.capabilities.checksum is None


async def test_a_refused_expectation_is_dropped():
    async with talking_to(ok(status="417 Expectation Failed"), ok()) as (client, peer):
        client.adopt(Capabilities(checksum=None))
        await client.put("a", [bytes(1 << 20)], headers={})
        assert b"expect:" not in peer.asked[1]


async def test_an_anonymous_client_signs_nothing():
    async with talking_to(ok(length=1), credentials=None) as (client, peer):
        await client.head("key")
        assert b"authorization" not in peer.asked[0].lower()
        assert b"x-amz-" not in peer.asked[0].lower()


# ------------------------------------------------------------------------ listings


def page(*keys: str, token: str | None = None, extra: str = "") -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag></Contents>" for key in keys
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    body = (
        f"<ListBucketResult>{extra}<IsTruncated>{'true' if token else 'false'}</IsTruncated>"
        f"{more}{contents}</ListBucketResult>"
    )
    return ok(body.encode())


async def list_all(client: S3Client) -> list[str]:
    keys, token = [], None
    while True:
        found = await client.list_page("", token=token)
        keys += [item.key for item in found.objects]
        token = found.token
        if token is None:
            return keys


async def test_pages_follow_their_tokens():
    async with talking_to(page("a", token="t1"), page("b", token="t2"), page("c")) as (
        client,
        peer,
    ):
        assert await list_all(client) == ["a", "b", "c"]
        assert b"continuation-token=t1" in peer.asked[1]
        assert b"continuation-token=t2" in peer.asked[2]


@pytest.mark.parametrize("second", [page("b", token="t1"), page("a", token="t2")])
async def test_a_listing_that_goes_in_circles_is_an_error(second: bytes):
    async with talking_to(page("a", token="t1"), second) as (client, _):
        with pytest.raises(Unavailable, match="repeats"):
            await list_all(client)


async def test_a_listing_that_does_not_say_how_to_go_on_is_an_error():
    endless = page().replace(b"false", b"true ")
    async with talking_to(endless) as (client, _):
        with pytest.raises(Unavailable):
            await list_all(client)


async def test_a_store_that_knows_the_old_listing_only():
    refused = error("501 Not Implemented", "NotImplemented")
    first = page("a", "b").replace(b"false", b"true ")
    async with talking_to(refused, first, page("c")) as (client, peer):
        assert await list_all(client) == ["a", "b", "c"]
        assert b"list-type" not in peer.asked[1]
        assert b"marker=b" in peer.asked[2]
        assert not client.capabilities.list_v2


async def test_what_is_no_store_is_said_so():
    html = ok(b"<html><body>It works!</body></html>")
    for answer in (html, ok(b"not found", status="404 Not Found"), ok(b"", status="400 Bad")):
        async with talking_to(answer, answer) as (client, _):
            with pytest.raises(Unavailable, match="does not speak S3"):
                await client.check_bucket()


# -------------------------------------------------------------------- lost answers


async def test_a_creation_that_was_ours_all_along():
    """The first PUT took effect though its answer was lost, so the second one is refused."""
    found = ok(length=4).replace(b'"e"', b'"098f6bcd4621d373cade4e832627b4f6"')  # MD5 of "test"
    script = [b"", error("412 Precondition Failed", "PreconditionFailed"), found]
    async with talking_to(*script) as (client, _):
        stored = await client.put("key", [b"test"], headers={}, condition=ABSENT)
        assert stored.etag == '"098f6bcd4621d373cade4e832627b4f6"'


async def test_a_creation_that_was_somebody_elses():
    found = ok(length=4).replace(b'"e"', b'"ffffffffffffffffffffffffffffffff"')
    script = [b"", error("412 Precondition Failed", "PreconditionFailed"), found]
    async with talking_to(*script) as (client, _):
        with pytest.raises(StoreError) as caught:
            await client.put("key", [b"test"], headers={}, condition=ABSENT)
        assert type(caught.value).__name__ == "Exists"


async def test_a_refusal_without_a_lost_answer_is_believed_at_once():
    refused = error("412 Precondition Failed", "PreconditionFailed")
    async with talking_to(refused) as (client, peer):
        with pytest.raises(StoreError) as caught:
            await client.put("key", [b"test"], headers={}, condition=ABSENT)
        assert type(caught.value).__name__ == "Exists"
        assert len(peer.asked) == 1


async def test_nothing_there_is_not_found():
    async with talking_to(error("404 Not Found", "NoSuchKey")) as (client, _):
        with pytest.raises(NotFound):
            await client.get("key", 0, [memoryview(bytearray(1))], etag=None)
