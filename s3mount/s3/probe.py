"""What a store really does, found by trying it on scratch keys that are removed afterwards.

Many stores answer 200 to what they do not know, so a feature counts only when the store
refuses what it has to refuse and takes what it has to take.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import trio

from s3mount.errors import Changed, Denied, Exists, StoreError
from s3mount.s3 import checksum
from s3mount.s3.client import S3Client
from s3mount.s3.escaping import MARKER
from s3mount.s3.objects import NO_SIZE
from s3mount.s3.oddities import names_refused_to_readers, prefixes_vanish, refused_names
from s3mount.s3.scratch import purge, sweep
from s3mount.s3.store import (
    ABSENT,
    Capabilities,
    ListPage,
    ObjectInfo,
    PartDone,
    Precondition,
    Stored,
    StoredChecksum,
)

_TIMEOUT_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0
_WRONG = Precondition(etag='"00000000000000000000000000000000"')

_COPIED = b"234"  # What parts under trial consist of.

_LISTED_HEADERS = {
    "cache-control": "max-age=1",
    "content-disposition": "inline",
    "content-language": "en",
    "x-amz-meta-probe": "=?1 %2F<&>",
}

_T = TypeVar("_T")
# What a store without a capability does, and what that means.
WEAKNESSES = {
    "conditional_put": "ignores conditions of a write: two hosts that create one file both succeed",
    "conditional_complete": "ignores conditions when a large file is completed: the last one wins",
    "conditional_delete": "ignores conditions of a deletion",
    "conditional_get": "ignores If-Match of a read: a replaced object is noticed by its ETag only",
    "conditional_copy": "ignores conditions of a copy",
    "copy_part": "cannot copy parts: a partly changed file is sent as a whole",
    "copy_part_checksum": "keeps no checksum of files that are partly copied",
    "delete_many": "deletes objects one by one only",
    "list_v2": "knows the old listing only",
    "unsigned_payload": "wants a SHA-256 of everything that is written, which is slow",
    "complete_names_etag": "does not tell the ETag of a completed upload: it is asked for",
    "marker_objects": "takes a directory for a file: what marks it is written into it",
    "marker_metadata": "forgets modes, owners and times of directories: only this host knows them",
    "distinct_etags": "gives different contents one ETag: changes are noticed by time and size",
    "copy_keeps": "loses metadata in a copy: they are sent anew",
    "copy_replaces": "cannot change metadata in a copy: content is sent again to change a mode",
    "head_size": "does not tell the right size to HEAD: a byte is read to learn it",
    "prefixes_vanish": "lists directories that are gone: each one listed is looked into",
}


async def probe(client: S3Client, scratch_prefix: str) -> Capabilities:
    """Try the store behind *client* on keys under *scratch_prefix*, ``.s3mount/`` as a rule.

    Raises nothing for a weak store, or one that forbids writing: what could not be tried is
    assumed to work as documented, and `Capabilities.notes` say so.
    """
    assumed = Capabilities()
    base = f"{scratch_prefix}probe-{uuid.uuid4()}"
    run = _Probe(client.assuming(assumed, _TIMEOUT_SECONDS), scratch_prefix, base)
    try:
        with trio.move_on_after(_PATIENCE_SECONDS) as patience:
            await run.try_everything()
        if patience.cancelled_caught:
            run.note("the trials took too long: what they did not find is assumed")
    finally:
        with trio.move_on_after(_TIMEOUT_SECONDS, shield=True):
            await run.clean_up()
    return run.capabilities(assumed)


async def look(client: S3Client) -> Capabilities:
    """What can be found of the store by who must not write: how it keeps names."""
    refused = await names_refused_to_readers(client, ".s3mount/none/")
    return Capabilities(refused_names=refused, marker_objects=MARKER not in refused)


@dataclass(slots=True)
class _Upload:
    """A multipart upload under trial, and what became of it."""

    key: str
    name: str
    parts: list[PartDone] = field(default_factory=list)
    copied: bool = False
    stored: Stored | None = None


class _Probe:
    """One run: the trials write down what they find, `capabilities` sums it up."""

    def __init__(self, client: S3Client, folder: str, base: str) -> None:
        self._client = client
        self._folder = folder
        self._base = base
        self._found: dict[str, bool] = {}
        self._refused: tuple[str, ...] = ()
        self._notes: list[str] = []
        self._keys: list[str] = []
        self._uploads: dict[str, str] = {}
        self._versioned = False

    def note(self, sentence: str) -> None:
        """Add a sentence to what the user is told."""
        self._notes.append(sentence)

    def capabilities(self, assumed: Capabilities) -> Capabilities:
        """What was found, and what is assumed where nothing was."""
        weak = [
            f"the store {WEAKNESSES[name]}"
            for name, good in self._found.items()
            if not good and name in WEAKNESSES
        ]
        checksum = self._client.capabilities.checksum
        if checksum is None:
            weak.append("the store keeps no checksum of what is written")
        found: dict[str, Any] = dict(self._found)
        return replace(
            assumed,
            **found,
            refused_names=self._refused,
            checksum=checksum,
            notes=(*self._notes, *weak),
        )

    async def try_everything(self) -> None:
        """Run all trials, at the same time as far as they do not need each other."""
        written, _ = await self._all(self._try_writing, self._try_listing)
        if isinstance(written, StoreError) and not isinstance(written, Denied):
            # Perhaps it wants a SHA-256 of every body.
            self._client.adopt(replace(self._client.capabilities, unsigned_payload=False))
            written = await _outcome(self._try_writing)
        if isinstance(written, StoreError):
            self.note(
                f"writing was not possible ({written}): the store is assumed to do all it should"
            )
        else:
            self._found["unsigned_payload"] = self._client.capabilities.unsigned_payload

    async def _try_writing(self) -> None:
        """All trials that write; raises if the simplest of them fails, as then all will.

        That one goes alone: ``rclone serve s3`` lists objects that are gone where several
        requests make a directory at the same moment.
        """
        key = self._key("a")
        first = await self._client.put(key, [b"one"], headers={}, condition=ABSENT)
        self._versioned = first.version_id is not None
        await self._all(
            lambda: self._try_conditions(key, first.etag),
            self._try_copy,
            self._try_multipart,
            self._try_delete_many,
            self._try_marker,
            self._try_list_metadata,
            self._try_names,
            self._try_directory,
        )

    async def clean_up(self) -> None:
        """Remove what the trials have left."""
        aborts = [self._aborting(key, upload) for key, upload in self._uploads.items()]
        await self._all(*(self._deleting(key) for key in self._keys), *aborts)
        await sweep(self._client, self._base)
        if self._folder.endswith("/"):
            # Some stores make a folder of every prefix, and keep it when it is empty.
            folder = await _outcome(lambda: self._client.head(self._folder))
            if isinstance(folder, ObjectInfo) and folder.size == 0:
                await _outcome(self._deleting(self._folder))
        if self._versioned:
            await purge(self._client, self._base)

    def _deleting(self, key: str) -> Callable[[], Awaitable[object]]:
        return lambda: self._client.delete(key)

    def _aborting(self, key: str, upload: str) -> Callable[[], Awaitable[object]]:
        return lambda: self._client.abort_upload(key, upload)

    def _key(self, name: str) -> str:
        key = f"{self._base}-{name}"
        self._keys.append(key)
        return key

    # ------------------------------------------------------------------- trials

    async def _try_listing(self) -> None:
        page = await _outcome(lambda: self._client.list_page("", token=None, limit=1))
        if isinstance(page, Denied):
            self.note("listing is denied: the store is assumed to know ListObjectsV2")
        elif not isinstance(page, StoreError):
            self._found["list_v2"] = self._client.capabilities.list_v2

    async def _try_conditions(self, key: str, etag: str) -> None:
        """Write over the object at *key*, which has *etag*, where that is and is not asked for."""
        client = self._client
        wrong = _WRONG.etag
        read, create = await self._all(
            lambda: client.get(key, 0, [memoryview(bytearray(3))], etag=wrong),
            lambda: client.put(key, [b"two"], headers={}, condition=ABSENT),
        )
        # Not at once: ``rclone serve s3`` takes both, and loses track of what two have written.
        over = await _outcome(lambda: client.put(key, [b"two"], headers={}, condition=_WRONG))
        right = Precondition(etag=etag)
        second = await _outcome(lambda: client.put(key, [b"six"], headers={}, condition=right))
        accepted = isinstance(second, Stored)
        if not accepted:
            second = await _outcome(lambda: client.put(key, [b"six"], headers={}))
        self._judge("conditional_put", create, Exists)
        self._judge("conditional_put", over, Changed)
        if not accepted:
            self._found["conditional_put"] = False
        # The client compares ETags itself: only a 412 shows that the store did.
        self._judge("conditional_get", read, Changed, status=412)
        if isinstance(second, Stored):
            # Of one size and most often within one second: an ETag of those is none.
            self._found["distinct_etags"] = second.etag != etag
        refused = await _outcome(lambda: client.delete(key, condition=_WRONG))
        self._judge("conditional_delete", refused, Changed)

    async def _try_copy(self) -> None:
        client = self._client
        source, occupied, vacant = self._key("c"), self._key("d"), self._key("e")
        await self._all(
            lambda: client.put(source, [b"source"], headers=_description("old")),
            lambda: client.put(occupied, [b"target"], headers={}),
        )

        def copy_to(target: str) -> Callable[[], Awaitable[Stored]]:
            return lambda: client.copy(
                source, target, headers=None, source_etag=None, condition=ABSENT
            )

        refused, taken = await self._all(copy_to(occupied), copy_to(vacant))
        self._judge("conditional_copy", refused, Exists)
        if isinstance(taken, StoreError) and taken.status:
            self._found["conditional_copy"] = False
        await self._try_metadata_of_copies(source, self._key("k"))

    async def _try_metadata_of_copies(self, source: str, target: str) -> None:
        """Copy with the metadata, then give an object other ones by a copy onto itself."""
        client = self._client
        kept = await _outcome(lambda: client.copy(source, target, headers=None, source_etag=None))
        await self._judge_copy("copy_keeps", kept, target, "old")
        changed = await _outcome(
            lambda: client.copy(source, source, headers=_description("new"), source_etag=None)
        )
        await self._judge_copy("copy_replaces", changed, source, "new")

    async def _judge_copy(self, name: str, outcome: object, key: str, word: str) -> None:
        if isinstance(outcome, StoreError):
            if _told(outcome) and not isinstance(outcome, Denied):
                self._found[name] = False
            return
        into = bytearray(7)
        info = await _outcome(lambda: self._client.get(key, 0, [memoryview(into)], etag=None))
        if isinstance(info, ObjectInfo):
            right = info.metadata.get("probe") == word and info.metadata.get("only") == word
            content_type = info.headers.get("content-type", "").startswith(f"text/x-{word}")
            self._found[name] = right and content_type and bytes(into) == b"source\0"

    async def _try_multipart(self) -> None:
        """Copy into an upload with a checksum and one without, and complete under conditions."""
        client = self._client
        occupied, vacant = self._key("f"), self._key("g")
        plain = client.assuming(
            replace(client.capabilities, copy_part_checksum=False), _TIMEOUT_SECONDS
        )
        source, marked, unmarked = await self._all(
            lambda: client.put(occupied, [b"0123456789"], headers={}),
            lambda: client.create_upload(occupied, headers={}),
            lambda: plain.create_upload(vacant, headers={}),
        )
        if not (isinstance(source, Stored) and isinstance(marked, str)):
            self._note_no_multipart(marked)
            return
        if not isinstance(unmarked, str):
            self._note_no_multipart(unmarked)
            return
        self._uploads.update({occupied: marked, vacant: unmarked})
        first, second = _Upload(occupied, marked), _Upload(vacant, unmarked)
        await self._all(
            lambda: self._add_part(first, occupied, source.etag),
            lambda: self._add_part(second, occupied, source.etag),
        )
        await self._try_complete(first, second)
        await self._all(
            lambda: self._judge_copied(first, second),
            lambda: self._judge_etag(second),
            lambda: self._try_to_complete_over(first),
        )
        if self._found.get("copy_part_checksum"):
            self._found["copy_part_checksum"] = await self._checksum_is_right(first)

    def _note_no_multipart(self, reason: object) -> None:
        self.note(f"multipart uploads were not possible ({reason})")
        if isinstance(reason, StoreError) and _told(reason):
            self._found.update(copy_part=False, conditional_complete=False)

    async def _add_part(self, upload: _Upload, source: str, etag: str) -> None:
        """Copy part 1 of an upload; where that fails, send it."""
        client = self._client
        copied = await _outcome(
            lambda: client.copy_part(
                upload.key, upload.name, 1, source=source, start=2, stop=5, source_etag=etag
            )
        )
        upload.copied = isinstance(copied, PartDone)
        upload.parts = [copied] if isinstance(copied, PartDone) else await self._send_part(upload)

    async def _send_part(self, upload: _Upload) -> list[PartDone]:
        """Send what could not be copied; into another upload, since the first may be spoilt."""
        client = self._client
        await _outcome(lambda: client.abort_upload(upload.key, upload.name))
        name = await _outcome(lambda: client.create_upload(upload.key, headers={}))
        if isinstance(name, StoreError):
            return []
        self._uploads[upload.key] = upload.name = name
        part = await _outcome(lambda: client.upload_part(upload.key, name, 1, [_COPIED]))
        return [part] if isinstance(part, PartDone) else []

    async def _try_complete(self, occupied: _Upload, vacant: _Upload) -> None:
        def complete(upload: _Upload, condition: Precondition) -> Callable[[], Awaitable[Stored]]:
            return lambda: self._client.complete_upload(
                upload.key, upload.name, upload.parts, condition=condition
            )

        if not (occupied.parts and vacant.parts):
            self._note_no_multipart("no part was taken")
            return
        refused, taken = await self._all(complete(occupied, ABSENT), complete(vacant, ABSENT))
        self._judge("conditional_complete", refused, Exists)
        if isinstance(taken, StoreError) and taken.status:
            self._found["conditional_complete"] = False
        vacant.stored = taken if isinstance(taken, Stored) else None

    async def _judge_copied(self, marked: _Upload, unmarked: _Upload) -> None:
        copied = unmarked.copied and await self._holds(unmarked.key, _COPIED)
        self._found["copy_part"] = copied
        if copied:
            # RustFS tells that of the encrypted bytes where customers have the key.
            self._found["copy_part_checksum"] = marked.copied and self._tells_checksum(marked)

    def _tells_checksum(self, upload: _Upload) -> bool:
        """Whether the checksum that came with a copied part is the one of its bytes, if any did."""
        algorithm = self._client.capabilities.checksum
        told = [part.crc for part in upload.parts if part.crc is not None]
        if algorithm is None or not told:
            return True
        return told == [checksum.function(algorithm)(_COPIED, 0)]

    async def _judge_etag(self, upload: _Upload) -> None:
        if upload.stored is not None:
            info = await self._client.head(upload.key)
            self._found["complete_names_etag"] = info.etag == upload.stored.etag

    async def _try_to_complete_over(self, upload: _Upload) -> None:
        """Complete over another version than the one that is there."""
        if self._found.get("conditional_complete"):
            over = await _outcome(
                lambda: self._client.complete_upload(
                    upload.key, upload.name, upload.parts, condition=_WRONG
                )
            )
            self._judge("conditional_complete", over, Changed)

    async def _checksum_is_right(self, upload: _Upload) -> bool:
        """Whether what is made of a copied part has the checksum of its bytes, if it has one.

        That of versitygw is the one of the whole object which the part was copied from.
        """
        client = self._client
        done = await _outcome(lambda: client.complete_upload(upload.key, upload.name, upload.parts))
        if not isinstance(done, Stored):
            return True
        kept = await _outcome(lambda: client.stored_checksum(upload.key, etag=done.etag))
        return not isinstance(kept, StoredChecksum) or kept.of(b"234", 0) == kept.value

    async def _holds(self, key: str, content: bytes) -> bool:
        """Whether the object at *key* is just *content*."""
        into = bytearray(len(content) + 1)
        info = await _outcome(lambda: self._client.get(key, 0, [memoryview(into)], etag=None))
        return not isinstance(info, StoreError) and bytes(into[: info.size]) == content

    async def _try_delete_many(self) -> None:
        key = self._key("h")
        if isinstance(
            await _outcome(lambda: self._client.put(key, [b"x"], headers={})), StoreError
        ):
            return
        failures = await _outcome(lambda: self._client.delete_many([key]))
        left = await _outcome(lambda: self._client.head(key))
        if isinstance(failures, StoreError) or not isinstance(failures.get(key), Denied):
            self._found["delete_many"] = isinstance(left, StoreError)

    async def _try_marker(self) -> None:
        key = f"{self._key('i')}/"
        self._keys.append(key)
        headers = {"content-type": "application/x-directory", "x-amz-meta-mode": "16877"}
        if isinstance(
            await _outcome(lambda: self._client.put(key, [], headers=headers)), StoreError
        ):
            return
        info = await _outcome(lambda: self._client.head(key))
        if isinstance(info, ObjectInfo):
            self._found["marker_metadata"] = info.metadata.get("mode") == "16877"

    async def _try_list_metadata(self) -> None:
        client, key = self._client, self._key("j")
        headers = {"x-amz-meta-mode": "33188", "content-type": "text/x-probe", **_LISTED_HEADERS}
        body = b"probe " * 100
        if isinstance(await _outcome(lambda: client.put(key, [body], headers=headers)), StoreError):
            return
        info, page = await self._all(
            lambda: client.head(key),
            lambda: client.list_page(key, token=None, flat=True, metadata=True),
        )
        if isinstance(info, ObjectInfo) or (isinstance(info, StoreError) and info.code == NO_SIZE):
            self._found["head_size"] = isinstance(info, ObjectInfo) and info.size == len(body)
        if isinstance(info, ObjectInfo) and isinstance(page, ListPage):
            listed = page.described.get(key)
            names = ("content-type", *_LISTED_HEADERS)
            self._found["list_metadata"] = (
                listed is not None
                and (listed.etag, listed.size, listed.modified_ns, listed.metadata)
                == (info.etag, info.size, info.modified_ns, info.metadata)
                and all(listed.headers.get(name) == info.headers.get(name) for name in names)
            )

    async def _try_names(self) -> None:
        refused = await _outcome(lambda: refused_names(self._client, f"{self._base}-n/"))
        if isinstance(refused, tuple):
            self._refused = refused
            self._found["marker_objects"] = MARKER not in refused

    async def _try_directory(self) -> None:
        folder = f"{self._base}-o/"
        self._keys += [f"{folder}x", folder]
        vanish = await _outcome(lambda: prefixes_vanish(self._client, folder))
        if isinstance(vanish, bool):
            self._found["prefixes_vanish"] = vanish

    # ----------------------------------------------------------------- judgement

    def _judge(self, name: str, outcome: object, wanted: type[StoreError], status: int = 0) -> None:
        """Note whether a trial that had to be refused was; one without an answer says nothing."""
        if isinstance(outcome, StoreError) and (isinstance(outcome, Denied) or not _told(outcome)):
            return
        good = isinstance(outcome, wanted) and (not status or outcome.status == status)
        self._found[name] = good and self._found.get(name, True)

    async def _all(self, *trials: Callable[[], Awaitable[object]]) -> list[object]:
        """Run trials at once; their outcomes, errors included."""
        outcomes: list[object] = [None] * len(trials)

        async def run(index: int, trial: Callable[[], Awaitable[object]]) -> None:
            outcomes[index] = await _outcome(trial)

        async with trio.open_nursery() as nursery:
            for index, trial in enumerate(trials):
                nursery.start_soon(run, index, trial)
        return outcomes


def _description(word: str) -> dict[str, str]:
    """Metadata that are told from others by *word*; the client adds none of its own."""
    return {
        "content-type": f"text/x-{word}",
        "x-amz-meta-probe": word,
        "x-amz-meta-only": word,
    }


def _told(error: StoreError) -> bool:
    """Whether it is the store's word, or our own judgement of its answer."""
    return error.status > 0 or isinstance(error, Changed | Exists)


async def _outcome(trial: Callable[[], Awaitable[_T]]) -> _T | StoreError:
    """What a trial returns, or the `StoreError` that it raises."""
    try:
        return await trial()
    except StoreError as error:
        return error
