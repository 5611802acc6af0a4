"""How the text of an option becomes its value: sizes, times, modes, addresses of buckets.

A parser raises `ValueError` for what it does not understand; what was expected instead is said
by the `Kind`, so that the message, the help and the manual agree.
"""

import grp
import math
import os
import pwd
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from s3mount.machine import usable_memory

MAX_KEY_SIZE = 1024  # bytes, of S3
DEFAULT_MEMORY = 256 << 20
MIN_MEMORY = 32 << 20
MINIMAL_TTL = 0.1  # seconds: one system call of a program still sees one state

_BEGAN = time.time()
_beginning = ContextVar("_beginning", default=Path())  # of relative paths
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.ASCII)
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhd]?)", re.ASCII)
_LONG_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+", re.ASCII)
_WORDS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# AWS allows less (3 to 63, no capitals), but old buckets and other stores have such names.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", re.ASCII)
_ARN = re.compile(
    r"arn:[\w-]+:s3[\w-]*:[\w-]*:\d*:(?:outpost[:/][\w-]+[:/])?accesspoint[:/][\w.-]+", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of value: its name in the help, what is accepted, and how text becomes it.

    `bare` is what the option's name alone means, if anything.  `text_only` values may not be
    written as a bare number in TOML, where it would mean something else (``0o644`` and ``644``
    are both plain integers there).
    """

    metavar: str
    expected: str
    parse: Callable[[str], object]
    bare: str | None = None
    text_only: bool = False


class Source(NamedTuple):
    """What is mounted: a bucket (or an access point's ARN), and a prefix, empty or ending in /."""

    bucket: str
    prefix: str


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def parse_flag(text: str) -> bool:
    """Read a yes or no; the bare name of an option means yes."""
    word = text.strip().lower()
    if word not in _WORDS:
        raise ValueError(text)
    return _WORDS[word]


def parse_size(text: str) -> int:
    """Read a count of bytes, such as ``512M`` or ``1.5 GiB``: units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(text)
    number = float(match[1]) if "." in match[1] else int(match[1])
    return int(number * _UNITS[match[2]])


def parse_duration(text: str) -> float:
    """Read a time in seconds, such as ``90``, ``5m``, ``200ms`` or, as Go writes it, ``1h0m0s``."""
    word = text.strip().lower()
    if not (_DURATION.fullmatch(word) or _LONG_DURATION.fullmatch(word)):
        raise ValueError(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(word))


def parse_moment(text: str) -> int:
    """Read a moment, in nanoseconds since 1970: ISO 8601, how long ago, ``yesterday`` or ``@N``.

    Without a time zone it is this machine's.  A whole second means its end: what a listing shows
    as of that second has happened by then.
    """
    word = text.strip()
    if word.lower() == "yesterday":
        word = "1d"
    if word.startswith("@"):
        seconds = float(word[1:])
    elif re.match(r"\d{4}-?\d\d-?\d\d", word):
        seconds = datetime.fromisoformat(word).astimezone().timestamp()
    else:
        # Of the beginning of this process: options that are read again mean the same moment.
        seconds = _BEGAN - parse_duration(word.lower().removesuffix("ago"))
    if not 0 < seconds < 1 << 33:
        raise ValueError(text)
    moment_ns = round(seconds * 1_000_000) * 1000
    return moment_ns if moment_ns % 1_000_000_000 else moment_ns + 999_999_999


def parse_ttl(text: str) -> float:
    """Read how long something may be out of date, in seconds; `math.inf` for ever."""
    words = {"minimal": MINIMAL_TTL, "indefinite": math.inf}
    word = text.strip().lower()
    return words[word] if word in words else parse_duration(text)


def parse_memory(text: str) -> int:
    """Read a budget in bytes: a size, a share of the usable memory, or ``auto``."""
    word = text.strip().lower()
    if word == "auto":
        return max(MIN_MEMORY, min(DEFAULT_MEMORY, usable_memory() // 8))
    if word.endswith("%"):
        share = float(word[:-1])
        if not 0 < share <= 100:
            raise ValueError(text)
        return max(MIN_MEMORY, int(usable_memory() * share / 100))
    size = parse_size(word)
    if size < MIN_MEMORY:
        raise ValueError(text)
    return size


def parse_mode(text: str) -> int:
    """Read permission bits in octal."""
    if not re.fullmatch(r"(0o)?[0-7]{1,5}", text.strip()):
        raise ValueError(text)
    mode = int(text, 8)
    if mode > 0o7777:
        raise ValueError(text)
    return mode


def parse_user(text: str) -> int:
    """Read a user: a number, or a name that this machine knows."""
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        return _parse_id(text)


def parse_group(text: str) -> int:
    """Read a group: a number, or a name that this machine knows."""
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        return _parse_id(text)


def _parse_id(text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or int(text) >= (1 << 32) - 1:
        raise ValueError(text)  # -1, the last one, means "nobody in particular" to chown(2)
    return int(text)


def parse_path(text: str) -> Path:
    """Read the path of a local file; it is made absolute, because a daemon lives in ``/``."""
    if not text or "\0" in text:
        raise ValueError(text)
    return _absolute(Path(text))


def parse_text(text: str) -> str:
    """Read a word."""
    if not text.strip() or not text.isprintable():
        raise ValueError(text)
    return text.strip()


def parse_url(text: str) -> str:
    """Read the address of a store: scheme, host and port; a path is kept, a last slash is not."""
    parts = urlsplit(text.strip())
    host, _ = parts.hostname, parts.port  # a port that is no number raises ValueError here
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(text)
    if parts.username is not None or parts.password is not None:
        raise ValueError("***")  # a password in an address would be seen by `ps`
    return text.strip().rstrip("/")


def parse_address(text: str) -> Address:
    """Read where to listen: ``HOST:PORT``, or only the port, on this machine's own address."""
    host, _, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(text)
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(text)
    return Address(host or "127.0.0.1", int(port))


def parse_addressing(text: str) -> bool | None:
    """Read whether addresses are path-style; None leaves it to the endpoint."""
    return None if text.strip().lower() == "auto" else parse_flag(text)


def parse_source(text: str) -> Source:
    """Read ``BUCKET[/PREFIX]``, ``BUCKET:PREFIX`` or ``s3://BUCKET/PREFIX``."""
    text = text.removeprefix("s3://")
    match = _ARN.match(text) or _BUCKET.match(text)
    rest = text[match.end() :] if match else ""
    if match is None or rest[:1] not in ("", "/", ":") or ".." in match[0]:
        raise ValueError(text)
    return Source(match[0], parse_prefix(rest[1:]))


def parse_prefix(text: str) -> str:
    """Read a prefix of keys: no slash in front, one at the end, or nothing at all."""
    prefix = text.removeprefix("/")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    if len(os.fsencode(prefix)) >= MAX_KEY_SIZE or "\0" in prefix:
        raise ValueError(text)
    return prefix


def parse_mountpoint(text: str) -> Path:
    """Read the directory to mount on; its links are followed, so that it has one name."""
    if not text or "\0" in text:
        raise ValueError(text)
    return canonical(text)


def canonical(path: str | Path, depth: int = 40) -> Path:
    """Return the real path of a mount point, without asking what is mounted there anything.

    `os.path.realpath` would call lstat(2) on the mount, which hangs when its daemon does;
    readlink(2) is answered by the kernel.
    """
    path = _absolute(Path(path))
    real = path.parent.resolve() / path.name
    try:
        target = real.readlink()
    except OSError:
        return real
    return canonical(real.parent / target, depth - 1) if depth else real


@contextmanager
def relative_to(directory: Path) -> Iterator[None]:
    """Within this, relative paths begin at *directory*, not where the process is by then."""
    before = _beginning.set(directory)
    try:
        yield
    finally:
        _beginning.reset(before)


def _absolute(path: Path) -> Path:
    """Return the path from ``/``, without asking the file system."""
    try:
        return Path(os.path.normpath(Path(_beginning.get(), path.expanduser()).absolute()))
    except RuntimeError as error:
        raise ValueError(str(path)) from error  # there is no such user


def between(
    parse: Callable[[str], float], least: float, most: float = math.inf
) -> Callable[[str], object]:
    """Return *parse* with limits."""

    def parse_between(text: str) -> float:
        value = parse(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    return parse_between


def choice(*words: str) -> Kind:
    """Return the kind that is one of *words*."""

    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError(text)
        return word

    return Kind("|".join(words), "one of " + ", ".join(words), parse)


def parse_notify(text: str) -> str:
    """Read who tells of changes: a word, or ``sqs:`` and the URL of a queue."""
    word, colon, url = text.strip().partition(":")
    word = word.lower()
    if word == "sqs" and colon:
        return f"sqs:{parse_url(url)}"
    if colon or word not in ("auto", "off", "listen"):
        raise ValueError(text)
    return word


FLAG = Kind("", "true or false", parse_flag, bare="true")
ON_OFF = Kind("on|off", "on or off", parse_flag, bare="on")
TEXT = Kind("NAME", "a name", parse_text)
URL = Kind("URL", "an address such as https://host:9000, without a password", parse_url)
ADDRESSING = Kind("auto|true|false", "auto, true or false", parse_addressing, bare="true")
NOTIFY = Kind("auto|off|listen|sqs:URL", "auto, off, listen, or sqs:URL", parse_notify)
ADDRESS = Kind("[HOST:]PORT", "a port such as 9180, or 127.0.0.1:9180", parse_address)
PATH = Kind("PATH", "a path", parse_path, text_only=True)
USER = Kind("USER", "a user's name or number", parse_user)
GROUP = Kind("GROUP", "a group's name or number", parse_group)
MODE = Kind("OCTAL", "octal permission bits such as 0644", parse_mode, text_only=True)
DURATION = Kind("TIME", "a time such as 30s, 5m or 1h", parse_duration)
MOMENT = Kind(
    "TIME",
    "a time such as 2026-03-29T18:30, 2026-03-29T16:30:00Z, 2h (ago) or yesterday",
    parse_moment,
    text_only=True,
)
TTL = Kind("TIME", "a time such as 30s or 5m, minimal, or indefinite", parse_ttl)
# With none at all not even the mount's own lookups would ever see what they have just asked for.
METADATA_TTL = replace(TTL, parse=lambda text: max(parse_ttl(text), MINIMAL_TTL))
SIZE = Kind("SIZE", "a size such as 512M or 10G", parse_size)
MEMORY = Kind("SIZE", "at least 32M: a size such as 512M, a share such as 25%, auto", parse_memory)
PREFIX = Kind("PREFIX", "the beginning of keys, under 1024 bytes", parse_prefix)
SOURCE = Kind("BUCKET[/PREFIX]", "BUCKET, BUCKET/PREFIX or s3://BUCKET/PREFIX", parse_source)
MOUNTPOINT = Kind("MOUNTPOINT", "a directory", parse_mountpoint, text_only=True)
