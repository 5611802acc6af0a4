"""Answers that were lost: is the object that is there now the one that we sent?

A write whose answer never came is tried again, and then refused because it has already
taken effect.  Whether the object is ours is judged by what we know of it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3mount.s3 import checksum
from s3mount.s3.http import moment_of
from s3mount.s3.store import ObjectInfo, PartDone
from s3mount.storing import is_encrypted_apart

_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
_CLOCK_SLACK_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the object must be like if it is ours; None where we do not know.

    `checksum` is (algorithm, value); `md5` in hexadecimal digits is what an ETag may be.
    """

    size: int
    metadata: Mapping[str, str]
    checksum: tuple[str, int] | None
    md5: str | None

    def met_by(self, info: ObjectInfo) -> bool:
        """Whether *info* describes our object: everything agrees, and its content is proven."""
        if info.size != self.size or any(
            info.metadata.get(name) != value for name, value in self.metadata.items()
        ):
            return False
        stored = checksum.stored(info.headers)
        if stored is not None and self.checksum is not None and stored[0] == self.checksum[0]:
            return stored[1] == self.checksum[1]
        plain = not is_encrypted_apart(info.headers)
        if plain and self.md5 is not None and _MD5_ETAG.fullmatch(info.etag):
            return info.etag.strip('"') == self.md5
        # Neither is told: size and metadata with the time of the change in ns have to do.
        return "mtime" in self.metadata


def names_moment(headers: Mapping[str, str]) -> bool:
    """Whether the headers of a write tell, to the nanosecond, when it was made."""
    return {"mtime", "ctime"} <= sent_metadata(headers).keys()


def is_made_by(info: ObjectInfo, headers: Mapping[str, str]) -> bool:
    """Whether *info* says all that *headers* say, and those tell when that was."""
    said = sent_metadata(headers).items()
    return names_moment(headers) and all(info.metadata.get(name) == value for name, value in said)


def sent_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """The user metadata among the headers of a write."""
    return {
        name[11:].lower(): " ".join(value.split())
        for name, value in headers.items()
        if name.lower().startswith("x-amz-meta-")
    }


def multipart_etag(parts: Sequence[PartDone]) -> str | None:
    """The ETag that S3 gives an object of *parts*, if those have plain MD5 ETags."""
    found = [_MD5_ETAG.fullmatch(part.etag) for part in parts]
    digests = [bytes.fromhex(match[1]) for match in found if match is not None]
    if len(digests) != len(parts):
        return None
    return f'"{hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()}-{len(parts)}"'


def is_completed(info: ObjectInfo, parts: Sequence[PartDone], age_seconds: float) -> bool:
    """Whether *info* describes what we completed from *parts*, begun *age_seconds* ago."""
    if info.etag == multipart_etag(parts):
        return True
    if not info.etag.rstrip('"').endswith(f"-{len(parts)}"):
        return False
    # Encrypted parts have ETags that nothing can be computed from.
    return info.modified_ns / 1e9 >= _store_time(info) - age_seconds - _CLOCK_SLACK_SECONDS


def _store_time(info: ObjectInfo) -> float:
    """The store's own time when it described the object; never if it did not say."""
    moment = moment_of(info.headers.get("date"))
    return float("inf") if moment is None else moment
