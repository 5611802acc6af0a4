"""One request of the kernel: counted, timed, cancelled with its caller, its failure an errno."""

from __future__ import annotations

import errno
import logging
import time
from types import TracebackType

import trio
from pyfuse3 import FUSEError

from s3mount.callers import Callers
from s3mount.errors import ERRNO_OF, PosixError, StoreError
from s3mount.metrics import Operation

log = logging.getLogger(__name__)


class Request:
    """The frame around a handler.  A class and not a generator, which would cost 1.5 us more.

    What has a *process_id* (0: nobody waits) is cancelled when that process is killed, and
    answers EINTR, which nobody hears any more.
    """

    __slots__ = ("_began", "_callers", "_name", "_operation", "_scope", "_waiting", "_what")

    def __init__(
        self, operation: Operation, name: str, what: object, callers: Callers, process_id: int
    ) -> None:
        self._operation = operation
        self._name = name
        self._what = what
        self._callers = callers
        self._scope = trio.CancelScope() if process_id else None
        self._waiting = process_id

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        if self._scope is not None:
            self._scope.__enter__()
            self._callers.enter(self, self._waiting)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        operation = self._operation
        operation.took(time.perf_counter() - self._began)
        if self._scope is not None:
            self._callers.leave(self)
            self._scope.__exit__(kind, error, traceback)
            if self._scope.cancelled_caught:
                operation.failed += 1
                raise FUSEError(errno.EINTR)
        if isinstance(error, Exception):
            operation.failed += 1
            raise FUSEError(self._errno(error)) from error

    def cancel(self) -> None:
        """Give the request up."""
        if self._scope is not None:
            self._scope.cancel()

    def _errno(self, error: Exception) -> int:
        if isinstance(error, PosixError):
            return error.errno
        if isinstance(error, StoreError):
            number = ERRNO_OF[type(error)]
            # These two are what programs ask for when they try.
            ordinary = number in (errno.ENOENT, errno.EEXIST)
            level = logging.INFO if ordinary else logging.WARNING
            log.log(level, "%s %r: %s", self._name, self._what, error)
            return number
        # pyfuse3 ends the main loop on anything but FUSEError.  A bug may fail its request,
        # but not every process on the mount.
        log.error("bug in %s %r", self._name, self._what, exc_info=error)
        return errno.EIO
