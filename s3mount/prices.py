"""What requests cost on AWS: list prices of S3 Standard in us-east-1, without data transfer."""

from collections.abc import Mapping

WRITE = 5.0e-6  # US dollars for a PUT, COPY, POST or LIST
READ = 0.4e-6  # for a GET, HEAD and the rest
FREE = ("DeleteObject", "DeleteObjects", "AbortMultipartUpload")
READS = ("GetObject", "HeadObject", "HeadBucket")


def dollars(requests: Mapping[str, int]) -> float:
    """The price of *requests*, counted by kind."""
    return sum(count * price(kind) for kind, count in requests.items())


def price(kind: str) -> float:
    """The price of one request."""
    if kind in FREE:
        return 0.0
    return READ if kind in READS else WRITE
