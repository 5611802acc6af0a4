"""The counters of a mount in the words of Prometheus; the only module that knows its library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from s3mount.metrics import BUCKETS, Metrics, Operation, bucket_limit

Status = Mapping[str, Any]

# Every second half octave from 16 us to a minute is enough for a dashboard.
_LIMITS = [index for index in range(9, BUCKETS, 2) if 1.5e-5 < bucket_limit(index) < 90]


def exposition(status: Status, metrics: Metrics) -> bytes:
    """What /metrics answers for a mount of that *status*."""
    registry = CollectorRegistry()
    registry.register(_Mount(status, metrics))
    return generate_latest(registry)


class _Mount(Collector):
    def __init__(self, status: Status, metrics: Metrics) -> None:
        self._status = status
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield everything; called by the library."""
        yield from self._identity()
        yield from self._operations()
        yield from self._requests()
        yield from self._gauges()
        yield from self._cache()
        yield from self._notify()

    def _identity(self) -> Iterator[Metric]:
        names = ("source", "mountpoint", "endpoint", "version")
        family = GaugeMetricFamily("s3mount_info", "What is mounted where.", labels=names)
        family.add_metric([str(self._status[name]) for name in names], 1)
        yield family

    def _operations(self) -> Iterator[Metric]:
        label = ["operation"]
        times = HistogramMetricFamily(
            "s3mount_operation_seconds", "Requests of the kernel, by their time.", labels=label
        )
        failed = CounterMetricFamily(
            "s3mount_operations_failed", "Those that were answered by an error.", labels=label
        )
        data = CounterMetricFamily(
            "s3mount_operation_bytes", "Bytes that programs read and wrote.", labels=label
        )
        for name, operation in sorted(self._metrics.operations.items()):
            times.add_metric([name], _cumulated(operation), operation.seconds)
            failed.add_metric([name], operation.failed)
            if operation.bytes:
                data.add_metric([name], operation.bytes)
        yield from (times, failed, data)

    def _requests(self) -> Iterator[Metric]:
        requests = self._status["requests"]
        for name, text, counts in (
            ("s3mount_requests", "Requests to the store.", requests["requests"]),
            ("s3mount_requests_retried", "Those that were tried again.", requests["retried"]),
        ):
            family = CounterMetricFamily(name, text, labels=["kind"])
            for kind, count in sorted(counts.items()):
                family.add_metric([kind], count)
            yield family
        for name, text, field in (
            ("s3mount_request_failures", "Attempts that failed.", "failures"),
            ("s3mount_sent_bytes", "Bytes sent to the store.", "bytes_sent"),
            ("s3mount_received_bytes", "Bytes received from the store.", "bytes_received"),
            ("s3mount_dollars", "What the requests cost on AWS, about.", "dollars"),
        ):
            yield CounterMetricFamily(name, text, value=requests[field])

    def _gauges(self) -> Iterator[Metric]:
        status = self._status
        for name, text, field in (
            ("s3mount_dirty_files", "Files that the store does not have yet.", "dirty_files"),
            ("s3mount_dirty_bytes", "Bytes that the store does not have yet.", "dirty_bytes"),
            ("s3mount_dirty_age_seconds", "Since when the oldest waits.", "dirty_age"),
            ("s3mount_given_up_files", "Open files that the store refused.", "given_up_files"),
            ("s3mount_kept_files", "Files that only s3mount recover has.", "kept_files"),
            ("s3mount_memory_bytes", "Memory in buffers.", "memory_used"),
            ("s3mount_memory_limit_bytes", "The option memory.", "memory_limit"),
            ("s3mount_open_files", "Files that are open or unsaved.", "open_files"),
        ):
            yield GaugeMetricFamily(name, text, value=status[field])
        serving = status["state"] == "serving"
        yield GaugeMetricFamily("s3mount_serving", "1; 0 while it ends.", value=float(serving))
        if (moment := status["credentials"]["expires"]) is not None:
            name = "s3mount_credentials_expire_timestamp_seconds"
            yield GaugeMetricFamily(name, "When the credentials end.", value=moment)

    def _notify(self) -> Iterator[Metric]:
        notify = self._status["notify"]
        for name, text, field in (
            ("s3mount_notify_events", "Changes by others that were told.", "events"),
            ("s3mount_notify_own_events", "Those that were our own.", "own"),
            ("s3mount_notify_malformed", "What was told and made no sense.", "malformed"),
            ("s3mount_notify_gaps", "Times in which changes may have been missed.", "gaps"),
        ):
            yield CounterMetricFamily(name, text, value=notify[field])
        name, text = "s3mount_notify_listening", "1 while changes by others are told at once."
        yield GaugeMetricFamily(name, text, value=float(notify["state"] == "listening"))

    def _cache(self) -> Iterator[Metric]:
        cache = self._status["cache"]
        name, text = "s3mount_cache_fetched_bytes", "Bytes fetched from the store for readers."
        yield CounterMetricFamily(name, text, value=cache["fetched_bytes"])
        if "disk" in cache:
            name, text = "s3mount_disk_cache_hit_bytes", "Bytes read from the cache on disk."
            yield CounterMetricFamily(name, text, value=cache["disk"]["hit_bytes"])
            for name, text, field in (
                ("s3mount_disk_cache_bytes", "What the cache on disk holds.", "bytes"),
                ("s3mount_disk_cache_limit_bytes", "The option max-cache-size.", "limit"),
            ):
                yield GaugeMetricFamily(name, text, value=cache["disk"][field])
            name, text = "s3mount_disk_cache_damaged", "Blocks that failed their checksum."
            yield CounterMetricFamily(name, text, value=cache["disk"]["damaged"])


def _cumulated(operation: Operation) -> list[tuple[str, float]]:
    """The counts of all that took at most so long, for growing times."""
    at_once = operation.count - sum(operation.buckets)
    rows = [
        (f"{bucket_limit(index):.6g}", float(at_once + sum(operation.buckets[: index + 1])))
        for index in _LIMITS
    ]
    return [*rows, ("+Inf", float(operation.count))]
