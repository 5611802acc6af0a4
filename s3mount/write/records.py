"""The records of the journal as values, and as the fields that stand in it.

What is read back is not trusted: a record that makes no sense raises `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from s3mount.attributes import Attributes
from s3mount.s3.store import ALWAYS, PartDone, Precondition

KIND = "kind"
FILE, UPLOAD, TREE, REMOVAL = "file", "upload", "tree", "removal"
PENDING, FAILED = "pending", "failed"
INLINE_SIZE = 64 << 10  # Bytes of a file that are kept in the journal itself.
_ATTRIBUTES = tuple(one.name for one in fields(Attributes))


class Piece(NamedTuple):
    """Staged bytes ``start <= i < stop`` of a file, and their CRC64NVME."""

    start: int
    stop: int
    crc: int


class SentPart(NamedTuple):
    """A part of a multipart upload that the store has: which bytes, and its name there."""

    start: int
    stop: int
    number: int
    etag: str
    crc: int | None

    def done(self) -> PartDone:
        """As the store knows it."""
        return PartDone(self.number, self.etag, self.crc)


@dataclass(frozen=True, slots=True)
class Base:
    """The object version that the bytes come from which are not staged."""

    key: str
    etag: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file that the store does not have as it is.

    `expected` is the ETag of what it replaces whatever that is, if it was known.
    `staged` names the file that holds the pieces; empty: the journal holds all of them.
    `stored_key` is where the store has an older object of it.  `state` is `PENDING` when it was
    acknowledged and is to be uploaded, `FAILED` when only a person can decide, for the `reason`.
    `upload` is an unfinished multipart upload that holds bytes which are nowhere else, `sent` its
    parts.  `time` is in seconds since the epoch.
    """

    key: str
    size: int
    attributes: Attributes
    kept: Mapping[str, str] | None = None
    base: Base | None = None
    base_limit: int = 0
    condition: Precondition = ALWAYS
    expected: str = ""
    stored_key: str = ""
    pieces: Sequence[Piece] = ()
    staged: str = ""
    state: str = PENDING
    reason: str = ""
    time: float = 0.0
    upload: str = ""
    sent: Sequence[SentPart] = field(default=())

    def fields(self) -> dict[str, object]:
        """As it stands in the journal."""
        attributes, base = self.attributes, self.base
        return {
            KIND: FILE,
            "key": self.key,
            "size": self.size,
            "attributes": [getattr(attributes, name) for name in _ATTRIBUTES],
            "kept": self.kept,
            "base": None if base is None else [base.key, base.etag, base.size],
            "base_limit": self.base_limit,
            **over(self.condition),
            "expected": self.expected,
            "stored_key": self.stored_key,
            "pieces": self.pieces,
            "staged": self.staged,
            "state": self.state,
            "reason": self.reason,
            "time": self.time,
            "upload": self.upload,
            "sent": self.sent,
        }

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> FileRecord:
        """Read what `fields` has written; raises `ValueError`."""
        try:
            record = cls(
                key=_text(fields["key"]),
                size=_size(fields["size"]),
                attributes=Attributes(*fields["attributes"]),
                kept=_headers(fields["kept"]),
                base=None if fields["base"] is None else Base(*fields["base"]),
                base_limit=_size(fields["base_limit"]),
                condition=Precondition(fields["etag"], bool(fields["absent"])),
                expected=_text(fields.get("expected", "")),  # Not in those of earlier versions.
                stored_key=_text(fields["stored_key"]),
                pieces=[Piece(*map(_size, piece)) for piece in fields["pieces"]],
                staged=_file_name(fields["staged"]),
                state=_text(fields["state"]),
                reason=_text(fields["reason"]),
                time=_time(fields["time"]),
                upload=_text(fields["upload"]),
                sent=[SentPart(*part) for part in fields["sent"]],
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a record of a file: {error!r}") from error
        _check_attributes(record.attributes)
        if any(piece.start >= piece.stop for piece in record.pieces):
            raise ValueError("not a record of a file: an empty piece")
        return record


def over(condition: Precondition) -> dict[str, object]:
    """The fields of a `FileRecord` that say over what the file may be uploaded."""
    return {"etag": condition.etag, "absent": condition.absent}


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A multipart upload that was begun with these headers.

    `upload` is empty while the store has not told its name: it may have begun one, since `time`
    (epoch).  `file` names the record of the file it is for, if that has one.
    """

    key: str
    upload: str
    headers: Mapping[str, str]
    file: str = ""
    time: float = 0.0

    def fields(self) -> dict[str, object]:
        """As it stands in the journal."""
        return {KIND: UPLOAD, **asdict(self), "headers": dict(self.headers)}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> UploadRecord:
        """Read what `fields` has written; raises `ValueError`."""
        try:
            return cls(
                _text(fields["key"]),
                _text(fields["upload"]),
                _headers(fields["headers"]) or {},
                _text(fields["file"]),
                _time(fields["time"]),
            )
        except (KeyError, AttributeError) as error:
            raise ValueError(f"not a record of an upload: {error!r}") from error


COPYING, DELETING, UNDOING = "copying", "deleting", "undoing"


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """The renaming of a directory: prefixes, what is being done, and since when (epoch)."""

    old: str
    new: str
    phase: str
    time: float

    def fields(self) -> dict[str, object]:
        """As it stands in the journal."""
        return {KIND: TREE, **asdict(self)}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> TreeRecord:
        """Read what `fields` has written; raises `ValueError`."""
        try:
            old, new, phase = (_text(fields[name]) for name in ("old", "new", "phase"))
            record = cls(old, new, phase, _time(fields["time"]))
        except KeyError as error:
            raise ValueError(f"not a record of a renaming: {error!r}") from error
        if (
            phase not in (COPYING, DELETING, UNDOING)
            or not old.endswith("/")
            or not new.endswith("/")
        ):
            raise ValueError(f"not a record of a renaming: {old!r} to {new!r}, {phase!r}")
        return record


@dataclass(frozen=True, slots=True)
class RemovalRecord:
    """An object to be deleted: what a file was before its last change, under a name it had then.

    It is the version with `etag`, older than `time` (epoch).
    """

    key: str
    etag: str
    time: float

    def fields(self) -> dict[str, object]:
        """As it stands in the journal."""
        return {KIND: REMOVAL, **asdict(self)}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> RemovalRecord:
        """Read what `fields` has written; raises `ValueError`."""
        try:
            record = cls(_text(fields["key"]), _text(fields["etag"]), _time(fields["time"]))
        except KeyError as error:
            raise ValueError(f"not a record of a removal: {error!r}") from error
        if not record.key or not record.etag:
            raise ValueError("a record of a removal names an object and its version")
        return record


def _check_attributes(attributes: Attributes) -> None:
    numbers = [getattr(attributes, name) for name in _ATTRIBUTES if name != "xattrs"]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError("attributes are numbers")
    if attributes.xattrs is not None:
        _text(attributes.xattrs)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _time(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _file_name(value: object) -> str:
    name = _text(value)
    if "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is no name of a staged file")
    return name


def _headers(value: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if value is None else {_text(name): _text(text) for name, text in value.items()}
