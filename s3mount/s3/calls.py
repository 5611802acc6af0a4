"""One S3 call: signed, sent, repaired, tried again, counted, and its refusals made errors.

This is the one retry loop.  What a call means is the client's business.
"""

import logging
import time
from collections.abc import Awaitable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self

import trio

from s3mount import __version__
from s3mount.errors import Unavailable, Unrecognised
from s3mount.s3 import xml
from s3mount.s3.connection import STALL_SECONDS, Broken, Connection, Pulse, Untrusted, Watch
from s3mount.s3.dial import Dialer
from s3mount.s3.endpoint import Credentials, CredentialSource, EndpointSettings
from s3mount.s3.faults import CREDENTIAL_CODES, EMPTY_ANSWER, Refusal, error_class, refusal_of
from s3mount.s3.http import (
    FIRST_BYTE_SECONDS,
    Answer,
    Head,
    Receiver,
    body_size,
    exchange,
    host_of,
    is_short,
    moment_of,
)
from s3mount.s3.ownwrites import WRITES, OwnWrites
from s3mount.s3.pool import Pool, Slots
from s3mount.s3.retry import Operation, RetryBudget, retry_after_seconds
from s3mount.s3.sigv2 import SignerV2
from s3mount.s3.sigv4 import EMPTY_SHA256, Signer
from s3mount.s3.store import Body
from s3mount.s3.watching import watched
from s3mount.tracing import Trace

log = logging.getLogger(__name__)

_SHARE = 0.4  # Of the time limit, for the beginning of an answer.
_SLOW_SECONDS = 120.0
_SLOWEST_COPY = 8 << 20  # Bytes a second that a store copies on its own disks.
_SLOWEST_RATE = 64 << 10
_MAX_PASSING_SECONDS = 60.0
_ASK_FIRST_SIZE = 1 << 20
_BRIEF_SECONDS = 9.0
_SKEW_SECONDS = 240.0
_EXPLAIN_SECONDS = 5.0
_REDIRECTS = frozenset({301, 302, 307, 308})
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


class Request(NamedTuple):
    """What is to be sent, but for what authenticates it.

    `path` and `query` are escaped.  `slow` calls may work for minutes before they answer, and
    may fail in the body of a 200; `copied` is how many bytes that work is about, if it is known.
    """

    kind: str
    method: str
    key: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: Body = ()
    payload_hash: str = EMPTY_SHA256
    urgent: bool = True
    slow: bool = False
    ask_first: bool = False
    copied: int | None = None

    @property
    def what(self) -> str:
        """The call and its key, for messages."""
        key = self.key if self.key.isprintable() else repr(self.key)
        return f"{self.kind} {key}".rstrip()


class Incoming(Protocol):
    """Who takes the body of a GET, over as many attempts as it needs."""

    @property
    def received(self) -> int:
        """Bytes that have arrived for good."""
        ...

    def request(self) -> Request:
        """The request for what is still missing."""
        ...

    async def receive(self, connection: Connection, head: Head) -> None:
        """Take the body of an answer."""
        ...


@dataclass(slots=True)
class Statistics:
    """What the client has done since it was made: plain counters."""

    requests: dict[str, int] = field(default_factory=dict)
    retried: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    failures: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    connections: int = 0


class _Route:
    """The way to the bucket: replaced as a whole, for all who use it, when it has moved."""

    def __init__(self, settings: EndpointSettings, slots: Slots) -> None:
        self.settings = settings
        self.signer: Signer | SignerV2 = Signer(settings.region, settings.service)
        if settings.signature == "v2":
            self.signer = SignerV2(settings.region, settings.signed_root)
        self.pool = Pool(Dialer(settings), slots)
        self.versioned: bool | None = None
        self._slots = slots

    def change(self, settings: EndpointSettings) -> None:
        """Go to another endpoint from now on."""
        self.settings = settings
        self.signer.region = settings.region
        self.pool.close()
        self.pool = Pool(Dialer(settings), self._slots)


