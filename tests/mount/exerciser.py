"""Random access to one file, in the manner of fsx: every read is compared with a model.

A program of its own, because a page of a mapping that cannot be read ends the process.  It
prints the digest of what the file has to hold at the end.
"""

import argparse
import hashlib
import mmap
import os
import sys
from collections import deque
from pathlib import Path
from random import Random
from typing import Self

MEMORY = 30  # Operations that a failure shows.


class Exerciser:
    """Reads, writes, maps and cuts one file of at most *largest* bytes; `expected` is the model."""

    def __init__(self, path: Path, largest: int, *, seed: int) -> None:
        self._path = path
        self._largest = largest
        self._random = Random(seed)
        self._noise = self._random.randbytes(2 << 20)
        self._done: deque[str] = deque(maxlen=MEMORY)
        self.expected = bytearray()
        names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
        self._moves = [getattr(self, f"_{name}") for name in names]

    def __enter__(self) -> Self:
        self._open(os.O_CREAT)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self, flags: int = 0) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | flags, 0o644)
        # One mapping for as long as the file is open: to close it would be a flush.
        os.ftruncate(self._descriptor, self._largest)
        self._mapping = mmap.mmap(self._descriptor, self._largest)
        os.ftruncate(self._descriptor, len(self.expected))

    def _close(self) -> None:
        self._mapping.close()
        os.close(self._descriptor)

    def step(self) -> None:
        """Do one random thing."""
        self._random.choice(self._moves)()

    @property
    def history(self) -> str:
        """What was done last."""
        return "\n".join(self._done)

    def _tell(self, text: str) -> None:
        self._done.append(text)

    def _check(self, found: bytes, start: int, stop: int) -> None:
        expected = bytes(self.expected[start:stop])
        if found == expected:
            return
        first = next(
            (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
            min(len(found), len(expected)),
        )
        lines = (
            f"{len(found)} bytes from {start} on, not the {len(expected)} expected",
            f"the first difference is at {start + first}: "
            f"{found[first : first + 8].hex()} is not {expected[first : first + 8].hex()}",
        )
        raise AssertionError("\n".join(lines))

    def _range(self, limit: int) -> tuple[int, int]:
        """A random range below *limit*; small ones are as likely as large ones."""
        start = self._random.randrange(limit)
        size = self._random.choice((1, 100, 4096, 65_536, 1 << 20))
        return start, min(limit, start + 1 + self._random.randrange(size))

    def _data(self, size: int) -> bytes:
        start = self._random.randrange(len(self._noise) - size)
        return self._noise[start : start + size]

    def _grow(self, size: int) -> None:
        self.expected.extend(bytes(max(0, size - len(self.expected))))

    # -- moves ---------------------------------------------------------------------------------

    def _read(self) -> None:
        start, stop = self._range(self._largest)
        self._tell(f"read {start}..{stop}")
        self._check(os.pread(self._descriptor, stop - start, start), start, stop)

    def _write(self) -> None:
        start, stop = self._range(self._largest)
        self._put(start, self._data(stop - start))

    def _append(self) -> None:
        start = len(self.expected)
        size = min(self._random.choice((1, 1000, 100_000)), self._largest - start)
        if size:
            self._put(start, self._data(size))

    def _put(self, start: int, data: bytes) -> None:
        self._tell(f"write {start}..{start + len(data)}")
        assert os.pwrite(self._descriptor, data, start) == len(data)
        self._grow(start + len(data))
        self.expected[start : start + len(data)] = data

    def _truncate(self) -> None:
        size = self._random.randrange(self._largest + 1)
        self._tell(f"truncate to {size}")
        os.ftruncate(self._descriptor, size)
        self._grow(size)
        del self.expected[size:]

    def _map_read(self) -> None:
        if self.expected:
            start, stop = self._range(len(self.expected))
            self._tell(f"read {start}..{stop} through the mapping")
            self._check(self._mapping[start:stop], start, stop)

    def _map_write(self) -> None:
        if self.expected:
            start, stop = self._range(len(self.expected))
            self._tell(f"write {start}..{stop} through the mapping")
            self._mapping[start:stop] = self.expected[start:stop] = self._data(stop - start)

    def _map_sync(self) -> None:
        self._tell("msync")
        self._mapping.flush()

    def _sync(self) -> None:
        self._tell("fsync")
        os.fsync(self._descriptor)

    def _reopen(self) -> None:
        self._tell("close and open")
        self._close()
        assert self._path.stat().st_size == len(self.expected)
        self._open()

    def _whole(self) -> None:
        self._tell("read everything")
        self._check(self._path.read_bytes(), 0, self._largest)


WEIGHTS = {
    "read": 60,
    "write": 50,
    "append": 20,
    "truncate": 8,
    "map_read": 40,
    "map_write": 30,
    "map_sync": 1,
    "sync": 1,
    "reopen": 1,
    "whole": 1,
}


def main() -> None:
    """Exercise a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("largest", type=int)
    parser.add_argument("operations", type=int)
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    with Exerciser(options.path, options.largest, seed=options.seed) as exerciser:
        try:
            for _ in range(options.operations):
                exerciser.step()
        except (AssertionError, OSError) as error:
            sys.exit(f"{exerciser.history}\n{error!r}")
    print(hashlib.sha256(exerciser.expected).hexdigest())


if __name__ == "__main__":
    main()
