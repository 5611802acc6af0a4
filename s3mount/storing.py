"""How an object is stored: class, encryption, tags; and what a new version keeps of it.  Pure.

(ACLs are not part of it: no answer tells them.)
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

CLASS = "x-amz-storage-class"
STANDARD = "STANDARD"
TAGGING = "x-amz-tagging"
TAG_COUNT = "x-amz-tagging-count"
ENCRYPTION = "x-amz-server-side-encryption"
KMS_KEY = f"{ENCRYPTION}-aws-kms-key-id"
BUCKET_KEY = f"{ENCRYPTION}-bucket-key-enabled"
ENCRYPTION_HEADERS = (ENCRYPTION, KMS_KEY, BUCKET_KEY)
CUSTOMER_ALGORITHM = f"{ENCRYPTION}-customer-algorithm"
# What is read back from these only after hours: nobody who writes a file means that.
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_LASTING = (CLASS, *ENCRYPTION_HEADERS, TAG_COUNT)


def lasting(headers: Mapping[str, str]) -> dict[str, str]:
    """What the headers of an object, or of the write that made it, say of how it is stored.

    Encryption with the store's own keys is left out: it is what the bucket says, which may
    say something else by the next version.
    """
    found = {}
    if headers.get(CLASS, STANDARD) != STANDARD:
        found[CLASS] = headers[CLASS]
    if headers.get(ENCRYPTION, "").startswith("aws:kms"):
        found |= {name: headers[name] for name in ENCRYPTION_HEADERS if name in headers}
    if headers.get(TAG_COUNT, "0") != "0":
        found[TAG_COUNT] = headers[TAG_COUNT]
    elif headers.get(TAGGING):
        found[TAG_COUNT] = str(headers[TAGGING].count("&") + 1)
    return found


def renewed(kept: Mapping[str, str], stored_as: Mapping[str, str]) -> Mapping[str, str]:
    """What a file keeps, now that its object is stored as *stored_as* says."""
    if not stored_as and not any(name in kept for name in _LASTING):
        return kept  # Most files: nothing to copy.
    return {n: v for n, v in kept.items() if n not in _LASTING} | dict(stored_as)


def is_archived(kept: Mapping[str, str] | None) -> bool:
    """Whether an object that has these headers has to be restored before it is read."""
    return kept is not None and kept.get(CLASS) in ARCHIVES


def is_held(headers: Mapping[str, str], now: str) -> bool:
    """Whether Object Lock holds an object; *now* is the time in UTC as ISO 8601 has it."""
    if headers.get("x-amz-object-lock-legal-hold", "").upper() == "ON":
        return True
    # Both are of one form, so that they compare as texts, down to the second.
    return headers.get("x-amz-object-lock-retain-until-date", "")[:19] > now[:19]


def is_encrypted_apart(headers: Mapping[str, str]) -> bool:
    """Whether an object's ETag tells nothing of its bytes, because of its encryption."""
    return CUSTOMER_ALGORITHM in headers or headers.get(ENCRYPTION, "").startswith("aws:kms")


def tagging(tags: Mapping[str, str]) -> str:
    """Tags as a header has them."""
    return "&".join(f"{quote(name, safe='')}={quote(tags[name], safe='')}" for name in tags)
