"""What the control socket of a mount can be asked for: its state, syncing, recovering, the end."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

from s3mount import control
from s3mount.caches import Caches
from s3mount.config import Config
from s3mount.ending import Ending
from s3mount.errors import MountError, PosixError, StoreError
from s3mount.fs.draining import save_all
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.inspecting import Inspector
from s3mount.kernel import KernelMount, open_files
from s3mount.reporting import Reporter
from s3mount.watch import Watch
from s3mount.write.keeper import Keeper, act

FORCE_PATIENCE = 5.0  # Seconds for uploads before an unmounting that is to happen in any case.

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


class Commands:
    """Answers those who talk to one mount over its control socket."""

    def __init__(
        self,
        config: Config,
        source: str,
        *,
        kernel: KernelMount,
        ending: Ending,
        filesystem: FileSystem,
        reporter: Reporter,
        keeper: Keeper,
        watch: Watch,
        inspector: Inspector,
        caches: Caches,
    ) -> None:
        self._config = config
        self._source = source
        self._kernel = kernel
        self._ending = ending
        self._filesystem = filesystem
        self._reporter = reporter
        self._keeper = keeper
        self._watch = watch
        self._inspector = inspector
        self._caches = caches

    def handlers(self) -> Mapping[str, control.Handler]:
        """The commands by name."""
        mountpoint, read_only = self._config.mountpoint, self._config.ro
        return {
            "hello": control.hello(mountpoint, self._source, read_only=read_only),
            "status": self._status,
            "sync": self._sync,
            "cache": self._caches.run,
            "info": self._info,
            "recover": self._recover,
            "trace": self._watch.run,
            "umount": self._umount,
        }

    async def _status(self, request: Mapping[str, object], progress: Progress) -> object:
        return self._reporter.status()

    async def _info(self, request: Mapping[str, object], progress: Progress) -> object:
        paths = request.get("paths")
        if not isinstance(paths, list):
            raise MountError("the paths are missing", 1)
        return {"found": [await self._described(str(path)) for path in paths]}

    async def _described(self, path: str) -> Mapping[str, object]:
        try:
            return await self._inspector.describe(os.fsencode(path))
        except (PosixError, StoreError) as error:
            return {"error": str(error)}

    async def _sync(
        self, request: Mapping[str, object], progress: Progress
    ) -> Mapping[str, list[str]]:
        await self._ending.push_pages()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, progress)
            left = await save_all(self._filesystem)
            nursery.cancel_scope.cancel()
        return {"left": [os.fsdecode(file.inode.name) for file in left]}

    async def _tell_progress(self, progress: Progress) -> None:
        while True:
            dirty = [file for file in self._filesystem.files.values() if file.dirty]
            left = sum(file.unsaved_bytes for file in dirty)
            await progress({"files": len(dirty), "bytes": left})
            await trio.sleep(0.5)

    async def _recover(self, request: Mapping[str, object], progress: Progress) -> object:
        names = request.get("names")
        if not isinstance(names, list):
            raise MountError("the names of the files are missing", 1)
        action = str(request.get("action"))
        result = await act(self._keeper, action, [str(name) for name in names])
        for key in result["done"]:
            above, _, segment = key.rpartition("/")
            self._filesystem.cache.drop(f"{above}/" if above else "", segment)
        return result

    async def _umount(self, request: Mapping[str, object], progress: Progress) -> object:
        lazy, force = bool(request.get("lazy")), bool(request.get("force"))
        result: Mapping[str, list[str]] | None = None
        with trio.move_on_after(FORCE_PATIENCE if lazy or force else math.inf):
            result = await self._sync(request, progress)
        left = result["left"] if result is not None else ()
        if left and not force and not lazy:
            raise MountError(f"{len(left)} files could not be uploaded; see the log")
        if not self._kernel.unmount(lazy=lazy or force):
            raise MountError(_busy(self._config.mountpoint))
        self._ending.note_unmounted()
        if force:
            self._ending.cut_off()
        return result


def _busy(mountpoint: Path) -> str:
    processes = open_files(mountpoint)
    who = ", ".join(str(process) for process in processes[:5])
    return f"{mountpoint}: {os.strerror(errno.EBUSY)}" + (
        f" (in use by process {who})" if who else ""
    )
