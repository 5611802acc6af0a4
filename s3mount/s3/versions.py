"""The versions that a bucket keeps: listed, deleted, and shown as objects with keys of their own.

Below ``.s3mount/versions/`` each object of the bucket is a directory that holds its versions,
``TIME-VERSIONID``; so all that reads, caches and copies objects can do so with versions.
"""

from __future__ import annotations

import logging
import re
from calendar import timegm
from collections.abc import Sequence
from dataclasses import replace
from time import strptime
from typing import NamedTuple
from urllib.parse import unquote

import trio

from s3mount.errors import Denied, InvalidRequest, NotFound, Unavailable, Unsupported
from s3mount.s3 import xml
from s3mount.s3.calls import Request
from s3mount.s3.client import S3Client
from s3mount.s3.objects import read_answer
from s3mount.s3.sigv4 import canonical_query
from s3mount.s3.store import (
    OWN,
    VERSIONS,
    ListedObject,
    ListedVersion,
    ListPage,
    ObjectInfo,
    VersionPage,
    version_key,
)

log = logging.getLogger(__name__)

_PLACE = re.compile(r"(.+)/(\d{8}T\d{6})\.\d{3}Z-([^/]+)", re.DOTALL | re.ASCII)
_ASK_AGAIN = 60.0  # Seconds; who switches versioning on need not mount again.
_FEW = 20  # Versions of one page where the question is only whether there are any.
_CLOCK_SLACK = 1  # Seconds: stores round what a listing tells exactly.
_SPLIT = "\0"  # No key of S3 has it.


class _Version(NamedTuple):
    key: str
    moment: int
    id: str


