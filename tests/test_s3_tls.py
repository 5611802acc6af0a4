"""TLS: verified by default, a certificate of one's own by its bundle."""

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from s3mount.errors import MountError, Unavailable
from s3mount.s3.client import S3Client
from s3mount.s3.endpoint import Credentials, FixedCredentials
from s3mount.s3.store import Capabilities, FileSlice
from tests.faultproxy import FaultProxy
from tests.faults import Point, Reset
from tests.mounts import Bucket
from tests.servers import Server
from tests.stores import client_for, content_of, random_bytes, settings_for, shared_bucket


def make_certificate(directory: Path, address: str) -> tuple[Path, Path]:
    """Make a certificate for *address* that signs itself; return its and its key's path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of the tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.fixture
def bucket(weed: Server) -> Bucket:
    return shared_bucket(weed)


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_certificate(tmp_path, "127.0.0.1")[0])


@pytest.fixture
def tls_proxy(weed: Server, bundle: str) -> Iterator[FaultProxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, Path(bundle).with_name("key.pem"))
    with FaultProxy(weed.url, tls=context) as proxy:
        yield proxy


async def test_everything_works_over_tls(
    bucket: Bucket, tls_proxy: FaultProxy, bundle: str, tmp_path: Path
):
    data = random_bytes(3_000_000)
    path = tmp_path / "body"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    async with client_for(bucket, url=tls_proxy.url, ca_bundle=bundle) as client:
        assert await client.check_bucket()
        try:
            await client.put("slice", FileSlice(descriptor, 5, len(data)), headers={})
        finally:
            os.close(descriptor)
        await client.put("buffers", [data[:7], data[7:]], headers={})
        await client.put("small", [b"12", b"34"], headers={})
        assert await content_of(client, "slice", room=len(data)) == data[5:]
        assert await content_of(client, "buffers", room=len(data)) == data
        assert await content_of(client, "small") == b"1234"
        assert client.statistics.connections == 1


async def test_a_break_over_tls_is_resumed(bucket: Bucket, tls_proxy: FaultProxy, bundle: str):
    data = random_bytes(2_000_000)
    async with client_for(bucket, url=tls_proxy.url, ca_bundle=bundle) as client:
        await client.put("file", [data], headers={})
        tls_proxy.inject(Reset(Point.BODY, 500_000), operation="GetObject", count=1)
        assert await content_of(client, "file", room=len(data)) == data
        assert client.statistics.retries == 1


async def test_many_at_once_over_tls(bucket: Bucket, tls_proxy: FaultProxy, bundle: str):
    async with client_for(bucket, url=tls_proxy.url, ca_bundle=bundle) as client:
        data = random_bytes(400_000)

        async def use(number: int) -> None:
            await client.put(f"file-{number}", [data], headers={})
            assert await content_of(client, f"file-{number}") == data

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(use, number)
        assert client.statistics.connections <= 8


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    bucket: Bucket, tls_proxy: FaultProxy
):
    async with client_for(bucket, url=tls_proxy.url) as client:
        with trio.fail_after(5), pytest.raises(Unavailable, match="not trusted"):
            await client.head("file")
    assert not tls_proxy.log


async def test_a_certificate_for_another_host_is_refused(
    bucket: Bucket, tls_proxy: FaultProxy, bundle: str
):
    url = tls_proxy.url.replace("127.0.0.1", "localhost")
    async with client_for(bucket, url=url, ca_bundle=bundle) as client:
        with trio.fail_after(5), pytest.raises(Unavailable, match="not trusted"):
            await client.head("file")


async def test_verification_can_be_turned_off(bucket: Bucket, tls_proxy: FaultProxy):
    settings = replace(settings_for(tls_proxy.url, bucket.name), verify_ssl=False)
    pair = Credentials(bucket.credentials.access_key, bucket.credentials.secret_key)
    client = S3Client(
        settings,
        FixedCredentials(pair),
        bucket.name,
        "",
        capabilities=Capabilities(),
        timeout=5,
        max_connections=2,
    )
    async with client:
        assert await client.check_bucket()


async def test_tls_to_a_plain_server_is_said_so(bucket: Bucket):
    url = bucket.url.replace("http:", "https:")
    async with client_for(bucket, url=url, timeout=2.0) as client:
        with pytest.raises(Unavailable, match="TLS"):
            await client.head("file")


async def test_a_plain_client_of_a_tls_server_is_told(bucket: Bucket, tls_proxy: FaultProxy):
    url = tls_proxy.url.replace("https:", "http:")
    async with client_for(bucket, url=url, timeout=2.0) as client:
        with pytest.raises(Unavailable):
            await client.check_bucket()


def test_a_bundle_that_is_none_is_refused(tmp_path: Path):
    for content in (None, b"no certificate"):
        path = tmp_path / "bundle"
        if content is not None:
            path.write_bytes(content)
        settings = settings_for("https://127.0.0.1:1", "bucket", str(path))
        with pytest.raises(MountError, match="CA bundle"):
            S3Client(
                settings,
                None,
                "bucket",
                "",
                capabilities=Capabilities(),
                timeout=1,
                max_connections=1,
            )
