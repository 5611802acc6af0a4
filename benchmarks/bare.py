"""The requests of some workloads without a file system: what is left when a mount costs nothing.

A program of its own, run by `benchmarks.runner`: the data plane of s3mount sends what the
workload of the same name causes, and a JSON object says what came of it.  Where a goal is above
these figures, the server and this machine are its bound.
"""

import argparse
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from benchmarks.data import FULL, MIB, QUICK, SMALL_SIZE, Scale, small_name
from benchmarks.workloads import LARGE, NAMES, SMALL
from s3mount.s3 import session
from s3mount.s3.client import S3Client
from s3mount.s3.probe import probe
from s3mount.s3.store import Capabilities

THREADS = 16
COPIES_AT_ONCE = 32
PARTS_AT_ONCE = 8
PART = 8 * MIB
TARGET = "bare/"
PIECE = 32 << 10

Action = Callable[[int], Awaitable[object]]


async def _share(count: int, workers: int, action: Action) -> None:
    """Do *action* for each number below *count*, *workers* at once."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await action(number)

    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(work)


class Bare:
    """Does the requests of workloads on one bucket, and times them."""

    def __init__(self, client: S3Client, scale: Scale) -> None:
        self._client = client
        self._scale = scale
        self._body = memoryview(random.Random(1).randbytes(SMALL_SIZE))

    async def read(self) -> float:
        """Get the large object in ranges, in MB/s."""
        buffers = [memoryview(bytearray(PART)) for _ in range(PARTS_AT_ONCE)]

        async def get(number: int) -> None:
            buffer = buffers.pop()
            await self._client.get(f"{LARGE}file", number * PART, [buffer], etag=None)
            buffers.append(buffer)

        return await self._rate(self._scale.large // PART, PARTS_AT_ONCE, get, PART / 1e6)

    async def write(self) -> float:
        """Upload a large object in parts, in MB/s."""
        key = f"{TARGET}large"
        part = memoryview(random.Random(2).randbytes(PART))
        upload = await self._client.create_upload(key, headers={}, copies=False)
        parts = []

        async def put(number: int) -> None:
            parts.append(await self._client.upload_part(key, upload, number + 1, [part]))

        count, began = self._scale.large // PART, time.monotonic()
        await _share(count, PARTS_AT_ONCE, put)
        await self._client.complete_upload(key, upload, sorted(parts, key=lambda part: part.number))
        rate = count * PART / 1e6 / (time.monotonic() - began)
        await self._client.delete(key)
        return rate

    async def random16(self) -> float:
        """Get pieces of the large object from anywhere in it, in reads/s."""
        places = random.Random(3).sample(
            range(self._scale.large // PIECE), self._scale.random_reads * 4
        )

        async def get(number: int) -> None:
            buffer = memoryview(bytearray(PIECE))
            await self._client.get(f"{LARGE}file", places[number] * PIECE, [buffer], etag=None)

        return await self._rate(len(places), THREADS, get)

    async def small16(self) -> float:
        """Get small objects, in files/s."""

        async def get(number: int) -> None:
            buffer = memoryview(bytearray(SMALL_SIZE))
            await self._client.get(f"{SMALL}{small_name(number)}", 0, [buffer], etag=None)

        return await self._rate(self._scale.small, THREADS, get)

    async def create16(self) -> float:
        """Put small objects, in files/s."""
        rate = await self._rate(self._scale.small, THREADS, self._put)
        await self._client.delete_many(list(self._names(self._scale.small)))
        return rate

    async def rename(self) -> float:
        """Copy small objects and delete the old ones, in files/s."""
        count = self._scale.renamed
        await _share(count, THREADS, self._put)

        async def copy(number: int) -> None:
            source = f"{TARGET}{small_name(number)}"
            await self._client.copy(
                source, f"{source}.new", headers=None, source_etag=None, stored_as={}
            )

        began = time.monotonic()
        await _share(count, COPIES_AT_ONCE, copy)
        await self._client.delete_many(list(self._names(count)))
        rate = count / (time.monotonic() - began)
        await self._client.delete_many([f"{name}.new" for name in self._names(count)])
        return rate

    async def remove(self) -> float:
        """Delete small objects one after the other, in files/s."""
        count = self._scale.renamed
        await _share(count, THREADS, self._put)

        async def delete(number: int) -> None:
            await self._client.delete(f"{TARGET}{small_name(number)}")

        return await self._rate(count, 1, delete)

    async def names(self) -> float:
        """List a large directory, page after page, in entries/s."""
        count, began, token = 0, time.monotonic(), None
        while True:
            page = await self._client.list_page(NAMES, token=token)
            count, token = count + len(page.objects), page.token
            if token is None:
                return count / (time.monotonic() - began)

    async def first(self) -> float:
        """List the first page of a large directory, in ms."""
        began = time.monotonic()
        await self._client.list_page(NAMES, token=None)
        return 1000 * (time.monotonic() - began)

    async def _put(self, number: int) -> None:
        await self._client.put(f"{TARGET}{small_name(number)}", [self._body], headers={})

    @staticmethod
    def _names(count: int) -> Iterable[str]:
        return (f"{TARGET}{small_name(number)}" for number in range(count))

    @staticmethod
    async def _rate(count: int, workers: int, action: Action, worth: float = 1.0) -> float:
        began = time.monotonic()
        await _share(count, workers, action)
        return count * worth / (time.monotonic() - began)


# By the key of the row that each is put beside, with what makes one run better than another.
BARE: Mapping[str, Callable[[Iterable[float]], float]] = {
    **dict.fromkeys(("read", "write", "random16", "small16", "create16"), max),
    **dict.fromkeys(("rename", "remove", "names"), max),
    "first": min,
}


async def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    """The best of some runs of each that was asked for, by the name of its row."""
    resolved = session.resolve(
        arguments.bucket,
        endpoint_url=arguments.url,
        region=None,
        profile=None,
        path_style=None,
        no_sign_request=False,
        ca_bundle=None,
        verify_ssl=True,
        insecure_http=False,
    )
    scale = QUICK if arguments.quick else FULL
    async with _client(resolved, arguments.bucket) as client:
        client.adopt(await probe(client, TARGET))
        bare = Bare(client, scale)
        return {
            name: BARE[name]([await getattr(bare, name)() for _ in range(arguments.repeat)])
            for name in arguments.rows
        }


def _client(resolved: session.Resolved, bucket: str) -> S3Client:
    return S3Client(
        resolved.settings,
        resolved.credentials,
        bucket,
        "",
        capabilities=Capabilities(),
        timeout=60.0,
        max_connections=64,
    )


def main() -> None:
    """Measure what the command line names, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("rows", nargs="+", choices=BARE)
    print(json.dumps(trio.run(_measure, parser.parse_args())))


if __name__ == "__main__":
    main()
