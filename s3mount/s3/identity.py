"""What tells one version of an object from another, where the store's ETags do not.

There an ETag is made of the store's own, of Last-Modified and of the size, all of which HEAD,
GET and LIST tell.  Two versions of one size within one second look the same; the client lets a
second pass between its own writes of one key.
"""

_MARK = "@"
_NANOSECONDS = 1_000_000_000


def identify(etag: str, modified_ns: int, size: int) -> str:
    """An ETag of our own for what a store describes so."""
    return f"{etag}{_MARK}{modified_ns // _NANOSECONDS}.{size}"


def stores_own(etag: str) -> str:
    """The part of an ETag of our own that the store knows."""
    return etag.rpartition(_MARK)[0]
