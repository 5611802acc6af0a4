"""How a mount ends: by a signal or a command, within its time, and with everything kept."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Sequence
from pathlib import Path

import pyfuse3
import trio

from s3mount import notify
from s3mount.fs.draining import leave_all, save_all
from s3mount.fs.filesystem import FileSystem
from s3mount.fs.openfile import OpenFile
from s3mount.kernel import KernelMount

log = logging.getLogger(__name__)

BUSY_PATIENCE = 2.0  # Seconds in which whoever keeps the mount busy may let go of it.
LAST_SHARE = 0.2  # Of the time limit: what is left for uploads after programs were waited for.


class Ending:
    """Ends one mount, within *limit* seconds from when it was told to, or was unmounted.

    *page_patience* is how long the kernel may take to write back what programs have mapped.
    What answers the kernel runs in the scope `serving`.
    """

    def __init__(
        self, kernel: KernelMount, mountpoint: Path, *, limit: float, page_patience: float
    ) -> None:
        self._kernel = kernel
        self._mountpoint = mountpoint
        self._limit = limit
        self._page_patience = page_patience
        self._deadline = math.inf
        self.serving = trio.CancelScope()
        self._stopping = trio.CancelScope()
        self._saving = trio.CancelScope(shield=True)
        self._told = self._served = self._unmounted = False
        self._work: trio.Nursery | None = None
        self._work_ended = trio.Event()

    @property
    def begun(self) -> bool:
        """Whether the mount is ending, or has been unmounted."""
        return self._told or self._served or self._unmounted

    def note_unmounted(self) -> None:
        """Take note that the mount is gone, though programs may still have files of it open."""
        self._unmounted = True

    async def hold(self, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Give out a nursery for uploads, which are given up when the time is over."""
        try:
            async with trio.open_nursery() as self._work:
                task_status.started(self._work)
                await trio.sleep_forever()
        finally:
            self._work_ended.set()

    async def heed_signals(self, filesystem: FileSystem) -> None:
        """Stop when told to, and at once when told twice; until cancelled."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    if self._told:
                        log.warning("told to stop twice: leaving at once")
                        self._hurry()
                        continue
                    self._told = True
                    log.info("told to stop by %s", signal.Signals(number).name)
                    if not self._served:
                        self._deadline = trio.current_time() + self._limit
                        nursery.start_soon(self._stop, filesystem)

    def _hurry(self) -> None:
        self._deadline = trio.current_time()
        self._stopping.cancel()
        self._saving.cancel()
        if not self._served:
            self.cut_off()

    def cut_off(self) -> None:
        """Answer nobody any more, nor wait for a store that does not come back."""
        pyfuse3.terminate()
        self.serving.cancel()

    async def _stop(self, filesystem: FileSystem) -> None:
        """Unmount; whoever still uses the mount keeps what is open, for a while."""
        notify.stopping("unmounting")
        with self._stopping:
            # pyfuse3.main() returns, and this is cancelled, when nobody uses the mount any more.
            with trio.move_on_at(self._deadline):
                await self.push_pages()
                await save_all(filesystem)
            if not self._kernel.unmount():
                await trio.sleep(BUSY_PATIENCE)
                self._kernel.unmount(lazy=True)
            patience = self._deadline - trio.current_time() - LAST_SHARE * self._limit
            await filesystem.handles.wait_closed(max(0.0, patience))
            if filesystem.handles.in_use:
                log.warning("files are still open at %s, stopping without them", self._mountpoint)
            pyfuse3.terminate()  # Somebody's working directory is no reason to stay.

    async def push_pages(self) -> None:
        """Have the kernel write back what programs changed through mmap(2).

        In another process: syncfs(2) would wait for us with our own interpreter blocked.
        """
        with trio.move_on_after(self._page_patience):
            command = ["sync", "--file-system", str(self._mountpoint)]
            await trio.run_process(command, check=False, capture_stderr=True)

    async def drain(self, filesystem: FileSystem) -> Sequence[OpenFile]:
        """Nobody uses the mount any more: save what is left, or else keep it on this machine."""
        self._served = True
        self._stopping.cancel()
        self._deadline = min(self._deadline, trio.current_time() + self._limit)
        self._saving.deadline = self._deadline
        with self._saving:
            await save_all(filesystem)
        with trio.CancelScope(shield=True):
            # Nobody may send from files that are being left.
            if self._work is not None:
                self._work.cancel_scope.cancel()
                await self._work_ended.wait()
            left = await leave_all(filesystem)
        return left
