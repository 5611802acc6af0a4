"""One request of the kernel: counted, timed, cancelled with its caller, its failure an errno."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass
from types import TracebackType

import trio
from pyfuse3 import FUSEError

from s3mount.callers import Callers
from s3mount.errors import ERRNO_OF, PosixError, StoreError
from s3mount.metrics import Operation
from s3mount.paths import Subjects

log = logging.getLogger(__name__)

# What programs ask for when they try.
ORDINARY = frozenset({errno.ENOENT, errno.EEXIST})
# What POSIX says to what programs do not just try, but have to know of.
GRAVE = frozenset({errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EFBIG, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all requests share; those that take at least *slow* seconds (0: none) are logged."""

    callers: Callers
    subjects: Subjects
    slow: float


class Request:
    """The frame around a handler.  A class and not a generator, which would cost 1.5 us more.

    It is about *what*, see `Subjects`.  What has a *process_id* (0: nobody waits) is cancelled when
    that process is killed, and answers EINTR, which nobody hears any more.
    """

    __slots__ = (
        "_around",
        "_began",
        "_name",
        "_operation",
        "_parent",
        "_scope",
        "_waiting",
        "_what",
    )

    def __init__(
        self,
        operation: Operation,
        name: str,
        what: object,
        parent: int,
        around: Surroundings,
        process_id: int,
    ) -> None:
        self._operation = operation
        self._name = name
        self._what = what
        self._parent = parent
        self._around = around
        self._scope = trio.CancelScope() if process_id else None
        self._waiting = process_id

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        if self._scope is not None:
            self._scope.__enter__()
            self._around.callers.enter(self, self._waiting)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        operation = self._operation
        seconds = time.perf_counter() - self._began
        operation.took(seconds)
        if seconds >= self._around.slow > 0:
            self._tell_slow(seconds, error)
        if self._scope is not None:
            self._around.callers.leave(self)
            self._scope.__exit__(kind, error, traceback)
            if self._scope.cancelled_caught:
                operation.failed += 1
                raise FUSEError(errno.EINTR)
        if isinstance(error, Exception):
            operation.failed += 1
            raise FUSEError(self._errno(error, seconds)) from error

    def cancel(self) -> None:
        """Give the request up."""
        if self._scope is not None:
            self._scope.cancel()

    def _errno(self, error: Exception, seconds: float) -> int:
        if isinstance(error, PosixError):
            if error.errno in GRAVE:
                self._tell(logging.INFO, error, error.errno, seconds)
            return error.errno
        if isinstance(error, StoreError):
            number = ERRNO_OF[type(error)]
            level = logging.INFO if number in ORDINARY else logging.WARNING
            self._tell(level, error, number, seconds)
            return number
        # pyfuse3 ends the main loop on anything but FUSEError.  A bug may fail its request,
        # but not every process on the mount.
        log.error("bug in %s %s", self._name, self._path(), exc_info=error)
        return errno.EIO

    def _path(self) -> str:
        return self._around.subjects.path(self._name, self._what, self._parent)

    def _tell(self, level: int, error: PosixError | StoreError, number: int, took: float) -> None:
        """Log why this failed; what programs read has everything by its name."""
        path, name = self._path(), errno.errorcode.get(number, str(number))
        facts = {
            "operation": self._name,
            "path": path,
            "errno": name,
            "seconds": round(took, 6),
            "request_id": error.request_id if isinstance(error, StoreError) else "",
        }
        log.log(level, "%s %s: %s: %s", self._name, path, name, error, extra={"facts": facts})

    def _tell_slow(self, seconds: float, error: BaseException | None) -> None:
        path = self._path()
        facts = {"operation": self._name, "path": path, "seconds": round(seconds, 6)}
        end = "it failed" if error is not None else "it was answered"
        log.info(
            "slow: %s %s: %s after %.1f s", self._name, path, end, seconds, extra={"facts": facts}
        )
