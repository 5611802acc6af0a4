"""What ``s3mount info`` tells of a path, as lines of a title and a text."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s3mount.cli.statustext import printable
from s3mount.cli.umount import describe_size

Found = Mapping[str, Any]

SHOWN_RANGES = 8
SHOWN_VERSIONS = 10
TITLES = {
    "content_type": "content",
    "content_encoding": "encoding",
    "encryption": "encrypted",
    "restore": "restore",
    "version_id": "version",
}
NO_MOMENT = "at an unknown time"


def rows(found: Found) -> Iterator[tuple[str, str]]:
    """Yield the titles and texts of what is known of a path."""
    yield "object", printable(found["url"])
    yield "type", f"{found['type']}, mode {found['mode']:04o}, owner {found['uid']}:{found['gid']}"
    if found["type"] != "directory":
        yield "size", _size(found["size"])
    yield "changed", _moment(found["mtime"])
    if found["object"] is not None:
        yield from _object(found["object"], found)
    yield "state", _state(found)
    if "names" in found:
        yield "names", f"{found['names']:,} known" + (", all of them" if found["listed"] else "")
    if found["cached"] is not None:
        yield from _cached(found["cached"], found)
    if found["versions"] is not None:
        yield from _versions(found["versions"])


def _object(stored: Found, found: Found) -> Iterator[tuple[str, str]]:
    parts = f" ({stored['parts']:,} parts)" if stored["parts"] is not None else ""
    yield "etag", printable(stored["etag"]) + parts
    if stored["size"] != found["size"] and found["type"] != "directory":
        yield "stored", f"{_size(stored['size'])} by now"
    yield "stored at", _moment(stored["modified"])
    yield "class", printable(stored["storage_class"])
    for name, title in TITLES.items():
        if name in stored:
            yield title, printable(stored[name])
    title = "metadata"
    for name, value in sorted(stored["metadata"].items()):
        yield title, f"{printable(name)} = {printable(value)}"
        title = ""


def _state(found: Found) -> str:
    state = printable(found["state"])
    if unsaved := found.get("unsaved_files"):
        return f"{unsaved:,} unsaved files below, {describe_size(found['unsaved_bytes'])}"
    if found.get("unsaved_bytes"):
        state += f", {describe_size(found['unsaved_bytes'])} to upload"
        if found["sent_bytes"]:
            state += f", {describe_size(found['sent_bytes'])} of them sent"
    if found.get("in_journal"):
        state += ", in the journal"
    if found.get("given_up"):
        state += "; given up: s3mount recover has what was written"
    if found.get("open"):
        state += f"; open {found['open']}x"
    return state


def _cached(cached: Found, found: Found) -> Iterator[tuple[str, str]]:
    size = found["object"]["size"] if found["object"] is not None else found["size"]
    yield "in memory", _ranges(cached["memory"], size)
    if cached["disk"] is not None:
        yield "on disk", _ranges(cached["disk"], size)


def _ranges(cached: Found, size: int) -> str:
    if not cached["bytes"]:
        return "nothing"
    if cached["bytes"] >= size:
        return f"all of it, {describe_size(cached['bytes'])}"
    ranges = [f"{start}-{stop - 1}" for start, stop in cached["ranges"][:SHOWN_RANGES]]
    more = ", ..." if len(cached["ranges"]) > SHOWN_RANGES else ""
    share = cached["bytes"] / size
    return f"{describe_size(cached['bytes'])} ({share:.0%}): bytes {', '.join(ranges)}{more}"


def _versions(versions: Sequence[Found]) -> Iterator[tuple[str, str]]:
    title = "versions"
    for one in versions[:SHOWN_VERSIONS]:
        what = "deleted" if one["deleted"] else describe_size(one["size"])
        latest = " (latest)" if one["latest"] else ""
        yield title, f"{_moment(one['modified'])}  {printable(one['version_id'])}  {what}{latest}"
        title = ""
    if len(versions) > SHOWN_VERSIONS:
        yield "", f"and {len(versions) - SHOWN_VERSIONS} older ones"


def _size(size: int) -> str:
    plain = f"{size:,} bytes"
    return plain if size < 1024 else f"{describe_size(size)} ({plain})"


def _moment(seconds: float) -> str:
    if not seconds:
        return NO_MOMENT
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
