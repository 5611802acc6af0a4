"""Notes in the journal of what is begun: a failing disk loses them, which stops nobody."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Mapping

from s3mount.errors import StoreError, Unavailable
from s3mount.s3.store import ObjectStore
from s3mount.write.journal import Journal
from s3mount.write.records import RemovalRecord, UploadRecord

log = logging.getLogger(__name__)


class UploadNote:
    """Tells the journal of a multipart upload of ours: after a crash it is aborted, or resumed."""

    def __init__(self, journal: Journal, record: UploadRecord) -> None:
        self._journal = journal
        self._name = secrets.token_hex(8)
        _put(journal, self._name, record)

    def done(self) -> None:
        """The upload is no more: completed or aborted."""
        forget(self._journal, self._name)


async def begin_upload(
    store: ObjectStore,
    journal: Journal,
    key: str,
    headers: Mapping[str, str],
    *,
    copies: bool = True,
    file: str = "",
) -> tuple[str, UploadNote]:
    """Begin a multipart upload: its name in the store, and the note of it.  Raises `StoreError`.

    The journal hears of it first: an upload of which only the store knew would stay for ever.
    """
    name, since = secrets.token_hex(8), time.time()
    intended = UploadRecord(key, "", {}, time=since)
    _put(journal, name, intended)
    await _commit(journal, key)
    try:
        upload = await store.create_upload(key, headers=headers, copies=copies)
    except Unavailable:
        _put_once(journal, intended)
        forget(journal, name)
        raise
    except StoreError:
        forget(journal, name)
        raise
    # No checkpoint from here on: one of the two records is always there.
    note = UploadNote(journal, UploadRecord(key, upload, headers, file, since))
    forget(journal, name)
    await _commit(journal, key)  # An upload with parts and no record would be taken for another's.
    return upload, note


def intend_removal(journal: Journal, key: str, etag: str) -> str:
    """Note that a version of an object is to be deleted; the name of the record, or nothing.

    What a file was before an acknowledged change must not come back by a crash.
    """
    if not etag:
        return ""
    name = secrets.token_hex(8)
    _put(journal, name, RemovalRecord(key, etag, time.time()))
    return name


def _put_once(journal: Journal, intended: UploadRecord) -> None:
    """Remember an upload that the store may have begun: one record a key, however long it lasts."""
    digest = hashlib.sha256(intended.key.encode("utf-8", "surrogateescape")).hexdigest()
    if digest not in journal:
        _put(journal, digest, intended)


def _put(journal: Journal, name: str, record: UploadRecord | RemovalRecord) -> None:
    try:
        journal.put(name, record.fields())
    except OSError as error:
        log.debug("%s: a crash would leave things in the store: %s", record.key, error)


async def _commit(journal: Journal, key: str) -> None:
    try:
        await journal.commit()
    except OSError as error:
        log.debug("%s: a crash would leave parts in the store: %s", key, error)


def forget(journal: Journal, name: str) -> None:
    """Remove a record; when that fails, the next mount finds out that it means nothing."""
    try:
        journal.remove(name)
    except OSError as error:
        log.debug("%s stays in the journal: %s", name, error)
