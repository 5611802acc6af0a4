"""The XML of S3: answers into values, and the two request bodies.

Parsed by expat through `xml.etree`, which is as fast as it gets here, after refusing what an
honest store never sends: document types, entities and encodings other than UTF-8.
"""

import calendar
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from s3mount.s3.store import MAX_SIZE, ListedObject, ListedVersion, PartDone

_ENCODING = re.compile(rb"""<\?xml[^>]*encoding\s*=\s*["']([^"']*)["']""")
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FRACTION = re.compile(r"\.(\d+)", re.ASCII)
_NANOSECONDS = 1_000_000_000


class Malformed(Exception):
    """A body is not the XML that was expected."""


class ErrorBody(NamedTuple):
    """What an ``<Error>`` says; empty where it says nothing."""

    code: str
    message: str
    request_id: str
    region: str


class Listing(NamedTuple):
    """One page of a listing as the store sent it, with keys relative to the mounted prefix.

    `version` is 1 or 2: which of the two calls the store answered.  `headers` are those of HEAD,
    names in lower case, by key, where they came along.
    """

    objects: list[ListedObject]
    prefixes: list[str]
    truncated: bool
    next_token: str
    version: int
    headers: Mapping[str, Mapping[str, str]]


class VersionListing(NamedTuple):
    """One page of versions as the store sent it, with keys relative to the mounted prefix.

    `next_key` and `next_version` are where the next page begins, as the store wants to hear it.
    """

    versions: list[ListedVersion]
    prefixes: list[str]
    truncated: bool
    next_key: str
    next_version: str


class Failure(NamedTuple):
    """One key that DeleteObjects did not delete."""

    key: str
    code: str
    message: str


