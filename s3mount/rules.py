"""Rules by name and size: which value a file gets, the first rule that fits deciding.  Pure.

Written as ``[CONDITION:]VALUE;...``, where a condition is a glob of names (of whole paths, where
it has a slash in it) or ``>SIZE`` or ``<SIZE``.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

# Above this a file may be on its way to the store before its size is known: two of the
# smallest parts of an upload.
MAX_SIZE = 10 << 20
PARTS = math.inf  # The size of a file that is uploaded in parts, as far as rules are concerned.

_HEADER = re.compile(
    r"cache-control|content-(?:disposition|encoding|language|type)|expires"
    r"|x-amz-website-redirect-location|x-amz-meta-[a-z0-9._-]+"
)
# The attributes of files: a rule must not make up any.
_OURS = frozenset(
    f"x-amz-meta-{name}"
    for name in ("mode", "uid", "gid", "mtime", "ctime", "atime", "rdev", "xattr")
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: the files from *least* up to below *most* bytes whose name fits *pattern*."""

    value: str
    glob: str = "*"
    least: float = 0
    most: float = math.inf

    def fits(self, key: str, size: float) -> bool:
        """Whether the rule is for a file called *key*, its path in the mount, of *size* bytes."""
        if size < self.least or (size >= self.most and self.most != math.inf):
            return False
        if self.glob == "*":
            return True
        name = key if "/" in self.glob else key[key.rfind("/") + 1 :]
        return _compiled(self.glob)(name) is not None


@lru_cache(maxsize=1024)
def _compiled(glob: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(glob.lstrip("/"))).match


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in their order; without any there is no value."""

    rules: tuple[Rule, ...] = ()

    def value(self, key: str, size: float) -> str | None:
        """The value for a file called *key* of *size* bytes (`PARTS` if it comes in parts)."""
        for rule in self.rules:
            if rule.fits(key, size):
                return rule.value
        return None


def parse_rules(
    text: str,
    check: Callable[[str], str],
    parse_size: Callable[[str], int] | None = None,
) -> Rules:
    """Read rules; *check* reads a value, *parse_size* a size, where rules may be about sizes.

    Raises `ValueError`.
    """
    rules = [_parse_rule(item, check, parse_size) for item in text.split(";") if item.strip()]
    if not rules:
        raise ValueError(text)
    return Rules(tuple(rules))


def _parse_rule(
    text: str, check: Callable[[str], str], parse_size: Callable[[str], int] | None
) -> Rule:
    condition, colon, value = text.rpartition(":")
    condition = condition.strip()
    if not colon:
        return Rule(check(value.strip()))
    if condition[:1] not in ("<", ">"):
        if not condition:
            raise ValueError(text)
        return Rule(check(value.strip()), condition)
    size = parse_size(condition[1:]) if parse_size is not None else MAX_SIZE + 1
    if size > MAX_SIZE:
        raise ValueError(text)
    if condition[0] == "<":
        return Rule(check(value.strip()), most=size)
    return Rule(check(value.strip()), least=size + 1)


@dataclass(frozen=True, slots=True)
class HeaderRules:
    """What new objects say about themselves, by name: rules for each header."""

    rules: Mapping[str, Rules]

    def headers(self, key: str) -> dict[str, str]:
        """The headers for a file called *key*."""
        found = {name: rules.value(key, 0) for name, rules in self.rules.items()}
        return {name: value for name, value in found.items() if value is not None}


NO_HEADERS = HeaderRules({})


def header_rules(cache_control: Rules, lines: Iterable[str]) -> HeaderRules:
    """The rules of a file, with those for Cache-Control before them.

    A line is ``GLOB NAME: VALUE``; empty lines and those that begin with ``#`` say nothing.
    Raises `ValueError`, whose text says which line it is.
    """
    found: dict[str, list[Rule]] = {}
    if cache_control.rules:
        found["cache-control"] = list(cache_control.rules)
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, rule = _parse_line(number, line)
        found.setdefault(name, []).append(rule)
    return HeaderRules({name: Rules(tuple(rules)) for name, rules in found.items()})


def _parse_line(number: int, line: str) -> tuple[str, Rule]:
    glob, _, rest = line.strip().partition(" ")
    name, colon, value = rest.strip().partition(":")
    name, value = name.strip().lower(), value.strip()
    if not colon or not value or not value.isprintable():
        raise ValueError(f"line {number}: not GLOB NAME: VALUE")
    if not _HEADER.fullmatch(name) or name in _OURS:
        raise ValueError(f"line {number}: {name} is no header that a file may be given")
    return name, Rule(value, glob)
