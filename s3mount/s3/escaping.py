"""Keys that a store refuses, or keeps under another name, written so that it keeps them.

A segment of a key (what lies between slashes) that has something refused in it becomes
``%s3esc:`` and the percent-encoded segment.  So does a segment that looks like that already:
what is read is always what was written.  Only the requests know; everybody else sees plain keys.

A store that keeps ``d/`` as a file has no place for what is below it: there the marker of a
directory is ``d/%s3esc:``, whose last segment is an empty one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

PREFIX = "%s3esc:"
_SAFE = " !#$&'()*+,:;<=>?@[]^`{|}~"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Where a segment is in its key: before another one, the last of several, the only one.
INSIDE, LAST, ALONE = "inside", "last", "alone"

# The forms of names that stores are known to refuse: for each, a key to try it with, and
# whether a segment that is at some place has this form.
EMPTY, DOT, DOTS, BACKSLASH, UMLAUT = "//", ".", "..", "\\", "umlauts"
NEWLINE, RETURN, TAB, CONTROL = "a newline", "a return", "a tab", "control characters"
MARKER = "a slash at the end"
SAMPLES: Mapping[str, str] = {
    EMPTY: "a//b",
    DOT: "a/./c",
    DOTS: "a/../d",
    NEWLINE: "e\nf",
    RETURN: "i\rj",
    TAB: "k\tl",
    CONTROL: "m\x01n",
    BACKSLASH: "g\\h",
    UMLAUT: "\u00fc",
    MARKER: "o/",
}
_HAS_FORM: Mapping[str, Callable[[str, str], bool]] = {
    EMPTY: lambda segment, place: place == INSIDE and not segment,
    DOT: lambda segment, _: segment == ".",
    DOTS: lambda segment, _: segment == "..",
    NEWLINE: lambda segment, _: "\n" in segment,
    RETURN: lambda segment, _: "\r" in segment,
    TAB: lambda segment, _: "\t" in segment,
    CONTROL: lambda segment, _: _CONTROL.search(segment) is not None,
    BACKSLASH: lambda segment, _: "\\" in segment,
    UMLAUT: lambda segment, _: not segment.isascii(),
    MARKER: lambda segment, place: place == LAST and not segment,
}
_SUSPECT = re.compile(r"^/|//|/$|(^|/)\.\.?(/|$)|[\x00-\x1f\x7f\\]|[^\x00-\x7f]|%s3esc:")


class KeyEscaping:
    """The keys of a store that refuses the *forms* of names (of `SAMPLES`)."""

    def __init__(self, forms: Iterable[str]) -> None:
        self._refused = [_HAS_FORM[form] for form in forms if form in _HAS_FORM]

    def to_store(self, key: str) -> str:
        """The key under which the store keeps *key*."""
        if not self._refused or _SUSPECT.search(key) is None:
            return key
        return "/".join(self._escaped(segment, place) for segment, place in _places(key))

    def beginning(self, key: str) -> str:
        """What the store's keys begin with for those that begin with *key*."""
        if not self._refused:
            return key
        *inside, last = key.split("/")
        escaped = [self._escaped(segment, INSIDE) for segment in inside]
        return "/".join([*escaped, self._escaped(last, ALONE)])

    def from_store(self, key: str) -> str:
        """The key that the store keeps under *key*."""
        if PREFIX not in key or not self._refused:
            return key
        return "/".join(self._plain(segment, place) for segment, place in _places(key))

    def _escaped(self, segment: str, place: str) -> str:
        if self._is_refused(segment, place) or self._plain(segment, place) != segment:
            return PREFIX + _quote(segment)
        return segment

    def _plain(self, segment: str, place: str) -> str:
        """What *segment* stands for, when it is just what `to_store` makes of that."""
        if not segment.startswith(PREFIX):
            return segment
        try:
            plain = unquote_to_bytes(segment[len(PREFIX) :]).decode()
        except UnicodeDecodeError:
            return segment
        if PREFIX + _quote(plain) != segment:
            return segment
        needed = self._is_refused(plain, place) or self._plain(plain, place) != plain
        return plain if needed else segment

    def _is_refused(self, segment: str, place: str) -> bool:
        return any(has_form(segment, place) for has_form in self._refused)


def _places(key: str) -> Iterator[tuple[str, str]]:
    """The segments of a key, and where each one is."""
    *inside, last = key.split("/")
    for segment in inside:
        yield segment, INSIDE
    yield last, LAST if inside else ALONE


def _quote(segment: str) -> str:
    if segment in (".", ".."):
        return "%2E" * len(segment)
    return quote(segment, safe=_SAFE, errors="surrogateescape")


@lru_cache(maxsize=16)
def escaping_of(forms: tuple[str, ...]) -> KeyEscaping:
    """The escaping for a store that refuses *forms*."""
    return KeyEscaping(forms)
