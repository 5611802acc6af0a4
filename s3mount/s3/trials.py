"""Trials beyond what the client needs to know: what people should know of their store."""

import base64
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import trio

from s3mount.errors import Corrupt, Damaged, InvalidRange, InvalidRequest, NotFound, StoreError
from s3mount.s3 import checksum
from s3mount.s3.client import S3Client
from s3mount.s3.scratch import purge

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 10.0
_ORDERED = ("d-x", "d.y", "d/1", "d/sub/3", "da")
WORKS, REFUSED, PRETENDS = "works", "refused", "pretends"
_DIGESTS: Mapping[str, Callable[[bytes], bytes]] = {
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
}
_METADATA_SIZE = 1900  # bytes; AWS takes 2048, names included


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found; None where it could not be tried.

    `refused_names` are forms of names that the store does not keep as they are; `renaming` and
    `appending` tell what became of calls that only some stores have (`WORKS`, `REFUSED`, or
    `PRETENDS`: it answers 200 and does something else); `algorithms` are checksums that it
    compares with what arrives; `file_and_folder` whether ``a`` and ``a/b`` can both be objects.
    """

    sorted_listing: bool | None = None
    minimum_part: bool | None = None
    refuses_damage: bool | None = None
    large_metadata: bool | None = None
    refused_names: tuple[str, ...] | None = None
    renaming: str | None = None
    appending: str | None = None
    algorithms: tuple[str, ...] | None = None
    file_and_folder: bool | None = None


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
            renaming=await run.outcome(run.renaming),
            appending=await run.outcome(run.appending),
            algorithms=await run.outcome(run.algorithms),
            file_and_folder=await run.outcome(run.file_and_folder),
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
        folders = {f"{self._base}{name}/" for name in ("order/d/sub", "order/d", "order", "a")}
        left = [*self._keys, *sorted(folders, key=len, reverse=True), self._base]
        for key in left:
            await self._delete(key)
        await purge(self._client, self._base)

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
        except (Corrupt, Damaged, InvalidRequest):
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

    async def renaming(self) -> str:
        """Whether RenameObject renames: many stores make an empty object, and answer 200."""
        source, target = await self._put("source", b"renamed"), self._base + "target"
        self._keys.append(target)
        try:
            await self._client.try_rename(source, target)
        except StoreError as error:
            return _refused(error)
        moved = await self._read(target) == b"renamed" and await self._read(source) is None
        return WORKS if moved else PRETENDS

    async def appending(self) -> str:
        """Whether a write at an offset appends: many stores put it into the place of the object."""
        key, headers = await self._put("log", b"one"), {"x-amz-write-offset-bytes": "3"}
        try:
            await self._client.try_put("PutObject", key, [b"two"], query="", headers=headers)
        except StoreError as error:
            return _refused(error)
        return WORKS if await self._read(key) == b"onetwo" else PRETENDS

    async def algorithms(self) -> tuple[str, ...]:
        """The checksums by which the store notices damage; the ones that are best come first."""
        names = (*checksum.ALGORITHMS, *_DIGESTS)
        return tuple([name for name in names if await self._compares(name)])

    async def _compares(self, algorithm: str) -> bool:
        """Whether a body with its checksum is taken, and one with another's is not."""
        key, header = f"{self._base}sum-{algorithm}", checksum.header_of(algorithm)
        self._keys.append(key)
        try:
            await self._try_sum(key, header, _sum(algorithm, b"sent"))
        except StoreError:
            return False
        try:
            await self._try_sum(key, header, _sum(algorithm, b"else"))
        except (Corrupt, Damaged, InvalidRequest):
            return True
        return False

    async def _try_sum(self, key: str, header: str, value: str) -> None:
        await self._client.try_put("PutObject", key, [b"sent"], query="", headers={header: value})

    async def file_and_folder(self) -> bool:
        """Whether there may be an object ``a`` beside ``a/b``."""
        try:
            keys = [await self._put("a", b"file"), await self._put("a/b", b"below")]
        except StoreError:
            return False
        return [await self._read(key) for key in keys] == [b"file", b"below"]

    async def _read(self, key: str) -> bytes | None:
        """The beginning of an object; None where there is none."""
        into = bytearray(16)
        try:
            info = await self._client.get(key, 0, [memoryview(into)], etag=None)
        except NotFound:
            return None
        except InvalidRange:
            return b""
        return bytes(into[: info.size])


def _refused(error: StoreError) -> str:
    """That the store has refused a call; raises *error* when it has not answered it."""
    if not error.status:
        raise error
    return REFUSED


def _sum(algorithm: str, data: bytes) -> str:
    """A checksum as S3 writes it."""
    if algorithm in _DIGESTS:
        return base64.b64encode(_DIGESTS[algorithm](data)).decode()
    return checksum.encode(algorithm, checksum.of_buffers(algorithm, [data]))
