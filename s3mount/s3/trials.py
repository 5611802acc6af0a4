"""Trials beyond what the client needs to know: what people should know of their store."""

import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import trio

from s3mount.errors import Corrupt, InvalidRequest, StoreError
from s3mount.s3.client import S3Client

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 10.0
_ORDERED = ("d-x", "d.y", "d/1", "d/sub/3", "da")
_METADATA_SIZE = 1900  # bytes; AWS takes 2048, names included


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found; None where it could not be tried.

    `refused_names` are forms of names that the store does not keep as they are.
    """

    sorted_listing: bool | None = None
    minimum_part: bool | None = None
    refuses_damage: bool | None = None
    large_metadata: bool | None = None
    refused_names: tuple[str, ...] | None = None


async def try_more(client: S3Client, scratch_prefix: str) -> Facts:
    """Try the store on keys under *scratch_prefix*, which are removed; raises no `StoreError`."""
    brief = client.assuming(client.capabilities, _TIMEOUT_SECONDS)
    run = _Trials(brief, f"{scratch_prefix}trial-{uuid.uuid4()}/")
    try:
        return Facts(
            sorted_listing=await run.outcome(run.sorted_listing),
            minimum_part=await run.outcome(run.minimum_part),
            refuses_damage=await run.outcome(run.refuses_damage),
            large_metadata=await run.outcome(run.large_metadata),
            refused_names=await run.outcome(run.refused_names),
        )
    finally:
        with trio.move_on_after(_TIMEOUT_SECONDS, shield=True):
            await run.clean_up()


class _Trials:
    """One run of the trials; each raises `StoreError` when it cannot be made."""

    def __init__(self, client: S3Client, base: str) -> None:
        self._client = client
        self._base = base
        self._keys: list[str] = []

    async def outcome(self, trial: Callable[[], Awaitable[_T]]) -> _T | None:
        """What a trial finds, or None."""
        try:
            return await trial()
        except StoreError:
            return None

    async def clean_up(self) -> None:
        """Remove what the trials have left."""
        # Some stores make a folder of every prefix, and keep it when it is empty.
        folders = {f"{self._base}{name}/" for name in ("order/d/sub", "order/d", "order")}
        left = [*self._keys, *sorted(folders, key=len, reverse=True), self._base]
        for key in left:
            await self._delete(key)

    async def _delete(self, key: str) -> None:
        with contextlib.suppress(StoreError):
            await self._client.delete(key)

    async def _put(
        self,
        name: str,
        body: bytes = b"x",
        headers: Mapping[str, str] | None = None,
        crc: int | None = None,
    ) -> str:
        key = self._base + name
        self._keys.append(key)
        await self._client.put(key, [body], headers=headers or {}, crc=crc)
        return key

    async def sorted_listing(self) -> bool:
        """Whether a listing is in the order of UTF-8, as that of AWS."""
        for name in _ORDERED:
            await self._put(f"order/{name}")
        page = await self._client.list_page(f"{self._base}order/", token=None, flat=True)
        listed = [found.key for found in page.objects]
        return listed == sorted(listed, key=str.encode)

    async def minimum_part(self) -> bool:
        """Whether parts under 5 MiB are refused, as AWS does."""
        key = f"{self._base}parts"
        self._keys.append(key)
        upload = await self._client.create_upload(key, headers={})
        try:
            parts = [await self._client.upload_part(key, upload, n, [b"x"]) for n in (1, 2)]
            await self._client.complete_upload(key, upload, parts)
        except InvalidRequest:
            return True
        finally:
            with contextlib.suppress(StoreError):
                await self._client.abort_upload(key, upload)
        return False

    async def refuses_damage(self) -> bool | None:
        """Whether a body that does not fit its checksum is refused."""
        if self._client.capabilities.checksum is None:
            return None
        try:
            await self._put("damage", b"what was sent", crc=1)
        except (Corrupt, InvalidRequest):
            return True
        return False

    async def large_metadata(self) -> bool:
        """Whether metadata of the size that AWS allows come back."""
        value = "m" * _METADATA_SIZE
        try:
            key = await self._put("metadata", headers={"x-amz-meta-probe": value})
            found = await self._client.head(key)
        except StoreError:
            return False
        return found.metadata.get("probe") == value

    async def refused_names(self) -> tuple[str, ...]:
        """The forms of names that the store does not keep: the probe has tried them."""
        return self._client.capabilities.refused_names
