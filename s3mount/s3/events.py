"""S3's event records: JSON that nobody vouches for, in; changes of keys, out."""

import json
from typing import NamedTuple
from urllib.parse import unquote_plus

from s3mount.s3.store import MAX_SIZE

MAX_LINE = 256 << 10  # Bytes: a record has a few hundred, and 2 KB of user metadata.

# Of these the names, bytes and attributes of a mount stay the same.
_HARMLESS = frozenset({"ObjectAccessed", "ObjectAcl", "ObjectTagging", "Scanner", "TestEvent"})


class Malformed(ValueError):
    """What was heard is no news of S3."""


class Event(NamedTuple):
    """One record: something has happened to an object.

    `keys` are what the key may be: stores tell it percent-encoded with ``+`` for a space (AWS,
    RustFS) or plain (MinIO), and do not say which.  `etag` has no quotes; it is empty, like
    `request_id`, where it was not told.
    """

    keys: tuple[str, ...]
    removed: bool
    etag: str
    size: int | None
    request_id: str


class Lines:
    """Cuts a stream into lines, with a limit; `dropped` counts those that were too long."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = b""
        self._skipping = False
        self.dropped = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that *data* completes, without their ends and without white space around."""
        *whole, rest = (self._rest + data).split(b"\n")
        rest = rest.lstrip()  # White space is how some say that they are alive.
        if whole and self._skipping:
            del whole[0]
            self._skipping = False
        if self._skipping:
            rest = b""
        elif len(rest) > self._limit:
            self._skipping = True
            self.dropped += 1
            rest = b""
        self._rest = rest
        long = sum(len(line) > self._limit for line in whole)
        self.dropped += long
        return [line.strip() for line in whole if len(line) <= self._limit and line.strip()]


def parse(text: bytes | str, bucket: str) -> list[Event]:
    """The events of *bucket* in a message; none in a sign of life.  Raises `Malformed`."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("this is not JSON") from None
    if not isinstance(message, dict):
        raise Malformed("this is no message of S3")
    if message.get("Type") == "Notification" and isinstance(message.get("Message"), str):
        return _parse_wrapped(message["Message"], bucket)
    if message.get("Event") == "s3:TestEvent":
        return []
    if "Records" not in message:
        raise Malformed("this is no message of S3")
    records = message["Records"]
    if records is None:
        return []
    if not isinstance(records, list):
        raise Malformed("the records are no list")
    events = [_event(record, bucket) for record in records]
    return [event for event in events if event is not None]


def _parse_wrapped(text: str, bucket: str) -> list[Event]:
    """What SNS has put into a message of its own."""
    if '"Notification"' in text:
        raise Malformed("a notification inside a notification")
    return parse(text, bucket)


def _event(record: object, bucket: str) -> Event | None:
    name = _field(record, "eventName")
    if not isinstance(name, str):
        raise Malformed("a record has no name")
    family, _, kind = name.removeprefix("s3:").partition(":")
    if family in _HARMLESS or kind == "NoOP":
        return None
    s3 = _field(record, "s3")
    if _field(_field(s3, "bucket"), "name") != bucket:
        return None
    described = _field(s3, "object")
    key = _field(described, "key")
    if not isinstance(key, str) or not key or not _is_text(key):
        raise Malformed("a record has no key")
    size = _field(described, "size")
    return Event(
        keys=_keys(key),
        removed=family not in ("ObjectCreated", "ObjectRestore"),
        etag=_text(_field(described, "eTag")).strip('"'),
        size=size if type(size) is int and 0 <= size <= MAX_SIZE else None,
        request_id=_text(_field(_field(record, "responseElements"), "x-amz-request-id")),
    )


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, as all keys can: JSON may hold half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keys(key: str) -> tuple[str, ...]:
    decoded = unquote_plus(key, errors="replace")
    return (key,) if decoded == key else (decoded, key)


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) and _is_text(value) else ""
