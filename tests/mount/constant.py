"""Reads a file past the kernel's cache, or replaces pieces of it by equal ones and syncs.

A program of its own, so that several do it at the same time: whatever they do, the file holds
the same bytes as its model, and a reader that finds others says so and exits with 1.
"""

import argparse
import mmap
import os
import sys
import time
from pathlib import Path
from random import Random

PAGE = mmap.PAGESIZE
LARGEST = 1 << 20


def read(path: Path, model: bytes, seconds: float) -> None:
    """Compare random pieces until the time is over."""
    random = Random(os.getpid())
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, LARGEST)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = random.randrange(len(model) - LARGEST) // PAGE * PAGE
        count = os.preadv(descriptor, [buffer], start)
        if count != LARGEST or buffer[:] != model[start : start + LARGEST]:
            sys.exit(f"{path}: {count} bytes from {start} on are not what was written")
    os.close(descriptor)


def write(path: Path, model: bytes, seconds: float) -> None:
    """Replace random pieces, and sync, until the time is over."""
    random = Random(0)
    descriptor = os.open(path, os.O_RDWR)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            start = random.randrange(len(model))
            piece = model[start : start + random.choice((1, 5000, LARGEST))]
            os.pwrite(descriptor, piece, start)
        os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    """Read or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("role", choices=("read", "write"))
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    work = read if options.role == "read" else write
    work(options.path, options.model.read_bytes(), options.seconds)


if __name__ == "__main__":
    main()
