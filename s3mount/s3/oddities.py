"""Trials of what stores do in their own way to names and directories; the keys are removed."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeVar

import trio

from s3mount.errors import Denied, StoreError
from s3mount.s3.escaping import MARKER, SAMPLES
from s3mount.s3.reading import BucketReader
from s3mount.s3.scratch import discard
from s3mount.s3.store import ObjectStore

_PLAIN = "plain"  # A name with nothing odd, and what its trial is called.
_REMOVAL_SECONDS = 10.0

Name = TypeVar("Name", str, str | None)


async def refused_names(client: ObjectStore, folder: str) -> tuple[str, ...]:
    """The forms of names that the store refuses, or keeps under other names.

    *folder* is a prefix that nobody else uses.  Raises `StoreError` when it cannot be tried.
    """
    trial = _NameTrial(client, folder)
    try:
        # ``rclone serve s3`` lists less or more than there is where several requests make a
        # directory at the same moment: an object with a plain name makes it before the others.
        await trial.put(_PLAIN, f"{folder}{_PLAIN}")
        await _together(trial.put, trial.keys.items())
        suspects = await trial.lost(trial.keys)
        # A form found refused by mistake would change the names of objects: try those alone.
        for form in suspects:
            await trial.put(form, trial.keys[form])
        return await trial.lost(suspects) if suspects else ()
    finally:
        with trio.move_on_after(_REMOVAL_SECONDS, shield=True):
            await _remove(client, folder, trial.written)


class _NameTrial:
    """Puts a key of each form of names below *folder*, and tells which the store lists."""

    def __init__(self, client: ObjectStore, folder: str) -> None:
        self._client, self._folder = client, folder
        self.keys = {form: folder + name for form, name in SAMPLES.items()}
        self.written: dict[tuple[str, str | None], None] = {}
        """What is to be removed: keys, each with its version where there are versions."""
        self._failed: dict[str, StoreError] = {}

    async def put(self, form: str, key: str) -> None:
        body = [] if form == MARKER else [b"x"]  # versitygw takes no directory with content.
        self._failed.pop(form, None)
        try:
            version = (await self._client.put(key, body, headers={})).version_id
            self.written[key, version] = None
        except StoreError as error:
            self._failed[form] = error

    async def lost(self, forms: Iterable[str]) -> tuple[str, ...]:
        """Those of *forms* that were refused or are not listed.  Raises `StoreError`."""
        page = await self._client.list_page(self._folder, token=None, flat=True)
        listed = {found.key for found in page.objects}
        strange = listed - {key for key, _ in self.written}
        self.written |= dict.fromkeys((key, None) for key in strange)
        if any(isinstance(error, Denied) or not error.status for error in self._failed.values()):
            return ()  # It is not about names.
        lost = {form for form in forms if form in self._failed or self.keys[form] not in listed}
        if MARKER not in self._failed and self.keys[MARKER].removesuffix("/") not in listed:
            lost.discard(MARKER)  # It is kept as a directory, which some stores do not list.
        return tuple([form for form in forms if form in lost])


async def names_refused_to_readers(client: BucketReader, folder: str) -> tuple[str, ...]:
    """The forms of names that the store refuses even to look for.

    It is less than `refused_names` finds, and all that can be found without writing.
    """
    refused: set[str] = set()

    async def look(form: str, key: str) -> None:
        if await client.refuses_to_look_for(key):
            refused.add(form)

    names = {_PLAIN: "", **SAMPLES}
    await _together(look, [(one, folder + name) for one, name in names.items()])
    return () if _PLAIN in refused else tuple([form for form in SAMPLES if form in refused])


async def prefixes_vanish(client: ObjectStore, folder: str) -> bool:
    """Whether a directory whose marker and objects are deleted is not listed any more."""
    await client.put(f"{folder}x", [b"x"], headers={})
    await client.delete(f"{folder}x")
    await client.delete(folder)
    page = await client.list_page(folder.removesuffix("/"), token=None)
    return folder not in page.prefixes


async def _remove(
    client: ObjectStore, folder: str, written: Collection[tuple[str, str | None]]
) -> None:
    """Delete keys, each with the version that was written; and what may be directories now.

    Not every store can list versions of odd names, so these are not left for that.
    """

    async def delete(version: str | None, key: str) -> None:
        try:
            if not await discard(client, key, version):
                await client.delete(key)
        except StoreError:
            return  # What was refused is not there.

    await _together(delete, [(version, key) for key, version in written])
    parents = {
        key[: key.rfind("/") + 1] for key, _ in written if "//" not in key and "/." not in key
    }
    for parent in sorted({*parents, folder}, key=len, reverse=True):
        if parent.startswith(folder):
            await delete(None, parent)


async def _together(
    work: Callable[[Name, str], Awaitable[None]], items: Iterable[tuple[Name, str]]
) -> None:
    async with trio.open_nursery() as nursery:
        for name, key in items:
            nursery.start_soon(work, name, key)
