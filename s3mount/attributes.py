"""File attributes in user metadata: written in s3fs' form, read in everybody's.

The format is described in docs/metadata.md.  Everything read here is untrusted: a value that
makes no sense is as good as absent.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

META = "x-amz-meta-"
SECOND = 1_000_000_000
MAX_ID = 0xFFFFFFFE  # (uid_t) -1 means "do not change" to chown(2).
MAX_TIME_NS = 1 << 63
MAX_TARGET = 4096  # PATH_MAX: the target of a symlink is shorter.
GEESEFS_TARGET, GCSFUSE_TARGET = "--symlink-target", "gcsfuse_symlink_target"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows of a file beside its size; times in nanoseconds since the epoch.

    `mode` holds the type bits too.  `atime_ns` is None where it was not kept.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    xattrs: str | None = None  # the URL-encoded JSON of s3fs, as it stands


@dataclass(frozen=True, slots=True)
class Defaults:
    """The attributes of objects that say nothing about themselves: the mount's options."""

    uid: int
    gid: int
    file_mode: int  # permission bits
    dir_mode: int

    def file(self, modified_ns: int) -> Attributes:
        """What a plain object looks like."""
        mode = stat.S_IFREG | self.file_mode
        return Attributes(mode, self.uid, self.gid, modified_ns, modified_ns)

    def directory(self, modified_ns: int) -> Attributes:
        """What a prefix or a bare marker looks like."""
        mode = stat.S_IFDIR | self.dir_mode
        return Attributes(mode, self.uid, self.gid, modified_ns, modified_ns)


def encode(attributes: Attributes) -> dict[str, str]:
    """The headers that store *attributes*: s3fs' names, decimal numbers, seconds with ns."""
    headers = {
        META + "mode": str(attributes.mode),
        META + "uid": str(attributes.uid),
        META + "gid": str(attributes.gid),
        META + "mtime": format_time(attributes.mtime_ns),
        META + "ctime": format_time(attributes.ctime_ns),
    }
    if stat.S_ISCHR(attributes.mode) or stat.S_ISBLK(attributes.mode):
        headers[META + "rdev"] = str(attributes.rdev)
    if attributes.xattrs:
        headers[META + "xattr"] = attributes.xattrs
    return headers


def decode(metadata: Mapping[str, str], bare: Attributes, size: int = 0) -> Attributes:
    """What *metadata* (lower-case names) says, on top of *bare*, the defaults.

    An object of *size* bytes that is too large for what it says it is (`may_be_special`) is a
    regular file.
    """
    mode = _mode(metadata, bare.mode)
    if not may_be_special(size, stat.S_IFMT(mode)):
        mode = stat.S_IFREG | stat.S_IMODE(mode)
    if stat.S_ISREG(mode) and not size and link_target(metadata) is not None:
        mode = stat.S_IFLNK | 0o777
    mtime_ns = _first_time(metadata, ("mtime", "file-mtime", "goog-reserved-file-mtime"))
    if mtime_ns is None:
        mtime_ns = bare.mtime_ns
    ctime_ns = _time(metadata.get("ctime"))
    return replace(
        bare,
        mode=mode,
        uid=_id(metadata, ("uid", "file-owner", "goog-reserved-posix-uid", "owner"), bare.uid),
        gid=_id(metadata, ("gid", "file-group", "goog-reserved-posix-gid", "group"), bare.gid),
        mtime_ns=mtime_ns,
        ctime_ns=mtime_ns if ctime_ns is None else ctime_ns,
        rdev=_number(metadata.get("rdev"), 10, 1 << 32) or 0,
        xattrs=metadata.get("xattr") or None,
    )


def may_be_special(size: int, kind: int = stat.S_IFLNK) -> bool:
    """Whether an object of *size* bytes can be something else than a regular file.

    So a listing alone tells that most objects are files; the rest needs its metadata.
    """
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        return True
    return size < MAX_TARGET if kind == stat.S_IFLNK else size == 0


