"""What the control socket of a mount can be asked for about the past of its bucket."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

from s3mount.control import Handler, Progress
from s3mount.errors import MountError, PosixError
from s3mount.fs.undeleting import Outcome, Past
from s3mount.kernelcache import KernelNotices
from s3mount.s3.store import ListedVersion

TELL_EVERY = 100  # Files.
MOST_TOLD = 100_000  # Files that one answer names.

Request = Mapping[str, object]


class PastCommands:
    """Answers those who ask for versions, or want them back."""

    def __init__(
        self,
        past: Past,
        push_pages: Callable[[], Awaitable[None]],
        notices: KernelNotices,
        *,
        read_only: bool,
    ) -> None:
        self._past = past
        self._notices = notices
        self._push_pages = push_pages
        self._read_only = read_only

    def handlers(self) -> Mapping[str, Handler]:
        """The commands by name."""
        return {"versions": self._versions, "undelete": self._undelete}

    async def _versions(self, request: Request, progress: Progress) -> object:
        key = await self._past.key_of(_path_of(request))
        versions = await self._past.versions(key)
        if not versions and await self._past.is_directory(key):
            raise PosixError(errno.EISDIR)
        return {"key": key, "versions": [described(one) for one in versions]}

    async def _undelete(self, request: Request, progress: Progress) -> object:
        if self._read_only:
            raise PosixError(errno.EROFS)
        await self._push_pages()  # What the kernel holds of a file is part of it.
        key = await self._past.key_of(_path_of(request))
        chosen = request.get("version")
        version = str(chosen) if chosen is not None else None
        if not request.get("recursive"):
            outcome = await self._past.undelete(key, version)
            if outcome.unknown and await self._past.is_directory(key):
                raise PosixError(errno.EISDIR)
            if outcome.version is not None:
                await self._notices.drop(await self._past.forget(key, tree=False))
            return {"outcomes": [_told(outcome)]}
        return {"outcomes": await self._undelete_tree(key, request, progress)}

    async def _undelete_tree(
        self, key: str, request: Request, progress: Progress
    ) -> Sequence[Mapping[str, object]]:
        since = request.get("since_ns")
        told: list[Mapping[str, object]] = []
        count = 0
        try:
            async for outcome in self._past.undelete_tree(key, int(str(since or 0))):
                count += 1
                if len(told) < MOST_TOLD:
                    told.append(_told(outcome))
                if count % TELL_EVERY == 0:
                    await progress({"files": count})
        finally:
            # Also of what was done before it failed.
            stale = await self._past.forget(key, tree=True) if count else ()
            await self._notices.drop(stale)
        return told


def described(version: ListedVersion) -> Mapping[str, object]:
    """One version in plain values."""
    return {
        "version": version.id,
        "time": version.moment_ns / 1e9,
        "size": version.size,
        "etag": version.etag.strip('"'),
        "deleted": version.deleted,
        "newest": version.latest,
        "storage_class": version.storage_class,
        "author": version.owner,
    }


def _told(outcome: Outcome) -> Mapping[str, object]:
    version = described(outcome.version) if outcome.version is not None else None
    return {
        "key": outcome.key,
        "version": version,
        "markers": outcome.markers,
        "copied": outcome.copied,
        "error": outcome.error,
    }


def _path_of(request: Request) -> bytes:
    path = request.get("path")
    if not isinstance(path, str):
        raise MountError("the path is missing", 1)
    return os.fsencode(path)
