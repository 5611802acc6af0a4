"""Calls into the kernel that may wait for an answer of our own, made so that we can be killed.

A process that is killed closes its descriptors when its last thread has ended.  A thread that
waits for an answer from this very process never ends: it would keep ``/dev/fuse`` open, the kernel
would go on waiting, and with it everybody who uses the mount.  A thread that shares no descriptors
with the others keeps nothing open.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, TypeVarTuple, Unpack

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

CLOSE_RANGE_UNSHARE = 1 << 1  # include/uapi/linux/close_range.h
_ALL = (1 << 32) - 1
_libc = ctypes.CDLL(None, use_errno=True)


def call_apart(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """Call *function* in a thread that has no descriptors, and wait for the result.

    Blocks, so it is itself called in a thread.  *function* may not even write into the log.
    """
    answer: Future[Result] = Future()

    def run() -> None:
        _part_with_descriptors()
        try:
            answer.set_result(function(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="apart", daemon=True).start()
    return answer.result()


def _part_with_descriptors() -> None:
    """Take a table of descriptors of one's own, which is empty (close_range(2), Linux 5.9).

    Where that cannot be had, or is forbidden, the thread is one like any other.
    """
    close_range = getattr(_libc, "close_range", None)  # glibc 2.34
    if close_range is not None:
        close_range(0, ctypes.c_uint(_ALL), CLOSE_RANGE_UNSHARE)
