"""The blocks in memory: what a reader holds stays as it is until it waits again."""

import trio

from s3mount.cache.blocks import BLOCK_SIZE, BlockCache, ObjectVersion
from s3mount.memory import MemoryBudget
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
