"""What there is to tell of a running mount: plain values, for commands, pages and logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import trio

from s3mount.fs.filesystem import FileSystem
from s3mount.memory import MemoryBudget
from s3mount.metrics import Metrics
from s3mount.s3.client import S3Client

MOVING = 10.0  # Seconds in which bytes have to move, or nothing does.


def describe(
    client: S3Client, budget: MemoryBudget, filesystem: FileSystem, metrics: Metrics
) -> Mapping[str, object]:
    """The state of a mount, as JSON has it."""
    dirty = [file for file in filesystem.files.values() if file.dirty]
    return {
        "memory_used": budget.used,
        "memory_limit": budget.limit,
        "inodes": len(filesystem.inodes),
        "names": len(filesystem.cache),
        "open_files": len(filesystem.files),
        "dirty_files": len(dirty),
        "dirty_bytes": sum(file.unsaved_bytes for file in dirty),
        "requests": asdict(client.statistics),
        "operations": {
            name: {"count": o.count, "failed": o.failed, "seconds": round(o.seconds, 6)}
            for name, o in sorted(metrics.operations.items())
        },
    }


def describe_unsaved(filesystem: FileSystem) -> str:
    """Say how much is not in the store yet."""
    sizes = [file.unsaved_bytes for file in filesystem.files.values() if file.dirty]
    if not sizes:
        return "all is uploaded"
    return f"{len(sizes)} files, {sum(sizes) / (1 << 20):.1f} MiB to upload"


def is_moving(client: S3Client) -> bool:
    """Whether bytes have moved to or from the store just now."""
    return trio.current_time() - client.moved < MOVING
