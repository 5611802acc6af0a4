"""What can be asked of a bucket: HEAD, ranges, listings, and whether it is there at all."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

import trio

from s3mount.errors import (
    Changed,
    Denied,
    Exists,
    InvalidName,
    InvalidRange,
    InvalidRequest,
    NoSuchBucket,
    NotFound,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3mount.s3 import checksum, listing, xml
from s3mount.s3.calls import Request, Statistics
from s3mount.s3.changes import ChangeSource
from s3mount.s3.customerkeys import CustomerKey, Keyring
from s3mount.s3.download import Download
from s3mount.s3.endpoint import CredentialSource, EndpointSettings
from s3mount.s3.escaping import escaping_of
from s3mount.s3.features import PLAIN, Features
from s3mount.s3.http import Answer
from s3mount.s3.identity import identify, stores_own
from s3mount.s3.keyed import KeyedReader
from s3mount.s3.listening import Listener
from s3mount.s3.objects import demand_s3, object_info, read_answer
from s3mount.s3.ownwrites import OwnWrites
from s3mount.s3.restoring import Restorer
from s3mount.s3.retry import Operation
from s3mount.s3.sigv4 import escape_key
from s3mount.s3.sqs import Queue, queue_calls
from s3mount.s3.store import (
    ALWAYS,
    Capabilities,
    ListPage,
    ObjectInfo,
    Precondition,
    StoredChecksum,
)
from s3mount.s3.streaming import StreamingCalls
from s3mount.tracing import Trace

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_LOOKS_AT_ONCE = 16


class BucketReader(KeyedReader):
    """What can be asked of one bucket, seen from *prefix* (empty, or ending in ``/``).

    Without *credentials* requests are not signed.  A call gives up after *timeout* seconds
    (`math.inf`: never) in which no byte of a body moved.
    """

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
        self.bucket = bucket
        self.prefix = prefix
        self._capabilities = capabilities
        self._features = features
        self._keyring = Keyring(features.choices.customer_keys)
        self._calls = StreamingCalls(
            settings,
            credentials,
            timeout=timeout,
            max_connections=max_connections,
            headers=features.common,
        )
        self._restorer = Restorer(self._calls, self._path, features.choices)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        self._calls.close()
        await trio.lowlevel.checkpoint()

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do, as far as it is known by now."""
        return self._capabilities

    def adopt(self, capabilities: Capabilities) -> None:
        """Work from now on by what a probe has found."""
        self._capabilities = capabilities

    @property
    def statistics(self) -> Statistics:
        """What has been done so far."""
        return self._calls.statistics

    @property
    def trace(self) -> Trace:
        """Where those who watch hear of the requests."""
        return self._calls.trace

    @property
    def credential_source(self) -> CredentialSource | None:
        """Who knows the credentials; None when there are none."""
        return self._calls.credential_source

    @property
    def moved(self) -> float:
        """When bytes moved last on any connection, by the clock of trio."""
        return self._calls.moved

    @property
    def settings(self) -> EndpointSettings:
        """The endpoint, as redirects have corrected it."""
        return self._calls.settings

    def _name(self, key: str) -> str:
        """The key in the bucket, as the store keeps it."""
        return escaping_of(self._capabilities.refused_names).to_store(self.prefix + key)

    def _beginning(self, prefix: str) -> str:
        """What the keys that begin with *prefix* begin with in the bucket."""
        return escaping_of(self._capabilities.refused_names).beginning(self.prefix + prefix)

    def _plain(self, key: str) -> str:
        """The key, from the bucket's beginning, that the store keeps under *key*."""
        return escaping_of(self._capabilities.refused_names).from_store(key)

    def _path(self, key: str) -> str:
        return f"{self._calls.settings.root}/{escape_key(self._name(key))}"

    async def _place(self, key: str) -> tuple[str, str]:
        """The path and the query by which the object at *key* is read."""
        return self._path(key), ""

    def _bucket_path(self) -> str:
        return self._calls.settings.root or "/"

    def _source(self, key: str) -> str:
        escaped = escape_key(self._name(key))
        if self.bucket.startswith("arn:"):  # An access point.
            return f"{self.bucket}/object/{escaped}"
        return f"/{self.bucket}/{escaped}"

    def changes(self, queue: str = "") -> ChangeSource:
        """Who tells of changes by others: the store itself, or a *queue* of SQS (its URL)."""
        own = OwnWrites(self.prefix, trio.current_time, self._plain)
        self._calls.own_writes = own
        if not queue:
            return Listener(self._calls, self.bucket, self.prefix, own)
        calls = queue_calls(queue, self.settings, self.credential_source)
        return Queue(calls, queue, self.bucket, own)

    # ------------------------------------------------------------------ links

    def full_key(self, key: str) -> str:
        """The key in the bucket; see `ObjectLinks.full_key`."""
        return self._name(key)

    def url(self, key: str) -> str:
        """The address as the tools of AWS take it; see `ObjectLinks.url`."""
        return f"s3://{self.bucket}/{self._name(key)}"

    async def presigned_url(self, key: str, seconds: int) -> str:
        """A link for everybody; see `ObjectLinks.presigned_url`."""
        return await self._calls.presigned_url(*await self._place(key), seconds)

    # ------------------------------------------------------------------ reading

    async def head(self, key: str) -> ObjectInfo:
        """Describe the object at *key*."""
        return await self._head(key, {})

    def _identified(self, info: ObjectInfo) -> ObjectInfo:
        """What was told of an object, with an ETag that is one."""
        if self._capabilities.distinct_etags:
            return info
        return replace(info, etag=identify(info.etag, info.modified_ns, info.size))

    def _stores_own(self, etag: str | None) -> str | None:
        """An ETag as the store knows it; None where it says nothing there."""
        if etag is None or self._capabilities.distinct_etags:
            return etag
        return stores_own(etag) or None

    async def _describe(self, key: str) -> ObjectInfo | None:
        """HEAD with checksums; None when there is nothing."""
        try:
            return await self._head(key, {"x-amz-checksum-mode": "ENABLED"})
        except NotFound:
            return None

    def _heeds(self, condition: Precondition, supported: bool) -> bool:
        """Whether the store checks *condition*, given that it has such conditions at all."""
        return supported and (condition.etag is None or self._capabilities.distinct_etags)

    async def _head(self, key: str, headers: Mapping[str, str]) -> ObjectInfo:
        """Describe an object by HEAD; where that does not tell the size, by a GET of one byte."""
        size = None
        if not self._capabilities.head_size:
            try:
                return await self.get(key, 0, [memoryview(bytearray(1))], etag=None)
            except InvalidRange:
                size = 0  # There is no first byte.
        request = Request("HeadObject", "HEAD", key, *await self._place(key), headers=headers)

        async def send(customer: CustomerKey) -> Answer:
            keyed = request._replace(headers={**headers, **customer.headers})
            return await self._calls.call(keyed if customer.headers else request)

        try:
            answer = await self._with_key(key, send)
        except InvalidRequest as error:
            if error.status == 400 and not error.code:
                await self._explain(request)
            raise
        return self._identified(object_info(key, answer.headers, size))

    async def _explain(self, request: Request) -> None:
        """Raise the error that a HEAD, which has no body, cannot tell: perhaps a key is missing."""
        headers = {**request.headers, "range": "bytes=0-0"}
        await self._calls.call(request._replace(kind="GetObject", method="GET", headers=headers))

    async def _etag(self, key: str) -> str:
        return (await self.head(key)).etag

    async def _check_condition(
        self,
        key: str,
        condition: Precondition,
        supported: bool,
        missing_is_fine: bool = False,
    ) -> None:
        """Look before a write whose *condition* the store itself cannot check."""
        if supported or condition == ALWAYS:
            return
        info = await self._describe(key)
        if condition.absent and info is not None:
            raise Exists(f"{key}: it exists already")
        if condition.etag is None or (info is None and missing_is_fine):
            return
        if info is None or info.etag != condition.etag:
            raise Changed(f"{key}: it is not the version that was expected")

    async def get(
        self,
        key: str,
        start: int,
        into: Sequence[memoryview],
        *,
        etag: str | None,
        progress: Callable[[int], None] | None = None,
        urgent: bool = True,
        size: int | None = None,
        restore: bool = False,
    ) -> ObjectInfo:
        """Fill the buffers *into* with the bytes from *start* on; see `ObjectStore.get`."""
        request = Request("GetObject", "GET", key, *await self._place(key), urgent=urgent)
        own = self._stores_own(etag)
        download = Download(request, start, into, own, progress, size)

        async def send(customer: CustomerKey) -> None:
            download.ask_with(customer.headers)
            await self._calls.call(request, incoming=download)

        async def fetch() -> None:
            try:
                await self._with_key(key, send)
            except InvalidRange as error:
                await self._refuse_replaced(request, etag, error)
                raise

        if restore:
            await self._restorer.when_restored(key, fetch, self.head)
        else:
            await fetch()
        if download.damaged():
            log.warning("%s does not match its checksum, fetching it again", request.what)
            download.restart()
            await fetch()
            if download.damaged():
                raise download.corrupt()
        info = self._identified(object_info(key, download.headers, download.size))
        if own != etag and info.etag != etag:
            raise Changed(f"{request.what}: the object was replaced")
        return info

    async def _refuse_replaced(
        self, request: Request, etag: str | None, error: InvalidRange
    ) -> None:
        """RustFS looks at the range first: of a shorter version it says just that."""
        if etag is not None and (info := await self._describe(request.key)) and info.etag != etag:
            raise Changed(f"{request.what}: the object was replaced") from error

    async def stored_checksum(self, key: str, *, etag: str) -> StoredChecksum | None:
        """The checksum of a whole version; see `ObjectStore.stored_checksum`."""
        info = await self._describe(key)
        return checksum.of_whole(info.headers) if info is not None and info.etag == etag else None

    async def list_page(
        self,
        prefix: str,
        *,
        token: str | None,
        flat: bool = False,
        limit: int = 1000,
        metadata: bool = False,
    ) -> ListPage:
        """List one page of what is under *prefix*; unless *flat*, one level only."""
        where = None if token is None else listing.Token.parse(token)
        version = where.version if where else self._version
        try:
            found = await self._listing(prefix, where, version, flat, limit, metadata=metadata)
        except (InvalidRequest, Unsupported):
            if version == 1 or where is not None:
                raise
            found = await self._listing(prefix, None, 1, flat, limit)
            self.adopt(replace(self._capabilities, list_v2=False))
        page = listing.page_of(self._read(found), prefix, where)
        if flat or self._capabilities.prefixes_vanish:
            return page
        return replace(page, prefixes=await self._without_empty(page.prefixes))

    def _read(self, found: xml.Listing) -> xml.Listing:
        """A listing in our words: keys as they were before they were escaped, our own ETags."""
        known = self._capabilities
        if known.refused_names:
            cut = len(self.prefix)
            base = self._beginning("")

            def named(key: str) -> str:
                return self._plain(base + key)[cut:]

            found = found._replace(
                objects=[listed._replace(key=named(listed.key)) for listed in found.objects],
                prefixes=[named(prefix) for prefix in found.prefixes],
                headers={named(key): headers for key, headers in found.headers.items()},
            )
        if not known.distinct_etags:
            objects = [
                listed._replace(etag=identify(listed.etag, listed.modified_ns, listed.size))
                for listed in found.objects
            ]
            found = found._replace(objects=objects)
        return found

    async def _without_empty(self, prefixes: Sequence[str]) -> list[str]:
        """Those of *prefixes* that something is under: the store lists others, too."""
        kept: dict[str, bool] = {}
        waiting = iter(prefixes)

        async def look() -> None:
            for prefix in waiting:
                try:
                    found = await self._listing(prefix, None, self._version, True, 1)
                    kept[prefix] = bool(found.objects) or found.truncated
                except StoreError:
                    kept[prefix] = True  # Whoever opens it will hear why.

        async with trio.open_nursery() as nursery:
            for _ in range(min(_LOOKS_AT_ONCE, len(prefixes))):
                nursery.start_soon(look)
        return [prefix for prefix in prefixes if kept[prefix]]

    @property
    def _version(self) -> int:
        """The listing call that the store knows."""
        return 2 if self._capabilities.list_v2 else 1

    async def _listing(
        self,
        prefix: str,
        token: listing.Token | None,
        version: int,
        flat: bool,
        limit: int,
        operation: Operation | None = None,
        *,
        metadata: bool = False,
    ) -> xml.Listing:
        full = self._beginning(prefix)
        query = listing.query_of(
            full, token, version=version, flat=flat, limit=limit, metadata=metadata
        )
        kind = "ListObjectsV2" if version == 2 else "ListObjects"
        request = Request(kind, "GET", full, self._bucket_path(), query)
        answer = await self._calls.call(request, operation)

        def read(body: bytes) -> xml.Listing:
            return xml.listing(body, full, self._beginning(""), metadata=metadata)

        return read_answer(request, read, answer)

    async def check_bucket(self) -> bool:
        """See, within 10 s, that the bucket is there and may be used; tell whether to list it.

        Raises `NoSuchBucket`, `Denied`, `NoCredentials`, `WrongRegion` or `Unavailable`.
        A `Denied` whose code is ``AccessDenied`` means that the credentials are good but
        neither listing the bucket nor looking for a key is allowed.
        """
        try:
            await self._listing("", None, 2, False, 1, self._calls.begin_brief())
        except Denied as error:
            if error.code != "AccessDenied" or not await self._is_reachable():
                raise
            return False
        except (InvalidRequest, Unsupported) as error:
            demand_s3(error, self.settings.url)
            await self._listing("", None, 1, False, 1, self._calls.begin_brief())
        except NotFound as error:
            demand_s3(error, self.settings.url)
            raise NoSuchBucket(str(error), code=error.code, status=error.status) from error
        except Unavailable as error:
            demand_s3(error, self.settings.url)
            raise
        return True

    async def refuses_to_look_for(self, key: str) -> bool:
        """Whether the store takes *key* for no name at all, whatever may be there."""
        try:
            await self._calls.call(Request("HeadObject", "HEAD", key, self._path(key)))
        except (InvalidName, InvalidRequest):
            return True
        except StoreError:
            return False
        return False

    async def _is_reachable(self) -> bool:
        """Whether a bucket that may not be listed can be used in some other way."""
        attempts = (
            Request("HeadBucket", "HEAD", "", self._bucket_path()),
            Request("HeadObject", "HEAD", "", self._path(".s3mount/none")),
        )
        for request in attempts:
            try:
                await self._calls.call(request, self._calls.begin_brief())
            except NotFound as error:
                if request.kind == "HeadBucket":
                    raise NoSuchBucket(f"there is no bucket {self.bucket}") from error
            except Denied:
                continue
            return True
        return False
