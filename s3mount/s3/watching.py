"""Telling a trace of a request to the store: what it was about, never what authenticates it."""

import time
from collections.abc import Awaitable

import trio

from s3mount.s3.connection import Broken
from s3mount.s3.http import Answer
from s3mount.tracing import Attempt, Trace


async def watched(
    trace: Trace, kind: str, method: str, key: str, part: str, sending: Awaitable[Answer]
) -> Answer:
    """Await *sending*, and tell how it went; *part* is the range that is asked for, if any."""
    began = time.perf_counter()
    status, request_id, problem = 0, "", ""
    try:
        answer = await sending
        status, request_id = answer.status, answer.headers.get("x-amz-request-id", "")
        return answer
    except Broken as error:
        problem = str(error)
        raise
    except trio.Cancelled:
        problem = "given up"
        raise
    finally:
        seconds = round(time.perf_counter() - began, 6)
        trace.attempted(Attempt(kind, method, key, part, status, seconds, request_id, problem))
