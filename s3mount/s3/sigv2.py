"""Signature Version 2 of S3, for stores that know no other.

It protects neither the body nor most of the headers, so it is used only when it is asked for.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import quote_plus, unquote

from s3mount.s3.endpoint import Credentials

# Parameters that name what is asked for, and are therefore signed.
_NAMES = """
    accelerate acl analytics cors defaultObjectAcl delete inventory lifecycle location logging
    metrics notification object-lock partNumber policy replication requestPayment
    response-cache-control response-content-disposition response-content-encoding
    response-content-language response-content-type response-expires restore select select-type
    storageClass tagging torrent uploadId uploads versionId versioning versions website
"""
_SIGNED_PARAMETERS = frozenset(_NAMES.split())


class SignerV2:
    """Signs requests; *root* is the bucket's part of the path where the host name holds it.

    `region` is there for those who correct it: these signatures name none.
    """

    def __init__(self, region: str, root: str) -> None:
        self.region = region
        self.clock_offset = 0.0
        self._root = root

    def sign(
        self,
        credentials: Credentials,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        payload_hash: str,
    ) -> None:
        """Add the headers that authenticate a request to *headers*; see `Signer.sign`."""
        headers["date"] = formatdate(time.time() + self.clock_offset, usegmt=True)
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        signature = self._signature(credentials, method, path, query, headers, headers["date"])
        headers["authorization"] = f"AWS {credentials.access_key}:{signature}"

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
        expires = str(int(time.time() + self.clock_offset) + seconds)
        headers = dict(extra)
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        said = [f"{name}={quote_plus(value)}&" for name, value in headers.items()]
        query = (f"{asked}&" if asked else "") + "".join(said)
        signature = self._signature(credentials, "GET", path, asked, headers, expires)
        return (
            f"{query}AWSAccessKeyId={quote_plus(credentials.access_key)}"
            f"&Signature={quote_plus(signature)}&Expires={expires}"
        )

    def _signature(
        self,
        credentials: Credentials,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        date: str,
    ) -> str:
        lines = [method, headers.get("content-md5", ""), headers.get("content-type", ""), date]
        lines += [
            f"{name}:{headers[name].strip()}" for name in sorted(headers) if name[:6] == "x-amz-"
        ]
        lines.append(self._root + path + _signed_query(query))
        key = credentials.secret_key.encode()
        digest = hmac.digest(key, "\n".join(lines).encode(), hashlib.sha1)
        return base64.b64encode(digest).decode()


def _signed_query(query: str) -> str:
    """The parameters of *query* that are signed, as they are signed: not escaped."""
    signed = []
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if name in _SIGNED_PARAMETERS:
            signed.append(f"{name}={unquote(value)}" if value else name)
    return "?" + "&".join(sorted(signed)) if signed else ""
