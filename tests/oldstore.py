"""Stores of other times: a proxy before a real server that speaks as weaker ones do.

Each `Weakness` changes requests before the server sees them, and answers before the client
does.  Requests are signed anew for the server, so that anything may be changed; nothing is
learnt here about signatures, therefore.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from s3mount.demo.weed import LOOPBACK, REGION
from s3mount.s3.endpoint import Credentials
from s3mount.s3.sigv4 import UNSIGNED_PAYLOAD, Signer, canonical_query
from tests import faults
from tests.servers import Server

_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length", "date"})
_SIGNING = frozenset({"host", "authorization", "expect", "content-length"})
_CONDITIONS = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")


@dataclass(slots=True)
class Request:
    """One request; `path` is escaped, `query` is not, names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        """The S3 call."""
        text = "&".join(self.query)
        return faults.Request(self.method, self.path, text, self.headers).operation

    @property
    def key(self) -> str:
        """The key that it is about."""
        return unquote(self.path).removeprefix("/").partition("/")[2]


@dataclass(slots=True)
class Reply:
    """One answer; headers as pairs, because their spelling matters."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def set(self, name: str, value: str | None) -> None:
        """Give a header another value; None removes it."""
        self.headers = [pair for pair in self.headers if pair[0].lower() != name]
        if value is not None:
            self.headers.append((name, value))


def refusal(status: int, code: str) -> Reply:
    """The error that a store answers."""
    return Reply(
        status, [("Content-Type", "application/xml")], faults.Answer(status, code).body("")
    )


class Weakness:
    """What one kind of store does in its own way; by default nothing."""

    def ask(self, request: Request) -> Reply | None:
        """Change a request, or answer it in the server's place."""
        return None

    def answer(self, request: Request, reply: Reply) -> None:
        """Change an answer."""


class OldSignatures(Weakness):
    """Knows Signature Version 2 only, in headers and in links.

    It does not look whether they are right: servers of `tests.test_s3_sigv2` do.
    """

    def ask(self, request: Request) -> Reply | None:
        signed = request.headers.get("authorization", "").startswith("AWS ")
        if not signed and "AWSAccessKeyId" not in request.query:
            return refusal(403, "SignatureDoesNotMatch")
        for name in ("AWSAccessKeyId", "Expires", "Signature"):
            request.query.pop(name, None)
        return None


class OldListing(Weakness):
    """Knows ListObjects only; the new call is refused, or taken for the old one."""

    def __init__(self, *, refuses: bool) -> None:
        self._refuses = refuses

    def ask(self, request: Request) -> Reply | None:
        if request.operation == "ListObjects" and request.query.get("list-type") == "2":
            if self._refuses:
                return refusal(400, "InvalidArgument")
            for name in ("list-type", "continuation-token", "start-after"):
                request.query.pop(name, None)
        return None

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation == "ListObjects" and "delimiter" not in request.query:
            # As the documentation has it: the next marker is the last key.
            reply.body = re.sub(rb"<NextMarker>.*?</NextMarker>", b"", reply.body)


class Refusing(Weakness):
    """Does not know some calls; or takes them, says 200 and does nothing."""

    def __init__(self, *operations: str, silent: bool = False) -> None:
        self._operations = operations
        self._silent = silent

    def ask(self, request: Request) -> Reply | None:
        if request.operation not in self._operations:
            return None
        if not self._silent:
            return refusal(501, "NotImplemented")
        return Reply(200, [("Content-Type", "application/xml")], b"<DeleteResult></DeleteResult>")


class IgnoresCopySource(Weakness):
    """Takes UploadPartCopy for the upload of a part without content."""

    def ask(self, request: Request) -> Reply | None:
        if request.operation == "UploadPartCopy":
            for name in [name for name in request.headers if name.startswith("x-amz-copy-")]:
                del request.headers[name]
        return None

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation == "UploadPart" and not request.body:
            etag = dict(reply.headers).get("ETag", "")
            reply.body = f"<CopyPartResult><ETag>{etag}</ETag></CopyPartResult>".encode()


class IgnoresConditions(Weakness):
    """Heeds no condition of a request."""

    def ask(self, request: Request) -> Reply | None:
        for name in _CONDITIONS:
            request.headers.pop(name, None)
            request.headers.pop(f"x-amz-copy-source-{name}", None)
        return None


