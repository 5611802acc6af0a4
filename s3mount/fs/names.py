"""Key segments to file names and back: the identity, but for what one side cannot spell.

A file name is 1 to 255 bytes without ``/`` and NUL, neither ``.`` nor ``..``; a key segment is
UTF-8 of any length, possibly empty.  What has no counterpart is escaped, reversibly:

==============================  =====================================================
in the bucket                   in the mount
==============================  =====================================================
segment ````, ``.``, ``..``     ``%s3key:`` + percent-encoded segment (``a//b`` has
or with a NUL byte              the segments ``a``, ````, ``b``)
segment that looks like that    ``%s3key:`` + percent-encoded segment
``%s3raw:`` + percent-encoded   a name that is not UTF-8
object ``a`` beside ``a/...``   the directory ``a``, and the file ``%s3file:a``
segment over 255 bytes          ``%s3long:`` + its SHA-256 (found by listing)
empty object ``d_$folder$``     the directory ``d``
==============================  =====================================================

A *slot* names one entry of a directory to the caches: its segment, or ``/`` and the segment
for an object that stands beside a directory of its name.  No segment has a slash.
"""

from __future__ import annotations

import errno
import hashlib
from urllib.parse import quote_from_bytes, unquote_to_bytes

import s3mount.errors

MAX_NAME = 255  # bytes, NAME_MAX of Linux
MAX_KEY = 1024  # bytes of UTF-8, S3's limit

ESCAPE = b"%s3"
KEY, RAW, FILE, LONG = "%s3key:", "%s3raw:", "%s3file:", "%s3long:"
FOLDER = "_$folder$"  # How old Hadoop tools end the name of an empty directory's marker.
BESIDE = "/"
SAFE = " !#$&'()*+,-.:;<=>?@[]^_`{|}~"


def _quote(data: bytes) -> str:
    if data in (b".", b".."):
        return "%2E" * len(data)
    return quote_from_bytes(data, safe=SAFE)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def to_segment(name: bytes) -> str:
    """The key segment that the file name *name* stands for.

    Raises `PosixError` ENAMETOOLONG.  ``%s3file:`` and ``%s3long:`` names are for the caller
    (`split_file`, `is_long`).
    """
    if len(name) > MAX_NAME:
        raise s3mount.errors.PosixError(errno.ENAMETOOLONG)
    if name.startswith(ESCAPE):
        segment = _special_segment(name)
        if segment is not None:
            return segment
        if _raw_name(name.decode("utf-8", "replace")) is not None:
            return RAW + _quote(name)
    if name.isascii() or _is_utf8(name):
        return name.decode()
    return RAW + _quote(name)


def to_name(segment: str) -> bytes:
    """The file name that shows the key segment *segment*."""
    if segment.startswith("%s3"):
        raw = _raw_name(segment)
        if raw is not None:
            return raw
    data = segment.encode("utf-8", "surrogateescape")
    if _is_special(segment):
        data = (KEY + _quote(data)).encode()
    return data if len(data) <= MAX_NAME else long_name(segment)


def long_name(segment: str) -> bytes:
    """The name that shows a segment which does not fit: only a listing leads back."""
    digest = hashlib.sha256(segment.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{LONG}{digest}".encode()


def slot_name(slot: str) -> bytes:
    """The file name that shows what is in *slot*."""
    if not is_beside(slot):
        return to_name(slot)
    name = FILE.encode() + to_name(slot[1:])
    return name if len(name) <= MAX_NAME else FILE.encode() + long_name(slot[1:])


def is_beside(slot: str) -> bool:
    """Whether *slot* is that of an object beside a directory."""
    return slot.startswith(BESIDE)


def key_of(prefix: str, slot: str) -> str:
    """The key of the object in *slot* of the directory *prefix*."""
    return prefix + slot.removeprefix(BESIDE)


def folder_of(segment: str) -> str | None:
    """The directory that an empty object *segment* marks in Hadoop's way, if it does."""
    return segment[: -len(FOLDER)] if segment.endswith(FOLDER) and segment != FOLDER else None


def split_file(name: bytes) -> bytes | None:
    """The plain name in ``%s3file:NAME``, or None for any other name."""
    return name[len(FILE) :] if name.startswith(FILE.encode()) and len(name) > len(FILE) else None


def is_long(name: bytes) -> bool:
    """Whether *name* stands for a segment of over 255 bytes, which only a listing knows."""
    return name.startswith(LONG.encode()) and len(name) == len(LONG) + 64


def key_size(key: str) -> int:
    """The length of a key in bytes."""
    return len(key) if key.isascii() else len(key.encode("utf-8", "surrogateescape"))


def check_key(key: str, limit: int = MAX_KEY) -> None:
    """Raise `PosixError` ENAMETOOLONG for a key of more than *limit* bytes."""
    if key_size(key) > limit:
        raise s3mount.errors.PosixError(errno.ENAMETOOLONG)


def _is_special(segment: str) -> bool:
    """Whether *segment* cannot stand for itself as a name."""
    if segment in ("", ".", "..") or "\0" in segment:
        return True
    if not segment.startswith("%s3"):
        return False
    name = segment.encode("utf-8", "surrogateescape")
    return split_file(name) is not None or is_long(name) or _special_segment(name) is not None


def _special_segment(name: bytes) -> str | None:
    """The segment in ``%s3key:...``, when *name* is just what `to_name` makes of it."""
    if not name.startswith(KEY.encode()):
        return None
    data = unquote_to_bytes(name[len(KEY) :])
    if not _is_utf8(data) or (KEY + _quote(data)).encode() != name:
        return None
    segment = data.decode()
    return segment if _is_special(segment) else None


def _raw_name(segment: str) -> bytes | None:
    """The name in ``%s3raw:...``, when *segment* is just what `to_segment` makes of it."""
    if not segment.startswith(RAW):
        return None
    data = unquote_to_bytes(segment[len(RAW) :])
    if RAW + _quote(data) != segment or len(data) > MAX_NAME or not data:
        return None
    if b"/" in data or b"\0" in data:
        return None
    if not _is_utf8(data) or _raw_name(data.decode()) is not None:
        return data
    return None
