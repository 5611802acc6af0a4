"""What the control socket answers to ``s3mount trace``: events, for as long as somebody listens."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from s3mount.errors import MountError
from s3mount.logs import redact
from s3mount.tracing import Event, Trace

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


class Watch:
    """Hands what a trace tells to clients; one that is slow misses some of it, and is told so."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    async def run(self, request: Mapping[str, object], progress: Progress) -> object:
        """Tell of what happens, until the client hangs up.

        *request* has a pattern ``path`` (empty: all) and ``slow``, in seconds.
        """
        slow = request.get("slow", 0.0)
        if not isinstance(slow, int | float) or not 0 <= slow < math.inf:
            raise MountError("from how many seconds on something is slow makes no sense", 1)
        with self._trace.watch(str(request.get("path", "")), float(slow)) as watcher:
            await progress({"events": [], "dropped": 0})
            while True:
                events = await watcher.take()
                told = [_without_secrets(event) for event in events]
                await progress({"events": told, "dropped": watcher.dropped})


def _without_secrets(event: Event) -> Event:
    requests = event.get("requests")
    if not isinstance(requests, Sequence) or not any(one["error"] for one in requests):
        return event
    return {**event, "requests": [{**one, "error": redact(one["error"])} for one in requests]}
