"""Keys that a store refuses, or keeps under another name, written so that it keeps them.

A segment of a key (what lies between slashes) that has something refused in it becomes
``%s3esc:`` and the percent-encoded segment.  So does a segment that looks like that already:
what is read is always what was written.  Only the requests know; everybody else sees plain keys.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

PREFIX = "%s3esc:"
_SAFE = " !#$&'()*+,:;<=>?@[]^`{|}~"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# The forms of names that stores are known to refuse: for each, a key to try it with, and
# whether a segment, which stands before another one or not, has this form.
EMPTY, DOT, DOTS, BACKSLASH, UMLAUT = "//", ".", "..", "\\", "umlauts"
NEWLINE, RETURN, TAB, CONTROL = "a newline", "a return", "a tab", "control characters"
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
}
_HAS_FORM: Mapping[str, Callable[[str, bool], bool]] = {
    EMPTY: lambda segment, inside: inside and not segment,
    DOT: lambda segment, _: segment == ".",
    DOTS: lambda segment, _: segment == "..",
    NEWLINE: lambda segment, _: "\n" in segment,
    RETURN: lambda segment, _: "\r" in segment,
    TAB: lambda segment, _: "\t" in segment,
    CONTROL: lambda segment, _: _CONTROL.search(segment) is not None,
    BACKSLASH: lambda segment, _: "\\" in segment,
    UMLAUT: lambda segment, _: not segment.isascii(),
}
_SUSPECT = re.compile(r"^/|//|(^|/)\.\.?(/|$)|[\x00-\x1f\x7f\\]|[^\x00-\x7f]|%s3esc:")


class KeyEscaping:
    """The keys of a store that refuses the *forms* of names (of `SAMPLES`)."""

    def __init__(self, forms: Iterable[str]) -> None:
        self._refused = [_HAS_FORM[form] for form in forms if form in _HAS_FORM]

    def to_store(self, key: str) -> str:
        """The key under which the store keeps *key*, which may be just a beginning of one."""
        if not self._refused or _SUSPECT.search(key) is None:
            return key
        *inside, last = key.split("/")
        return "/".join([*(self._escaped(one, True) for one in inside), self._escaped(last, False)])

    def from_store(self, key: str) -> str:
        """The key that the store keeps under *key*."""
        if PREFIX not in key or not self._refused:
            return key
        *inside, last = key.split("/")
        return "/".join([*(self._plain(one, True) for one in inside), self._plain(last, False)])

    def _escaped(self, segment: str, inside: bool) -> str:
        if self._is_refused(segment, inside) or self._plain(segment, inside) != segment:
            return PREFIX + _quote(segment)
        return segment

    def _plain(self, segment: str, inside: bool) -> str:
        """What *segment* stands for, when it is just what `to_store` makes of that."""
        if not segment.startswith(PREFIX):
            return segment
        try:
            plain = unquote_to_bytes(segment[len(PREFIX) :]).decode()
        except UnicodeDecodeError:
            return segment
        if PREFIX + _quote(plain) != segment:
            return segment
        needed = self._is_refused(plain, inside) or self._plain(plain, inside) != plain
        return plain if needed else segment

    def _is_refused(self, segment: str, inside: bool) -> bool:
        return any(has_form(segment, inside) for has_form in self._refused)


def _quote(segment: str) -> str:
    if segment in (".", ".."):
        return "%2E" * len(segment)
    return quote(segment, safe=_SAFE, errors="surrogateescape")


@lru_cache(maxsize=16)
def escaping_of(forms: tuple[str, ...]) -> KeyEscaping:
    """The escaping for a store that refuses *forms*."""
    return KeyEscaping(forms)
