"""Checksums of S3, by a C library: 26 GB/s, on any buffer, without a copy."""

from collections.abc import Callable

from awscrt.checksums import crc32c, crc64nvme

Buffer = bytes | bytearray | memoryview
Checksum = Callable[[Buffer, int], int]

_FUNCTIONS: dict[str, Checksum] = {"crc64nvme": crc64nvme, "crc32c": crc32c}


def _none(data: Buffer, previous: int) -> int:
    """Where the store takes no checksum, none is computed."""
    return 0


def function(algorithm: str | None) -> Checksum:
    """The function that goes on with a checksum over more data."""
    return _none if algorithm is None else _FUNCTIONS[algorithm]