def parse(body: bytes) -> ET.Element:
    """Parse a body; raises `Malformed`."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body or b"\0" in body:
        raise Malformed("it declares a document type, or is not UTF-8")
    encoding = _ENCODING.match(body[:200].lstrip(b"\xef\xbb\xbf \t\r\n"))
    if encoding and encoding[1].upper() not in (b"UTF-8", b"UTF8", b"US-ASCII"):
        raise Malformed("it is not UTF-8")
    try:
        return ET.fromstring(body.lstrip())  # A slow call sends white space to stay alive.
    except (ET.ParseError, LookupError, ValueError) as error:
        raise Malformed(f"it is not XML: {error}") from error


def _parse_any(body: bytes) -> tuple[ET.Element, str]:
    """Parse a body; return its root and the namespace as tags carry it."""
    root = parse(body)
    namespace, brace, _ = root.tag.rpartition("}")
    return root, namespace + brace


def _parse_as(body: bytes, *names: str) -> tuple[ET.Element, str]:
    """Parse a body whose root is one of *names*."""
    root, namespace = _parse_any(body)
    local = root.tag[len(namespace) :]
    if local not in names:
        raise Malformed(f"it is {local[:40]!r}, not {names[0]!r}")
    return root, namespace


def error_of(body: bytes) -> ErrorBody | None:
    """What an error body says, or None when the body is no error of S3."""
    if b"<Error" not in body:
        return None
    try:
        root, namespace = _parse_as(body, "Error")
    except Malformed:
        return None

    def text(name: str) -> str:
        return root.findtext(namespace + name) or ""

    region = text("Region") or text("BucketRegion")
    return ErrorBody(text("Code"), text("Message"), text("RequestId"), region)


_DAYS: dict[str, int] = {}
_MOMENTS: dict[str, int] = {}  # Objects that were written together share their seconds.


def moment_ns(text: str) -> int:
    """As `modified_ns`, with the fraction of the second."""
    fraction = _FRACTION.match(text[19:])
    digits = fraction[1][:9].ljust(9, "0") if fraction else "0"
    return modified_ns(text) + int(digits)


def modified_ns(text: str) -> int:
    """Turn ``2009-10-12T17:50:30.000Z`` into nanoseconds since the epoch; 0 for nonsense.

    Fractions are dropped: HEAD says whole seconds, and both must say the same.
    """
    moment = text[:19]
    known = _MOMENTS.get(moment)
    if known is None:
        known = _nanoseconds(moment)
        if len(_MOMENTS) > 10_000:
            _MOMENTS.clear()
        _MOMENTS[moment] = known
    return known


def _nanoseconds(text: str) -> int:
    try:
        midnight = _DAYS.get(text[:10])
        if midnight is None:
            midnight = _midnight(text[:10])
        seconds = midnight + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
    except ValueError:
        return 0
    return seconds * _NANOSECONDS


def _midnight(day: str) -> int:
    year, month, date = day.split("-")
    seconds = calendar.timegm((int(year), int(month), int(date), 0, 0, 0))
    if len(_DAYS) > 10_000:
        _DAYS.clear()
    _DAYS[day] = seconds
    return seconds


def listing(body: bytes, prefix: str, root: str, *, metadata: bool = False) -> Listing:
    """Read the answer of ListObjectsV2 or ListObjects about *prefix*, which begins with *root*.

    Keys lose *root*; one that is not under *prefix* makes the answer `Malformed`.
    """
    tree, namespace = _parse_as(body, "ListBucketResult")
    fields = {child.tag[len(namespace) :]: child.text or "" for child in tree}
    escaped = fields.get("EncodingType", "").lower() == "url"
    cut = len(root)
    items = tree.findall(f"{namespace}Contents")
    objects = _listed_objects(items, namespace, escaped, prefix, cut)
    headers = _listed_headers(items, objects, namespace) if metadata else {}
    found = tree.findall(f"{namespace}CommonPrefixes/{namespace}Prefix")
    prefixes = [_name(item.text or "", escaped) for item in found]
    if not all(name.startswith(prefix) for name in prefixes):
        raise Malformed("it lists what was not asked for")
    truncated = fields.get("IsTruncated", "").strip().lower() == "true"
    relative = [name[cut:] for name in prefixes]
    if "NextContinuationToken" in fields or "KeyCount" in fields:
        following = fields.get("NextContinuationToken", "")
        return Listing(objects, relative, truncated, following, 2, headers)
    marker = _name(fields.get("NextMarker", ""), escaped)
    if truncated and not marker:
        # Without a delimiter the store need not name the next marker: it is the last name, which
        # does not stand last where a store lists in an order of its own.
        marker = max([*(root + item.key for item in objects), *prefixes], default="")
    return Listing(objects, relative, truncated, marker, 1, headers)


def version_listing(body: bytes, prefix: str, root: str) -> VersionListing:
    """Read the answer of ListObjectVersions about *prefix*, which begins with *root*.

    Some stores (RustFS, moto) tell all markers of deletions apart from the versions; here they
    are where they belong: keys in their order, and the versions of each the newest first.
    """
    tree, namespace = _parse_as(body, "ListVersionsResult", "ListObjectVersionsOutput")
    fields = {child.tag[len(namespace) :]: child.text or "" for child in tree}
    escaped = fields.get("EncodingType", "").lower() == "url"
    cut, grouped = len(root), dict[str, list[ListedVersion]]()
    for child in tree:
        kind = child.tag[len(namespace) :]
        if kind in ("Version", "DeleteMarker"):
            version = _listed_version(child, namespace, escaped, deleted=kind == "DeleteMarker")
            if not version.key.startswith(prefix) or version.size < 0:
                raise Malformed("it lists what was not asked for")
            key = version.key[cut:]
            grouped.setdefault(key, []).append(version._replace(key=key))
    for versions in grouped.values():
        versions.sort(key=lambda one: (-one.moment_ns, not one.latest))
    found = tree.findall(f"{namespace}CommonPrefixes/{namespace}Prefix")
    prefixes = [_name(item.text or "", escaped) for item in found]
    if not all(name.startswith(prefix) for name in prefixes):
        raise Malformed("it lists what was not asked for")
    return VersionListing(
        [version for key in sorted(grouped) for version in grouped[key]],
        [name[cut:] for name in prefixes],
        fields.get("IsTruncated", "").strip().lower() == "true",
        _name(fields.get("NextKeyMarker", ""), escaped),
        fields.get("NextVersionIdMarker", ""),
    )


def _listed_version(
    item: ET.Element, namespace: str, escaped: bool, *, deleted: bool
) -> ListedVersion:
    fields = {child.tag[len(namespace) :]: child.text or "" for child in item}
    owner = item.find(f"{namespace}Owner")
    names = [] if owner is None else [child.text or "" for child in owner]
    try:
        return ListedVersion(
            _name(fields["Key"], escaped),
            fields["VersionId"] or "null",
            object_size(fields.get("Size") or "0"),
            "" if deleted else quoted(fields.get("ETag", "")),
            moment_ns(fields.get("LastModified", "")),
            fields.get("IsLatest", "").strip().lower() == "true",
            deleted,
            fields.get("StorageClass") or "STANDARD",
            names[-1] if names else "",
        )
    except (KeyError, ValueError) as error:
        raise Malformed(f"a version of the listing makes no sense: {error}") from error


def object_size(text: str) -> int:
    """The bytes of an object or a part; raises `ValueError` where no file can have so many."""
    size = int(text)
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"a size of {size}")
    return size


def versioning(body: bytes) -> str:
    """Read the answer of GetBucketVersioning: ``Enabled``, ``Suspended``, or nothing."""
    root, namespace = _parse_any(body)  # moto calls it otherwise.
    if not root.tag[len(namespace) :].endswith(("Versioning", "Configuration", "Response")):
        raise Malformed("it is not about versioning")
    return (root.findtext(f"{namespace}Status") or "").strip()


def _listed_objects(
    items: Iterable[ET.Element], namespace: str, escaped: bool, prefix: str, cut: int
) -> list[ListedObject]:
    key_tag, size_tag, etag_tag, modified_tag, class_tag = (
        namespace + name for name in ("Key", "Size", "ETag", "LastModified", "StorageClass")
    )
    objects = []
    width = len(prefix)
    try:
        for item in items:
            fields = {child.tag: child.text for child in item}
            key = fields[key_tag] or ""
            if escaped and ("%" in key or "+" in key):
                key = unquote_plus(key)
            if key[:width] != prefix:
                raise Malformed("it lists what was not asked for")
            etag = fields.get(etag_tag) or ""
            objects.append(
                ListedObject(
                    key[cut:],
                    object_size(fields[size_tag] or "0"),
                    etag if etag[-1:] == '"' else quoted(etag),
                    modified_ns(fields.get(modified_tag) or ""),
                    fields.get(class_tag) or "STANDARD",
                )
            )
    except (KeyError, ValueError) as error:
        raise Malformed(f"an entry of the listing makes no sense: {error}") from error
    return objects


def _listed_headers(
    items: Iterable[ET.Element], objects: Iterable[ListedObject], namespace: str
) -> dict[str, dict[str, str]]:
    """The headers of objects, by key; none of one that could not be sent back as they are."""
    cut = len(namespace)
    headers = {}
    for item, listed in zip(items, objects, strict=True):
        found = item.find(f"{namespace}UserMetadata")
        if found is not None and len(found):
            mine = {child.tag[cut:].lower(): child.text or "" for child in found}
            if tags := item.findtext(f"{namespace}UserTags"):
                mine["x-amz-tagging-count"] = str(tags.count("&") + 1)  # As HEAD says it.
            if not any(character in value for value in mine.values() for character in "\r\n"):
                headers[listed.key] = mine
    return headers


def quoted(etag: str) -> str:
    """An ETag as headers write it: some stores leave the quotes out in XML."""
    return f'"{etag}"' if etag and etag[-1] != '"' else etag


def _name(text: str, escaped: bool) -> str:
    return unquote_plus(text) if escaped else text


def upload_id(body: bytes) -> str:
    """Read the answer of CreateMultipartUpload."""
    root, namespace = _parse_any(body)  # rclone calls it otherwise.
    found = root.findtext(f"{namespace}UploadId")
    if not found:
        raise Malformed("it names no upload")
    return found


def result(body: bytes) -> dict[str, str]:
    """Read a flat answer such as ``CopyObjectResult`` into its fields."""
    root, namespace = _parse_any(body)
    fields = {child.tag[len(namespace) :]: child.text or "" for child in root}
    fields["ETag"] = quoted(fields.get("ETag", ""))
    return fields


class PartPage(NamedTuple):
    """One page of the parts of an upload: their fields, and the last number if more follow."""

    parts: list[dict[str, str]]
    following: str


def part_page(body: bytes) -> PartPage:
    """Read the answer of ListParts."""
    root, namespace = _parse_as(body, "ListPartsResult", "ListPartsResponse")  # As moto says.
    parts = [
        {child.tag[len(namespace) :]: child.text or "" for child in item}
        for item in root.findall(f"{namespace}Part")
    ]
    truncated = (root.findtext(f"{namespace}IsTruncated") or "").strip().lower() == "true"
    following = root.findtext(f"{namespace}NextPartNumberMarker") or ""
    return PartPage(parts, following if truncated else "")


def upload_page(body: bytes) -> list[dict[str, str]]:
    """Read the answer of ListMultipartUploads: the fields of each upload."""
    root, namespace = _parse_as(body, "ListMultipartUploadsResult")
    return [
        {child.tag[len(namespace) :]: child.text or "" for child in item}
        for item in root.findall(f"{namespace}Upload")
    ]


def delete_failures(body: bytes) -> list[Failure]:
    """Read what DeleteObjects could not delete."""
    root, namespace = _parse_as(body, "DeleteResult")
    return [
        Failure(
            item.findtext(f"{namespace}Key") or "",
            item.findtext(f"{namespace}Code") or "",
            item.findtext(f"{namespace}Message") or "",
        )
        for item in root.findall(f"{namespace}Error")
    ]


def writable(key: str) -> bool:
    """Whether XML can name *key*: most control characters it cannot."""
    return _UNWRITABLE.search(key) is None


def delete_request(keys: Iterable[str]) -> bytes:
    """The body of DeleteObjects, which answers failures only."""
    # A parser would read bare line ends as spaces or newlines.
    objects = "".join(
        f"<Object><Key>{escape(key, {chr(13): '&#13;', chr(10): '&#10;'})}</Key></Object>"
        for key in keys
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{objects}<Quiet>true</Quiet></Delete>"
    ).encode()


def complete_request(
    parts: Sequence[PartDone], checksums: Sequence[tuple[str, str] | None]
) -> bytes:
    """The body of CompleteMultipartUpload; *checksums* are (element, value) for each part."""
    pieces = []
    for part, checksum in zip(parts, checksums, strict=True):
        extra = f"<{checksum[0]}>{checksum[1]}</{checksum[0]}>" if checksum else ""
        pieces.append(
            f"<Part><PartNumber>{part.number}</PartNumber>"
            f"<ETag>{escape(part.etag)}</ETag>{extra}</Part>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{''.join(pieces)}</CompleteMultipartUpload>"
    ).encode()
