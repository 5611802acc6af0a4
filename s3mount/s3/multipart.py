"""Multipart uploads: parts sent and copied, and completed under a condition."""

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import trio

from s3mount.errors import (
    Archived,
    Asleep,
    Changed,
    InvalidRequest,
    NotFound,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3mount.s3 import checksum, lost, xml
from s3mount.s3.calls import Request
from s3mount.s3.conditional import OwnWrites, over_what_is_there
from s3mount.s3.customerkeys import CustomerKey
from s3mount.s3.endpoint import CredentialSource, EndpointSettings
from s3mount.s3.features import PLAIN, Features
from s3mount.s3.http import Answer
from s3mount.s3.objects import (
    answered,
    checked,
    checksum_header,
    condition_headers,
    digest,
    part_query,
    read_answer,
    refused,
    stored_of,
)
from s3mount.s3.retry import Operation
from s3mount.s3.sigv4 import UNSIGNED_PAYLOAD, canonical_query
from s3mount.s3.store import (
    ALWAYS,
    MAX_PARTS,
    Body,
    Capabilities,
    ListedPart,
    ListedUpload,
    ObjectInfo,
    PartDone,
    Precondition,
    Stored,
)
from s3mount.s3.subresources import Subresources
from s3mount.storing import TAG_COUNT, TAGGING, lasting

_MAX_REMEMBERED_UPLOADS = 1000
_TICK_SECONDS = 1.1  # A store tells whole seconds.
_T = TypeVar("_T")


class MultipartUploads(Subresources):
    """A bucket in which objects can be made out of parts."""

    def __init__(
        self,
        settings: EndpointSettings,
        credentials: CredentialSource | None,
        bucket: str,
        prefix: str,
        *,
        capabilities: Capabilities,
        timeout: float,
        max_connections: int,
        features: Features = PLAIN,
    ) -> None:
        super().__init__(
            settings,
            credentials,
            bucket,
            prefix,
            capabilities=capabilities,
            timeout=timeout,
            max_connections=max_connections,
            features=features,
        )
        # What the store takes, until it refuses: uploads with a checksum of the whole, and
        # parts with one of their own in an upload without.
        self._upload_checksums = True
        self._part_checksums = True
        self._plain_uploads: dict[str, bool] = {}
        self._stored_as: dict[str, Mapping[str, str]] = {}  # What uploads will be, by their id.
        self._own_writes = OwnWrites()
        self._ticks: dict[str, float] = {}  # When a key may be written again.

    async def create_upload(
        self, key: str, *, headers: Mapping[str, str], copies: bool = True
    ) -> str:
        """Begin a multipart upload and return its id; see `ObjectStore.create_upload`."""
        made = self._features.written(key, None, await self._with_tags(key, checked(headers)))
        upload = await self._begin_upload(key, {**made, **self._keyring.writing.headers}, copies)
        self._keyring.fits(upload, self._keyring.writing)
        _remember(self._stored_as, upload, lasting(made))
        return upload

    async def _begin_upload(self, key: str, headers: Mapping[str, str], copies: bool) -> str:
        algorithm = self._capabilities.checksum
        if not self._upload_checksums or (copies and not self._capabilities.copy_part_checksum):
            algorithm = None
        if algorithm is not None:
            marks = {
                "x-amz-checksum-algorithm": algorithm.upper(),
                "x-amz-checksum-type": "FULL_OBJECT",
            }
            try:
                return await self._create_upload(key, {**headers, **marks})
            except (InvalidRequest, Unsupported):
                upload = await self._create_upload(key, headers)
                self._upload_checksums = False
        else:
            upload = await self._create_upload(key, headers)
        _remember(self._plain_uploads, upload, True)
        return upload

    async def _with_tags(self, key: str, headers: dict[str, str]) -> dict[str, str]:
        """The headers of a new version of an object, with the tags that the old one has."""
        if headers.pop(TAG_COUNT, "0") != "0":
            with contextlib.suppress(NotFound):  # A new object under this name.
                headers[TAGGING] = self._features.tags_with(await self.tags(key))
        return headers

    async def _create_upload(self, key: str, headers: Mapping[str, str]) -> str:
        path = self._path(key)
        request = Request("CreateMultipartUpload", "POST", key, path, "uploads=", headers=headers)
        return read_answer(request, xml.upload_id, await self._calls.call(request))

    async def upload_part(
        self, key: str, upload_id: str, number: int, body: Body, *, crc: int | None = None
    ) -> PartDone:
        """Send part *number* (from 1)."""

        async def send(algorithm: str | None) -> PartDone:
            return await self._upload_part(key, upload_id, number, body, algorithm, crc)

        algorithm = self._capabilities.checksum
        if algorithm is None or not self._part_checksums:
            return await send(None)
        try:
            return await send(algorithm)
        except (InvalidRequest, Unsupported):
            # Some stores want none in an upload that was begun without.
            done = await send(None)
            self._part_checksums = upload_id not in self._plain_uploads
            return done

    async def _upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        body: Body,
        algorithm: str | None,
        crc: int | None,
    ) -> PartDone:
        headers, crc = await checksum_header(algorithm, body, crc)
        request = Request(
            "UploadPart",
            "PUT",
            key,
            self._path(key),
            part_query(upload_id, number),
            headers=headers,
            body=body,
            payload_hash=await self._payload_hash(body),
        )

        async def send(customer: CustomerKey) -> Answer:
            return await self._calls.call(request._replace(headers={**headers, **customer.headers}))

        answer = await self._with_key(upload_id, send)
        etag = answer.headers.get("etag")
        if not etag:
            raise Unavailable(f"{request.what}: the store does not name the part that it took")
        return PartDone(number, etag, crc)

    async def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        *,
        source: str,
        start: int,
        stop: int,
        source_etag: str,
    ) -> PartDone:
        """Make bytes ``start <= i < stop`` of *source* part *number*, on the server."""
        request = Request(
            "UploadPartCopy",
            "PUT",
            key,
            self._path(key),
            part_query(upload_id, number),
            headers={
                "x-amz-copy-source": self._source(source),
                "x-amz-copy-source-range": f"bytes={start}-{stop - 1}",
                **_if_match(self._stores_own(source_etag)),
                **self._features.copying,
                **self._keyring.guess(upload_id).headers,
            },
            slow=True,
            copied=stop - start,
        )
        fields = read_answer(request, xml.result, await self._copy_from(source, request))
        algorithm = self._capabilities.checksum
        crc = None
        if algorithm is not None:
            crc = checksum.decode(algorithm, fields.get(checksum.element_of(algorithm)))
        return PartDone(number, fields["ETag"], crc)

    async def _copy_from(
        self, source: str, request: Request, operation: Operation | None = None
    ) -> Answer:
        """Make a call that copies *source*, with the key that opens it, once it is awake."""

        async def send(key_headers: Mapping[str, str]) -> Answer:
            headers = {**request.headers, **key_headers}
            return await self._calls.call(request._replace(headers=headers), operation)

        async def copy() -> Answer:
            return await self._with_source_key(source, send)

        try:
            return await self._restorer.when_restored(source, copy, self.head)
        except Archived as error:
            raise Asleep(str(error), code=error.code, status=error.status) from error

    async def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[PartDone],
        *,
        condition: Precondition = ALWAYS,
    ) -> Stored:
        """Make the object out of *parts*; see `ObjectStore.complete_upload`."""
        supported = self._capabilities.conditional_complete
        elements = self._part_checksum_values(upload_id, parts)

        async def complete(condition: Precondition) -> Stored:
            await self._check_condition(key, condition, self._heeds(condition, supported))
            await self._let_clock_tick(key)
            try:
                return await self._complete(key, upload_id, parts, elements, condition)
            except InvalidRequest:
                if not any(elements):
                    raise
                # An upload of an earlier life of ours may have been begun without checksums.
                return await self._complete(key, upload_id, parts, [None] * len(parts), condition)

        return await self._under(key, condition, supported, complete)

    async def _under(
        self,
        key: str,
        condition: Precondition,
        supported: bool,
        write: Callable[[Precondition], Awaitable[_T]],
    ) -> _T:
        """Write under a condition, which may be a lenient one."""
        if condition.lenient and not self._heeds(condition, supported):
            condition = ALWAYS
        done = await over_what_is_there(condition, lambda: self._describe(key), write)
        self._own_writes.forget(key)
        return done

    async def own_version(self, key: str) -> ObjectInfo | None:
        """What we have made at *key* though it failed; see `ObjectStore.own_version`."""
        if key not in self._own_writes:
            return None
        info = await self._describe(key)
        ours = info is not None and self._own_writes.have_made(key, info)
        return info if ours else None

    async def _complete(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[PartDone],
        elements: Sequence[tuple[str, str] | None],
        condition: Precondition,
    ) -> Stored:
        body = xml.complete_request(parts, elements)
        supported = self._heeds(condition, self._capabilities.conditional_complete)
        conditions = condition_headers(condition, supported)
        request = Request(
            "CompleteMultipartUpload",
            "POST",
            key,
            self._path(key),
            canonical_query([("uploadId", upload_id)]),
            headers={
                "content-type": "application/xml",
                **conditions,
                **self._keyring.guess(upload_id).headers,
            },
            body=[body],
            payload_hash=hashlib.sha256(body).hexdigest(),
            slow=True,
        )
        operation = self._calls.begin()
        try:
            answer = await self._calls.call(request, operation)
        except trio.Cancelled:
            if operation.uncertain:
                self._own_writes.add(key, _completes(parts, operation))
            raise
        except (NotFound, Changed, Unavailable) as error:
            if (info := await self._completed(key, parts, operation, error)) is not None:
                return stored_of(info)
            raise refused(error, condition) from error
        etag = read_answer(request, xml.result, answer)["ETag"]
        if not self._capabilities.complete_names_etag:
            etag = ""
        self._keyring.fits(key, self._keyring.guess(upload_id))
        etag = await self._new_etag(key, etag)
        return answered(etag, answer, self._stored_as.pop(upload_id, None))

    async def _completed(
        self, key: str, parts: Sequence[PartDone], operation: Operation, error: StoreError
    ) -> ObjectInfo | None:
        """What is at *key* after *error*, if it is what was to be completed."""
        if operation.uncertain or error.code == "NoSuchUpload":
            is_ours = _completes(parts, operation)
            self._own_writes.add(key, is_ours)  # Perhaps nobody can tell now.
            info = await self._describe(key)
            return info if info is not None and is_ours(info) else None
        if isinstance(error, Changed):  # The request may have been doubled on its way.
            info = await self._describe(key)
            if info is not None and info.etag == lost.multipart_etag(parts):
                return info
        return None

    async def _new_etag(self, key: str, answered: str) -> str:
        """The ETag of what was just written, of which the store has *answered* one, or none."""
        if not self._capabilities.distinct_etags:
            self._ticks[key] = trio.current_time() + _TICK_SECONDS
        elif answered:
            return answered
        return await self._etag(key)

    async def _let_clock_tick(self, key: str) -> None:
        """Where Last-Modified tells versions apart, let no two of our own have the same."""
        if self._capabilities.distinct_etags:
            return
        now = trio.current_time()
        free = max(self._ticks.get(key, now), now)
        self._ticks = {one: end for one, end in self._ticks.items() if end > now}
        self._ticks[key] = free + _TICK_SECONDS
        await trio.sleep_until(free)

    def _part_checksum_values(
        self, upload_id: str, parts: Sequence[PartDone]
    ) -> list[tuple[str, str] | None]:
        algorithm = self._capabilities.checksum
        if algorithm is None or upload_id in self._plain_uploads:
            return [None] * len(parts)
        element = checksum.element_of(algorithm)
        return [
            None if part.crc is None else (element, checksum.encode(algorithm, part.crc))
            for part in parts
        ]

    async def list_uploads(self, key: str) -> Sequence[ListedUpload]:
        """The unfinished uploads of *key*; see `ObjectStore.list_uploads`."""
        full = self._name(key)
        query = canonical_query([("prefix", full), ("uploads", "")])
        request = Request("ListMultipartUploads", "GET", full, self._bucket_path(), query)
        listed = read_answer(request, xml.upload_page, await self._calls.call(request))
        return [
            ListedUpload(
                fields["UploadId"],
                xml.modified_ns(fields.get("Initiated", "")),
                fields.get("ChecksumAlgorithm", "").lower(),
            )
            for fields in listed
            if fields.get("Key") == full and fields.get("UploadId")
        ]

    async def list_parts(self, key: str, upload_id: str) -> Sequence[ListedPart]:
        """The parts that an unfinished upload has."""
        found: list[ListedPart] = []
        marker = ""
        while True:
            query = [("uploadId", upload_id)]
            if marker:
                query.append(("part-number-marker", marker))
            path, text = self._path(key), canonical_query(query)
            headers = self._keyring.guess(upload_id).headers
            request = Request("ListParts", "GET", key, path, text, headers)
            page = read_answer(request, xml.part_page, await self._calls.call(request))
            found.extend(self._listed_part(request, fields) for fields in page.parts)
            if not page.following or page.following == marker or len(found) >= MAX_PARTS:
                return found
            marker = page.following

    def _listed_part(self, request: Request, fields: Mapping[str, str]) -> ListedPart:
        algorithm, crc = self._capabilities.checksum, None
        if algorithm is not None:
            crc = checksum.decode(algorithm, fields.get(checksum.element_of(algorithm)))
        try:
            number, size = int(fields["PartNumber"]), xml.object_size(fields["Size"])
        except (KeyError, ValueError) as error:
            raise Unavailable(f"{request.what}: a part makes no sense: {error}") from error
        if not 1 <= number <= MAX_PARTS:
            raise Unavailable(f"{request.what}: there is no part {number}")
        return ListedPart(number, size, xml.quoted(fields.get("ETag", "")), crc)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; that there is none is no error."""
        query = canonical_query([("uploadId", upload_id)])
        request = Request("AbortMultipartUpload", "DELETE", key, self._path(key), query)
        try:
            await self._calls.call(request)
        except NotFound:
            return

    async def _payload_hash(self, body: Body) -> str:
        if self._capabilities.unsigned_payload:
            return UNSIGNED_PAYLOAD
        return await trio.to_thread.run_sync(digest, "sha256", body)


def _completes(parts: Sequence[PartDone], operation: Operation) -> Callable[[ObjectInfo], bool]:
    """What tells whether an object was completed from *parts* by *operation*."""
    return lambda info: lost.is_completed(info, parts, trio.current_time() - operation.started)


def _if_match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"x-amz-copy-source-if-match": etag}


def _remember(table: dict[str, _T], upload_id: str, what: _T) -> None:
    """Note something of an upload, and forget the eldest of a thousand."""
    table[upload_id] = what
    if len(table) > _MAX_REMEMBERED_UPLOADS:
        del table[next(iter(table))]
