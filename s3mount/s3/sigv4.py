"""Signature Version 4 of S3: from a request's parts to its Authorization header, or to a link.

The path is signed as it is sent: S3 is the one service that does not normalise it.
"""

import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from s3mount.errors import InvalidName
from s3mount.s3.endpoint import Credentials

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_SIGNED_BESIDE_AMZ = frozenset({"content-md5", "content-type", "host"})


def escape_key(key: str) -> str:
    """Write *key* as a URL path; every byte but the unreserved ones and ``/`` is escaped."""
    try:
        return quote(key.encode(), safe="/")
    except UnicodeEncodeError:
        raise InvalidName(f"{key!r}: a key of S3 is UTF-8") from None


def escape_value(value: str) -> str:
    """Write *value* as a query value."""
    try:
        return quote(value.encode(), safe="")
    except UnicodeEncodeError:
        raise InvalidName(f"{value!r}: a key of S3 is UTF-8") from None


def canonical_query(parameters: Iterable[tuple[str, str]]) -> str:
    """Write a query the way that is signed: escaped and sorted by name."""
    return "&".join(sorted(f"{name}={escape_value(value)}" for name, value in parameters))


def _canonical_value(value: str) -> str:
    return " ".join(value.split()) if "  " in value or value != value.strip() else value


def _signed_fields(headers: dict[str, str]) -> tuple[str, str]:
    """The names of the headers that are signed, and their canonical lines."""
    names = sorted([name for name in headers if name[:6] == "x-amz-" or name in _SIGNED_BESIDE_AMZ])
    return ";".join(names), "".join(
        [f"{name}:{_canonical_value(headers[name])}\n" for name in names]
    )


class Signer:
    """Signs requests for one region and service, and keeps the signing key of the day.

    `clock_offset` is what has to be added to our clock, in seconds, to get the store's.
    """

    def __init__(self, region: str, service: str = "s3") -> None:
        self.region = region
        self._service = service
        self.clock_offset = 0.0
        self._second = -1
        self._stamp = ""
        self._key_of: tuple[Credentials, str, str] | None = None
        self._key = b""
        self._scope = ""

    def sign(
        self,
        credentials: Credentials,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        payload_hash: str,
    ) -> None:
        """Add the headers that authenticate a request to *headers*, which hold its host.

        Names are in lower case; *path* and *query* are escaped as they are sent.
        """
        second = int(time.time() + self.clock_offset)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        stamp = self._stamp
        bare = len(headers) == 1
        headers["x-amz-content-sha256"] = payload_hash
        headers["x-amz-date"] = stamp
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
            bare = False
        if bare:  # Most requests that only read.
            signed = "host;x-amz-content-sha256;x-amz-date"
            fields = (
                f"host:{headers['host']}\nx-amz-content-sha256:{payload_hash}\nx-amz-date:{stamp}\n"
            )
        else:
            signed, fields = _signed_fields(headers)
        canonical = f"{method}\n{path}\n{query}\n{fields}\n{signed}\n{payload_hash}"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = self._signing_key(credentials, stamp[:8])
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{self._scope}\n{digest}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{self._scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )

    def presign(
        self,
        credentials: Credentials,
        host: str,
        path: str,
        seconds: int,
        asked: str,
        extra: Mapping[str, str],
    ) -> str:
        """The query that authenticates a GET of *path* from now on, for *seconds*.

        It includes the query *asked*, which is written canonically, and *extra*, what headers
        would say: a link has none.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + self.clock_offset))
        key = self._signing_key(credentials, stamp[:8])
        parameters = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{credentials.access_key}/{self._scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
            **extra,
        }
        if credentials.token:
            parameters["X-Amz-Security-Token"] = credentials.token
        own = canonical_query(parameters.items())
        query = "&".join(sorted([*own.split("&"), *asked.split("&")])).lstrip("&")
        canonical = f"GET\n{path}\n{query}\nhost:{host}\n\nhost\n{UNSIGNED_PAYLOAD}"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{self._scope}\n{digest}"
        return f"{query}&X-Amz-Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"

    def _signing_key(self, credentials: Credentials, day: str) -> bytes:
        key_of = (credentials, day, self.region)
        if key_of != self._key_of:
            key = f"AWS4{credentials.secret_key}".encode()
            for part in (day, self.region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = key
            self._scope = f"{day}/{self.region}/{self._service}/aws4_request"
            self._key_of = key_of
        return self._key
