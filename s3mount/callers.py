"""Who waits for an answer of ours, and whether they have been killed meanwhile.

pyfuse3 does not tell when the kernel interrupts a request, and a process that waits for one
cannot die before it is answered.  So whoever waits for long is looked after.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Protocol

import trio

log = logging.getLogger(__name__)

INTERVAL = 0.2  # Seconds between two looks.
PATIENCE = 0.4  # Seconds that a request may take before anybody looks after its caller.

# Signals whose default action does not end a process.
HARMLESS = {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN,
    signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH,
}  # fmt: skip
HARMLESS_MASK = sum(1 << (number - 1) for number in HARMLESS)


class Waiting(Protocol):
    """Something that a process waits for."""

    def cancel(self) -> None:
        """Give it up."""
        ...


class Callers:
    """The requests that are being answered; the oldest come first."""

    def __init__(self) -> None:
        self._waiting: dict[Waiting, tuple[int, float]] = {}

    def enter(self, waiting: Waiting, process_id: int) -> None:
        """A request of a process begins."""
        self._waiting[waiting] = process_id, trio.current_time()

    def leave(self, waiting: Waiting) -> None:
        """A request is answered."""
        del self._waiting[waiting]

    async def watch(self) -> None:
        """Cancel the requests of processes that are to die, until cancelled."""
        while True:
            await trio.sleep(INTERVAL)
            now = trio.current_time()
            for waiting, (process_id, began) in list(self._waiting.items()):
                if now - began < PATIENCE:
                    break
                if is_dying(process_id):
                    log.info("process %d was killed while it waited", process_id)
                    waiting.cancel()


def is_dying(thread_id: int) -> bool:
    """Whether a fatal signal is pending for a thread.

    One that has gone may have handed its open files on, so that says nothing.
    """
    try:
        text = Path(f"/proc/{thread_id}/status").read_text()
    except OSError:
        return False
    masks = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
            masks[name] = int(value, 16)
    pending = masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)
    spared = masks.get("SigBlk", 0) | masks.get("SigIgn", 0) | masks.get("SigCgt", 0)
    killed = pending & (1 << (signal.SIGKILL - 1))
    return bool(killed or pending & ~spared & ~HARMLESS_MASK)
