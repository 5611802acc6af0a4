"""Uploads that a dead daemon may have begun: the store knows their names, and the journal not.

The daemon ended between its request for an upload and the store's answer, so nothing was ever
sent into it.  Others may write to the same key, and the store does not tell whose an upload is.  So
one is taken for ours only when it is the only one of exactly this key that was begun in the
minutes after we asked, with our checksum, and has had no part for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import trio

from s3mount.errors import NotFound, StoreError, Unavailable
from s3mount.s3.store import ListedUpload, ObjectStore
from s3mount.write.records import UploadRecord

log = logging.getLogger(__name__)

CLOCK_LEEWAY = 60.0  # Seconds between the clock of a store and ours.
WINDOW = 120.0  # Seconds: what a request may take, with all its attempts.
QUIET = 10.0  # Seconds: whoever lives has sent a part by then.


async def abort_unnamed(
    store: ObjectStore, intended: UploadRecord, named: Callable[[], Collection[str]]
) -> bool:
    """Abort the upload that may have been begun as *intended*; whether that is settled.

    *named* tells the uploads that are known to be something else.
    """
    try:
        found = _possible(await store.list_uploads(intended.key), intended, store)
        youngest = max((upload.begun_ns for upload in found), default=0) / 1e9
        await trio.sleep(min(QUIET, max(0.0, youngest + QUIET - time.time())))
        unused = await _unused(
            store, intended.key, [one.id for one in found if one.id not in named()]
        )
        if len(unused) == 1:
            await store.abort_upload(intended.key, unused[0])
            log.info("%s: an upload of an earlier mount was aborted", intended.key)
        elif unused:
            log.info("%s: it is not known which of several uploads is ours", intended.key)
    except Unavailable as error:
        log.info("%s: an old upload cannot be looked for yet: %s", intended.key, error)
        return False
    except StoreError as error:
        log.info("%s: an old upload cannot be looked for: %s", intended.key, error)
        return True
    return True


def _possible(
    listed: Sequence[ListedUpload], intended: UploadRecord, store: ObjectStore
) -> list[ListedUpload]:
    """The uploads that may be the one that was asked for."""
    first = (intended.time - CLOCK_LEEWAY) * 1e9
    last = (intended.time + WINDOW + CLOCK_LEEWAY) * 1e9
    return [
        upload
        for upload in listed
        if first <= upload.begun_ns <= last
        and upload.algorithm in ("", store.capabilities.checksum)
    ]


async def _unused(store: ObjectStore, key: str, uploads: Iterable[str]) -> list[str]:
    unused = []
    for upload in uploads:
        try:
            if not await store.list_parts(key, upload):
                unused.append(upload)
        except NotFound:
            continue  # Whoever has begun it has completed it.
    return unused
