"""Copies for stores whose CopyObject loses metadata: made of calls that they do right."""

from collections.abc import Mapping

import trio

from s3mount.errors import Changed, NotFound
from s3mount.s3.store import (
    MIB,
    Buffer,
    ObjectInfo,
    ObjectStore,
    PartDone,
    Precondition,
    Stored,
)

_PIECE = 8 * MIB  # What is in memory at once; also the smallest object that is sent in parts.
_CLEANING_SECONDS = 30.0
# What an object says of itself beside its metadata.
_DESCRIPTION = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
)


def description_of(info: ObjectInfo) -> dict[str, str]:
    """The headers that make another object say of itself what this one says."""
    kept = {name: info.headers[name] for name in _DESCRIPTION if name in info.headers}
    return kept | {f"x-amz-meta-{name}": value for name, value in info.metadata.items()}


async def copy_by_detour(
    store: ObjectStore,
    source: str,
    target: str,
    *,
    headers: Mapping[str, str] | None,
    source_etag: str | None,
    condition: Precondition,
) -> Stored:
    """Do what `ObjectStore.copy` does without CopyObject.

    A large object is copied as the parts of an upload where the store can do that; else, and if
    it is small, its bytes pass through here.
    """
    info = await store.head(source)
    if source_etag is not None and info.etag != source_etag:
        raise Changed(f"{source}: it is not the version that was to be copied")
    said = description_of(info) if headers is None else headers
    if info.size <= _PIECE:
        body = await _bytes_of(store, info, 0)
        return await store.put(target, [body] if body else [], headers=said, condition=condition)
    upload = await store.create_upload(target, headers=said)
    try:
        parts = await _parts_of(store, info, target, upload)
        return await store.complete_upload(target, upload, parts, condition=condition)
    except BaseException:
        with trio.move_on_after(_CLEANING_SECONDS, shield=True):
            await store.abort_upload(target, upload)
        raise


async def _parts_of(
    store: ObjectStore, info: ObjectInfo, target: str, upload: str
) -> list[PartDone]:
    if store.capabilities.copy_part:
        whole = await store.copy_part(
            target, upload, 1, source=info.key, start=0, stop=info.size, source_etag=info.etag
        )
        return [whole]
    # Parts of one size that is enough for 10,000 of them, as some stores want it.
    step = max(_PIECE, -(-info.size // (9_000 * MIB)) * MIB)
    parts = []
    for number, start in enumerate(range(0, info.size, step), 1):
        body = await _bytes_of(store, info, start, step)
        parts.append(await store.upload_part(target, upload, number, [body]))
    return parts


async def _bytes_of(store: ObjectStore, info: ObjectInfo, start: int, room: int = _PIECE) -> Buffer:
    """The bytes of one version from *start* on, at most *room*."""
    if not info.size:
        return b""
    into = bytearray(min(room, info.size - start))
    found = await store.get(info.key, start, [memoryview(into)], etag=info.etag or None)
    if found.size != info.size:
        raise NotFound(f"{info.key}: it was replaced while it was copied")
    return into
