"""The blocks in memory: what a reader holds stays as it is until it waits again."""

import time
from pathlib import Path

import pytest
import trio

from s3mount.cache import disk as disk_module
from s3mount.cache.blocks import BLOCK_SIZE, BlockCache, ObjectVersion
from s3mount.cache.disk import BlockDisk
from s3mount.cache.readahead import LARGE, ReadAhead
from s3mount.errors import Corrupt
from s3mount.memory import MemoryBudget
from tests.faultproxy import FaultProxy
from tests.faults import Delay, Flip
from tests.servers import Server
from tests.stores import client_for, own_prefix, random_bytes, shared_bucket

COUNT = 24  # Blocks: more than the memory of unused ones that is kept warm.


async def test_bytes_that_are_dropped_for_their_own_copy_stay_until_it_is_made(weed: Server):
    body = random_bytes(COUNT * BLOCK_SIZE)
    async with (
        client_for(shared_bucket(weed), prefix=own_prefix()) as client,
        trio.open_nursery() as nursery,
    ):
        stored = await client.put("file", [body], headers={})
        version = ObjectVersion("file", stored.etag, len(body))
        budget = MemoryBudget(COUNT * BLOCK_SIZE)
        cache = BlockCache(client, budget, nursery, None, verify=False)
        for number in range(COUNT - 1):
            await cache.read(version, number * BLOCK_SIZE, (number + 1) * BLOCK_SIZE)
        view = await cache.read(version, len(body) - BLOCK_SIZE, len(body))
        assert budget.try_take(budget.limit)  # As staging does for what is to be changed.
        unchanged = view == body[-BLOCK_SIZE:]
        assert unchanged
        nursery.cancel_scope.cancel()


async def test_reading_a_large_file_in_order_takes_little_memory(weed: Server):
    body = random_bytes(LARGE + 16 * BLOCK_SIZE)
    async with (
        client_for(shared_bucket(weed), prefix=own_prefix()) as client,
        trio.open_nursery() as nursery,
    ):
        stored = await client.put("file", [body], headers={})
        version = ObjectVersion("file", stored.etag, len(body))
        budget = MemoryBudget(2 * len(body))
        cache = BlockCache(client, budget, nursery, None, verify=True)
        reader, most = ReadAhead(cache, 8 * BLOCK_SIZE), 0
        for start in range(0, len(body), BLOCK_SIZE):
            view = await reader.read(version, start, start + BLOCK_SIZE)
            unchanged = view == body[start : start + BLOCK_SIZE]
            assert unchanged
            most = max(most, budget.used)
        assert most < 40 * BLOCK_SIZE
        assert cache.fetched_bytes == len(body)
        # What is left behind can be had again.
        again = await reader.read(version, 0, 10)
        assert again == body[:10]
        nursery.cancel_scope.cancel()


async def test_damage_is_found_though_the_first_blocks_are_given_up_early(weed: Server, expect_log):
    """The checksum of the whole comes late: until then, no block goes that it is computed of."""
    expect_log("does not match the checksum")
    body = random_bytes(LARGE + 16 * BLOCK_SIZE)
    with FaultProxy(weed.url) as proxy:
        proxy.inject(Delay(3.0), method="HEAD")
        proxy.inject(Flip(10), method="GET", count=1)
        async with (
            client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client,
            trio.open_nursery() as nursery,
        ):
            stored = await client.put("file", [body], headers={})
            version = ObjectVersion("file", stored.etag, len(body))
            cache = BlockCache(client, MemoryBudget(2 * len(body)), nursery, None, verify=True)
            reader = ReadAhead(cache, 8 * BLOCK_SIZE)

            async def read_all() -> None:
                for start in range(0, len(body), BLOCK_SIZE):
                    await reader.read(version, start, start + BLOCK_SIZE)

            with pytest.raises(Corrupt):
                await read_all()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("seconds", "is_waited_for"), [(0.005, True), (0.1, False)])
async def test_a_disk_that_keeps_up_gets_everything_that_is_read(
    weed: Server, tmp_path: Path, monkeypatch, seconds: float, is_waited_for: bool
):
    """Each block takes the disk *seconds*: 200 MB/s, less than the store gives, or 10 MB/s."""
    monkeypatch.setattr(disk_module, "SLOW", 50e6)
    body = random_bytes(176 * BLOCK_SIZE)

    def checksum(data: memoryview, _seed: int) -> int:
        time.sleep(seconds)  # In the thread that writes.
        return len(data)

    async with (
        client_for(shared_bucket(weed), prefix=own_prefix()) as client,
        trio.open_nursery() as nursery,
    ):
        stored = await client.put("file", [body], headers={})
        version = ObjectVersion("file", stored.etag, len(body))
        disk = BlockDisk(tmp_path / "cache", "store", 1 << 30, 0, checksum)
        disk.open()
        nursery.start_soon(disk.run)
        cache = BlockCache(client, MemoryBudget(len(body)), nursery, disk, verify=False)
        reader = ReadAhead(cache, 32 * BLOCK_SIZE)
        began = trio.current_time()
        for start in range(0, len(body), BLOCK_SIZE):
            await reader.read(version, start, start + BLOCK_SIZE)
        took = trio.current_time() - began
        if is_waited_for:
            await disk.flush()
            assert disk.skipped == 0
            assert disk.written_bytes == len(body)
        else:
            assert disk.skipped > 0
            assert took < len(body) // BLOCK_SIZE * seconds / 2
        nursery.cancel_scope.cancel()
    disk.close()
