"""Listings, page by page: the parameters of each call, and tokens that must advance."""

from s3mount.errors import InvalidRequest, Unavailable
from s3mount.s3 import xml
from s3mount.s3.objects import listed_info
from s3mount.s3.sigv4 import canonical_query
from s3mount.s3.store import ListPage


class Token:
    """Where a listing goes on: the store's token, the call it is for, the last page's first name.

    The name is there to notice a store that sends one page again and again.
    """

    __slots__ = ("first", "text", "version")

    def __init__(self, version: int, text: str, first: str) -> None:
        self.version = version
        self.text = text
        self.first = first

    @classmethod
    def parse(cls, token: str) -> "Token":
        """Read what `str` has written."""
        version, _, rest = token.partition(":")
        size, _, rest = rest.partition(":")
        if version not in ("1", "2") or not size.isdecimal():
            raise InvalidRequest(f"{token!r} is no token of a listing")
        return cls(int(version), rest[int(size) :], rest[: int(size)])

    def __str__(self) -> str:
        return f"{self.version}:{len(self.first)}:{self.first}{self.text}"


def query_of(
    prefix: str, token: Token | None, *, version: int, flat: bool, limit: int, metadata: bool
) -> str:
    """The query of the call that lists one page."""
    parameters = [("encoding-type", "url"), ("max-keys", str(limit)), ("prefix", prefix)]
    if not flat:
        parameters.append(("delimiter", "/"))
    if version == 2:
        parameters.append(("list-type", "2"))
        if metadata:
            parameters.append(("metadata", "true"))  # An extension of MinIO's.
    if token is not None:
        parameters.append(("continuation-token" if version == 2 else "marker", token.text))
    return canonical_query(parameters)


def page_of(found: xml.Listing, prefix: str, token: Token | None) -> ListPage:
    """Turn an answer about *prefix* into a page; refuse one that leads nowhere."""
    first = found.objects[0].key if found.objects else "".join(found.prefixes[:1])
    following = None
    if found.truncated:
        if not found.next_token:
            raise Unavailable(f"list {prefix}: the store does not say how to go on")
        repeated = token is not None and (
            token.text == found.next_token or (first and token.first == first)
        )
        if repeated:
            raise Unavailable(f"list {prefix}: the store repeats itself")
        following = str(Token(found.version, found.next_token, first))
    described = {
        listed.key: listed_info(listed, found.headers[listed.key])
        for listed in found.objects
        if listed.key in found.headers
    }
    return ListPage(found.objects, found.prefixes, following, described)
