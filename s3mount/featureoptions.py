"""The options about features of the store: how objects are stored, and on whose account.

They are a part of the table of options: `s3mount.config.Config` has the others.
"""
# ruff: noqa: RUF009
# Each call of `option` makes a field of its own, so nothing is shared.

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from s3mount.declaring import OBJECTS, STORE, option
from s3mount.rules import Rules, parse_rules
from s3mount.storeoptions import StoreOptions
from s3mount.values import FLAG, PATH, TEXT, Kind, between, choice, parse_size

_MAX_TAGS = 10  # of S3, for one object
_CLASS = re.compile(r"[A-Z][A-Z0-9_]{1,39}")
_ACLS = (
    *("private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read"),
    *("bucket-owner-read", "bucket-owner-full-control"),
)


def _storage_class(text: str) -> str:
    word = text.upper()
    if not _CLASS.fullmatch(word):
        raise ValueError(text)
    return word


def _header_value(text: str) -> str:
    if not text or not text.isprintable() or not text.isascii():
        raise ValueError(text)
    return text


def _parse_classes(text: str) -> Rules:
    return parse_rules(text, _storage_class, parse_size)


def _parse_cache_control(text: str) -> Rules:
    return parse_rules(text, _header_value)


def _parse_tags(text: str) -> str:
    found = parse_qsl(text.strip(), keep_blank_values=True, strict_parsing=True)
    good = all(0 < len(name) <= 128 and len(value) <= 256 for name, value in found)
    if not good or len(dict(found)) != len(found) or len(found) > _MAX_TAGS:
        raise ValueError(text)
    return text.strip()


def _parse_account(text: str) -> str:
    if not re.fullmatch(r"\d{12}", text.strip(), re.ASCII):
        raise ValueError(text)
    return text.strip()


def _parse_encryption(text: str) -> str | None:
    words = {"none": None, "aes256": "AES256", "aws:kms": "aws:kms", "aws:kms:dsse": "aws:kms:dsse"}
    return words[text.strip().lower()] if text.strip().lower() in words else _refuse(text)


def _refuse(text: str) -> str:
    raise ValueError(text)


CLASSES = Kind(
    "RULES",
    "a storage class, or rules such as *.mp4:GLACIER_IR;>1M:STANDARD_IA (sizes up to 10M)",
    _parse_classes,
)
CACHE_RULES = Kind("RULES", "a value, or rules such as *.html:no-cache;max-age=86400",
                   _parse_cache_control)  # fmt: skip
ENCRYPTION = Kind(
    "METHOD",
    "one of none, AES256, aws:kms, aws:kms:dsse",
    _parse_encryption,
    bare="AES256",
)
ACL = replace(choice(*_ACLS), metavar="ACL")
TAGS = Kind("TAGS", "up to 10 tags, such as team=blue&cost=42", _parse_tags)
ACCOUNT = Kind("NUMBER", "the 12 digits of an AWS account", _parse_account, text_only=True)
DAYS = Kind("NUMBER", "a number of days from 1 to 365", between(int, 1, 365))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions(StoreOptions):
    """The choices for the store of one mount, and about its features."""

    dual_stack: bool = option(
        FLAG,
        STORE,
        "reach AWS by IPv6, too: its dual-stack endpoints",
        default="false",
        aliases=("s3-use-dual-stack",),
    )
    fips: bool = option(
        FLAG, STORE, "reach AWS at its FIPS endpoints", default="false", aliases=("use-fips",)
    )
    accelerate: bool = option(
        FLAG,
        STORE,
        "reach AWS by Transfer Acceleration, which the bucket must have",
        default="false",
        aliases=("transfer-acceleration", "s3-use-accelerate-endpoint"),
    )
    requester_pays: bool = option(
        FLAG,
        STORE,
        "agree, with each request, to pay for it: for buckets whose requester pays",
        default="false",
        aliases=("s3-requester-pays",),
    )
    expected_bucket_owner: str | None = option(
        ACCOUNT,
        STORE,
        "AWS account that the bucket has to belong to; requests to somebody else's are refused",
    )
    storage_class: Rules = option(
        CLASSES,
        OBJECTS,
        "storage class of what is written, for all files or by name and size: "
        "CLASS, GLOB:CLASS, >SIZE:CLASS or <SIZE:CLASS, joined by semicolons, the first that fits "
        "deciding; a copy (rename, chmod) keeps the class that the object has",
        compute=Rules,
        shown="that of the file before, else the store's",
        aliases=("s3-storage-class",),
    )
    sse: str | None = option(
        ENCRYPTION,
        OBJECTS,
        "encryption of what is written: with keys of the store, or of its key management",
        default="none",
        aliases=("s3-server-side-encryption",),
    )
    sse_kms_key_id: str | None = option(
        TEXT,
        OBJECTS,
        "key for aws:kms, which it implies",
        shown="the store's own",
        aliases=("s3-sse-kms-key-id", "sse-kms"),
    )
    bucket_key: bool = option(
        FLAG,
        OBJECTS,
        "encrypt by a key of the bucket that is made of the one for aws:kms, for fewer calls",
        default="false",
    )
    sse_c_key_file: Path | None = option(
        PATH,
        OBJECTS,
        "file of customer keys (SSE-C), a line each, 32 bytes in base64: what is written gets the "
        "first, what is read any of them; nobody else may be allowed to read it",
    )
    acl: str | None = option(
        ACL,
        OBJECTS,
        "canned ACL of what is written",
        shown="the store's",
        aliases=("default-acl", "s3-acl"),
    )
    tags: str | None = option(TAGS, OBJECTS, "tags of what is written; those of a file stay")
    cache_control: Rules = option(
        CACHE_RULES,
        OBJECTS,
        "Cache-Control of new files, for all or by name: VALUE or GLOB:VALUE, joined by "
        "semicolons, the first that fits deciding; what a file has of its own stays",
        compute=Rules,
        shown="none",
    )
    headers_file: Path | None = option(
        PATH,
        OBJECTS,
        "file of headers for new files, lines GLOB NAME: VALUE, such as `*.css Content-Type: "
        "text/css`; the first that fits decides, and what a file has of its own stays",
    )
    object_lock: str = option(
        choice("refuse", "allow"),
        OBJECTS,
        "whether files that Object Lock holds can be removed from the mount: refuse (EPERM), or "
        "allow, which covers the held version with a delete marker",
        default="refuse",
    )
    restore: str = option(
        choice("never", "auto"),
        OBJECTS,
        "what becomes of a reader of an archived object: EAGAIN at once, or the store is asked "
        "to restore it and the reader waits, as long as the option timeout says",
        default="never",
    )
    restore_days: int = option(
        DAYS, OBJECTS, "how long a restored object stays readable, in days", default="1"
    )
    restore_tier: str = option(
        choice("standard", "bulk", "expedited"),
        OBJECTS,
        "how fast, and how dear, an object is restored",
        default="standard",
    )


def check(options: FeatureOptions) -> str | None:
    """Say which of the options contradict each other; None when none do."""
    if options.sse_c_key_file is not None and (options.sse or options.sse_kms_key_id):
        return "options sse-c-key-file and sse exclude each other"
    if options.sse_kms_key_id is not None and options.sse == "AES256":
        return "option sse-kms-key-id is for sse=aws:kms"
    kms = options.sse_kms_key_id is not None or (options.sse or "").startswith("aws:kms")
    if options.bucket_key and (not kms or options.sse == "aws:kms:dsse"):
        return "option bucket-key is for sse=aws:kms"
    if options.accelerate and options.fips:
        return "options accelerate and fips exclude each other: AWS has no such endpoint"
    return None
