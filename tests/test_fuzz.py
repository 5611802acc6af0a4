"""Whatever comes over the network or from users: an answer or a refusal, never a crash or a hang.

Heads and listings have their own tests in test_s3_http and test_s3_xml; here are whole answers
on a socket, damaged in every way, and everything else that reads what others wrote.
"""

import socket
import tracemalloc

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.attributes import Defaults, decode
from s3mount.errors import MountError, StoreError
from s3mount.options import Choices
from s3mount.s3 import featurexml, xml
from s3mount.s3.checksum import of_whole
from s3mount.s3.connection import STALL_SECONDS, Broken, Connection, Pulse, Watch
from s3mount.s3.faults import refusal_of
from s3mount.s3.http import MAX_TEXT, Answer, exchange
from s3mount.s3.objects import http_date_ns, object_info
from s3mount.s3.retry import retry_after_seconds
from s3mount.values import parse_duration, parse_size

FEW = settings(max_examples=150, deadline=None)
PLENTY = settings(max_examples=500, deadline=None)
ANSWERS = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "x"\r\n\r\nhello',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Slow\r\nRetry-After: 3\r\n\r\n<Error/>",
    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello",
]
LISTING = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><IsTruncated>true</IsTruncated>'
    b"<NextContinuationToken>t</NextContinuationToken><Contents><Key>k</Key><Size>5</Size>"
    b"<ETag>&quot;e&quot;</ETag><LastModified>2009-10-12T17:50:30.000Z</LastModified></Contents>"
    b"<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes></ListBucketResult>"
)
ERROR = b"<Error><Code>SlowDown</Code><Message>m</Message><RequestId>r</RequestId></Error>"
DONE = b"<CopyObjectResult><ETag>e</ETag><UploadId>u</UploadId></CopyObjectResult>"
DELETED = b"<DeleteResult><Error><Key>k</Key><Code>c</Code></Error></DeleteResult>"
UPLOADS = (
    b"<ListMultipartUploadsResult><Upload><Key>k</Key><UploadId>u</UploadId>"
    b"<Initiated>2009-10-12T17:50:30.000Z</Initiated></Upload></ListMultipartUploadsResult>"
)
PARTS = (
    b"<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>1"
    b"</NextPartNumberMarker><Part><PartNumber>1</PartNumber><Size>5</Size><ETag>e</ETag></Part>"
    b"</ListPartsResult>"
)
VERSIONS = (
    b"<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
    b"<NextVersionIdMarker>v</NextVersionIdMarker><Version><Key>k</Key><VersionId>v</VersionId>"
    b"<IsLatest>true</IsLatest><Size>5</Size><ETag>e</ETag>"
    b"<LastModified>2009-10-12T17:50:30.000Z</LastModified></Version>"
    b"<DeleteMarker><Key>k</Key><VersionId>w</VersionId></DeleteMarker></ListVersionsResult>"
)
TAGS = b"<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>"
BODIES = [LISTING, ERROR, DONE, DELETED, UPLOADS, PARTS, VERSIONS, TAGS]
HEADER_NAMES = st.sampled_from(
    ["content-length", "etag", "last-modified", "x-amz-meta-mode", "x-amz-meta-xattr", "date",
     "x-amz-checksum-crc64nvme", "x-amz-checksum-crc32c", "x-amz-checksum-type", "retry-after"]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """One of *samples* with some bytes changed, removed, doubled, or put in from elsewhere."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        until = min(len(data), at + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from([bytes(data[at:until]) * 2, b""]) | st.binary(max_size=8))
        data[at:until] = piece
    return bytes(data)


async def answer_to(data: bytes) -> Answer | None:
    """What our side makes of *data* as an answer, None where it gives the connection up."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        connection = Connection(ours, Watch(trio.CancelScope(), Pulse(), STALL_SECONDS))
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            with trio.fail_after(20):
                answer, _ = await exchange(
                    connection, "GET", b"GET / HTTP/1.1\r\n\r\n", (),
                    first_byte=5.0, ask_first=False, receiver=None,
                )  # fmt: skip
        except Broken:
            return None
        finally:
            connection.close()
    return answer


@FEW
@given(damaged(ANSWERS) | st.binary(max_size=300))
def test_any_answer_is_read_or_given_up(data: bytes):
    answer = trio.run(answer_to, data)
    if answer is not None:
        assert 200 <= answer.status <= 999
        assert len(answer.body) <= MAX_TEXT
        refusal_of(answer).error("call")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
    ],
)
def test_what_is_promised_takes_no_memory(head: bytes):
    tracemalloc.start()
    try:
        assert trio.run(answer_to, head) is None
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


READERS = [
    lambda body: xml.listing(body, "", ""),
    lambda body: xml.listing(body, "", "", metadata=True),
    xml.upload_id,
    xml.result,
    xml.delete_failures,
    xml.upload_page,
    xml.part_page,
    xml.versioning,
    lambda body: xml.version_listing(body, "", ""),
    featurexml.tags,
    featurexml.has_object_lock,
]


@PLENTY
@given(damaged(BODIES) | st.binary(max_size=200))
def test_any_body_is_read_or_malformed(body: bytes):
    xml.error_of(body)
    for reader in READERS:
        try:
            reader(body)
        except xml.Malformed:
            continue


ENTITIES = b"".join(
    b'<!ENTITY a%d "%s">' % (level, b"&a%d;" % (level - 1) * 10 if level else b"ha")
    for level in range(10)
)


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE x [" + ENTITIES + b"]><ListBucketResult>&a9;</ListBucketResult>",
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><ListBucketResult/>',
        b"<a>" * 200_000,
        b"<ListBucketResult>" + b"<Contents>" * 50_000,
    ],
)
def test_xml_that_is_made_to_harm_is_refused_at_once(body: bytes):
    tracemalloc.start()
    try:
        with pytest.raises(xml.Malformed):
            xml.listing(body, "", "")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@PLENTY
@given(st.dictionaries(HEADER_NAMES, st.text(st.characters(max_codepoint=255), max_size=60)))
def test_any_headers_describe_an_object_or_none(headers: dict[str, str]):
    of_whole(headers)
    http_date_ns(headers.get("last-modified", ""))
    assert retry_after_seconds(headers.get("retry-after"), 0.0) >= 0
    try:
        info = object_info("key", headers)
    except StoreError:
        return
    attributes = decode(info.metadata, Defaults(1, 2, 0o644, 0o755).file(0), info.size)
    assert 0 <= attributes.mode <= 0o177777


@PLENTY
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["memory", "timeout", "uid", "hard", "soft", "cache", "part-size",
                             "metadata-ttl", "prefix", "endpoint-url", "file-mode", "x-y"])
            | st.text(max_size=12),
            st.none() | st.text(max_size=20),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_any_options_are_a_choice_or_refused(items: list[tuple[str, str | None]]):
    choices, complaint = Choices(), ""
    try:
        choices.choose_all([(name, text) for name, text in items if name != "config"])
        choices.choose("bucket", "bucket")
        choices.choose("mountpoint", "/mnt")
        choices.config()
    except MountError as error:
        complaint = str(error)
    assert len(complaint.splitlines()) <= 1


@PLENTY
@given(st.text(max_size=20))
def test_any_size_and_time_is_a_number_or_refused(text: str):
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue
