"""The fault proxy does to requests what it says, and nothing to the others."""

import hashlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
)

from tests.faultproxy import FaultProxy
from tests.faults import (
    ACCESS_DENIED,
    ERROR_IN_OK,
    LOST_ANSWER,
    SLOW_DOWN,
    Answer,
    Cut,
    Delay,
    Flip,
    Hang,
    Late,
    Point,
    Request,
    Reset,
    Throttle,
    Twice,
    slow_down,
)
from tests.mounts import Bucket
from tests.servers import s3_client

BODY = bytes(range(256)) * 400
Fetch = Callable[[], bytes]


@pytest.fixture
def client(bucket: Bucket, proxy: FaultProxy) -> Iterator:
    """A boto3 client that goes through the proxy; ``key`` is there already."""
    client = s3_client(proxy.url, bucket.credentials)
    client.put_object(Bucket=bucket.name, Key="key", Body=BODY)
    proxy.forget()
    yield client
    client.close()


@pytest.fixture
def get(client, bucket: Bucket) -> Fetch:
    """Fetches ``key`` through the proxy."""
    return lambda: client.get_object(Bucket=bucket.name, Key="key")["Body"].read()


def test_passes_large_bodies_on_in_both_directions(client, bucket: Bucket, proxy: FaultProxy):
    data = os.urandom(24 << 20)
    client.put_object(Bucket=bucket.name, Key="large", Body=data)
    answer = client.get_object(Bucket=bucket.name, Key="large")["Body"].read()
    assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
    put, got = proxy.log
    assert (put.operation, put.status, put.received) == ("PutObject", 200, len(data))
    assert (got.operation, got.status, got.sent) == ("GetObject", 200, len(data))


def test_keeps_connections_open(get: Fetch, proxy: FaultProxy):
    for _ in range(5):
        assert get() == BODY
    assert proxy.counts() == {"GetObject": 5}
    assert len(proxy.connections) == 1


def test_log_holds_no_secrets(client, bucket: Bucket, proxy: FaultProxy):
    url = client.generate_presigned_url("get_object", {"Bucket": bucket.name, "Key": "key"})
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port)
    connection.request("GET", url.partition(str(proxy.port))[2], headers={"Authorization": "x"})
    connection.getresponse().read()
    connection.close()
    client.head_object(Bucket=bucket.name, Key="key")
    assert len(proxy.log) == 2
    assert "X-Amz-Signature=***" in proxy.log[0].request.query
    assert bucket.credentials.access_key not in repr(proxy.log)


def test_delay_comes_before_the_answer(get: Fetch, proxy: FaultProxy):
    proxy.inject(Delay(0.3), count=1)
    started = time.monotonic()
    assert get() == BODY
    assert time.monotonic() - started >= 0.3
    assert eventually(lambda: (proxy.log[0].seconds or 0) >= 0.3)


@pytest.mark.parametrize("fault", [ACCESS_DENIED, SLOW_DOWN, Answer(400, "ExpiredToken")])
def test_answers_in_the_place_of_the_store(get: Fetch, proxy: FaultProxy, fault: Answer):
    proxy.inject(fault, operation="GetObject", count=1)
    with pytest.raises(ClientError, match=fault.code):
        get()
    assert proxy.log[0].status == fault.status
    assert get() == BODY


def test_slow_down_may_say_how_long(get: Fetch, proxy: FaultProxy):
    proxy.inject(slow_down(7))
    with pytest.raises(ClientError) as caught:
        get()
    assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"


def test_refuses_an_upload_that_has_a_body(client, bucket: Bucket, get: Fetch, proxy: FaultProxy):
    proxy.inject(ACCESS_DENIED, operation="PutObject")
    with pytest.raises(ClientError, match="AccessDenied"):
        client.put_object(Bucket=bucket.name, Key="key", Body=b"new")
    assert get() == BODY


