"""Fixtures of the tests through the kernel: one mount a module, a new directory for each test.

A mount takes a second to start, so tests that need nothing special share one; what its log
complains about fails the module when it ends.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3mount.s3.escaping import PREFIX
from tests.conftest import unavailable
from tests.faultproxy import FaultProxy
from tests.mounts import Bucket, Mount, Mounter, why_no_mounts
from tests.servers import DEFAULT_SERVER, Server


@dataclass(frozen=True, slots=True)
class Shared:
    """One bucket with its mounts, which the tests of a module share."""

    bucket: Bucket
    server: Server
    mounter: Mounter
    mounts: tuple[Mount, ...]
    proxy: FaultProxy | None = None

    @property
    def root(self) -> Path:
        """Where the (first) mount is."""
        return self.mounts[0].path

    @property
    def s3(self):
        """The boto3 client of the server."""
        return self.server.client()

    def put(self, path: Path, body: bytes, **how) -> None:
        """Put an object where the mount shows *path*, as somebody else would."""
        self.s3.put_object(Bucket=self.bucket.name, Key=self.key(path), Body=body, **how)

    def get(self, path: Path) -> bytes:
        """The bytes of the object that the mount shows as *path*."""
        found = self.s3.get_object(Bucket=self.bucket.name, Key=self.key(path))
        return found["Body"].read()

    def head(self, path: Path):
        """What the store says of the object that the mount shows as *path*."""
        return self.s3.head_object(Bucket=self.bucket.name, Key=self.key(path))

    def delete(self, path: Path) -> None:
        """Delete the object that the mount shows as *path*."""
        self.s3.delete_object(Bucket=self.bucket.name, Key=self.key(path))

    def all_keys(self, directory: Path | None = None) -> list[str]:
        """All keys under a directory of the mount; of the whole bucket by default.

        A marker of a directory that the store has to keep inside is told as ``d/`` all the same.
        """
        prefix = f"{self.key(directory)}/" if directory else ""
        found = keys_of(self.bucket, self.s3, prefix)
        return [key.removesuffix(PREFIX) if key.endswith(f"/{PREFIX}") else key for key in found]

    def key(self, path: Path) -> str:
        """The key of the object that one of the mounts shows as *path*."""
        root = next(one.path for one in self.mounts if path.is_relative_to(one.path))
        return str(path.relative_to(root))


def keys_of(bucket: Bucket, client, prefix: str = "") -> list[str]:
    """All keys of a bucket under *prefix*."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


@pytest.fixture(scope="module")
def sharing(
    server_of: Callable[[str], Server], tmp_path_factory: pytest.TempPathFactory
) -> Callable:
    """``with sharing(*options) as shared``: a bucket on *server*, and *mounts* mounts of it.

    With *proxied* all requests go through a fault proxy, which costs time.
    """

    @contextmanager
    def share(
        *options: str, mounts: int = 1, server: str = DEFAULT_SERVER, proxied: bool = False
    ) -> Iterator[Shared]:
        if reason := why_no_mounts():
            unavailable(reason)
        chosen = server_of(server)
        bucket = Bucket(f"test-{secrets.token_hex(6)}", chosen.url, chosen.credentials)
        chosen.client().create_bucket(Bucket=bucket.name)
        mounter = Mounter(tmp_path_factory.mktemp("shared"))
        proxy = FaultProxy(chosen.url) if proxied else None
        with proxy or nullcontext():
            url = proxy.url if proxy else chosen.url
            try:
                made = tuple(mounter(bucket, *options, url=url) for _ in range(mounts))
                yield Shared(bucket, chosen, mounter, made, proxy)
            finally:
                mounter.finish()

    return share


@pytest.fixture(scope="module")
def shared(sharing: Callable) -> Iterator[Shared]:
    """A bucket with one mount of it; modules that want another override this."""
    with sharing() as shared:
        yield shared


@pytest.fixture
def work(shared: Shared) -> Path:
    """A new directory in the mount."""
    path = shared.root / f"work-{secrets.token_hex(4)}"
    path.mkdir()
    return path


@pytest.fixture
def cold(shared: Shared) -> Path:
    """A directory that is not there yet, and that the mount has never heard of."""
    return shared.root / f"cold-{secrets.token_hex(4)}"


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """The proxy of the shared mount, if the test has that; else one before the server of `bucket`.

    Every test begins and ends with the store there, and without faults.
    """
    shared = request.getfixturevalue("shared") if "shared" in request.fixturenames else None
    if shared is None or shared.proxy is None:
        with FaultProxy(request.getfixturevalue("server").url) as proxy:
            yield proxy
        return
    yield shared.proxy
    shared.proxy.clear()
    shared.proxy.deliver_late()
    if shared.proxy.is_down:
        shared.proxy.up()
