"""What hangs on an object beside its bytes: tags, ACL, holds; and whether its bucket has locks."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping

from s3mount.errors import Denied, Held, StoreError, Unavailable
from s3mount.s3 import featurexml
from s3mount.s3.calls import Request
from s3mount.s3.objects import content_md5, read_answer
from s3mount.s3.reading import BucketReader
from s3mount.storing import is_held

log = logging.getLogger(__name__)


class Subresources(BucketReader):
    """A bucket whose objects can be tagged, held and restored."""

    _locks: bool | None = None  # Whether the bucket has Object Lock, once that was asked.

    async def tags(self, key: str) -> Mapping[str, str]:
        """The tags of an object; see `ObjectExtras.tags`."""
        request = Request("GetObjectTagging", "GET", key, self._path(key), "tagging=")
        return read_answer(request, featurexml.tags, await self._calls.call(request))

    async def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Give an object these tags and no others; see `ObjectExtras.set_tags`."""
        if tags:
            await self._put("PutObjectTagging", key, "tagging=", featurexml.tag_request(tags))
            return
        path = self._path(key)
        await self._calls.call(Request("DeleteObjectTagging", "DELETE", key, path, "tagging="))

    async def set_acl(self, key: str, acl: str) -> None:
        """Give an object a canned ACL; see `ObjectExtras.set_acl`."""
        await self._put("PutObjectAcl", key, "acl=", b"", {"x-amz-acl": acl})

    async def set_legal_hold(self, key: str, held: bool) -> None:
        """Begin or end a legal hold; see `ObjectExtras.set_legal_hold`."""
        body = featurexml.legal_hold_request(held)
        await self._put("PutObjectLegalHold", key, "legal-hold=", body)

    async def set_retention(self, key: str, mode: str, until: str) -> None:
        """Retain an object; see `ObjectExtras.set_retention`."""
        body = featurexml.retention_request(mode, until)
        await self._put("PutObjectRetention", key, "retention=", body)

    async def restore(self, key: str, days: int) -> None:
        """Ask for an archived object; see `ObjectExtras.restore`."""
        await self._restorer.request(key, days)

    async def awaken(self, key: str) -> None:
        """Return when an object can be read; see `ObjectStore.awaken`."""
        await self._restorer.awaken(key, self.head)

    async def _put(
        self, kind: str, key: str, query: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        sent = {"content-md5": content_md5(body), **(headers or {})}
        if body:
            sent["content-type"] = "application/xml"
        request = Request(
            kind,
            "PUT",
            key,
            self._path(key),
            query,
            headers=sent,
            body=[body] if body else (),
            payload_hash=hashlib.sha256(body).hexdigest(),
        )
        await self._calls.call(request)

    # ------------------------------------------------------------ Object Lock

    async def refuse_held(self, key: str) -> None:
        """Raise `Held` when the object at *key* is held, and that is to be heeded."""
        if self._features.choices.refuse_held and await self._has_locks():
            await self._refuse_held(key)

    async def _refuse_held(self, key: str) -> None:
        info = await self._describe(key)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if info is not None and is_held(info.headers, now):
            until = info.headers.get("x-amz-object-lock-retain-until-date", "a legal hold ends")
            raise Held(f"{key}: Object Lock holds it until {until}", code="ObjectLocked")

    async def _has_locks(self) -> bool:
        if self._calls.versioned is False:
            return False  # Only a bucket with versions can have locks: not worth a request.
        if self._locks is None:
            self._locks = await self._ask_for_locks()
        return self._locks

    async def _ask_for_locks(self) -> bool:
        path = self._bucket_path()
        request = Request("GetObjectLockConfiguration", "GET", "", path, "object-lock=")
        try:
            answer = await self._calls.call(request, self._calls.begin_brief())
            return read_answer(request, featurexml.has_object_lock, answer)
        except Unavailable as error:
            log.debug("not known whether the bucket has Object Lock: %s", error)
            return False
        except StoreError as error:
            if isinstance(error, Denied):
                log.info("not known whether the bucket has Object Lock: %s", error)
            return False
