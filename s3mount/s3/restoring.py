"""Archived objects: whoever needs their bytes hears so, or waits while the store restores them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from s3mount.errors import Archived, Asleep, StoreError
from s3mount.s3 import featurexml
from s3mount.s3.calls import Calls, Request
from s3mount.s3.features import FeatureChoices
from s3mount.s3.objects import content_md5
from s3mount.s3.store import ObjectInfo
from s3mount.storing import ARCHIVES, CLASS

log = logging.getLogger(__name__)

_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 30.0  # Between two looks.
_MAX_TOLD = 1000
_UNDER_WAY = frozenset({"RestoreAlreadyInProgress"})
_NOT_NEEDED = frozenset({"ObjectAlreadyInActiveTierError"})
_STATE = "x-amz-restore"
_READABLE = 'ongoing-request="false"'
_T = TypeVar("_T")

Head = Callable[[str], Awaitable[ObjectInfo]]


class Restorer:
    """Asks for archived objects where the mount is told to, and tells people where it is not."""

    def __init__(
        self, calls: Calls, path_of: Callable[[str], str], choices: FeatureChoices
    ) -> None:
        self._calls = calls
        self._path_of = path_of
        self._choices = choices
        self._told: dict[str, None] = {}
        self._turns: dict[str, trio.Lock] = {}

    async def when_restored(
        self,
        key: str,
        send: Callable[[], Awaitable[_T]],
        head: Head,
    ) -> _T:
        """Send a request that needs the bytes of *key*; again once they are there, if they slept.

        Raises `Archived` when they are not to be restored, or are not within the time limit.
        """
        try:
            return await send()
        except Archived as error:
            self._tell(key, error)
            if not self._choices.restore:
                raise
        await self._restore_in_turn(key, head)
        return await send()

    async def awaken(self, key: str, head: Head) -> None:
        """Return when an object can be read, or raise `Asleep`, as the mount is told to."""
        headers = (await head(key)).headers
        if headers.get(CLASS) not in ARCHIVES or _READABLE in headers.get(_STATE, ""):
            return
        error = Asleep(f"{key}: it is archived ({headers[CLASS]})", code="InvalidObjectState")
        self._tell(key, error)
        if not self._choices.restore:
            raise error
        try:
            await self._restore_in_turn(key, head)
        except Archived as late:
            raise Asleep(str(late), code=late.code) from late

    async def request(self, key: str, days: int) -> None:
        """Ask the store to restore an object for some *days*; it may take hours."""
        body = featurexml.restore_request(days, self._choices.restore_tier)
        request = Request(
            "RestoreObject",
            "POST",
            key,
            self._path_of(key),
            "restore=",
            headers={"content-type": "application/xml", "content-md5": content_md5(body)},
            body=[body],
            payload_hash=hashlib.sha256(body).hexdigest(),
        )
        try:
            await self._calls.call(request)
        except StoreError as error:
            if error.code not in _UNDER_WAY | _NOT_NEEDED:
                raise

    async def _restore_in_turn(self, key: str, head: Head) -> None:
        """Restore once for all readers of an object: the others find it restored."""
        turn = self._turns.setdefault(key, trio.Lock())
        try:
            with trio.fail_after(self._calls.timeout):
                async with turn:
                    await self._restore(key, head)
        except trio.TooSlowError:
            raise Archived(
                f"{key}: it is being restored, which takes longer than the mount waits: "
                "try again later",
                code="InvalidObjectState",
            ) from None
        finally:
            if not turn.locked() and self._turns.get(key) is turn:
                del self._turns[key]

    async def _restore(self, key: str, head: Head) -> None:
        pause = _FIRST_SECONDS
        asked = False
        while True:
            state = (await head(key)).headers.get(_STATE, "")
            if _READABLE in state:
                return
            if not asked and not state:
                await self.request(key, self._choices.restore_days)
                log.info("%s: the store was asked to restore it", key)
                asked = True
                continue
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_SECONDS)

    def _tell(self, key: str, error: Archived) -> None:
        """Say once what can be done about an archived object."""
        if key in self._told:
            return
        if len(self._told) >= _MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[key] = None
        if not self._choices.restore:
            log.warning(
                "%s; mount with restore=auto, or ask for it: setfattr -n user.s3.restore -v DAYS",
                error,
            )