@pytest.mark.parametrize(("late", "done"), [(False, False), (True, True)])
def test_error_in_a_good_answer(
    client, bucket: Bucket, s3, proxy: FaultProxy, *, late: bool, done: bool
):
    proxy.inject(Answer(200, ERROR_IN_OK.code, late=late), operation="CopyObject")
    source = {"Bucket": bucket.name, "Key": "key"}
    with pytest.raises((ClientError, BotoCoreError)):
        client.copy_object(Bucket=bucket.name, Key="copy", CopySource=source)
    assert proxy.log[0].status == 200
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket.name)["Contents"]]
    assert ("copy" in keys) == done


def test_a_late_request_is_carried_out_when_its_client_has_gone(
    client, bucket: Bucket, get: Fetch, proxy: FaultProxy
):
    proxy.inject(Late(), operation="PutObject", count=1)
    with pytest.raises(BotoCoreError):
        client.put_object(Bucket=bucket.name, Key="key", Body=b"late")
    assert get() == BODY
    assert proxy.deliver_late() == [200]
    assert get() == b"late"
    assert proxy.deliver_late() == []


@pytest.mark.parametrize("point", [Point.REQUEST, Point.ANSWER, Point.HEAD, Point.BODY])
def test_reset_at_each_point(get: Fetch, proxy: FaultProxy, point: Point):
    proxy.inject(Reset(point, 1000), count=1)
    with pytest.raises((BotoCoreError, OSError)):
        get()
    assert get() == BODY
    assert proxy.log[0].sent == (1000 if point is Point.BODY else 0)


def test_reset_is_a_reset_and_not_a_close(bucket: Bucket, proxy: FaultProxy):
    proxy.inject(Reset(Point.REQUEST))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_reset_in_an_upload_leaves_the_old_object(
    client, bucket: Bucket, get: Fetch, proxy: FaultProxy
):
    proxy.inject(Reset(Point.REQUEST_BODY, 5000), operation="PutObject")
    with pytest.raises((BotoCoreError, OSError)):
        client.put_object(Bucket=bucket.name, Key="key", Body=bytes(100_000))
    assert get() == BODY


def test_lost_answer_means_that_the_work_is_done(
    client, bucket: Bucket, get: Fetch, proxy: FaultProxy
):
    proxy.inject(LOST_ANSWER, operation="PutObject", count=1)
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket=bucket.name, Key="key", Body=b"new")
    assert get() == b"new"
    assert proxy.log[0].status is None


def test_hang_ends_when_the_client_leaves(bucket: Bucket, proxy: FaultProxy):
    proxy.inject(Hang(Point.REQUEST))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert eventually(lambda: proxy.log[0].seconds is not None)


def test_cut_closes_in_the_middle_of_the_body(get: Fetch, proxy: FaultProxy):
    proxy.inject(Cut(5000), count=1)
    with pytest.raises(BotoCoreError):
        get()
    assert proxy.log[0].sent == 5000


def test_honest_cut_looks_like_a_short_object(get: Fetch, proxy: FaultProxy):
    proxy.inject(Cut(5000, honest=True), count=1)
    assert get() == BODY[:5000]


def test_flip_changes_one_bit_of_an_answer(get: Fetch, proxy: FaultProxy):
    proxy.inject(Flip(70_000), count=1)
    damaged = get()
    assert [index for index, byte in enumerate(BODY) if damaged[index] != byte] == [70_000]
    assert damaged[70_000] == BODY[70_000] ^ 1


def test_flip_changes_one_bit_of_a_request(client, bucket: Bucket, get: Fetch, proxy: FaultProxy):
    proxy.inject(Flip(3, request=True), operation="PutObject")
    presigned = client.generate_presigned_url("put_object", {"Bucket": bucket.name, "Key": "key"})
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port)
    connection.request("PUT", presigned.partition(str(proxy.port))[2], body=b"aaaaaa")
    assert connection.getresponse().status == 200
    connection.close()
    assert get() == b"aaa`aa"


