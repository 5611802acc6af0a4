"""Removes for good what trials have left in a bucket that keeps versions."""

from collections.abc import Sequence

import trio

from s3mount.errors import StoreError
from s3mount.s3.store import ListedVersion, ObjectStore
from s3mount.s3.versions import HistoryClient

_AT_ONCE = 16


async def purge(client: object, prefix: str) -> None:
    """Delete all versions of what is under *prefix*, which nobody else uses, and their markers.

    A store that does not list versions, or not to us, keeps what it has.
    """
    if not isinstance(client, HistoryClient):
        return
    try:
        if not await client.keeps_versions():
            return
        token: str | None = None
        while True:
            page = await client.list_versions(prefix, token=token, flat=True)
            await _delete_all(client, page.versions)
            token = page.token
            if token is None:
                return
    except StoreError:
        return


async def sweep(client: ObjectStore, prefix: str) -> None:
    """Delete what is still listed under *prefix*, which nobody else uses, though it was deleted.

    ``rclone serve s3`` loses track of objects that are written while it reads their directory
    anew, and deletes them only when they have been written once more.  What the store does not
    list, or not to us, is left to it.
    """
    try:
        page = await client.list_page(prefix, token=None, flat=True)
        for found in page.objects:
            if not found.key.endswith("/"):  # Directories that are gone are listed by many.
                await client.put(found.key, [], headers={})
                await client.delete(found.key)
    except StoreError:
        return


async def discard(client: object, key: str, version_id: str | None) -> bool:
    """Delete the version that has just been written, if it is one; say whether it was."""
    if not version_id or not isinstance(client, HistoryClient):
        return False
    await client.delete_version(key, version_id)
    return True


async def _delete_all(client: HistoryClient, versions: Sequence[ListedVersion]) -> None:
    """Delete versions, many at once.  Raises the first `StoreError`."""
    remaining, errors = iter(versions), list[StoreError]()

    async def work() -> None:
        for version in remaining:
            try:
                await client.delete_version(version.key, version.id)
            except StoreError as error:
                errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(work)
    if errors:
        raise errors[0]
