"""Notes in the journal that nobody waits for: a failing disk loses them, and says so once."""

from __future__ import annotations

import logging
import secrets

from s3mount.write.journal import Journal
from s3mount.write.records import UploadRecord

log = logging.getLogger(__name__)


class UploadNote:
    """Tells the journal of a multipart upload of ours: after a crash it is aborted, or resumed."""

    def __init__(self, journal: Journal, record: UploadRecord) -> None:
        self._journal = journal
        self._name = secrets.token_hex(8)
        try:
            journal.put(self._name, record.fields())
        except OSError as error:
            log.debug("%s: a crash would leave parts in the store: %s", record.key, error)

    def done(self) -> None:
        """The upload is no more: completed or aborted."""
        forget(self._journal, self._name)


def forget(journal: Journal, name: str) -> None:
    """Remove a record; when that fails, the next mount finds out that it means nothing."""
    try:
        journal.remove(name)
    except OSError as error:
        log.debug("%s stays in the journal: %s", name, error)
