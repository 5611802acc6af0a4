"""The past of one mount: what versions a path has, and bringing them back."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import trio

from s3mount.errors import Denied, MountError, PosixError, StoreError
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inodes import Inode
from s3mount.fs.names import key_of, slot_name
from s3mount.fs.refreshing import Refresher
from s3mount.fs.tree import copy_object
from s3mount.s3.store import OWN, VERSIONS, ListedObject, ListedVersion, VersionedStore, version_key
from s3mount.write.journal import Journal

AT_ONCE = 16  # Files that are brought back.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done about one key: `version` is the newest one now, of `markers` deletions undone.

    With no marker it was `copied`; `error` says why nothing was done, `unknown` that there never
    was such a file.
    """

    key: str
    version: ListedVersion | None = None
    markers: int = 0
    copied: bool = False
    error: str = ""
    unknown: bool = False


class Past:
    """Lists the versions of paths of a mount, and makes older ones the newest."""

    def __init__(self, filesystem: FileSystem, store: VersionedStore, journal: Journal) -> None:
        self._fs = filesystem
        self._store = store
        self._journal = journal

    async def key_of(self, path: bytes) -> str:
        """The key that a path below the mount point stands for, whether or not it is there.

        A path below ``.s3mount/versions`` stands for what it shows the past of.
        """
        names = [name for name in path.split(b"/") if name]
        ours = [name.encode() for name in VERSIONS.split("/") if name]
        if names[: len(ours)] == ours:
            names = names[len(ours) :]
        if not names:
            return ""
        prefix = ""
        for name in names[:-1]:
            _, slot = await self._fs.namespace.place_of(prefix, name)
            prefix = key_of(prefix, slot) + "/"
        _, slot = await self._fs.namespace.place_of(prefix, names[-1])
        return key_of(prefix, slot)

    async def check(self) -> None:
        """Raise `MountError` where there is no past."""
        if not await self._store.keeps_versions():
            raise MountError("the bucket keeps no versions: versioning is off")

    async def versions(self, key: str) -> Sequence[ListedVersion]:
        """All versions and deletions of a file, the newest first; none where it never was."""
        await self.check()
        return await self._store.versions_of(key) if key else ()

    async def is_directory(self, key: str) -> bool:
        """Whether anything is, or was, below *key*."""
        page = await self._store.list_versions(f"{key}/" if key else "", token=None, limit=1)
        return bool(page.versions or page.prefixes)

    # -- bringing back ---------------------------------------------------------------------

    async def undelete(self, key: str, version_id: str | None) -> Outcome:
        """Make a version of a file the newest: the named one, or the last before its deletion."""
        versions = await self.versions(key)
        wanted = _wanted(versions, version_id)
        if not versions:
            return Outcome(key, error="there is no such file, and never was", unknown=True)
        if wanted is None:
            said = "it has no such version" if version_id else "no version of it is left"
            return Outcome(key, error=said)
        above = versions[: versions.index(wanted)]
        if not above:
            return Outcome(key, error="that is the newest version" if version_id else "not deleted")
        return await self._bring_back(wanted, above)

    async def undelete_tree(self, key: str, since_ns: int) -> AsyncIterator[Outcome]:
        """Undo the deletions since *since_ns* of all that was below a directory."""
        await self.check()
        prefix = f"{key}/" if key else ""
        async for deleted in self._deleted_below(prefix, since_ns):
            for outcome in await self._undelete_all(deleted):
                yield outcome

    async def _undelete_all(self, keys: Sequence[str]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        waiting = iter(keys)

        async def work() -> None:
            for key in waiting:
                try:
                    outcomes.append(await self.undelete(key, None))
                except (StoreError, PosixError) as error:
                    outcomes.append(Outcome(key, error=str(error)))

        async with trio.open_nursery() as nursery:
            for _ in range(min(AT_ONCE, len(keys))):
                nursery.start_soon(work)
        return outcomes

    async def _deleted_below(self, prefix: str, since_ns: int) -> AsyncIterator[Sequence[str]]:
        """The keys whose newest version is a deletion, page by page."""
        token: str | None = None
        last = ""
        while True:
            page = await self._store.list_versions(prefix, token=token, flat=True)
            found = []
            for version in page.versions:
                # The newest comes first, and the older ones perhaps on the next page.
                newest = version.key != last
                # Of the scratch objects of probes nobody wants any back who does not say so.
                ours = version.key.startswith(OWN) and not prefix.startswith(OWN)
                if newest and not ours and version.deleted and version.moment_ns >= since_ns:
                    found.append(version.key)
                last = version.key
            yield found
            token = page.token
            if token is None:
                return

    async def _bring_back(self, wanted: ListedVersion, above: Sequence[ListedVersion]) -> Outcome:
        for inode, file in self._fs.files.items():
            if not inode.gone and file.dirty and inode.key == wanted.key:
                raise PosixError(errno.EBUSY)
        if all(one.deleted for one in above):
            try:
                for one in above:
                    await self._store.delete_version(one.key, one.id)
            except Denied:
                pass  # Many may write, and may not take anything out of the past.
            else:
                return Outcome(wanted.key, wanted, markers=len(above))
        source = ListedObject(
            version_key(wanted), wanted.size, wanted.etag, 0, wanted.storage_class
        )
        await copy_object(self._store, self._journal, source, wanted.key)
        return Outcome(wanted.key, wanted, copied=True)

    # -- what is known by now ----------------------------------------------------------------

    async def forget(self, key: str, *, tree: bool) -> Sequence[Inode]:
        """Have what has changed looked up anew; returns the inodes that the kernel must forget."""
        namespace, inode = self._fs.namespace, self._fs.inodes.root
        if not key:
            return await Refresher(self._fs).refresh(inode)
        prefix, known = "", True
        stale: list[Inode] = []
        for segment in key.rstrip("/").split("/"):
            namespace.forget_name(prefix, segment)
            found = self._fs.inodes.find(inode, slot_name(segment)) if known else None
            known, inode = found is not None, found or inode
            if not known or prefix + segment == key.rstrip("/"):
                # As the store says now: a listing that began before does not know better.
                await namespace.find(prefix, segment, fresh=self._fs.cache.clock())
            prefix += f"{segment}/"
        if tree:
            namespace.forget_tree(prefix)
        if known:
            stale += await Refresher(self._fs).refresh(inode)
        return stale


def _wanted(versions: Sequence[ListedVersion], version_id: str | None) -> ListedVersion | None:
    for one in versions:
        if not one.deleted and version_id in (None, one.id):
            return one
    return None
