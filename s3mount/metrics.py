"""Counts and times of what the mount does: plain numbers, read by whoever asks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Operation:
    """One kind of request of the kernel: how many, how many failed, seconds in all."""

    count: int = 0
    failed: int = 0
    seconds: float = 0.0


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
