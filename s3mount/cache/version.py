"""The identity of content, by which caches know what they hold."""

from typing import NamedTuple


class ObjectVersion(NamedTuple):
    """The identity of some content: the same key and ETag mean the same bytes."""

    key: str
    etag: str
    size: int