class HistoryClient(S3Client):
    """A bucket that also shows, below ``.s3mount/versions/``, what it keeps of the past."""

    _answer: tuple[bool, float] = (False, 0.0)

    # ------------------------------------------------------------ what the bucket keeps

    async def keeps_versions(self) -> bool:
        """Whether there is a past; see `ObjectHistory.keeps_versions`."""
        kept, until = self._answer
        if not kept and trio.current_time() >= until:
            request = Request(
                "GetBucketVersioning",
                "GET",
                "",
                self._bucket_path(),
                canonical_query([_VERSIONING]),
            )
            try:
                kept = bool(read_answer(request, xml.versioning, await self._calls.call(request)))
            except Denied:
                kept = True  # Who may not ask may still see them.
            except (InvalidRequest, NotFound, Unsupported):
                kept = False
            self._answer = (kept, trio.current_time() + _ASK_AGAIN)
        return kept

    async def _demand_versions(self) -> None:
        if not await self.keeps_versions():
            raise Unsupported(f"the bucket {self.bucket} keeps no versions: versioning is off")

    async def list_versions(
        self, prefix: str, *, token: str | None, flat: bool = False, limit: int = 1000
    ) -> VersionPage:
        """List one page of versions; see `ObjectHistory.list_versions`."""
        full, root = self._beginning(prefix), self._beginning("")
        parameters = [("versions", ""), ("encoding-type", "url"), ("max-keys", str(limit))]
        parameters.append(("prefix", full))
        if not flat:
            parameters.append(("delimiter", "/"))
        if token is not None:
            key, _, version = token.partition(_SPLIT)
            parameters += [("key-marker", key)]
            parameters += [("version-id-marker", version)] if version else []
        query = canonical_query(parameters)
        request = Request("ListObjectVersions", "GET", full, self._bucket_path(), query)
        answer = await self._calls.call(request)
        found = read_answer(request, lambda body: xml.version_listing(body, full, root), answer)
        following = None
        if found.truncated:
            following = f"{found.next_key}{_SPLIT}{found.next_version}"
            if not found.next_key or following == token:
                raise Unavailable(f"{request.what}: the store does not say how to go on")
        cut = len(self.prefix)
        versions = [one._replace(key=self._plain(root + one.key)[cut:]) for one in found.versions]
        prefixes = [self._plain(root + name)[cut:] for name in found.prefixes]
        return VersionPage(versions, prefixes, following)

    async def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version for good; see `ObjectHistory.delete_version`."""
        query = canonical_query([("versionId", version_id)])
        request = Request("DeleteObjectVersion", "DELETE", key, self._path(key), query)
        try:
            await self._calls.call(request)
        except NotFound as error:
            if error.code == "NoSuchBucket":
                raise

    # ------------------------------------------------------------ versions as objects

    async def _place(self, key: str) -> tuple[str, str]:
        if not key.startswith(VERSIONS):
            return await super()._place(key)
        version = _version_of(key)
        if version is None:
            raise NotFound(f"{key}: there is no such version")
        return self._path(version.key), canonical_query([("versionId", version.id)])

    def _source(self, key: str) -> str:
        version = _version_of(key) if key.startswith(VERSIONS) else None
        if version is None:
            return super()._source(key)
        return f"{super()._source(version.key)}?{canonical_query([('versionId', version.id)])}"

    async def head(self, key: str) -> ObjectInfo:
        """Describe an object, or a version; see `ObjectStore.head`."""
        version = _version_of(key) if key.startswith(VERSIONS) else None
        if version is None:
            return await super().head(key)
        await self._demand_versions()
        try:
            info = await super().head(key)
        except (InvalidRequest, Unsupported) as error:  # No id at all, or that of a deletion.
            raise NotFound(str(error), code=error.code, status=error.status) from error
        if abs(info.modified_ns // 1_000_000_000 - version.moment) > _CLOCK_SLACK:
            raise NotFound(f"{key}: that version is of another time")
        return info

    async def list_page(
        self,
        prefix: str,
        *,
        token: str | None,
        flat: bool = False,
        limit: int = 1000,
        metadata: bool = False,
    ) -> ListPage:
        """List objects, or what has versions; see `ObjectStore.list_page`."""
        if not prefix.startswith(VERSIONS):
            return await super().list_page(
                prefix, token=token, flat=flat, limit=limit, metadata=metadata
            )
        await self._demand_versions()
        place = prefix[len(VERSIONS) :]
        page = await self._page_of_past(place, token, max(limit, _FEW))
        while limit < _FEW and page.token is not None and not page.objects and not page.prefixes:
            page = await self._page_of_past(place, page.token, _FEW)
        return page

    async def _page_of_past(self, place: str, token: str | None, limit: int) -> ListPage:
        """First the versions of the object *place* (without its slash), then what is below it."""
        phase, _, rest = (token or (_ITSELF if place else _BELOW)).partition(":")
        if f"{phase}:" == _BELOW:
            return await self._names_below(place, rest or None, limit)
        page = await self._own_versions(place[:-1], rest or None, limit)
        return page if page.token is not None else replace(page, token=_BELOW)

    async def _own_versions(self, key: str, token: str | None, limit: int) -> ListPage:
        """A page of the versions of just one object, without its deletions."""
        page = await self.list_versions(key, token=token, limit=limit)
        mine = [one for one in page.versions if one.key == key]
        # Keys come in order, so the last one says whether more of this one can follow.
        more = page.token is not None and (not page.versions or page.versions[-1].key <= key)
        return ListPage(
            [_as_object(one) for one in mine if not one.deleted],
            (),
            f"{_ITSELF}{page.token}" if more else None,
        )

    async def _names_below(self, place: str, token: str | None, limit: int) -> ListPage:
        """A page of the names below *place* that have versions, or hold what has."""
        page = await self.list_versions(place, token=token, limit=limit)
        names = {f"{one.key}/" for one in page.versions if one.key != place}
        names.update(page.prefixes)
        if not place:
            names.discard(OWN)  # Hidden there, too: mostly what probes have left.
        following = None if page.token is None else f"{_BELOW}{page.token}"
        return ListPage((), [VERSIONS + name for name in sorted(names)], following)

    async def versions_of(self, key: str) -> Sequence[ListedVersion]:
        """All versions of one object; see `ObjectHistory.versions_of`."""
        found: list[ListedVersion] = []
        token: str | None = None
        while True:
            page = await self.list_versions(key, token=token)
            found += [one for one in page.versions if one.key == key]
            token = page.token
            if token is None or (page.versions and page.versions[-1].key > key):
                return found


_VERSIONING = ("versioning", "")
_ITSELF, _BELOW = "itself:", "below:"


def _as_object(version: ListedVersion) -> ListedObject:
    seconds = version.moment_ns // 1_000_000_000
    return ListedObject(
        version_key(version),
        version.size,
        version.etag,
        seconds * 1_000_000_000,
        version.storage_class,
    )


def _version_of(key: str) -> _Version | None:
    """The version that a key below ``.s3mount/versions/`` names, if it names one."""
    match = _PLACE.fullmatch(key, len(VERSIONS))
    if match is None:
        return None
    try:
        moment = timegm(strptime(match[2], "%Y%m%dT%H%M%S"))
    except ValueError:
        return None
    return _Version(match[1], moment, unquote(match[3]))
