"""Customer keys (SSE-C): read from a file, and which of them an object is encrypted with.

The keys are secrets: they appear in requests and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from s3mount.errors import MountError
from s3mount.s3.passwd import check_private

_PREFIX = "x-amz-server-side-encryption-customer-"
_SOURCE_PREFIX = "x-amz-copy-source-server-side-encryption-customer-"
_SIZE = 32
_MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class CustomerKey:
    """One key, as requests carry it: for the object itself, and for the source of a copy."""

    headers: Mapping[str, str] = field(repr=False)
    source_headers: Mapping[str, str] = field(repr=False)


NO_KEY = CustomerKey({}, {})  # What objects are read with that have no customer key.


def customer_key(secret: bytes) -> CustomerKey:
    """The key of 32 bytes."""
    text = base64.b64encode(secret).decode()
    digest = base64.b64encode(hashlib.md5(secret, usedforsecurity=False).digest()).decode()
    fields = {"algorithm": "AES256", "key": text, "key-md5": digest}
    return CustomerKey(
        {_PREFIX + name: value for name, value in fields.items()},
        {_SOURCE_PREFIX + name: value for name, value in fields.items()},
    )


def read_keys(path: Path) -> tuple[CustomerKey, ...]:
    """The keys in a file, one a line in base64, the newest first; raises `MountError`.

    The form is that of s3fs (``use_sse=custom:``).  No message shows anything of a key.
    """
    check_private(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise MountError(f"{path}: {reason}", 1) from error
    keys = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            keys.append(_parse(path, number, line.strip()))
    if not keys:
        raise MountError(f"{path} has no keys: a line each, 32 bytes in base64", 1)
    return tuple(keys)


def _parse(path: Path, number: int, text: str) -> CustomerKey:
    try:
        secret = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        secret = b""
    if len(secret) != _SIZE:
        raise MountError(
            f"{path}, line {number}: not a key of 32 bytes in base64 "
            "(try: openssl rand -base64 32)",
            1,
        )
    return customer_key(secret)


class Keyring:
    """The keys of a mount: it writes with the first, and reads with whichever fits.

    Remembers the objects (and uploads) that another one than the first fits.
    """

    def __init__(self, keys: tuple[CustomerKey, ...]) -> None:
        self._keys = keys
        self._known: dict[str, CustomerKey] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def writing(self) -> CustomerKey:
        """The key of what is written."""
        return self._keys[0] if self._keys else NO_KEY

    def guess(self, name: str) -> CustomerKey:
        """The key that fits *name* as far as is known."""
        return self._known.get(name, self.writing)

    def candidates(self, name: str) -> Iterator[CustomerKey]:
        """The keys to try, the likeliest first; the last resort is none."""
        first = self.guess(name)
        yield first
        yield from (key for key in (*self._keys, NO_KEY) if key is not first)

    def fits(self, name: str, key: CustomerKey) -> None:
        """Take note of the key that fits."""
        if key is self.writing:
            self._known.pop(name, None)
            return
        if len(self._known) >= _MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[name] = key
