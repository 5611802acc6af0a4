"""A mount and its service manager: what systemd hears while it runs, and the signals it sends."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import trio

from s3mount import logs, notify
from s3mount.apart import call_apart

log = logging.getLogger(__name__)
# What somebody has asked to see in the log, whatever its level is.
state_log = logging.getLogger("s3mount.state")
state_log.setLevel(logging.INFO)

INTERVAL = 5.0  # Seconds between two messages.
SUMMARY_INTERVAL = 10.0  # Seconds between two looks for complaints that were left out.
PATIENCE_INTERVAL = 1.0  # Seconds between two looks at work that keeps a mount from answering.
EXTENSION = 60.0  # Seconds that a slow start or end may go on, counted from each message.


class Report(NamedTuple):
    """How a mount is: a line for people, and whether it is ending, with bytes on the move."""

    line: str
    ending: bool
    moving: bool


async def ask_for_patience(handled: Callable[[], int]) -> None:
    """Ask whoever waits for the mount for more time while *handled* grows, until cancelled."""
    before = handled()
    while True:
        await trio.sleep(PATIENCE_INTERVAL)
        now = handled()
        if now != before:
            notify.send(f"STATUS=finishing what a crash has cut off: {now} objects so far")
            notify.extend(EXTENSION)
        before = now


async def keep_informed(look: Callable[[], Report], mountpoint: Path) -> None:
    """Tell the service manager how things are, and that they go on, until cancelled.

    The watchdog is fed only when a request to the mount itself was answered in time: then the
    kernel, the event loop and a worker thread are all alive.
    """
    if not notify.is_wanted():
        return
    watchdog = notify.watchdog_seconds()
    interval = min(INTERVAL, watchdog / 3) if watchdog else INTERVAL
    said = ""
    threads = trio.CapacityLimiter(1)  # One that is stuck is not joined by others.
    while True:
        began = trio.current_time()
        report = look()
        if report.line != said:
            notify.send(f"STATUS={report.line}")
            said = report.line
        if report.ending and report.moving:
            notify.extend(EXTENSION)
        if watchdog:
            with trio.move_on_after(interval) as patience:
                await trio.to_thread.run_sync(
                    _use, mountpoint, limiter=threads, abandon_on_cancel=True
                )
            if patience.cancelled_caught:
                log.error("the mount did not answer a request within %.1f s", interval)
            else:
                notify.alive()
        await trio.sleep(max(0.1, began + interval - trio.current_time()))


def _use(mountpoint: Path) -> None:
    try:
        call_apart(os.statvfs, mountpoint)
    except OSError as error:
        # An answer, too: there is no mount any more, or nobody may look at it.
        log.debug("%s: %s", mountpoint, error)


async def sum_up_complaints() -> None:
    """Say now and then which complaints were left out of the log, and at the end all of it."""
    try:
        while True:
            await trio.sleep(SUMMARY_INTERVAL)
            logs.tell_left_out()
    finally:
        logs.tell_left_out(all_of_it=True)


def dump_state(state: Mapping[str, object]) -> None:
    """Write a state into the log."""
    state_log.info("%s", json.dumps(state))


def toggle_debug(level: str) -> None:
    """Log everything, or if that is so already, only from *level* on."""
    everything = logs.toggle_debug(level)
    state_log.info("from now on %s is logged", "everything" if everything else level)


async def heed_signals(actions: Mapping[signal.Signals, Callable[[], None]]) -> None:
    """Do what signals ask for, until cancelled."""
    with trio.open_signal_receiver(*actions) as signals:
        async for number in signals:
            found = signal.Signals(number)
            log.info("told by %s", found.name)
            actions[found]()
