"""What the options of a mount add to its requests: to each of them, and to those that write.

One place for storage class, encryption, ACL, tags and who pays: the client asks it for the
headers of each request that makes an object.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from s3mount.rules import PARTS, Rules
from s3mount.s3.customerkeys import CustomerKey
from s3mount.storing import (
    ARCHIVES,
    BUCKET_KEY,
    CLASS,
    ENCRYPTION,
    ENCRYPTION_HEADERS,
    KMS_KEY,
    STANDARD,
    TAG_COUNT,
    TAGGING,
    tagging,
)

NO_RULES = Rules()
_KIND = 0o170000  # The bits of a mode that say what sort of file it is.


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureChoices:
    """The options of a mount that are about features of its store, as they were chosen.

    `tags` is the query form ``name=value&...``; `restore` tells whether archived objects are
    asked back, for `restore_days`, by way of `restore_tier`; `refuse_held` whether a held file
    cannot be deleted through the mount either.
    """

    storage_class: Rules = NO_RULES
    sse: str | None = None
    sse_kms_key_id: str | None = None
    bucket_key: bool = False
    customer_keys: tuple[CustomerKey, ...] = ()
    acl: str | None = None
    tags: str | None = None
    requester_pays: bool = False
    expected_bucket_owner: str | None = None
    restore: bool = False
    restore_days: int = 1
    restore_tier: str = "Standard"
    refuse_held: bool = True


class Features:
    """The headers that follow from the choices, computed once as far as they can be."""

    def __init__(self, choices: FeatureChoices) -> None:
        self.choices = choices
        self.common = _common_headers(choices)
        self.copying = (
            {"x-amz-source-expected-bucket-owner": choices.expected_bucket_owner}
            if choices.expected_bucket_owner
            else {}
        )
        self.encrypts = bool(choices.sse or choices.customer_keys)
        self._tags = dict(parse_qsl(choices.tags or "", keep_blank_values=True))
        self._tagging = {TAGGING: tagging(self._tags)} if self._tags else {}
        self._constant = _encryption_headers(choices)
        if choices.acl:
            self._constant["x-amz-acl"] = choices.acl

    def without_class(self) -> Features:
        """The same, but for the storage class."""
        return Features(replace(self.choices, storage_class=NO_RULES))

    def written(self, key: str, size: float | None, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers of a request that writes new bytes; *headers* are what the caller wants.

        *size* None: they come in parts.  What the options say comes before what the object
        had; a new file in an archive is not what anybody wants who has not asked for it.
        """
        made = self._without_overridden(headers)
        chosen = self.choices.storage_class.value(key, PARTS if size is None else size)
        if chosen is not None and (chosen not in ARCHIVES or _may_sleep(size, headers)):
            made[CLASS] = chosen
        elif made.get(CLASS) in ARCHIVES:
            del made[CLASS]
        return {**self._tagging, **made, **self._constant}

    def copied(self, key: str, size: float, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers of a request that copies an object; it keeps its class and its tags."""
        made = self._without_overridden(headers)
        if CLASS not in made:
            chosen = self.choices.storage_class.value(key, size)
            if chosen is not None:
                made[CLASS] = chosen
        if made.get(CLASS) == STANDARD:
            del made[CLASS]
        return {**made, **self._constant}

    def tags_with(self, found: Mapping[str, str]) -> str:
        """The tags of an object that had some, and gets those of the option."""
        return tagging({**found, **self._tags})

    def _without_overridden(self, headers: Mapping[str, str]) -> dict[str, str]:
        made = dict(headers)
        made.pop(TAG_COUNT, None)
        if self.encrypts:
            for name in ENCRYPTION_HEADERS:
                made.pop(name, None)
        return made


def _may_sleep(size: float | None, headers: Mapping[str, str]) -> bool:
    """Whether an archive is a place for new bytes: not for directories and symlinks."""
    if size is None:
        return True
    mode = headers.get("x-amz-meta-mode", "")
    link = mode.isascii() and mode.isdecimal() and int(mode[:9]) & _KIND == stat.S_IFLNK
    return size > 0 and not link


def _common_headers(choices: FeatureChoices) -> dict[str, str]:
    headers = {}
    if choices.requester_pays:
        headers["x-amz-request-payer"] = "requester"
    if choices.expected_bucket_owner:
        headers["x-amz-expected-bucket-owner"] = choices.expected_bucket_owner
    return headers


def _encryption_headers(choices: FeatureChoices) -> dict[str, str]:
    headers = {}
    if choices.sse:
        headers[ENCRYPTION] = choices.sse
    if choices.sse_kms_key_id:
        headers[KMS_KEY] = choices.sse_kms_key_id
    if choices.bucket_key:
        headers[BUCKET_KEY] = "true"
    return headers


PLAIN = Features(FeatureChoices())