def test_twice_delivers_the_request_twice(client, bucket: Bucket, s3, proxy: FaultProxy):
    s3.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    proxy.inject(Twice(), operation="PutObject")
    client.put_object(Bucket=bucket.name, Key="twice", Body=BODY)
    versions = s3.list_object_versions(Bucket=bucket.name, Prefix="twice")["Versions"]
    assert [version["Size"] for version in versions] == [len(BODY)] * 2


def test_throttle_holds_the_rate(get: Fetch, proxy: FaultProxy):
    rate = 2 * len(BODY)
    proxy.inject(Throttle(rate), operation="GetObject")
    started = time.monotonic()
    assert get() == BODY
    assert 0.4 <= time.monotonic() - started < 2


def test_down_refuses_and_up_comes_back(get: Fetch, proxy: FaultProxy):
    assert get() == BODY
    proxy.down()
    with pytest.raises((EndpointConnectionError, ConnectionClosedError)):
        get()
    with pytest.raises(EndpointConnectionError):
        get()
    proxy.up()
    assert get() == BODY


def test_rules_choose_their_requests(client, bucket: Bucket, proxy: FaultProxy):
    rule = proxy.inject(SLOW_DOWN, method="GET", path="/key$", skip=1, count=2)

    def works() -> bool:
        try:
            client.get_object(Bucket=bucket.name, Key="key")["Body"].read()
        except ClientError:
            return False
        return True

    client.head_object(Bucket=bucket.name, Key="key")
    assert [works() for _ in range(5)] == [True, False, False, True, True]
    assert (rule.matched, rule.hits) == (5, 2)
    proxy.clear()
    proxy.inject(SLOW_DOWN, query="prefix=missing")
    assert works()


def test_probability_is_seeded(bucket: Bucket, weed):
    def hits(seed: int) -> list[bool]:
        with FaultProxy(weed.url, seed=seed) as proxy:
            proxy.inject(SLOW_DOWN, probability=0.3)
            for _ in range(40):
                proxy.begin(Request("GET", "/bucket/key", "", {}))
            return [bool(exchange.faults) for exchange in proxy.log]

    assert hits(1) == hits(1)
    assert hits(1) != hits(2)
    assert 3 < sum(hits(1)) < 25


def test_many_connections_at_once(get: Fetch, proxy: FaultProxy):
    with ThreadPoolExecutor(16) as pool:
        assert all(body == BODY for body in pool.map(lambda _: get(), range(64)))
    assert proxy.counts() == {"GetObject": 64}


def test_leaves_no_threads_behind(weed):
    before = threading.active_count()
    with FaultProxy(weed.url) as proxy:
        connections = [
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) for _ in range(5)
        ]
        assert eventually(lambda: len(proxy.connections) == 5)
    assert threading.active_count() == before
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "operation"),
    [
        ("GET", "/", "", {}, "ListBuckets"),
        ("GET", "/b", "list-type=2&prefix=x", {}, "ListObjects"),
        ("GET", "/b/", "location", {}, "GetBucketLocation"),
        ("POST", "/b", "delete", {}, "DeleteObjects"),
        ("HEAD", "/b", "", {}, "HeadBucket"),
        ("PUT", "/b/k", "", {}, "PutObject"),
        ("PUT", "/b/k", "", {"x-amz-copy-source": "b/o"}, "CopyObject"),
        ("POST", "/b/k", "uploads", {}, "CreateMultipartUpload"),
        ("PUT", "/b/k", "partNumber=1&uploadId=u", {}, "UploadPart"),
        ("PUT", "/b/k", "partNumber=1&uploadId=u", {"x-amz-copy-source": "b/o"}, "UploadPartCopy"),
        ("POST", "/b/k", "uploadId=u", {}, "CompleteMultipartUpload"),
        ("DELETE", "/b/k", "uploadId=u", {}, "AbortMultipartUpload"),
        ("DELETE", "/b/k", "", {}, "DeleteObject"),
    ],
)
def test_operations_have_their_names(
    method: str, path: str, query: str, headers: dict[str, str], operation: str
):
    assert Request(method, path, query, headers).operation == operation


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until *condition* holds; return whether it ever did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
