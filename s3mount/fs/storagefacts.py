"""Extended attributes about how an object is stored, most of which can be set at the store.

Like all of ``user.s3.*`` they are in no list of names: no copy of a file takes them along.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from urllib.parse import parse_qsl

from s3mount.errors import PosixError, StoreError
from s3mount.fs.changing import Changer
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode
from s3mount.fs.objectfacts import ObjectFacts
from s3mount.fs.openfile import OpenFile
from s3mount.s3.store import ObjectExtras, ObjectInfo, ObjectStore
from s3mount.storing import (
    ARCHIVES,
    CLASS,
    CUSTOMER_ALGORITHM,
    ENCRYPTION,
    KMS_KEY,
    STANDARD,
    TAG_COUNT,
    tagging,
)

TAG = "s3.tag."
ACLS = frozenset(
    (
        *("private", "public-read", "public-read-write", "authenticated-read"),
        *("aws-exec-read", "bucket-owner-read", "bucket-owner-full-control"),
    )
)
_MOMENT = re.compile(r"(GOVERNANCE|COMPLIANCE) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)")

Setter = Callable[[OpenFile, str], Awaitable[None]]


class StorageFacts:
    """``user.s3.storage-class``, ``.tags`` and their like: asked of the store, set there."""

    def __init__(
        self,
        filesystem: FileSystem,
        changer: Changer,
        facts: ObjectFacts,
        store: ObjectStore,
        extras: ObjectExtras,
    ) -> None:
        self._fs = filesystem
        self._changer = changer
        self._facts = facts
        self._store = store
        self._extras = extras
        self._told: Mapping[str, Callable[[ObjectInfo], str | None]] = {
            "s3.storage-class": lambda info: info.headers.get(CLASS, STANDARD),
            "s3.encryption": _encryption,
            "s3.kms-key": lambda info: info.headers.get(KMS_KEY),
            "s3.restore": _restoration,
            "s3.legal-hold": lambda info: info.headers.get("x-amz-object-lock-legal-hold"),
            "s3.retention": _retention,
            "s3.cache-control": lambda info: info.headers.get("cache-control"),
        }
        self._setters: Mapping[str, Setter] = {
            "s3.storage-class": self._set_class,
            "s3.tags": self._set_tags,
            "s3.acl": self._set_acl,
            "s3.restore": self._ask_to_restore,
            "s3.legal-hold": self._set_legal_hold,
            "s3.retention": self._set_retention,
            "s3.cache-control": self._set_cache_control,
        }

    def owns(self, name: bytes) -> bool:
        """Whether an attribute is one of these."""
        word = _word(name)
        return word in self._told or word in self._setters or word.startswith(TAG)

    async def get(self, inode: Inode, name: bytes) -> bytes:
        """The value of an attribute; raises `PosixError` ENODATA where there is none."""
        word, value = _word(name), None
        if word == "s3.tags" or word.startswith(TAG):
            key = self._facts.stored_key(inode)
            tags = await self._extras.tags(key) if key else {}
            value = tags.get(word[len(TAG) :]) if word != "s3.tags" else tagging(tags) or None
        elif word in self._told:
            info = await self._facts.head(inode)
            value = self._told[word](info) if info is not None else None
        if value is None:
            raise PosixError(errno.ENODATA)
        return value.encode("utf-8", "surrogateescape")

    async def set(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Change an attribute at the store before this returns; None removes it.

        Raises `PosixError` EINVAL for a value that makes no sense, `StoreError` for one that
        the store does not take.
        """
        word = _word(name)
        if inode.directory or (word not in self._setters and not word.startswith(TAG)):
            raise PosixError(errno.EPERM)
        text = None if value is None else _text(value)
        async with self._changer.hold(inode) as file:
            if file.changed or not file.stored_key:
                await self._fs.open_files.save(file)
            if file.unlinked or not file.stored_key:
                raise PosixError(errno.ENODATA)  # The store has nothing that could be changed.
            if word.startswith(TAG):
                await self._set_tag(file, word[len(TAG) :], text)
            elif text is not None:
                await self._setters[word](file, text)
            elif word in ("s3.tags", "s3.cache-control"):
                await self._setters[word](file, "")
            else:
                raise PosixError(errno.EPERM)

    # -- what is a copy of the object onto itself ------------------------------------------

    async def _set_class(self, file: OpenFile, text: str) -> None:
        if not re.fullmatch("[A-Z][A-Z0-9_]{1,39}", text.upper()):
            raise PosixError(errno.EINVAL)
        await self._set_header(file, CLASS, text.upper())

    async def _set_cache_control(self, file: OpenFile, text: str) -> None:
        await self._set_header(file, "cache-control", text)

    async def _set_header(self, file: OpenFile, name: str, text: str) -> None:
        before = file.kept
        if before is None:
            before = self._fs.namespace.kept_headers(await self._store.head(file.stored_key))
        others = {known: value for known, value in before.items() if known != name}
        file.kept = {**others, name: text} if text else others
        file.set_attributes(replace(file.attributes, ctime_ns=time.time_ns()))
        try:
            await self._fs.open_files.save(file)
        except StoreError:
            file.kept = before
            raise

    # -- what hangs on the object ----------------------------------------------------------

    async def _set_tags(self, file: OpenFile, text: str) -> None:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
        except ValueError:
            raise PosixError(errno.EINVAL) from None
        if len(dict(pairs)) != len(pairs):
            raise PosixError(errno.EINVAL)
        await self._tag(file, dict(pairs))

    async def _set_tag(self, file: OpenFile, tag: str, text: str | None) -> None:
        if not tag:
            raise PosixError(errno.EINVAL)
        tags = dict(await self._extras.tags(file.stored_key))
        if text is not None:
            tags[tag] = text
        elif tags.pop(tag, None) is None:
            raise PosixError(errno.ENODATA)
        await self._tag(file, tags)

    async def _tag(self, file: OpenFile, tags: Mapping[str, str]) -> None:
        await self._extras.set_tags(file.stored_key, tags)
        if file.kept is not None:
            kept = {name: value for name, value in file.kept.items() if name != TAG_COUNT}
            file.kept = {**kept, TAG_COUNT: str(len(tags))} if tags else kept
        self._forget(file.inode)

    def _forget(self, inode: Inode) -> None:
        """Have what is known of an object asked anew: no time of it tells of this change."""
        if inode.parent is not None and not inode.gone:
            self._fs.cache.drop(inode.parent.prefix, inode.segment)
            self._fs.namespace.index.forget(inode.parent.prefix, inode.segment, directory=False)

    async def _set_acl(self, file: OpenFile, text: str) -> None:
        if text not in ACLS:
            raise PosixError(errno.EINVAL)
        await self._extras.set_acl(file.stored_key, text)

    async def _ask_to_restore(self, file: OpenFile, text: str) -> None:
        if not re.fullmatch("[1-9][0-9]{0,3}", text, re.ASCII):
            raise PosixError(errno.EINVAL)
        await self._extras.restore(file.stored_key, int(text))

    async def _set_legal_hold(self, file: OpenFile, text: str) -> None:
        if text.upper() not in ("ON", "OFF"):
            raise PosixError(errno.EINVAL)
        await self._extras.set_legal_hold(file.stored_key, text.upper() == "ON")

    async def _set_retention(self, file: OpenFile, text: str) -> None:
        match = _MOMENT.fullmatch(text.upper())
        if match is None:
            raise PosixError(errno.EINVAL)
        await self._extras.set_retention(file.stored_key, match[1], match[2])


