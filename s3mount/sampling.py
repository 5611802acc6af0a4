"""What only a look now and then tells: rates over the last seconds, and since when a file waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import trio

from s3mount.fs.filesystem import FileSystem
from s3mount.fs.openfile import OpenFile
from s3mount.metrics import Metrics
from s3mount.s3.client import S3Client

INTERVAL = 2.0  # Seconds between two looks.
SPAN = 5  # Looks that a rate is taken over.


class Sample(NamedTuple):
    """The counters at one moment, by the clock of trio."""

    time: float
    sent: int
    received: int
    requests: int
    operations: int


class Rates(NamedTuple):
    """What happens in a second."""

    sent: float
    received: float
    requests: float
    operations: float


class Sampler:
    """Looks at the counters of a mount every two seconds."""

    def __init__(self, client: S3Client, filesystem: FileSystem, metrics: Metrics) -> None:
        self._client = client
        self._filesystem = filesystem
        self._metrics = metrics
        self._samples: deque[Sample] = deque(maxlen=SPAN + 1)
        self._dirty_since: dict[OpenFile, float] = {}

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            self._samples.append(self._look())
            self._note_dirty(self._filesystem.files.values())
            await trio.sleep(INTERVAL)

    def rates(self) -> Rates:
        """What has happened in a second, over the last ten."""
        now = self._look()
        first = self._samples[0] if self._samples else now
        seconds = max(now.time - first.time, 0.1)
        return Rates(*((b - a) / seconds for a, b in zip(first[1:], now[1:], strict=True)))

    def age(self, file: OpenFile) -> float:
        """For how many seconds a file has been dirty, as far as it was seen."""
        return trio.current_time() - self._dirty_since.get(file, trio.current_time())

    def _look(self) -> Sample:
        statistics = self._client.statistics
        return Sample(
            trio.current_time(),
            statistics.bytes_sent,
            statistics.bytes_received,
            sum(statistics.requests.values()),
            sum(operation.count for operation in self._metrics.operations.values()),
        )

    def _note_dirty(self, files: Iterable[OpenFile]) -> None:
        before, now = self._dirty_since, trio.current_time()
        self._dirty_since = {file: before.get(file, now) for file in files if file.dirty}
