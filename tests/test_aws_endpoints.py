"""Which endpoint of AWS is reached, as a server sees it: dual-stack, FIPS, acceleration, ARNs.

Every name leads to a TLS proxy on loopback, behind which moto answers: it knows the hosts of AWS.
"""

import contextlib
import secrets
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from s3mount.cli.arguments import parse_arguments
from s3mount.connecting import client_for
from s3mount.demo.weed import REGION
from s3mount.errors import NoSuchBucket
from s3mount.s3.client import S3Client
from tests.faultproxy import FaultProxy
from tests.servers import Server
from tests.stores import content_of
from tests.test_s3_tls import make_certificate

ACCOUNT = "123456789012"


@pytest.fixture
def aws(moto: Server, tmp_path: Path) -> Iterator[FaultProxy]:
    """What stands for all of AWS."""
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with FaultProxy(moto.url, tls=context) as proxy:
        yield proxy


class AllNames(trio.abc.HostnameResolver):
    """Every name is the proxy's; `asked` are those that somebody wanted."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._port = urlsplit(proxy.url).port
        self.asked: set[object] = set()

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        self.asked.add((host.decode(), port))
        address = ("127.0.0.1", self._port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def hosts_reached(proxy: FaultProxy, bucket: str, *options: str) -> tuple[set[str], set]:
    """Use a bucket as a mount with *options* does; the hosts of the requests, and the names."""
    config, _ = parse_arguments([bucket, "/mnt", "--region", "us-east-1", "-o", ",".join(options)])
    names = AllNames(proxy)
    trio.socket.set_custom_hostname_resolver(names)
    proxy.clear()
    async with await client_for(config) as client:
        await use(client)
    return {exchange.request.headers["host"] for exchange in proxy.log}, names.asked


async def use(client: S3Client) -> None:
    """Write, read, list, copy, delete."""
    stored = await client.put("dir/a b", [b"content"], headers={})
    assert await content_of(client, "dir/a b") == b"content"
    try:
        await client.copy("dir/a b", "copy", headers=None, source_etag=stored.etag)
    except NoSuchBucket:  # moto knows no ARN as a source.
        assert client.bucket.startswith("arn:")
        await client.put("copy", [], headers={})
    listed = await client.list_page("", token=None, flat=True)
    assert [found.key for found in listed.objects] == ["copy", "dir/a b"]
    assert await client.delete_many(["copy"]) == {}


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ("region=us-east-1", "s3.amazonaws.com"),
        ("dual_stack", "s3.dualstack.us-east-1.amazonaws.com"),
        ("fips", "s3-fips.us-east-1.amazonaws.com"),
        ("fips,dual_stack", "s3-fips.dualstack.us-east-1.amazonaws.com"),
        ("accelerate", "s3-accelerate.amazonaws.com"),
        ("accelerate,dual_stack", "s3-accelerate.dualstack.amazonaws.com"),
    ],
)
async def test_requests_go_to_the_endpoint_of_the_option(
    aws: FaultProxy, moto: Server, monkeypatch: pytest.MonkeyPatch, options: str, host: str
):
    bucket = make_bucket(moto, monkeypatch)
    reached, names = await hosts_reached(aws, bucket, "no_verify_ssl", *options.split(","))
    assert reached == {f"{bucket}.{host}"}
    assert names == {(f"{bucket}.{host}", 443)}
    found = moto.client().get_object(Bucket=bucket, Key="dir/a b")
    assert found["Body"].read() == b"content"


async def test_an_access_point_is_reached_by_its_arn(
    aws: FaultProxy, moto: Server, monkeypatch: pytest.MonkeyPatch
):
    bucket = make_bucket(moto, monkeypatch)
    make_access_point(moto, "point", bucket)
    arn = f"arn:aws:s3:{REGION}:{ACCOUNT}:accesspoint/point"
    reached, _ = await hosts_reached(aws, arn, "no_verify_ssl")
    assert reached == {f"point-{ACCOUNT}.s3-accesspoint.{REGION}.amazonaws.com"}
    sources = {one.request.headers.get("x-amz-copy-source") for one in aws.log}
    assert sources == {None, f"{arn}/object/dir/a%20b"}
    assert moto.client().get_object(Bucket=bucket, Key="dir/a b")["Body"].read() == b"content"


def make_access_point(moto: Server, name: str, bucket: str) -> None:
    """Not by boto3: it would look for the account as a host below the one of the endpoint."""
    body = f"<CreateAccessPointRequest><Bucket>{bucket}</Bucket></CreateAccessPointRequest>"
    headers = {
        "Host": f"{ACCOUNT}.s3-control.{REGION}.amazonaws.com",
        "x-amz-account-id": ACCOUNT,
        "Authorization": f"AWS4-HMAC-SHA256 Credential=k/20260101/{REGION}/s3/aws4_request",
    }
    with contextlib.closing(HTTPConnection(urlsplit(moto.url).netloc)) as connection:
        connection.request("PUT", f"/v20180820/accesspoint/{name}", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()


def make_bucket(moto: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and the keys to it where programs look for them."""
    for name, value in moto.credentials.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{secrets.token_hex(6)}"
    moto.client().create_bucket(Bucket=bucket)
    return bucket
