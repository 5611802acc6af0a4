"""A request of the kernel while somebody watches the mount: its path, its program, its result."""

from __future__ import annotations

import time
from types import TracebackType

from pyfuse3 import FUSEError

from s3mount.metrics import Operation
from s3mount.request import Request, Surroundings
from s3mount.tracing import Cause, Trace


class WatchedRequest(Request):
    """A `Request` of which a trace is told, with the requests to the store that it causes."""

    __slots__ = ("_cause", "_token", "_trace")

    def __init__(
        self,
        operation: Operation,
        name: str,
        what: object,
        parent: int,
        around: Surroundings,
        process_id: int,
        trace: Trace,
    ) -> None:
        super().__init__(operation, name, what, parent, around, process_id)
        self._trace = trace
        self._cause = _cause(around, name, what, parent, process_id)

    def __enter__(self) -> None:
        self._token = self._trace.begin(self._cause)
        super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        number = 0
        try:
            super().__exit__(kind, error, traceback)
        except FUSEError as failure:
            number = failure.errno
            raise
        finally:
            seconds = time.perf_counter() - self._began
            self._trace.end(self._cause, self._token, seconds, number)


def tell_at_once(
    trace: Trace,
    around: Surroundings,
    name: str,
    what: object,
    process_id: int = 0,
    error_number: int = 0,
) -> None:
    """Tell a trace of a request that was answered without any wait."""
    trace.tell(_cause(around, name, what, 0, process_id), 0.0, error_number)


def _cause(around: Surroundings, name: str, what: object, parent: int, process_id: int) -> Cause:
    subjects = around.subjects
    caller = process_id or subjects.process(name, what)
    program = subjects.program(caller) if caller else ""
    return Cause(name, subjects.path(name, what, parent), caller, program)
