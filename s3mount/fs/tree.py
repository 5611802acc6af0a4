"""Moving and removing whole trees of objects, many at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import trio

from s3mount.errors import NotFound, StoreError
from s3mount.fs.namespace import kept_headers
from s3mount.s3.store import (
    ALWAYS,
    MAX_COPY_SIZE,
    ListedObject,
    ObjectStore,
    PartDone,
    Precondition,
    Stored,
)

PARALLEL_COPIES = 32
DELETE_BATCH = 1000  # S3's limit of DeleteObjects.
COPY_PART_SIZE = 1 << 30


class TreeMover:
    """Copies all objects under a prefix to another one, and then deletes them."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def move(self, old: str, new: str) -> dict[str, str]:
        """Move everything under *old* to *new*; the new ETags by new key.

        Nothing is deleted before everything is copied, so a failure leaves the old tree
        whole.  What was copied by then is removed again.  Raises `StoreError`.
        """
        objects = [listed async for page in self._pages(old) for listed in page]
        moved: dict[str, str] = {}
        try:
            await self._copy_all(objects, old, new, moved)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await self._store.delete_many(list(moved))
            raise
        await self._delete_tree([listed.key for listed in objects], old)
        return moved

    async def _delete_tree(self, keys: Sequence[str], prefix: str) -> None:
        """Delete the objects of a tree, the directories last and from the inside out.

        Also those that have no marker: some stores (SeaweedFS) go on listing a directory
        after its last object has gone, and refuse to make a file of its name.
        """
        directories = {prefix}
        for key in keys:
            end = key.rfind("/", len(prefix))
            while end >= 0 and key[: end + 1] not in directories:
                directories.add(key[: end + 1])
                end = key.rfind("/", len(prefix), end)
        await self.delete([key for key in keys if not key.endswith("/")])
        await self.delete(sorted(directories, key=lambda name: (-name.count("/"), name)))

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects in batches; raises the first failure."""
        failures: list[StoreError] = []

        async def delete(batch: Sequence[str]) -> None:
            try:
                failures.extend((await self._store.delete_many(batch)).values())
            except StoreError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for start in range(0, len(keys), DELETE_BATCH):
                nursery.start_soon(delete, keys[start : start + DELETE_BATCH])
        if failures:
            raise failures[0]

    async def _pages(self, prefix: str) -> AsyncIterator[Sequence[ListedObject]]:
        token: str | None = None
        while True:
            page = await self._store.list_page(prefix, token=token, flat=True)
            yield page.objects
            token = page.token
            if token is None:
                return

    async def _copy_all(
        self, objects: Sequence[ListedObject], old: str, new: str, moved: dict[str, str]
    ) -> None:
        errors: list[StoreError] = []
        queue = iter(objects)

        async def work() -> None:
            for listed in queue:
                target = new + listed.key[len(old) :]
                try:
                    moved[target] = (await copy_object(self._store, listed, target)).etag
                except StoreError as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL_COPIES, len(objects))):
                nursery.start_soon(work)
        if errors:
            raise errors[0]


async def copy_object(
    store: ObjectStore, source: ListedObject, target: str, condition: Precondition = ALWAYS
) -> Stored:
    """Copy one object with its metadata, in parts where it is too large for one request."""
    if source.size <= MAX_COPY_SIZE:
        try:
            return await store.copy(
                source.key, target, headers=None, source_etag=source.etag, condition=condition
            )
        except NotFound:
            if not source.key.endswith("/"):
                raise
            # SeaweedFS shows the marker of a directory everywhere, and cannot copy it.
            headers = await _headers(store, source.key)
            return await store.put(target, [], headers=headers, condition=condition)
    upload_id = await store.create_upload(target, headers=await _headers(store, source.key))
    try:
        parts = await _copy_parts(store, source, target, upload_id)
        return await store.complete_upload(target, upload_id, parts, condition=condition)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await store.abort_upload(target, upload_id)
        raise


async def _copy_parts(
    store: ObjectStore, source: ListedObject, target: str, upload_id: str
) -> Sequence[PartDone]:
    """Copy an object part by part, many at a time."""
    done: dict[int, PartDone] = {}
    failures: list[StoreError] = []

    async def copy(number: int, start: int) -> None:
        stop = min(start + COPY_PART_SIZE, source.size)
        try:
            done[number] = await store.copy_part(
                target,
                upload_id,
                number,
                source=source.key,
                start=start,
                stop=stop,
                source_etag=source.etag,
            )
        except StoreError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number, start in enumerate(range(0, source.size, COPY_PART_SIZE), 1):
            nursery.start_soon(copy, number, start)
    if failures:
        raise failures[0]
    return [done[number] for number in sorted(done)]


async def _headers(store: ObjectStore, key: str) -> dict[str, str]:
    """What an object says about itself, as a new one is told it."""
    headers = dict(kept_headers(await store.head(key), ours=()))
    headers.setdefault("content-type", "application/octet-stream")
    return headers