class IgnoresReplace(Weakness):
    """Copies metadata whatever the directive says."""

    def ask(self, request: Request) -> Reply | None:
        if request.operation == "CopyObject":
            if request.headers["x-amz-copy-source"] == request.path:
                return Reply(200, [], b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
            _drop_metadata(request)
            request.headers["x-amz-metadata-directive"] = "COPY"
        return None


class DropsMetadata(Weakness):
    """Copies the content, and no metadata unless they are sent."""

    def ask(self, request: Request) -> Reply | None:
        if request.headers.get("x-amz-metadata-directive") == "COPY":
            _drop_metadata(request)
            request.headers["x-amz-metadata-directive"] = "REPLACE"
        return None


def _drop_metadata(request: Request) -> None:
    for name in [name for name in request.headers if name.startswith("x-amz-meta-")]:
        del request.headers[name]
    request.headers.pop("content-type", None)


class ErrorsInOk(Weakness):
    """Answers 200 and an error to the first *count* calls of an operation, and does nothing."""

    def __init__(self, operation: str, count: int = 1) -> None:
        self._operation = operation
        self._left = count

    def ask(self, request: Request) -> Reply | None:
        if request.operation == self._operation and self._left > 0 and "probe-" not in request.key:
            self._left -= 1
            reply = refusal(500, "InternalError")
            reply.status = 200
            return reply
        return None


class WrongLength(Weakness):
    """HEAD tells another size than the object's, or none."""

    def __init__(self, size: str | None) -> None:
        self._size = size

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation == "HeadObject" and reply.status == 200:
            reply.set("content-length", self._size)


class OneETag(Weakness):
    """Has one ETag for all objects."""

    ETAG = '"0123456789abcdef0123456789abcdef"'

    def ask(self, request: Request) -> Reply | None:
        for name in ("if-match", "x-amz-copy-source-if-match"):
            asked = request.headers.pop(name, None)
            if asked not in (None, self.ETAG, "*"):
                return refusal(412, "PreconditionFailed")
        return None

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation in ("UploadPart", "UploadPartCopy", "ListParts"):
            return
        if any(name.lower() == "etag" for name, _ in reply.headers):
            reply.set("etag", self.ETAG)
        one = self.ETAG.replace('"', "&quot;").encode()
        reply.body = re.sub(rb"<ETag>.*?</ETag>", b"<ETag>" + one + b"</ETag>", reply.body)


class OddOrder(Weakness):
    """Lists each page backwards."""

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation == "ListObjects":
            for name in (b"Contents", b"CommonPrefixes"):
                _rewrite(reply, name, lambda found: found[::-1])


class Lingering(Weakness):
    """Lists every directory that has ever been."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def ask(self, request: Request) -> Reply | None:
        if request.method in ("PUT", "POST"):
            parts = request.key.split("/")[:-1]
            self._known |= {"/".join(parts[: end + 1]) + "/" for end in range(len(parts))}
        return None

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation != "ListObjects" or request.query.get("delimiter") != "/":
            return
        prefix = request.query.get("prefix", "")
        depth = prefix.count("/") + 1
        mine = {one for one in self._known if one.startswith(prefix) and one.count("/") == depth}
        pieces = [
            f"<CommonPrefixes><Prefix>{quote(one)}</Prefix></CommonPrefixes>".encode()
            for one in sorted(mine - {prefix})
        ]
        _rewrite(reply, b"CommonPrefixes", lambda found: [*{*found, *pieces}])


class Ghost(Weakness):
    """Lists one directory that is not there, as RustFS may when a deletion was cut off."""

    def __init__(self, name: str) -> None:
        self._name = name

    def answer(self, request: Request, reply: Reply) -> None:
        if request.operation != "ListObjects" or request.query.get("delimiter") != "/":
            return
        prefix = request.query.get("prefix", "")
        if not self._name.startswith(prefix) or self._name == prefix:
            return
        end = self._name.index("/", len(prefix)) + 1
        shown = f"<CommonPrefixes><Prefix>{quote(self._name[:end])}</Prefix></CommonPrefixes>"
        _rewrite(reply, b"CommonPrefixes", lambda found: [*{*found, shown.encode()}])


class ShoutedMetadata(Weakness):
    """Writes the names of metadata in capitals."""

    def answer(self, request: Request, reply: Reply) -> None:
        reply.headers = [
            (name.upper() if name.lower().startswith("x-amz-meta-") else name, value)
            for name, value in reply.headers
        ]


class Picky(Weakness):
    """Refuses keys that *pattern* is found in; no other call finds them, either."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def ask(self, request: Request) -> Reply | None:
        if self._pattern.search(request.key):
            return refusal(400, "InvalidArgument")
        return None


class MarkersAreFiles(Weakness):
    """Takes ``d/`` for the file ``d``, and has no place below a file."""

    def __init__(self) -> None:
        self._files: set[str] = set()

    def ask(self, request: Request) -> Reply | None:
        below = any(request.key.startswith(f"{file}/") for file in self._files)
        if below and request.key.removesuffix("/") not in self._files:
            return refusal(500, "InternalError")
        request.path = request.path.removesuffix("/")
        if request.operation == "PutObject":
            self._files.add(request.key)
        elif request.operation == "DeleteObject":
            self._files.discard(request.key)
        return None


class Windows(Weakness):
    """Takes a backslash for a slash."""

    def ask(self, request: Request) -> Reply | None:
        request.path = request.path.replace("%5C", "/")
        return None


def _rewrite(reply: Reply, name: bytes, change: Callable[[list[bytes]], Sequence[bytes]]) -> None:
    """Change the elements *name* of a body."""
    pattern = re.compile(b"<%b>.*?</%b>" % (name, name), re.DOTALL)
    found = pattern.findall(reply.body)
    rest = pattern.sub(b"", reply.body)
    end = rest.rfind(b"</ListBucketResult>")
    if end >= 0:
        reply.body = rest[:end] + b"".join(change(found)) + rest[end:]


class OldStore:
    """*server* with *weaknesses*, at `url`, as long as the block lasts; `counts` by S3 call."""

    def __init__(self, server: Server, *weaknesses: Weakness) -> None:
        address = urlsplit(server.url)
        self._upstream = (address.hostname or LOOPBACK, address.port or 80)
        pair = server.credentials
        self._credentials = Credentials(pair.access_key, pair.secret_key)
        self._weaknesses = weaknesses
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self._front = _Front((LOOPBACK, 0), self)
        self.url = f"http://{LOOPBACK}:{self._front.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._front.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._front.shutdown()
        self._front.server_close()
        self._thread.join()

    def reply(self, request: Request) -> Reply:
        """What this store answers."""
        with self._lock:
            self.counts[request.operation] += 1
            for weakness in self._weaknesses:
                if (reply := weakness.ask(request)) is not None:
                    return reply
        reply = self._forward(request)
        with self._lock:
            for weakness in self._weaknesses:
                weakness.answer(request, reply)
        return reply

    def _forward(self, request: Request) -> Reply:
        host, port = self._upstream
        headers = {name: text for name, text in request.headers.items() if name not in _SIGNING}
        headers = {"host": f"{host}:{port}", **headers}
        query = canonical_query(request.query.items())
        Signer(REGION).sign(
            self._credentials, request.method, request.path, query, headers, UNSIGNED_PAYLOAD
        )
        connection = HTTPConnection(host, port, timeout=60)
        try:
            target = f"{request.path}?{query}" if query else request.path
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for name, text in headers.items():
                connection.putheader(name, text)
            if request.body or request.method in ("PUT", "POST"):
                connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body)
            found = connection.getresponse()
            body = found.read()
            kept = [pair for pair in found.getheaders() if pair[0].lower() not in _HOP]
            reply = Reply(found.status, kept, body)
            if request.method == "HEAD":
                reply.set("content-length", found.getheader("content-length"))
            return reply
        finally:
            connection.close()


class _Front(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: OldStore) -> None:
        self.store = store
        self._open: set[object] = set()
        super().__init__(address, _Handler)

    def process_request(self, request, client_address) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            super().shutdown_request(connection)

    def handle_error(self, request, client_address) -> None:
        """Nothing: a client has gone away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Front

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("content-length", 0))
        request = Request(
            self.command,
            path,
            dict(parse_qsl(query, keep_blank_values=True)),
            {name.lower(): text for name, text in self.headers.items()},
            self.rfile.read(length) if length else b"",
        )
        reply = self.server.store.reply(request)
        self.send_response_only(reply.status)
        self.send_header("Date", self.date_time_string())
        for name, text in reply.headers:
            self.send_header(name, text)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815
