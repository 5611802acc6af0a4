"""What can go wrong between a mount and its store, and when: values, no sockets.

A `Rule` says which requests a fault is for.  All rules that match a request act together: its
`Plan` may delay it, throttle it and cut its answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random


class Point(Enum):
    """A moment in the life of a request."""

    REQUEST = "the request's head has arrived, and nothing was passed on"
    REQUEST_BODY = "`body_bytes` of the request's body were passed on"
    ANSWER = "the store has done its work and answered; the client hears nothing"
    HEAD = "half of the answer's head was sent"
    BODY = "the answer's head and `body_bytes` of its body were sent"


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait *seconds* before anything is passed on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Throttle:
    """Pass bodies on at *rate* bytes a second, in both directions."""

    rate: float


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection at *point*."""

    point: Point
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """Go silent at *point*, until the client gives up."""

    point: Point
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """Send *body_bytes* of the answer's body and close.

    With *honest* the Content-Length is that of the shortened body, so nothing looks wrong.
    """

    body_bytes: int
    honest: bool = False


@dataclass(frozen=True, slots=True)
class Flip:
    """Change one bit of the byte at *offset* of the answer's body, or of the request's."""

    offset: int
    request: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer in the store's place with an S3 error; *headers* go with it.

    With *late* the store does its work first, and its own answer is thrown away.
    """

    status: int
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)
    late: bool = False

    def body(self, resource: str) -> bytes:
        """Return the XML that S3 would send."""
        safe = resource.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>injected by the fault proxy</Message>"
            f"<Resource>{safe}</Resource><RequestId>FAULT</RequestId></Error>"
        ).encode()


@dataclass(frozen=True, slots=True)
class Twice:
    """Deliver the request twice; the client gets the second answer."""


@dataclass(frozen=True, slots=True)
class Late:
    """Take the whole request, reset the connection, and keep it for `FaultProxy.deliver_late`.

    As a store does that carries a request out long after its client has gone.
    """


Fault = Delay | Throttle | Reset | Hang | Cut | Flip | Answer | Twice | Late

INTERNAL_ERROR = Answer(500, "InternalError")
SLOW_DOWN = Answer(503, "SlowDown")
ACCESS_DENIED = Answer(403, "AccessDenied")
EXPIRED_TOKEN = Answer(400, "ExpiredToken")
SKEWED_CLOCK = Answer(403, "RequestTimeTooSkewed")
ERROR_IN_OK = Answer(200, "InternalError")
LOST_ANSWER = Reset(Point.ANSWER)


def slow_down(retry_after: int) -> Answer:
    """Return a 503 that tells the client to wait *retry_after* seconds."""
    return Answer(503, "SlowDown", {"Retry-After": str(retry_after)})


@dataclass(frozen=True, slots=True)
class Request:
    """What a rule may look at.  `headers` have names in lower case, and no secrets."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def operation(self) -> str:
        """The S3 call that this is (path style), such as ``GetObject``."""
        words = {part.partition("=")[0] for part in self.query.split("&")}
        in_bucket = self.path.strip("/").partition("/")[2] == ""
        if in_bucket:
            return _bucket_operation(self.method, self.path, words)
        return _object_operation(self.method, words, copied="x-amz-copy-source" in self.headers)


def _bucket_operation(method: str, path: str, words: set[str]) -> str:
    if path.strip("/") == "":
        return "ListBuckets"
    if method == "GET":
        if "uploads" in words:
            return "ListMultipartUploads"
        return "GetBucketLocation" if "location" in words else "ListObjects"
    if method == "POST" and "delete" in words:
        return "DeleteObjects"
    names = {"HEAD": "HeadBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
    return names.get(method, method)


def _object_operation(method: str, words: set[str], *, copied: bool) -> str:
    in_upload = "uploadId" in words
    if method == "POST":
        return "CompleteMultipartUpload" if in_upload else "CreateMultipartUpload"
    if method == "PUT" and in_upload:
        return "UploadPartCopy" if copied else "UploadPart"
    if method == "PUT":
        return "CopyObject" if copied else "PutObject"
    if method == "DELETE" and in_upload:
        return "AbortMultipartUpload"
    return {"GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, method)


@dataclass(slots=True, kw_only=True)
class Rule:
    """Which requests a fault is for: all that is given has to match.

    `path` and `query` are regular expressions that are searched for; the path is the one on
    the wire, percent-encoded.  Of the matching requests the first `skip` pass, then each is
    hit with `probability`, `count` times altogether (None: always).  `hits` counts.
    """

    fault: Fault
    operation: str | None = None
    method: str | None = None
    path: str | None = None
    query: str | None = None
    skip: int = 0
    count: int | None = None
    probability: float = 1.0
    matched: int = 0
    hits: int = 0

    def strikes(self, request: Request, random: Random) -> bool:
        """Say whether *request* gets the fault, and count it."""
        if not self._matches(request):
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.count is not None and self.hits >= self.count):
            return False
        if self.probability < 1.0 and random.random() >= self.probability:
            return False
        self.hits += 1
        return True

    def _matches(self, request: Request) -> bool:
        return (
            self.operation in (None, request.operation)
            and self.method in (None, request.method)
            and (self.path is None or re.search(self.path, request.path) is not None)
            and (self.query is None or re.search(self.query, request.query) is not None)
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """All faults of one request."""

    faults: Sequence[Fault] = ()

    @property
    def delay(self) -> float:
        """Seconds to wait before the request goes on."""
        return sum(fault.seconds for fault in self.faults if isinstance(fault, Delay))

    @property
    def rate(self) -> float | None:
        """Bytes a second that bodies may flow at."""
        return min((one.rate for one in self.faults if isinstance(one, Throttle)), default=None)

    @property
    def answer(self) -> Answer | None:
        """What to answer in the store's place."""
        return next((fault for fault in self.faults if isinstance(fault, Answer)), None)

    @property
    def cut(self) -> Cut | None:
        """How to shorten the answer."""
        return next((fault for fault in self.faults if isinstance(fault, Cut)), None)

    @property
    def twice(self) -> bool:
        """Whether the request is delivered twice."""
        return any(isinstance(fault, Twice) for fault in self.faults)

    @property
    def late(self) -> bool:
        """Whether the request is delivered when the client is gone."""
        return any(isinstance(fault, Late) for fault in self.faults)

    def flips(self, *, request: bool) -> Sequence[int]:
        """Return the offsets of bytes to change."""
        chosen = (fault for fault in self.faults if isinstance(fault, Flip))
        return [fault.offset for fault in chosen if fault.request == request]

    def end_at(self, point: Point) -> Reset | Hang | None:
        """Return the fault that ends the exchange at *point*."""
        ends = (fault for fault in self.faults if isinstance(fault, Reset | Hang))
        return next((fault for fault in ends if fault.point is point), None)
