"""Event notifications from a queue of SQS, received and deleted with the data plane's requests."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from s3mount.errors import StoreError, Unavailable
from s3mount.s3.calls import Calls, Request
from s3mount.s3.changes import Hear, News
from s3mount.s3.endpoint import CredentialSource, EndpointSettings
from s3mount.s3.events import MAX_LINE, Event, Malformed, parse
from s3mount.s3.ownwrites import OwnWrites

log = logging.getLogger(__name__)

WAIT = 20  # Seconds that SQS holds a request until there is a message; its limit.
BATCH = 10  # Messages in one answer; its limit.
PATIENCE = 10.0  # Seconds for which a request that fails is tried again.
_REGION = re.compile(r"(?:^|\.)(?:sqs\.)?([a-z]{2}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.")
_CONNECTIONS = 2


def queue_calls(url: str, beside: EndpointSettings, credentials: CredentialSource | None) -> Calls:
    """The way to the queue at *url*, with the identity and the certificates of a store."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    region = _REGION.search(host)
    settings = EndpointSettings(
        scheme=parts.scheme,
        host=host,
        port=parts.port or (443 if secure else 80),
        root="",
        region=region[1] if region else beside.region,
        verify_ssl=beside.verify_ssl,
        ca_bundle=beside.ca_bundle,
        service="sqs",
    )
    return Calls(settings, credentials, timeout=PATIENCE, max_connections=_CONNECTIONS, headers={})


class Queue:
    """Follows a queue that this mount has for itself: what it has received, it deletes.

    SQS says nothing about how late a message may be, so nothing is vouched for; but the queue
    keeps what happens while nobody listens.
    """

    name = "sqs"
    lease = 0.0
    gapless = True

    def __init__(self, calls: Calls, url: str, bucket: str, own: OwnWrites) -> None:
        self._calls = calls
        self._url = url
        self._bucket = bucket
        self._own = own

    async def follow(self, hear: Hear) -> None:
        """Tell of changes until a request fails; see `ChangeSource.follow`."""
        self._own.tell(hear)
        wait = 0  # The first answer comes at once, and says that there is a queue.
        try:
            while True:
                messages = await self._receive(wait)
                wait = WAIT
                hear(self._news(messages))
                if messages:
                    await self._delete(messages)
        finally:
            self._own.tell(None)

    async def _receive(self, wait: int) -> Sequence[Mapping[str, Any]]:
        wanted = {"MaxNumberOfMessages": BATCH, "WaitTimeSeconds": wait}
        answer = await self._ask("ReceiveMessage", wanted)
        messages = answer.get("Messages") or []
        if not isinstance(messages, list):
            raise Unavailable("ReceiveMessage: this is no answer of SQS")
        return [message for message in messages if isinstance(message, dict)]

    async def _delete(self, messages: Sequence[Mapping[str, Any]]) -> None:
        entries = [
            {"Id": str(index), "ReceiptHandle": message.get("ReceiptHandle", "")}
            for index, message in enumerate(messages)
        ]
        try:
            await self._ask("DeleteMessageBatch", {"Entries": entries})
        except StoreError as error:
            # They come once more, which does no harm.
            log.debug("%s: messages are not deleted: %s", self._url, error)

    async def _ask(self, action: str, parameters: Mapping[str, object]) -> Mapping[str, Any]:
        body = json.dumps({"QueueUrl": self._url, **parameters}).encode()
        request = Request(
            action,
            "POST",
            "",
            "/",
            headers={
                "content-type": "application/x-amz-json-1.0",
                "x-amz-target": f"AmazonSQS.{action}",
            },
            body=[body],
            payload_hash=hashlib.sha256(body).hexdigest(),
            slow=True,
        )
        answer = await self._calls.call(request)
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Unavailable(f"{action}: this is no answer of SQS")
        return found

    def _news(self, messages: Sequence[Mapping[str, Any]]) -> News:
        events: list[Event] = []
        malformed = 0
        for message in messages:
            body = message.get("Body")
            try:
                if not isinstance(body, str) or len(body) > MAX_LINE:
                    raise Malformed("a message has no text, or too much")
                events += parse(body, self._bucket)
            except Malformed as error:
                log.debug("%s: %s", self._url, error)
                malformed += 1
        return self._own.sift(events)._replace(malformed=malformed)
