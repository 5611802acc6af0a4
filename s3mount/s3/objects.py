"""Headers and our values: what HTTP says of an object, and what we say in a request."""

import base64
import calendar
import hashlib
import re
from collections.abc import Callable, Mapping
from email.errors import MessageError
from email.header import decode_header, make_header
from functools import lru_cache
from typing import TypeVar

from s3mount.errors import Changed, Exists, InvalidRequest, NotFound, StoreError, Unavailable
from s3mount.s3 import checksum, xml
from s3mount.s3.calls import Request
from s3mount.s3.http import Answer
from s3mount.s3.sigv4 import canonical_query
from s3mount.s3.store import (
    Body,
    FileSlice,
    ListedObject,
    ObjectInfo,
    Precondition,
    Stored,
)
from s3mount.storing import lasting

_NANOSECONDS = 1_000_000_000
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_T = TypeVar("_T")


def object_info(key: str, headers: Mapping[str, str], size: int | None = None) -> ObjectInfo:
    """What the headers of an answer say of an object; *size* if they are about a part of it."""
    if size is None:
        text = headers.get("content-length", "")
        if not (text.isascii() and text.isdigit()):
            raise Unavailable(f"{key}: the store does not tell its size", code=NO_SIZE)
        size = int(text)
    metadata = {
        name[11:]: _metadata_value(value)
        for name, value in headers.items()
        if name[:11] == "x-amz-meta-"
    }
    modified = http_date_ns(headers.get("last-modified", ""))
    return ObjectInfo(key, size, headers.get("etag", ""), modified, metadata, headers)


def listed_info(listed: ListedObject, headers: Mapping[str, str]) -> ObjectInfo:
    """What a listing says of an object whose headers came along."""
    metadata = {
        name[11:]: _metadata_value(value) if value.isascii() else value
        for name, value in headers.items()
        if name[:11] == "x-amz-meta-"
    }
    key, size, etag, modified_ns, _ = listed
    return ObjectInfo(key, size, etag, modified_ns, metadata, headers)


def _metadata_value(value: str) -> str:
    """Undo what stores do to text beyond ASCII: UTF-8 as it is, or an RFC 2047 word."""
    if value.isascii():
        if not value.startswith("=?"):
            return value
        try:
            return str(make_header(decode_header(value)))
        except (MessageError, LookupError, ValueError):
            return value
    try:
        return value.encode("latin-1").decode()
    except ValueError:
        return value


def http_date_ns(text: str) -> int:
    """Turn ``Wed, 21 Oct 2015 07:28:00 GMT`` into nanoseconds since the epoch; 0 for nonsense."""
    try:
        seconds = int(text[17:19]) * 3600 + int(text[20:22]) * 60 + int(text[23:25])
        return (_midnight(text[5:16]) + seconds) * _NANOSECONDS
    except ValueError:
        return 0


@lru_cache(maxsize=4096)
def _midnight(day: str) -> int:
    date, month, year = day.split(" ")
    return calendar.timegm((int(year), _MONTHS.index(month) + 1, int(date), 0, 0, 0))


_LINE_END = re.compile("[\r\n\0]")


def checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a caller with names in lower case; refuse those that would break a request."""
    lowered = {}
    for name, value in headers.items():
        if _LINE_END.search(name) or _LINE_END.search(value):
            raise InvalidRequest(f"the header {name!r} has a line end in it")
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"the header {name!r} is not UTF-8") from None
        lowered[name.lower()] = value
    return lowered


def condition_headers(condition: Precondition, supported: bool) -> dict[str, str]:
    """The headers that make a write conditional, if the store heeds them."""
    if not supported:
        return {}
    if condition.absent:
        return {"if-none-match": "*"}
    return {} if condition.etag is None else {"if-match": condition.etag}


def refused(error: StoreError, condition: Precondition) -> StoreError:
    """Say of a refused write what it means under *condition*."""
    details = {"code": error.code, "status": error.status, "request_id": error.request_id}
    if condition.absent and isinstance(error, Changed):
        return Exists(str(error), **details)  # type: ignore[arg-type]
    if condition.etag is not None and isinstance(error, NotFound):
        return Changed(str(error), **details)  # type: ignore[arg-type]
    return error


def stored_of(info: ObjectInfo) -> Stored:
    """What a write would have answered that made this object."""
    version_id = info.headers.get("x-amz-version-id")
    return Stored(info.etag, version_id, stored_as=lasting(info.headers))


def answered(etag: str, answer: Answer, stored_as: Mapping[str, str] | None) -> Stored:
    """What the answer to a write says of the object that has *etag* now."""
    moment_ns = http_date_ns(answer.headers.get("date", ""))
    return Stored(etag, answer.headers.get("x-amz-version-id"), moment_ns, stored_as)


async def checksum_header(
    algorithm: str | None, body: Body, crc: int | None
) -> tuple[dict[str, str], int | None]:
    """The header that carries the checksum of *body*, and the checksum, computed if need be."""
    if algorithm is None:
        return {}, None
    if crc is None:
        crc = await checksum.of_body(algorithm, body)
    return {checksum.header_of(algorithm): checksum.encode(algorithm, crc)}, crc


def part_query(upload_id: str, number: int) -> str:
    """The query that names a part."""
    return canonical_query([("partNumber", str(number)), ("uploadId", upload_id)])


def digest(name: str, body: Body) -> str:
    """A digest of a body in hexadecimal digits.  Slow: for a thread."""
    state = hashlib.new(name, usedforsecurity=False)
    for piece in checksum.pieces(body) if isinstance(body, FileSlice) else body:
        state.update(piece)
    return state.hexdigest()


def content_md5(body: bytes) -> str:
    """The value of Content-MD5."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def read_answer(request: Request, reader: Callable[[bytes], _T], answer: Answer) -> _T:
    """Read the XML of an answer; what is not what was asked for makes the store unavailable."""
    try:
        return reader(answer.body)
    except xml.Malformed as error:
        raise Unavailable(
            f"{request.what}: the answer is not the XML of S3: {error}", code=NOT_S3
        ) from error


NOT_S3 = "NotS3"
NO_SIZE = "NoSize"


def demand_s3(error: StoreError, url: str) -> None:
    """Raise a clearer error if *error* comes from something that is no object store at all."""
    silent = error.status and not error.code and not error.request_id
    if silent or error.code == NOT_S3:
        detail = f" (it answers {error.status})" if error.status else ""
        raise Unavailable(f"{url} does not speak S3{detail}", code=NOT_S3) from error