def _word(name: bytes) -> str:
    return name.removeprefix(b"user.").decode("utf-8", "replace")


def _text(value: bytes) -> str:
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise PosixError(errno.EINVAL) from None
    if not text.isprintable():
        raise PosixError(errno.EINVAL)
    return text


def _encryption(info: ObjectInfo) -> str | None:
    if CUSTOMER_ALGORITHM in info.headers:
        return "SSE-C"
    return info.headers.get(ENCRYPTION)


def _restoration(info: ObjectInfo) -> str | None:
    """The state of an archived object in words; none for one that can be read at any time."""
    said = info.headers.get("x-amz-restore", "")
    if 'ongoing-request="true"' in said:
        return "under way"
    if 'ongoing-request="false"' in said:
        until = re.search('expiry-date="([^"]*)"', said)
        return f"readable until {until[1]}" if until else "readable"
    archived = info.headers.get(CLASS) in ARCHIVES or "x-amz-archive-status" in info.headers
    return (
        "archived: set this to a number of days, or mount with restore=auto" if archived else None
    )


def _retention(info: ObjectInfo) -> str | None:
    mode = info.headers.get("x-amz-object-lock-mode")
    until = info.headers.get("x-amz-object-lock-retain-until-date")
    return f"{mode} {until}" if mode and until else None
