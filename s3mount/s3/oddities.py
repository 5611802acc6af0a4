"""Trials of what stores do in their own way to names and directories; the keys are removed."""

from collections.abc import Awaitable, Callable, Mapping

import trio

from s3mount.errors import Denied, StoreError
from s3mount.s3.escaping import MARKER, SAMPLES
from s3mount.s3.reading import BucketReader
from s3mount.s3.scratch import discard
from s3mount.s3.store import ObjectStore


async def refused_names(client: ObjectStore, folder: str) -> tuple[str, ...]:
    """The forms of names that the store refuses, or keeps under other names.

    *folder* is a prefix that nobody else uses.  Raises `StoreError` when it cannot be tried.
    """
    failed: dict[str, StoreError] = {}
    versions: dict[str, str | None] = {}

    async def put(form: str, key: str) -> None:
        body = [] if form == MARKER else [b"x"]  # versitygw takes no directory with content.
        try:
            versions[key] = (await client.put(key, body, headers={})).version_id
        except StoreError as error:
            failed[form] = error

    keys = {form: folder + name for form, name in SAMPLES.items()}
    await _together(put, keys)
    listed: list[str] = []
    try:
        page = await client.list_page(folder, token=None, flat=True)
        listed = [found.key for found in page.objects]
    finally:
        await _remove(client, folder, {**dict.fromkeys(listed), **versions})
    if any(isinstance(error, Denied) or not error.status for error in failed.values()):
        return ()  # It is not about names.
    lost = {form for form, key in keys.items() if form in failed or key not in listed}
    if MARKER not in failed and keys[MARKER].removesuffix("/") not in listed:
        lost.discard(MARKER)  # It is kept as a directory, which some stores do not list.
    return tuple([form for form in keys if form in lost])


async def names_refused_to_readers(client: BucketReader, folder: str) -> tuple[str, ...]:
    """The forms of names that the store refuses even to look for.

    It is less than `refused_names` finds, and all that can be found without writing.
    """
    refused: set[str] = set()

    async def look(form: str, key: str) -> None:
        if await client.refuses_to_look_for(key):
            refused.add(form)

    plain = "plain"
    await _together(look, {plain: folder, **{one: folder + name for one, name in SAMPLES.items()}})
    return () if plain in refused else tuple([form for form in SAMPLES if form in refused])


async def prefixes_vanish(client: ObjectStore, folder: str) -> bool:
    """Whether a directory whose marker and objects are deleted is not listed any more."""
    await client.put(f"{folder}x", [b"x"], headers={})
    await client.delete(f"{folder}x")
    await client.delete(folder)
    page = await client.list_page(folder.removesuffix("/"), token=None)
    return folder not in page.prefixes


async def _remove(client: ObjectStore, folder: str, keys: Mapping[str, str | None]) -> None:
    """Delete keys, each with the version that was written; and what may be directories now.

    Not every store can list versions of odd names, so these are not left for that.
    """

    async def delete(_: str, key: str) -> None:
        try:
            if not await discard(client, key, keys.get(key)):
                await client.delete(key)
        except StoreError:
            return  # What was refused is not there.

    await _together(delete, {key: key for key in keys})
    parents = {key[: key.rfind("/") + 1] for key in keys if "//" not in key and "/." not in key}
    for parent in sorted({*parents, folder}, key=len, reverse=True):
        if parent.startswith(folder):
            await delete("", parent)


async def _together(work: Callable[[str, str], Awaitable[None]], items: Mapping[str, str]) -> None:
    async with trio.open_nursery() as nursery:
        for name, key in items.items():
            nursery.start_soon(work, name, key)