class Calls:
    """Makes calls to one endpoint with one identity."""

    def __init__(
        self,
        settings: EndpointSettings,
        credentials: CredentialSource | None,
        *,
        timeout: float,
        max_connections: int,
        headers: Mapping[str, str],
    ) -> None:
        self.timeout = timeout
        self._headers = headers  # Of every request.
        self.statistics = Statistics()
        self.trace = Trace()
        self._credentials = credentials
        self._route = _Route(settings, Slots(max_connections))
        self._pulse = Pulse()
        self._budget = RetryBudget(capacity=100, per_second=10, per_success=0.2)
        self._explained = float("-inf")
        self._explanation: Refusal | None = None
        self._asks_first = True
        self.own_writes: OwnWrites | None = None  # Where somebody listens for those of others.

    @property
    def settings(self) -> EndpointSettings:
        """The endpoint, as redirects have corrected it."""
        return self._route.settings

    @property
    def versioned(self) -> bool | None:
        """Whether answers about objects name versions of them; None before the first one."""
        return self._route.versioned

    @property
    def credential_source(self) -> CredentialSource | None:
        """Who knows the credentials; None when there are none."""
        return self._credentials

    @property
    def moved(self) -> float:
        """When bytes moved last on any connection, by the clock of trio."""
        return self._pulse.last

    def within(self, timeout: float) -> Self:
        """The same connections, credentials and counters, with another time limit."""
        brief = copy(self)
        brief.timeout = min(timeout, self.timeout)
        return brief

    def close(self) -> None:
        """Close idle connections, and the others when their requests are done."""
        self._route.pool.close()

    def begin(self) -> Operation:
        """Start the clock of a call."""
        return Operation(self.timeout)

    def begin_brief(self) -> Operation:
        """Start the clock of a call that somebody at a terminal waits for."""
        return Operation(min(self.timeout, _BRIEF_SECONDS), attempts=4)

    async def presigned_url(self, path: str, query: str, seconds: int) -> str:
        """A link to *path* that is good for *seconds*; a plain one without credentials."""
        if self._credentials is None:
            return f"{self.settings.url}{path}?{query}".rstrip("?")
        credentials = self._credentials.current() or await self._credentials.refresh(None)
        signer, host = self._route.signer, self.settings.authority
        query = signer.presign(credentials, host, path, seconds, query, self._headers)
        return f"{self.settings.url}{path}?{query}"

    async def call(
        self,
        request: Request,
        operation: Operation | None = None,
        incoming: Incoming | None = None,
    ) -> Answer:
        """Make a call until it succeeds; raises the `StoreError` that says why it did not."""
        if self.own_writes is None or request.kind not in WRITES:
            return await self._call(request, operation or self.begin(), incoming)
        answer: Answer | None = None
        self.own_writes.begin(request.key)
        try:
            answer = await self._call(request, operation or self.begin(), incoming)
            return answer
        finally:
            self.own_writes.answered(request.key, answer)

    async def _call(
        self, request: Request, operation: Operation, incoming: Incoming | None
    ) -> Answer:
        receiver = incoming.receive if incoming is not None else None
        while True:
            if incoming is not None:
                request = incoming.request()
            before = 0 if incoming is None else incoming.received
            try:
                answer = await self._attempt(operation, request, receiver)
            except Broken as error:
                if incoming is not None and incoming.received > before:
                    operation.progressed()
                await self._after_break(operation, request, error)
                continue
            if _succeeded(request, answer):
                self._budget.succeeded()
                if not self._route.versioned and request.kind in _OBJECT_KINDS:
                    self._route.versioned = answer.headers.get(_VERSION, "null") != "null"
                return answer
            await self._after_refusal(operation, request, answer)

    # ------------------------------------------------------------ one attempt

    def _attempt(
        self, operation: Operation, request: Request, receiver: Receiver | None
    ) -> Awaitable[Answer]:
        sending = self._send(operation, request, receiver)
        if not self.trace.watched:
            return sending
        part = request.headers.get("range", "")
        return watched(self.trace, request.kind, request.method, request.key, part, sending)

    async def _send(
        self, operation: Operation, request: Request, receiver: Receiver | None
    ) -> Answer:
        credentials = None
        if self._credentials is not None:
            credentials = self._credentials.current()
            if credentials is None:
                credentials = await self._credentials.refresh(None)
            operation.credentials = credentials
        pool = self._route.pool  # A redirect may replace it while we are at it.
        connection = pool.take(request.urgent)
        if connection is not None:
            try:
                return await self._exchange(
                    pool, connection, operation, request, credentials, receiver
                )
            except Broken:
                # An idle connection that the peer had given up is nobody's failure.
                if connection.heard or connection.timed_out:
                    raise
        connection = await self._wait_for_connection(
            pool, operation, request.urgent, fresh=connection is not None
        )
        return await self._exchange(pool, connection, operation, request, credentials, receiver)

    async def _wait_for_connection(
        self, pool: Pool, operation: Operation, urgent: bool, fresh: bool
    ) -> Connection:
        """Get a connection; as long as bytes move on others, the wait for a turn has no limit."""
        begun = trio.current_time()
        while True:
            limit = max(operation.deadline, self._pulse.last + self.timeout)
            with trio.CancelScope(deadline=limit):
                connection = await pool.acquire(urgent=urgent, fresh=fresh)
                self.statistics.connections += connection.requests == 0
                operation.deadline += trio.current_time() - begun
                return connection
            if trio.current_time() >= self._pulse.last + self.timeout:
                # Why earlier attempts failed says more than that there was no time for this one.
                raise Broken(operation.broken or "no connection within the time limit")

    async def _exchange(
        self,
        pool: Pool,
        connection: Connection,
        operation: Operation,
        request: Request,
        credentials: Credentials | None,
        receiver: Receiver | None,
    ) -> Answer:
        size = body_size(request.body) if request.body else 0
        asks = request.ask_first and self._asks_first and size >= _ASK_FIRST_SIZE
        head = self._render(request, credentials, asks)
        now = trio.current_time()
        left = max(1.0, operation.deadline - now)
        # Short enough that a request which got lost can be made again within the time limit.
        patience = min(FIRST_BYTE_SECONDS, max(1.0, self.timeout * _SHARE), left)
        if request.slow:
            work = _SLOW_SECONDS if request.copied is None else request.copied / _SLOWEST_COPY
            patience = min(_SLOW_SECONDS, patience + work)
        # A proxy on the way may hold megabytes that it still has to pass on.
        patience += min(size / _SLOWEST_RATE, _MAX_PASSING_SECONDS)
        # Until the body is sent it is the body that has to move.
        begin_by = now + (patience if is_short(request.body) else min(STALL_SECONDS, left))
        answered = reusable = False
        with trio.CancelScope(deadline=begin_by) as scope:
            watch = Watch(scope, self._pulse, _SLOW_SECONDS if request.slow else STALL_SECONDS)
            connection.begin(watch)
            try:
                answer, reusable = await exchange(
                    connection,
                    request.method,
                    head,
                    request.body,
                    first_byte=patience,
                    ask_first=asks,
                    receiver=receiver,
                )
                answered = True
                return answer
            finally:
                if not answered and connection.sent:
                    operation.uncertain = True
                operation.deadline += watch.moving
                self._count(request.kind, connection)
                if answered:
                    self._pulse.last = trio.current_time()
                idle_since = self._pulse.last
                pool.release(connection, idle_since, urgent=request.urgent, reusable=reusable)
        connection.timed_out = True
        raise Broken("the store did not answer in time")

    def _count(self, kind: str, connection: Connection) -> None:
        statistics = self.statistics
        statistics.requests[kind] = statistics.requests.get(kind, 0) + 1
        statistics.bytes_sent += connection.sent
        statistics.bytes_received += connection.received

    def _count_retry(self, kind: str) -> None:
        self.statistics.retries += 1
        self.statistics.retried[kind] = self.statistics.retried.get(kind, 0) + 1

    def _render(self, request: Request, credentials: Credentials | None, asks: bool) -> bytes:
        """Write the head of a request, signed as of now."""
        method, query = request.method, request.query
        headers = {"host": self.settings.authority, **self._headers, **request.headers}
        if credentials is not None:
            self._route.signer.sign(
                credentials, method, request.path, query, headers, request.payload_hash
            )
        if method in ("PUT", "POST"):
            headers["content-length"] = str(body_size(request.body))
        if asks:
            headers["expect"] = "100-continue"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        target = f"{request.path}?{query}" if query else request.path
        return f"{method} {target} HTTP/1.1\r\n{lines}{_AGENT}\r\n".encode()

    # ---------------------------------------------------------- after a failure

    async def _after_break(self, operation: Operation, request: Request, error: Broken) -> None:
        """Pause before another attempt, or raise what ends the call."""
        self.statistics.failures += 1
        operation.broken = str(error)
        final = isinstance(error, Untrusted)
        if final or not await operation.back_off(self._budget, 0.0):
            raise Unavailable(f"{request.what}: {error}") from error
        log.debug("%s: %s; trying again", request.what, error)
        self._count_retry(request.kind)

    async def _after_refusal(self, operation: Operation, request: Request, answer: Answer) -> None:
        """Repair what can be repaired, or pause before another attempt, or raise the error."""
        self.statistics.failures += 1
        refusal = refusal_of(answer)
        if answer.status >= 500 or answer.status < 300:
            operation.uncertain = True
        if request.method == "HEAD" and refusal.status in (400, 403) and not self._is_away(refusal):
            repaired, refusal = await self._repair_head(operation, request, refusal)
        else:
            repaired = await self._repair(operation, refusal, answer)
        if not repaired:
            wait = retry_after_seconds(answer.headers.get("retry-after"), time.time())
            again = refusal.transient or (refusal.damaged and operation.damaged())
            if not again or not await operation.back_off(self._budget, wait):
                raise refusal.error(request.what)
        log.debug("%s; trying again", refusal.error(request.what))
        self._count_retry(request.kind)

    async def _repair(self, operation: Operation, refusal: Refusal, answer: Answer) -> bool:
        """Whether the reason of a refusal is gone now, so that it can be tried again at once."""
        code = refusal.code
        if code == "RequestTimeTooSkewed":
            if operation.repair("clock") and self._correct_clock(answer):
                return True
            log.warning("the store takes the clock of this machine for wrong: set it, or its own")
            return False
        if code in CREDENTIAL_CODES and self._credentials is not None:
            return operation.repair("credentials") and await self._renew(operation)
        if code == EMPTY_ANSWER:
            return operation.repair(code)
        if refusal.status == 417 and self._asks_first:
            self._asks_first = False
            return True
        if refusal.status in _REDIRECTS or code in _REGION_CODES or self._is_away(refusal):
            return operation.repair("region") and self._move(refusal, answer)
        return False

    def _is_away(self, refusal: Refusal) -> bool:
        """Whether a refusal names another region than ours."""
        return refusal.region not in ("", self.settings.region)

    async def _repair_head(
        self, operation: Operation, request: Request, refusal: Refusal
    ) -> tuple[bool, Refusal]:
        """Find out why a HEAD was refused, which it cannot say, by a GET of one byte.

        Seldom, since most often the reason is just that the key is forbidden.  Returns also the
        reason, as far as it is one for other keys, too.
        """
        if self._credentials is None:
            return False, refusal
        used = operation.credentials
        now = trio.current_time()
        if now < self._explained + _EXPLAIN_SECONDS:
            repaired = self._credentials.current() != used and operation.repair("credentials")
            return repaired, self._explanation or refusal
        self._explained, self._explanation = now, None
        headers = {**request.headers, "range": "bytes=0-0"}
        question = request._replace(method="GET", kind="GetObject", headers=headers)
        try:
            explained = await self._attempt(operation, question, None)
        except Broken:
            return False, refusal
        reason = refusal_of(explained)
        if error_class(reason.code, reason.status) is Unrecognised:
            self._explanation = refusal = reason
        elif reason.about_encryption:
            refusal = reason
        return await self._repair(operation, reason, explained), refusal

    def _correct_clock(self, answer: Answer) -> bool:
        theirs = moment_of(answer.headers.get("date"))
        if theirs is None:
            return False
        offset = theirs - time.time()
        if abs(offset - self._route.signer.clock_offset) < _SKEW_SECONDS:
            return False
        log.warning("the clock of this machine is %.0f s off the clock of the store", -offset)
        self._route.signer.clock_offset = offset
        return True

    async def _renew(self, operation: Operation) -> bool:
        assert self._credentials is not None
        used = operation.credentials
        return await self._credentials.refresh(used) != used

    def _move(self, refusal: Refusal, answer: Answer) -> bool:
        """Go to where the bucket is, now and from now on."""
        settings = self.settings
        if refusal.region:
            settings = settings.in_region(refusal.region)
        else:
            settings = settings.at_host(host_of(answer.headers))
            if settings == self.settings:
                return False
        if settings != self.settings:
            self._route.change(settings)
        return True


_VERSION = "x-amz-version-id"
_OBJECT_KINDS = frozenset({"PutObject", "HeadObject", "GetObject"})
_AGENT = f"user-agent: s3mount/{__version__}\r\n"


def _succeeded(request: Request, answer: Answer) -> bool:
    """Whether an answer is a success, also by its body where a 200 may tell of a failure."""
    if answer.status >= 300:
        return False
    if not request.slow:
        # No call is meant to answer so, and some stores do it all the same.
        return not answer.body or xml.error_of(answer.body) is None
    return bool(answer.body.strip()) and xml.error_of(answer.body) is None
