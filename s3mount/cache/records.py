"""Rows of the attribute index as text: one JSON list for each name.  Pure.

Whatever is read is untrusted: a row that makes no sense is as good as absent.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from s3mount.attributes import MAX_ID, Attributes, may_be_special
from s3mount.cache.metadata import Entry

MAX_MODE = 0o177777
MAX_RECORD = 16 << 10  # Characters.  Metadata are 2 KiB as a rule, 8 KiB in the largest stores.

# Refuses whatever is no integer, or is too large for stat(2), in one call: 0.4 us.
_NUMBERS = struct.Struct("<IIIqqIqQ")
_KINDS = frozenset(
    (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)
_FILE_FIELDS = 14
_DIRECTORY_FIELDS = 10

Row = list[Any]


def row_name(segment: str, *, directory: bool) -> str:
    """What a name is called in the index: an object ``d`` may lie beside a directory ``d/``."""
    return segment + "/" if directory else segment


def encode(segment: str, entry: Entry, learnt_ns: int) -> str | None:
    """Write down what is known of a name; *learnt_ns* (0: for good) is for directories only.

    None where there is nothing worth keeping.
    """
    attributes = entry.attributes
    if attributes is None:
        return None
    numbers = [
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.mtime_ns,
        attributes.ctime_ns,
        attributes.rdev,
    ]
    if entry.directory:
        fields: Row = [segment + "/", *numbers, learnt_ns, entry.marker, attributes.xattrs]
    elif entry.kept is None or not (entry.modified_ns or entry.written):
        return None
    else:
        begin, end = entry.written or (0, 0)
        kept = json.dumps(sorted(entry.kept.items()), separators=(",", ":"))
        version = [entry.size, begin, end, entry.etag, entry.modified_ns]
        fields = [segment, *numbers, *version, attributes.xattrs, kept]
    text = json.dumps(fields, separators=(",", ":"))
    return text if len(text) <= MAX_RECORD else None


def parse(lines: str) -> dict[str, Row]:
    """Split the records of one page, a line each, into rows by `row_name`."""
    try:
        rows = json.loads(f"[{lines.replace(chr(10), ',')}]")
    except (ValueError, RecursionError):
        rows = [_parse_line(line) for line in lines.split("\n")]
    return {
        row[0]: row
        for row in rows
        if isinstance(row, list)
        and len(row) in (_FILE_FIELDS, _DIRECTORY_FIELDS)
        and isinstance(row[0], str)
    }


def _parse_line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def decode_file(row: Row, checked: float) -> Entry | None:
    """The file that a row describes, as of *checked*; None for nonsense.  2.5 us."""
    if len(row) != _FILE_FIELDS:
        return None
    size, begin, end, etag, modified_ns, xattrs, kept = row[7:]
    attributes = _attributes(row, size, modified_ns, xattrs)
    headers = _headers(kept) if isinstance(kept, str) else None
    if attributes is None or headers is None or not isinstance(etag, str):
        return None
    if not _is_file_mode(attributes.mode) or not may_be_special(size, stat.S_IFMT(row[1])):
        return None
    written = None
    if not modified_ns:
        if type(begin) is not int or type(end) is not int:
            return None
        written = (begin, end)
    return Entry(False, size, etag, modified_ns, attributes, checked, False, headers, written)


def decode_directory(row: Row, checked: float) -> tuple[Entry, int] | None:
    """The directory that a row describes and when that was learnt; None for nonsense."""
    if len(row) != _DIRECTORY_FIELDS:
        return None
    learnt_ns, marker, xattrs = row[7:]
    attributes = _attributes(row, 0, learnt_ns, xattrs)
    if attributes is None or not stat.S_ISDIR(attributes.mode) or attributes.mode > MAX_MODE:
        return None
    return Entry(True, 0, "", 0, attributes, checked, marker is True), learnt_ns


def _attributes(row: Row, size: object, moment: object, xattrs: object) -> Attributes | None:
    try:
        _NUMBERS.pack(*row[1:7], moment, size)
    except (struct.error, TypeError):
        return None
    if row[2] > MAX_ID or row[3] > MAX_ID or not (xattrs is None or isinstance(xattrs, str)):
        return None
    mode, uid, gid, mtime_ns, ctime_ns, rdev = row[1:7]
    return Attributes(mode, uid, gid, mtime_ns, ctime_ns, rdev, xattrs)


@lru_cache(maxsize=1024)
def _is_file_mode(mode: int) -> bool:
    return stat.S_IFMT(mode) in _KINDS and mode <= MAX_MODE


@lru_cache(maxsize=1024)  # Most files of a tree have the same headers: they share one mapping.
def _headers(text: str) -> Mapping[str, str] | None:
    try:
        pairs = json.loads(text)
        headers = dict(pairs)
    except (ValueError, TypeError, RecursionError):
        return None
    if not all(isinstance(text, str) for pair in headers.items() for text in pair):
        return None
    # They are sent again some day: no line may end in one, whatever the file holds.
    unsafe = any(c in text for pair in headers.items() for text in pair for c in "\r\n\0")
    return None if unsafe else headers
