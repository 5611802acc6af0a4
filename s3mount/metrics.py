"""Counts and times of what the mount does: plain numbers, read by whoever asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# Times are counted in half octaves: bucket n holds those of which the square, in us, has n bits.
BUCKETS = 96


def bucket_limit(index: int) -> float:
    """The longest time, in seconds, that bucket *index* holds."""
    return math.sqrt(2.0**index) / 1e6


@dataclass(slots=True)
class Operation:
    """One kind of request of the kernel: how many, how many failed, seconds and bytes in all.

    Each one that took time is counted in one of *buckets*; the rest was answered at once.
    """

    count: int = 0
    failed: int = 0
    seconds: float = 0.0
    bytes: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def took(self, seconds: float) -> None:
        """Count one that took so long."""
        self.count += 1
        self.seconds += seconds
        microseconds = seconds * 1e6
        self.buckets[int(microseconds * microseconds).bit_length()] += 1

    def percentile(self, share: float) -> float:
        """The time, in seconds, within which a *share* of them were answered, about."""
        return percentile(self.buckets, self.count, share)


def percentile(buckets: Sequence[int], count: int, share: float) -> float:
    """The time within which *share* of *count* were answered; those in no bucket took none."""
    wanted = share * count
    passed = count - sum(buckets)
    if not count or passed >= wanted:
        return 0.0
    for index, held in enumerate(buckets):
        if held and passed + held >= wanted:
            low = bucket_limit(index - 1) if index else 0.0
            return low + (bucket_limit(index) - low) * (wanted - passed) / held
        passed += held
    return bucket_limit(BUCKETS)


@dataclass(slots=True)
class Metrics:
    """Everything counted about one mount, by name of the operation."""

    operations: dict[str, Operation] = field(default_factory=dict)

    def operation(self, name: str) -> Operation:
        """The counter of one kind of request."""
        found = self.operations.get(name)
        if found is None:
            found = self.operations[name] = Operation()
        return found
