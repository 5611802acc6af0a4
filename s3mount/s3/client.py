"""The object store on S3: one method a call; sending and trying again is done in `calls`."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

import trio

from s3mount.errors import (
    Changed,
    Denied,
    InvalidRequest,
    NotFound,
    StoreError,
    Unavailable,
    Unrecognised,
    Unsupported,
)
from s3mount.s3 import lost, xml
from s3mount.s3.calls import Request
from s3mount.s3.detour import copy_by_detour, description_of
from s3mount.s3.faults import class_of_refusal, one_line
from s3mount.s3.http import Answer, body_size
from s3mount.s3.multipart import MultipartUploads
from s3mount.s3.objects import (
    answered,
    checked,
    checksum_header,
    condition_headers,
    content_md5,
    digest,
    read_answer,
    refused,
    stored_of,
)
from s3mount.s3.retry import Operation
from s3mount.s3.store import (
    ALWAYS,
    Body,
    Capabilities,
    ObjectInfo,
    Precondition,
    Stored,
)
from s3mount.storing import TAG_COUNT, lasting

_DELETE_BATCH = 1000
_DELETES_AT_ONCE = 16
_BATCHES_AT_ONCE = 4
_T = TypeVar("_T")


class S3Client(MultipartUploads):
    """One bucket, seen from one prefix: an `ObjectStore`."""

    def assuming(self, capabilities: Capabilities, timeout: float) -> Self:
        """A client over the same connections that takes *capabilities* for granted.

        It is for trials, whose objects need no other storage class: an archive could not even
        be tried.
        """
        twin = copy(self)
        twin._features = self._features.without_class()
        twin.adopt(capabilities)
        twin._calls = self._calls.within(timeout)
        return twin

    async def put(
        self,
        key: str,
        body: Body,
        *,
        headers: Mapping[str, str],
        condition: Precondition = ALWAYS,
        crc: int | None = None,
    ) -> Stored:
        """Write an object; see `ObjectStore.put`."""
        heeded = self._capabilities.conditional_put
        wanted = await self._with_tags(key, checked(headers))
        made = self._features.written(key, body_size(body) if body else 0, wanted)
        customer = self._keyring.writing

        async def write(condition: Precondition) -> Stored:
            supported = self._heeds(condition, heeded)
            await self._check_condition(key, condition, supported)
            await self._let_clock_tick(key)
            sent = {**made, **condition_headers(condition, supported), **customer.headers}

            async def send(algorithm: str | None) -> Stored:
                return await self._put_once(key, body, sent, condition, algorithm, crc)

            return await self._with_checksum(send)

        stored = await self._under(key, condition, heeded, write)
        self._keyring.fits(key, customer)
        return stored

    async def _put_once(
        self,
        key: str,
        body: Body,
        headers: Mapping[str, str],
        condition: Precondition,
        algorithm: str | None,
        crc: int | None,
    ) -> Stored:
        """Send an object once, with its checksum if the store takes *algorithm*."""
        carried, crc = await checksum_header(algorithm, body, crc)
        request = Request(
            "PutObject",
            "PUT",
            key,
            self._path(key),
            headers={**headers, **carried},
            body=body,
            payload_hash=await self._payload_hash(body),
            ask_first=True,
        )
        operation = self._calls.begin()
        try:
            answer = await self._calls.call(request, operation)
        except (Changed, NotFound) as error:
            if (info := await self._found(key, headers, operation)) is not None:
                expectation = await _expectation(body, headers, algorithm, crc)
                if expectation.met_by(info):
                    return stored_of(info)
            raise refused(error, condition) from error
        except (Unavailable, trio.Cancelled):
            if operation.uncertain:
                with trio.CancelScope(shield=True):
                    expectation = await _expectation(body, headers, algorithm, crc)
                self._own_writes.add(key, expectation.met_by)
            raise
        etag = await self._new_etag(key, answer.headers.get("etag", ""))
        return answered(etag, answer, lasting(headers))

    async def _found(
        self, key: str, headers: Mapping[str, str], operation: Operation
    ) -> ObjectInfo | None:
        """What is at *key* after a refusal, if it may be what we have written by *headers*.

        Also without a failure: on its way a request may be doubled, and then we hear the answer to
        the second one.
        """
        if operation.uncertain:
            return await self._describe(key)
        if not lost.names_moment(headers):
            return None
        try:
            return await self._describe(key)
        except StoreError:  # Who may only write is told of the refusal.
            return None

    async def try_put(
        self, kind: str, key: str, body: Body, *, query: str, headers: Mapping[str, str]
    ) -> None:
        """Send a PUT as it is, of a *kind* that not every store knows: many take any for a write.

        So only for trials on scratch keys, after which the objects tell what has happened.
        """
        payload_hash = await self._payload_hash(body)
        path = self._path(key)
        await self._calls.call(Request(kind, "PUT", key, path, query, headers, body, payload_hash))

    async def try_rename(self, source: str, target: str) -> None:
        """Ask for a renaming as AWS's directory buckets have it; see `try_put`."""
        headers = {"x-amz-rename-source": self._source(source)}
        await self.try_put("RenameObject", target, (), query="renameObject=", headers=headers)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        headers: Mapping[str, str] | None,
        source_etag: str | None,
        condition: Precondition = ALWAYS,
        size: int = 0,
        stored_as: Mapping[str, str] | None = None,
    ) -> Stored:
        """Copy on the server; see `ObjectStore.copy`."""
        known = self._capabilities
        if not known.copy_replaces or (headers is None and not known.copy_keeps):
            return await self._copy_otherwise(source, target, headers, source_etag, condition)
        supported = self._heeds(condition, known.conditional_copy)
        await self._check_condition(target, condition, supported)
        await self._let_clock_tick(target)
        wanted: Mapping[str, str]
        if headers is not None:
            wanted = checked(headers)
        elif stored_as is not None:
            wanted = stored_as
        else:
            wanted = lasting((await self.head(source)).headers)
        made = self._features.copied(target, size, wanted)
        sent = {
            "x-amz-copy-source": self._source(source),
            "x-amz-metadata-directive": "COPY" if headers is None else "REPLACE",
            **made,
            **self._features.copying,
            **condition_headers(condition, supported),
            **self._keyring.writing.headers,
        }
        if (own := self._stores_own(source_etag)) is not None:
            sent["x-amz-copy-source-if-match"] = own
        path = self._path(target)
        request = Request("CopyObject", "PUT", target, path, headers=sent, slow=True, copied=size)
        answer = await self._copy_once(source, target, request, source_etag, condition)
        if isinstance(answer, ObjectInfo):
            return stored_of(answer)
        etag = read_answer(request, xml.result, answer)["ETag"]
        self._keyring.fits(target, self._keyring.writing)
        etag = await self._new_etag(target, etag)
        return answered(etag, answer, _copied_as(made, wanted))

    async def _copy_once(
        self,
        source: str,
        target: str,
        request: Request,
        source_etag: str | None,
        condition: Precondition,
    ) -> Answer | ObjectInfo:
        """The answer to a copy, or what it has made although nobody heard the answer."""
        operation = self._calls.begin()
        try:
            return await self._copy_from(source, request, operation)
        except Changed as error:
            if (info := await self._found(target, request.headers, operation)) is not None:
                repeated = condition != ALWAYS and operation.uncertain
                if (repeated and info.etag == source_etag) or lost.is_made_by(
                    info, request.headers
                ):
                    return info
            raise refused(error, condition) from error
        except (Unavailable, trio.Cancelled):
            if operation.uncertain:
                is_ours = partial(lost.is_made_by, headers=request.headers)
                self._own_writes.add(target, is_ours)
            raise

    async def _copy_otherwise(
        self,
        source: str,
        target: str,
        headers: Mapping[str, str] | None,
        source_etag: str | None,
        condition: Precondition,
    ) -> Stored:
        """Copy where CopyObject loses metadata."""
        if headers is None and self._capabilities.copy_replaces:
            info = await self.head(source)
            if source_etag is not None and info.etag != source_etag:
                raise Changed(f"{source}: it is not the version that was to be copied")
            said = description_of(info)
            return await self.copy(
                source,
                target,
                headers=said,
                source_etag=info.etag,
                condition=condition,
                size=info.size,
            )
        return await copy_by_detour(
            self, source, target, headers=headers, source_etag=source_etag, condition=condition
        )

    async def remove(self, key: str, *, condition: Precondition = ALWAYS) -> None:
        """Delete an object unless it is held; see `ObjectStore.remove`."""
        await self.refuse_held(key)
        try:
            await self.delete(key, condition=condition)
        except Unrecognised:
            raise
        except Denied:
            await self._refuse_held(key)  # Most stores do not say why.
            raise

    async def delete(self, key: str, *, condition: Precondition = ALWAYS) -> None:
        """Delete an object; that there is none is no error."""
        supported = self._capabilities.conditional_delete

        async def delete(condition: Precondition) -> None:
            if not condition.absent:  # Else somebody else was faster.
                await self._delete(key, condition, self._heeds(condition, supported))

        await self._under(key, condition, supported, delete)

    async def _delete(self, key: str, condition: Precondition, supported: bool) -> None:
        try:
            await self._check_condition(key, condition, supported, missing_is_fine=True)
            headers = condition_headers(condition, supported)
            await self._calls.call(
                Request("DeleteObject", "DELETE", key, self._path(key), headers=headers)
            )
        except NotFound as error:
            if error.code == "NoSuchBucket":
                raise
        except Changed:
            if await self._describe(key) is not None:
                raise

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        """Delete any number of objects, and return the failures by key."""
        failures: dict[str, StoreError] = {}
        together = self._capabilities.delete_many
        alone = [key for key in keys if not together or not xml.writable(self._name(key))]
        batched = [key for key in keys if xml.writable(self._name(key))] if together else []
        batches = [
            batched[start : start + _DELETE_BATCH]
            for start in range(0, len(batched), _DELETE_BATCH)
        ]

        async def delete_batch(batch: Sequence[str]) -> None:
            failures.update(await self._delete_batch(batch))

        async def delete_one(key: str) -> None:
            try:
                await self.delete(key)
            except StoreError as error:
                failures[key] = error

        await _in_parallel(delete_batch, batches, _BATCHES_AT_ONCE)
        await _in_parallel(delete_one, alone, _DELETES_AT_ONCE)
        return failures

    async def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Delete up to a thousand objects by one call."""
        named = {self._name(key): key for key in keys}
        body = xml.delete_request(named)
        request = Request(
            "DeleteObjects",
            "POST",
            "",
            self._bucket_path(),
            "delete=",
            headers={"content-type": "application/xml", "content-md5": content_md5(body)},
            body=[body],
            payload_hash=hashlib.sha256(body).hexdigest(),
            slow=True,
        )
        try:
            found = read_answer(request, xml.delete_failures, await self._calls.call(request))
        except StoreError as error:
            return dict.fromkeys(keys, error)
        failures: dict[str, StoreError] = {}
        for name, code, message in found:
            if code != "NoSuchKey" and name in named:
                text = f"DeleteObjects {name}: {one_line(message or code)}"
                failures[named[name]] = class_of_refusal(code, 0, message)(text, code=code)
        return failures

    # ------------------------------------------------------------ what they share

    async def _with_checksum(self, send: Callable[[str | None], Awaitable[_T]]) -> _T:
        """Send with a checksum; if the store cannot have it, without, and from now on so."""
        algorithm = self._capabilities.checksum
        try:
            return await send(algorithm)
        except (InvalidRequest, Unsupported):
            if algorithm is None:
                raise
            result = await send(None)
            self.adopt(replace(self._capabilities, checksum=None))
            return result


def _copied_as(made: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """How a copy is stored: as its headers say, and with the tags of its source."""
    count = {TAG_COUNT: wanted[TAG_COUNT]} if TAG_COUNT in wanted else {}
    return lasting({**made, **count})


async def _expectation(
    body: Body, headers: Mapping[str, str], algorithm: str | None, crc: int | None
) -> lost.Expectation:
    """What the object must be like that a sending of *body* has made."""
    return lost.Expectation(
        size=body_size(body),
        metadata=lost.sent_metadata(headers),
        checksum=(algorithm, crc) if algorithm and crc is not None else None,
        md5=await trio.to_thread.run_sync(digest, "md5", body),
    )


async def _in_parallel(
    work: Callable[[_T], Awaitable[None]], items: Sequence[_T], limit: int
) -> None:
    """Run *work*, which raises no `StoreError`, for all *items*, *limit* at once."""
    if len(items) == 1:
        await work(items[0])
        return
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with trio.open_nursery() as nursery:
        for _ in range(min(limit, len(items))):
            nursery.start_soon(worker)