def link_target(metadata: Mapping[str, str], prefix: str = "") -> bytes | None:
    """Where an empty object leads that keeps its target in its metadata, None if it does not.

    geesefs and gcsfuse make symlinks so; *prefix* is what the names begin with.
    """
    escaped, plain = metadata.get(prefix + GEESEFS_TARGET), metadata.get(prefix + GCSFUSE_TARGET)
    if escaped is not None:
        target = unquote_to_bytes(escaped)
    elif plain is not None:
        target = plain.encode("utf-8", "surrogateescape")
    else:
        return None
    return target if 0 < len(target) < MAX_TARGET and b"\0" not in target else None


def format_time(time_ns: int) -> str:
    """Seconds with nine digits after the point, as s3fs and rclone read them."""
    sign, time_ns = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    return f"{sign}{time_ns // SECOND}.{time_ns % SECOND:09d}"


def _number(text: str | None, base: int, limit: int) -> int | None:
    if text is None or len(text) > 32 or not text.isascii() or not text.isdigit():
        return None
    try:
        value = int(text, base)
    except ValueError:
        return None
    return value if value <= limit else None


def _id(metadata: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = _number(metadata.get(name), 10, MAX_ID)
        if value is not None:
            return value
    return default


MODE_NAMES = ("mode", "file-permissions", "goog-reserved-posix-mode", "permissions")


def _mode(metadata: Mapping[str, str], default: int) -> int:
    for name in MODE_NAMES:
        text = metadata.get(name)
        if text is None:
            continue
        mode = _parse_mode(text, always_octal=name != "mode")
        if mode is not None:
            kind = stat.S_IFMT(mode) or stat.S_IFMT(default)
            if _compatible(kind, stat.S_IFMT(default)):
                return kind | stat.S_IMODE(mode)
    return default


def _compatible(kind: int, listed: int) -> bool:
    """A marker ``d/`` is a directory and an object is none, whatever the metadata say."""
    if listed == stat.S_IFDIR:
        return kind == stat.S_IFDIR
    return kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
                    stat.S_IFBLK)  # fmt: skip


def _parse_mode(text: str, *, always_octal: bool) -> int | None:
    """s3fs writes decimal, the others octal, and nobody says which."""
    octal = _number(text, 8, 0o177777)
    decimal = _number(text, 10, 0o177777)
    if always_octal or text.startswith("0") or decimal is None:
        return octal
    if octal is not None and _is_type(octal) and not _is_type(decimal):
        return octal
    return decimal


def _is_type(mode: int) -> bool:
    return stat.S_IFMT(mode) in (0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000,
                                 0o140000)  # fmt: skip


def _first_time(metadata: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        if (value := _time(metadata.get(name), plain_is_ms=name == "file-mtime")) is not None:
            return value
    return None


def _time(text: str | None, *, plain_is_ms: bool = False) -> int | None:
    """Nanoseconds from ``sec``, ``sec.fraction`` (s3fs, rclone) or ``NNNns`` (FSx)."""
    if text is None or len(text) > 40 or not text.isascii():
        return None
    if text.endswith("ns"):
        value = _number(text[:-2], 10, MAX_TIME_NS)
    elif plain_is_ms:
        value = _number(text, 10, MAX_TIME_NS // 1_000_000)
        value = None if value is None else value * 1_000_000
    else:
        value = _seconds(text)
    return value if value is not None and abs(value) < MAX_TIME_NS else None


def _seconds(text: str) -> int | None:
    negative = text.startswith("-")
    whole, _, fraction = text.removeprefix("-").partition(".")
    seconds = _number(whole, 10, MAX_TIME_NS // SECOND)
    part = _number((fraction + "000000000")[:9], 10, SECOND)
    if seconds is None or part is None:
        return None
    value = seconds * SECOND + part
    return -value if negative else value
