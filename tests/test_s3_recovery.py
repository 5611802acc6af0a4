"""The client between a real server and a network that fails: right bytes or an error, in time."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from s3mount.errors import Changed, Corrupt, Damaged, Denied, Exists, NotFound, Unavailable
from s3mount.s3.client import S3Client
from s3mount.s3.endpoint import Credentials, FixedCredentials
from s3mount.s3.retry import Operation
from s3mount.s3.store import ABSENT, MIN_PART_SIZE, FileSlice, Precondition
from tests.faultproxy import FaultProxy
from tests.faults import (
    ERROR_IN_OK,
    LOST_ANSWER,
    SLOW_DOWN,
    Answer,
    Cut,
    Flip,
    Hang,
    Point,
    Reset,
    Throttle,
    Twice,
    slow_down,
)
from tests.mounts import Bucket
from tests.servers import Server
from tests.stores import client_for, content_of, own_prefix, random_bytes, shared_bucket

META = {"x-amz-meta-mtime": "1700000000.123456789"}
MOMENT = META | {"x-amz-meta-ctime": "1.000000000"}
LATER = {"x-amz-meta-ctime": "2.000000000"}


@pytest.fixture
def bucket(server: Server) -> Bucket:
    return shared_bucket(server)


@pytest.fixture
async def store(bucket: Bucket, proxy: FaultProxy) -> AsyncIterator[S3Client]:
    prefix = own_prefix()
    async with client_for(bucket, url=proxy.url, prefix=prefix, timeout=10.0) as client:
        yield client


async def test_a_get_broken_twice_is_resumed(store: S3Client, proxy: FaultProxy):
    data = random_bytes(3 << 20)
    stored = await store.put("file", [data], headers={})
    proxy.inject(Reset(Point.BODY, 1_000_000), operation="GetObject", count=2)
    into, heard = bytearray(len(data)), []
    await store.get("file", 0, [memoryview(into)], etag=stored.etag, progress=heard.append)
    assert bytes(into) == data
    assert heard == sorted(set(heard))
    assert heard[-1] == len(data)
    ranges = [one.request.headers["range"] for one in proxy.log if one.operation == "GetObject"]
    assert len(ranges) == 3
    assert len(set(ranges)) == 3


async def test_a_body_that_is_always_cut_ends_in_an_error_or_right(
    store: S3Client, proxy: FaultProxy
):
    data = random_bytes(40_000)
    await store.put("file", [data], headers={})
    proxy.inject(Cut(5_000), operation="GetObject")
    assert await content_of(store, "file", room=len(data)) == data


async def test_a_body_cut_without_a_trace_is_noticed(store: S3Client, proxy: FaultProxy):
    await store.put("file", [random_bytes(40_000)], headers={})
    proxy.inject(Cut(5_000, honest=True), operation="GetObject")
    with trio.fail_after(30), pytest.raises(Unavailable):
        await content_of(store, "file", room=40_000)


async def test_a_flipped_byte_is_fetched_again(store: S3Client, proxy: FaultProxy, expect_log):
    expect_log("does not match its checksum")
    data = random_bytes(100_000)
    stored = await store.put("file", [data], headers={})
    proxy.inject(Flip(50_000), operation="GetObject", count=1)
    into = bytearray(len(data))
    await store.get("file", 0, [memoryview(into)], etag=stored.etag, size=len(data))
    assert bytes(into) == data


async def test_bytes_that_stay_wrong_are_corrupt(store: S3Client, proxy: FaultProxy, expect_log):
    expect_log("does not match its checksum")
    stored = await store.put("file", [bytes(1000)], headers={})
    proxy.inject(Flip(500), operation="GetObject")
    with pytest.raises(Corrupt):
        await store.get("file", 0, [memoryview(bytearray(1000))], etag=stored.etag, size=1000)


@pytest.mark.parametrize("times", [1, 4])
async def test_an_upload_damaged_on_its_way_is_sent_again(
    store: S3Client, proxy: FaultProxy, times: int
):
    proxy.inject(Flip(500, request=True), operation="PutObject", count=times)
    await store.put("file", [bytes(1000)], headers={})
    assert await content_of(store, "file") == bytes(1000)


async def test_what_arrives_damaged_each_time_is_not_stored(store: S3Client, proxy: FaultProxy):
    rule = proxy.inject(Flip(500, request=True), operation="PutObject")
    with pytest.raises(Damaged):
        await store.put("file", [bytes(1000)], headers={})
    assert rule.hits == 6
    assert store.capabilities.checksum is not None  # Nobody thinks that the store knows none.
    with pytest.raises(NotFound):
        await store.head("file")


async def test_the_request_to_slow_down_is_heeded(store: S3Client, proxy: FaultProxy):
    proxy.inject(slow_down(1), operation="PutObject", count=1)
    begun = trio.current_time()
    await store.put("file", [b"data"], headers={})
    assert trio.current_time() - begun >= 1.0


async def test_many_operations_survive_a_sick_store(store: S3Client, proxy: FaultProxy):
    proxy.inject(SLOW_DOWN, probability=0.3)

    async def use(number: int) -> None:
        await store.put(f"file-{number}", [b"%d" % number], headers={})
        assert await content_of(store, f"file-{number}") == b"%d" % number

    async with trio.open_nursery() as nursery:
        for number in range(15):
            nursery.start_soon(use, number)
    assert len(proxy.log) <= 3 * 30


async def test_a_store_that_stays_sick_is_unavailable_in_time(bucket: Bucket, proxy: FaultProxy):
    proxy.inject(SLOW_DOWN)
    async with client_for(bucket, url=proxy.url, timeout=2.0) as client:
        begun = trio.current_time()
        with pytest.raises(Unavailable, match="503"):
            await client.head("file")
        assert trio.current_time() - begun <= 3.0
    assert len(proxy.log) < 40


async def test_a_store_that_never_answers_is_unavailable_in_time(bucket: Bucket, proxy: FaultProxy):
    proxy.inject(Hang(Point.REQUEST))
    async with client_for(bucket, url=proxy.url, timeout=2.0) as client:
        begun = trio.current_time()
        with pytest.raises(Unavailable, match="in time"):
            await client.head("file")
        assert trio.current_time() - begun <= 4.0


async def test_a_store_that_is_down_and_comes_back(store: S3Client, proxy: FaultProxy):
    await store.put("file", [b"data"], headers={})
    proxy.down()

    async def come_back() -> None:
        await trio.sleep(1.0)
        proxy.up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        assert await content_of(store, "file") == b"data"


async def test_a_refused_connection_at_the_start_is_told_in_time(bucket: Bucket, proxy: FaultProxy):
    proxy.down()
    async with client_for(bucket, url=proxy.url, timeout=60.0) as client:
        with trio.fail_after(10), pytest.raises(Unavailable, match="connection refused"):
            await client.check_bucket()


async def test_an_attempt_without_time_ends_with_the_reason_of_those_before(
    bucket: Bucket, proxy: FaultProxy, monkeypatch
):
    pauses = 0

    async def end_too_late(operation: Operation, *_: object) -> bool:
        nonlocal pauses
        pauses += 1
        operation.deadline = trio.current_time()
        return pauses == 1

    monkeypatch.setattr(Operation, "back_off", end_too_late)
    proxy.down()
    async with client_for(bucket, url=proxy.url, timeout=0.1) as client:
        await trio.sleep(0.2)  # No bytes have moved for so long.
        with pytest.raises(Unavailable, match=r"cannot connect to .*refused"):
            await client.head("file")
    assert pauses == 2


async def test_a_slow_transfer_may_take_longer_than_the_time_limit(
    bucket: Bucket, proxy: FaultProxy
):
    data = random_bytes(1_500_000)
    proxy.inject(Throttle(500_000.0))
    async with client_for(bucket, url=proxy.url, timeout=2.0) as client:
        begun = trio.current_time()
        await client.put("file", [data], headers={})
        assert await content_of(client, "file", room=len(data)) == data
        assert trio.current_time() - begun > 4.0
        assert client.statistics.retries == 0


async def test_the_urgent_are_not_behind_many_downloads(bucket: Bucket, proxy: FaultProxy):
    data = random_bytes(1 << 20)
    async with client_for(bucket, url=proxy.url, max_connections=4) as client:
        await client.put("file", [data], headers={})
        proxy.inject(Throttle(300_000.0), operation="GetObject")

        async def read_ahead() -> None:
            into = [memoryview(bytearray(len(data)))]
            await client.get("file", 0, into, etag=None, urgent=False)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read_ahead)
            await trio.sleep(0.2)
            with trio.fail_after(2):
                await client.head("file")
            nursery.cancel_scope.cancel()


async def test_a_cancelled_request_leaves_the_client_whole(store: S3Client, proxy: FaultProxy):
    await store.put("file", [b"data"], headers={})
    rule = proxy.inject(Hang(Point.REQUEST), operation="GetObject")
    with trio.move_on_after(0.3) as scope:
        await content_of(store, "file")
    assert scope.cancelled_caught
    proxy.remove(rule)
    for _ in range(20):  # more than there are connections
        assert await content_of(store, "file") == b"data"


# -------------------------------------------------------------------- lost answers


async def test_a_put_whose_answer_is_lost_is_one_object(store: S3Client, proxy: FaultProxy):
    proxy.inject(LOST_ANSWER, operation="PutObject", count=1)
    stored = await store.put("file", [b"data"], headers=META)
    info = await store.head("file")
    assert (info.etag, info.size) == (stored.etag, 4)


async def test_a_creation_whose_answer_is_lost_is_ours(store: S3Client, proxy: FaultProxy):
    proxy.inject(LOST_ANSWER, operation="PutObject", count=1)
    stored = await store.put("file", [b"data"], headers=META, condition=ABSENT)
    assert stored.etag == (await store.head("file")).etag


async def test_a_replacement_whose_answer_is_lost_is_ours(store: S3Client, proxy: FaultProxy):
    old = await store.put("file", [b"old"], headers={})
    proxy.inject(LOST_ANSWER, operation="PutObject", count=1)
    right = Precondition(etag=old.etag)
    stored = await store.put("file", [b"new"], headers=META, condition=right)
    assert stored.etag == (await store.head("file")).etag != old.etag


async def test_a_creation_that_somebody_else_won_is_not_ours(store: S3Client, proxy: FaultProxy):
    await store.put("file", [b"theirs"], headers=META)
    proxy.inject(LOST_ANSWER, operation="PutObject", count=1)
    with pytest.raises(Exists):
        await store.put("file", [b"my own"], headers=META, condition=ABSENT)
    assert await content_of(store, "file") == b"theirs"


@pytest.mark.parametrize("sent", ["all", "nothing"])
async def test_a_copy_onto_itself_whose_answer_is_lost_is_ours_if_it_says_what_we_said(
    store: S3Client, proxy: FaultProxy, sent: str
):
    """On AWS a copy of what was sent in parts has another ETag, and the second attempt is refused.

    The proxy refuses it here, because no server that we have does so.
    """
    old = await store.put("file", [b"data"], headers={"x-amz-meta-mtime": "1"})
    lost = LOST_ANSWER if sent == "all" else Reset(Point.REQUEST)
    proxy.inject(lost, operation="CopyObject", count=1)
    proxy.inject(Answer(412, "PreconditionFailed"), operation="CopyObject", skip=1, count=1)
    headers = {**META, "x-amz-meta-ctime": "1700000001.000000001"}
    copying = store.copy("file", "file", headers=headers, source_etag=old.etag, size=4)
    if sent == "all":
        assert (await copying).etag == (await store.head("file")).etag
        assert (await store.head("file")).metadata["mtime"] == META["x-amz-meta-mtime"]
    else:
        with pytest.raises(Changed):
            await copying


@pytest.mark.parametrize("condition", [Precondition(), ABSENT])
async def test_a_completion_whose_answer_is_lost_is_done(
    store: S3Client, proxy: FaultProxy, condition: Precondition
):
    upload = await store.create_upload("big", headers=META)
    part = await store.upload_part("big", upload, 1, [b"part"])
    proxy.inject(LOST_ANSWER, operation="CompleteMultipartUpload", count=1)
    stored = await store.complete_upload("big", upload, [part], condition=condition)
    assert stored.etag == (await store.head("big")).etag
    assert await content_of(store, "big") == b"part"


async def test_a_creation_that_is_delivered_twice_is_ours(store: S3Client, proxy: FaultProxy):
    proxy.inject(Twice(), operation="PutObject")
    stored = await store.put("file", [b"data"], headers=MOMENT, condition=ABSENT)
    assert stored.etag == (await store.head("file")).etag
    with pytest.raises(Exists):  # Of another moment, and so of somebody else.
        await store.put("file", [b"data"], headers=MOMENT | LATER, condition=ABSENT)


async def test_a_copy_onto_itself_that_is_delivered_twice_is_ours(
    store: S3Client, proxy: FaultProxy
):
    upload = await store.create_upload("big", headers={})
    part = await store.upload_part("big", upload, 1, [b"part"])
    first = await store.complete_upload("big", upload, [part])
    proxy.inject(Twice(), operation="CopyObject")
    copied = await store.copy("big", "big", headers=MOMENT, source_etag=first.etag)
    assert copied.etag == (await store.head("big")).etag


async def cancelled_while_it_hangs(
    proxy: FaultProxy, operation: str, write: Callable[[], Awaitable[object]]
) -> None:
    """Have the store do something, and give up before it answers."""
    hang = proxy.inject(Hang(Point.ANSWER), operation=operation)
    with trio.move_on_after(1.5) as scope:
        await write()
    assert hang.hits
    assert scope.cancelled_caught
    proxy.clear()


async def test_what_was_given_up_before_the_answer_is_known_as_ours(
    store: S3Client, proxy: FaultProxy
):
    async def put() -> None:
        await store.put("file", [b"data"], headers=MOMENT, condition=ABSENT)

    await cancelled_while_it_hangs(proxy, "PutObject", put)
    found = await store.own_version("file")
    assert found is not None
    assert found.size == 4
    upload = await store.create_upload("big", headers=MOMENT)
    part = await store.upload_part("big", upload, 1, [b"part"])

    async def complete() -> None:
        await store.complete_upload("big", upload, [part], condition=ABSENT)

    await cancelled_while_it_hangs(proxy, "CompleteMultipartUpload", complete)
    assert await store.own_version("big") is not None

    async def copy() -> None:
        await store.copy("big", "big", headers=MOMENT | LATER, source_etag=None)

    await cancelled_while_it_hangs(proxy, "CopyObject", copy)
    found = await store.own_version("big")
    assert found is not None
    assert found.metadata["ctime"] == "2.000000000"


async def test_a_completion_of_nothing_is_an_error(store: S3Client):
    await store.put("big", [b"somebody else's"], headers={})
    upload = await store.create_upload("big", headers={})
    part = await store.upload_part("big", upload, 1, [b"part"])
    await store.abort_upload("big", upload)
    with pytest.raises(NotFound):
        await store.complete_upload("big", upload, [part])


@pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "CopyObject", "UploadPartCopy"])
async def test_an_error_in_a_200_is_tried_again(store: S3Client, proxy: FaultProxy, operation: str):
    source = await store.put("source", [bytes(100)], headers={})
    rule = proxy.inject(ERROR_IN_OK, operation=operation, count=1)
    await store.copy("source", "copy", headers=None, source_etag=source.etag)
    upload = await store.create_upload("big", headers={})
    part = await store.copy_part(
        "big", upload, 1, source="source", start=0, stop=50, source_etag=source.etag
    )
    await store.complete_upload("big", upload, [part])
    assert rule.hits == 1
    assert (await store.head("big")).size == 50


async def test_a_delete_whose_answer_is_lost_is_done(store: S3Client, proxy: FaultProxy):
    stored = await store.put("file", [b"data"], headers={})
    proxy.inject(LOST_ANSWER, operation="DeleteObject", count=1)
    await store.delete("file", condition=Precondition(etag=stored.etag))
    with pytest.raises(NotFound):
        await store.head("file")


async def test_a_file_is_sent_again_from_its_start(store: S3Client, proxy: FaultProxy, tmp_path):
    data = random_bytes(MIN_PART_SIZE)
    path = tmp_path / "part"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    proxy.inject(Reset(Point.REQUEST_BODY, 1_000_000), operation="UploadPart", count=2)
    try:
        upload = await store.create_upload("big", headers={})
        body = FileSlice(descriptor, 0, len(data))
        part = await store.upload_part("big", upload, 1, body)
        await store.complete_upload("big", upload, [part])
    finally:
        os.close(descriptor)
    assert await content_of(store, "big", room=len(data)) == data


# --------------------------------------------------------------------- permissions


async def test_wrong_keys_are_denied_without_a_storm(bucket: Bucket, proxy: FaultProxy):
    wrong = FixedCredentials(Credentials(bucket.credentials.access_key, "not the secret"))
    async with client_for(bucket, url=proxy.url, credentials=wrong) as client:
        with pytest.raises(Denied) as caught:
            await client.check_bucket()
        assert len(proxy.log) <= 2
        with pytest.raises(Denied):
            await client.head("file")
    assert "not the secret" not in str(caught.value)
    assert bucket.credentials.secret_key not in str(caught.value)
