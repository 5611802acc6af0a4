"""Our own client on the buckets of the tests' servers."""

import os
import secrets
from urllib.parse import urlsplit

from s3mount.s3.client import S3Client
from s3mount.s3.endpoint import Credentials, EndpointSettings, FixedCredentials
from s3mount.s3.features import PLAIN, Features
from s3mount.s3.store import Capabilities
from tests.mounts import Bucket
from tests.servers import Server

_SHARED: dict[str, Bucket] = {}


def shared_bucket(server: Server) -> Bucket:
    """The bucket that all tests of the client share on *server*, each under a prefix of its own.

    SeaweedFS gives every bucket volumes of its own, and runs out of them.
    """
    if server.url not in _SHARED:
        name = f"shared-{secrets.token_hex(6)}"
        server.client().create_bucket(Bucket=name)
        _SHARED[server.url] = Bucket(name, server.url, server.credentials)
    return _SHARED[server.url]


def own_prefix() -> str:
    """A prefix that nobody else uses."""
    return f"{secrets.token_hex(6)}/dir/"


def settings_for(
    url: str, bucket: str, ca_bundle: str | None = None, signature: str = "v4"
) -> EndpointSettings:
    """Describe *bucket* at *url* in path style."""
    address = urlsplit(url)
    return EndpointSettings(
        scheme=address.scheme,
        host=address.hostname or "",
        port=address.port or (443 if address.scheme == "https" else 80),
        root=f"/{bucket}",
        region="us-east-1",
        ca_bundle=ca_bundle,
        signature=signature,
    )


def client_for(
    bucket: Bucket,
    *,
    url: str | None = None,
    prefix: str = "",
    timeout: float = 20.0,
    max_connections: int = 8,
    capabilities: Capabilities | None = None,
    credentials: object = None,
    ca_bundle: str | None = None,
    signature: str = "v4",
    features: Features = PLAIN,
) -> S3Client:
    """Make a client for *bucket*, through *url* if that is not its server's."""
    pair = FixedCredentials(
        Credentials(bucket.credentials.access_key, bucket.credentials.secret_key)
    )
    return S3Client(
        settings_for(url or bucket.url, bucket.name, ca_bundle, signature),
        credentials or pair,
        bucket.name,
        prefix,
        capabilities=capabilities or Capabilities(),
        timeout=timeout,
        max_connections=max_connections,
        features=features,
    )


async def content_of(client: S3Client, key: str, *, start: int = 0, room: int = 1 << 20) -> bytes:
    """Return the bytes of an object from *start* on, at most *room*."""
    into = bytearray(room)
    info = await client.get(key, start, [memoryview(into)], etag=None)
    return bytes(into[: max(0, min(info.size - start, room))])


def random_bytes(size: int) -> bytes:
    """Bytes that no compression or deduplication can do anything with."""
    return os.urandom(size)
