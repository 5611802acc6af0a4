"""A bucket as it was at one moment: what was the newest version of each object then."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from s3mount.errors import Denied, NotFound, StoreError
from s3mount.s3.sigv4 import canonical_query
from s3mount.s3.store import (
    ALWAYS,
    Body,
    ListedObject,
    ListedVersion,
    ListPage,
    ObjectInfo,
    Precondition,
    Stored,
)
from s3mount.s3.versions import HistoryClient

_MOST_KNOWN = 50_000  # Versions and prefixes that are remembered, 300 bytes each.
_PREFIXES_AT_ONCE = 16
_FEW = 50  # Versions of one page where one object is asked for.
_SPLIT = "\0"  # No key of S3 has it.


class PastClient(HistoryClient):
    """A bucket as it was at `moment_ns` (since the epoch), by the clock of the store.

    Nothing that was then changes any more, so what is known stays true.  A version that was
    deleted for good since cannot be seen: then the one before it is shown.
    """

    moment_ns = 0

    def at(self, moment_ns: int) -> None:
        """Show the bucket as it was then."""
        self.moment_ns = moment_ns
        self._versions: OrderedDict[str, ListedVersion | None] = OrderedDict()
        self._alive: OrderedDict[str, bool] = OrderedDict()

    # ------------------------------------------------------------ objects

    async def _place(self, key: str) -> tuple[str, str]:
        version = await self._version_then(key)
        if version is None:
            raise NotFound(f"{key}: it was not there then")
        return self._path(key), canonical_query([("versionId", version.id)])

    async def _version_then(self, key: str) -> ListedVersion | None:
        if key in self._versions:
            self._versions.move_to_end(key)
            return self._versions[key]
        found: ListedVersion | None = None
        token: str | None = None
        while found is None:
            page = await self.list_versions(key, token=token, limit=_FEW)
            found = next((o for o in page.versions if o.key == key and self._is_then(o)), None)
            token = page.token
            if token is None or (page.versions and page.versions[-1].key > key):
                break
        return self._remember(key, found)

    def _is_then(self, version: ListedVersion) -> bool:
        return version.moment_ns <= self.moment_ns

    def _remember(self, key: str, version: ListedVersion | None) -> ListedVersion | None:
        self._versions[key] = None if version is None or version.deleted else version
        if len(self._versions) > _MOST_KNOWN:
            self._versions.popitem(last=False)
        return self._versions[key]

    async def head(self, key: str) -> ObjectInfo:
        """Describe the object that was at *key*; see `ObjectStore.head`."""
        return await super(HistoryClient, self).head(key)

    # ------------------------------------------------------------ listings

    async def list_page(
        self,
        prefix: str,
        *,
        token: str | None,
        flat: bool = False,
        limit: int = 1000,
        metadata: bool = False,
    ) -> ListPage:
        """List a page of what was under *prefix*; see `ObjectStore.list_page`.

        Pages on which nothing was there then are passed over.
        """
        while True:
            page = await self._page_then(prefix, token, flat, max(limit, _FEW))
            token = page.token
            if page.objects or page.prefixes or token is None:
                return page

    async def _page_then(self, prefix: str, token: str | None, flat: bool, limit: int) -> ListPage:
        # A key whose versions go on on the next page may be decided on this one.
        decided, _, where = (token or _SPLIT).partition(_SPLIT)
        page = await self.list_versions(prefix, token=where or None, flat=flat, limit=limit)
        objects: list[ListedObject] = []
        for version in page.versions:
            if version.key != decided and self._is_then(version):
                decided = version.key
                if self._remember(version.key, version) is not None:
                    objects.append(_as_object(version))
        prefixes = await self._which_were_there(page.prefixes)
        following = None if page.token is None else f"{decided}{_SPLIT}{page.token}"
        return ListPage(objects, prefixes, following)

    async def _which_were_there(self, prefixes: Sequence[str]) -> Sequence[str]:
        """The prefixes below which something was there: a listing tells of all that ever were."""
        there: dict[str, bool] = {}
        failures: list[StoreError] = []
        waiting = iter(prefixes)

        async def work() -> None:
            for prefix in waiting:
                try:
                    there[prefix] = await self._was_there(prefix)
                except StoreError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(_PREFIXES_AT_ONCE, len(prefixes))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]
        return [prefix for prefix in prefixes if there[prefix]]

    async def _was_there(self, prefix: str) -> bool:
        known = self._alive.get(prefix)
        if known is None:
            page = await self.list_page(prefix, token=None, flat=True, limit=_FEW)
            known = self._alive[prefix] = bool(page.objects)
            if len(self._alive) > _MOST_KNOWN:
                self._alive.popitem(last=False)
        return known

    # ------------------------------------------------------------ nothing changes

    async def put(
        self,
        key: str,
        body: Body,
        *,
        headers: Mapping[str, str],
        condition: Precondition = ALWAYS,
        crc: int | None = None,
    ) -> Stored:
        """Refuse it: the past does not change."""
        raise Denied(f"{key}: the past does not change")

    async def delete(self, key: str, *, condition: Precondition = ALWAYS) -> None:
        """Refuse it: the past does not change."""
        raise Denied(f"{key}: the past does not change")

    async def check_past(self, now: float) -> None:
        """Raise `StoreError` where there is no past to be shown."""
        if self.moment_ns > (now + 1) * 1e9:  # A whole second lasts until its end.
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.moment_ns / 1e9))
            raise NotFound(f"{moment} is in the future")
        await self._demand_versions()
        self.adopt(replace(self.capabilities, list_metadata=False))


def _as_object(version: ListedVersion) -> ListedObject:
    # In whole seconds, as HEAD says it.
    modified_ns = version.moment_ns // 1_000_000_000 * 1_000_000_000
    return ListedObject(version.key, version.size, version.etag, modified_ns, version.storage_class)
