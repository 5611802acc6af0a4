"""The state of a mount in words: lines of a title and a text, for terminals and pipes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s3mount.cli.umount import describe_size

Status = Mapping[str, Any]

SHOWN_FILES = 5
SHOWN_ERRORS = 3
SHOWN_OPERATIONS = 6


def describe_all(found: Sequence[Status], now: float) -> str:
    """Describe all mounts; *now* is in seconds since 1970."""
    return "\n\n".join(describe(status, now) for status in found) or "nothing is mounted"


def describe(status: Status, now: float) -> str:
    """Describe one mount, in lines."""
    lines = [headline(status, now)]
    lines += [f"  {title:<12}{text}" for title, text in rows(status, now)]
    return "\n".join(lines)


def headline(status: Status, now: float) -> str:
    """The first line: what is mounted where, and how it is."""
    state = status["state"]
    if "began" in status:
        state += f" for {describe_time(now - status['began'])}"
    if status.get("read_only"):
        state += ", read-only"
    return f"{status['source']} at {status['mountpoint']}: {printable(state)}"


def rows(status: Status, now: float) -> Iterator[tuple[str, str]]:
    """The titles and texts of everything that is known."""
    if status["state"] == "no daemon":
        yield "help", f"its daemon has died: s3mount umount {status['mountpoint']}"
    if "error" in status:
        yield "error", printable(status["error"])
    if "rates" not in status:
        return
    yield "store", _store(status, now)
    yield "traffic", _traffic(status["rates"])
    yield from _operations(status["operations"])
    yield "requests", _requests(status["requests"])
    yield "cache", _cache(status)
    yield "notify", _notify(status["notify"], now)
    yield from _unsaved(status)
    yield from _given_up(status)
    yield from _kept(status)
    for note in status["notes"]:
        yield "note", printable(note)
    for error in status["errors"][-SHOWN_ERRORS:]:
        moment = time.strftime("%H:%M:%S", time.localtime(error["time"]))
        yield error["level"], f"{moment} {printable(error['message'])}"


def printable(text: str) -> str:
    """No name that somebody gave to a file plays tricks with the terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def describe_time(seconds: float) -> str:
    """Return a time with a unit, such as ``3 h``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"  # never "-0 s"


def describe_duration(seconds: float) -> str:
    """Return how long a request took, such as ``0.25 ms``."""
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def _store(status: Status, now: float) -> str:
    credentials = status["credentials"]
    text = f"{status['endpoint']} ({status['region']}), credentials: {credentials['source']}"
    if credentials["expires"] is not None:
        left = credentials["expires"] - now
        text += f", good for {describe_time(left)}" if left > 0 else ", expired"
    return text


def _traffic(rates: Status) -> str:
    return (
        f"{describe_size(rates['received'])}/s in, {describe_size(rates['sent'])}/s out, "
        f"{rates['operations']:.0f} operations/s, {rates['requests']:.0f} requests/s"
    )


def _operations(operations: Mapping[str, Status]) -> Iterator[tuple[str, str]]:
    """The operations that took most of the time, one a line."""
    title = "operations"
    ranked = sorted(operations.items(), key=lambda item: -item[1]["seconds"])
    for name, one in ranked[:SHOWN_OPERATIONS]:
        failed = f", {one['failed']} failed" if one["failed"] else ""
        yield (
            title,
            (
                f"{name:<10}{one['count']:>10,}  p50 {describe_duration(one['p50'])}, "
                f"p99 {describe_duration(one['p99'])}{failed}"
            ),
        )
        title = ""


def _requests(requests: Status) -> str:
    kinds = sorted(requests["requests"].items(), key=lambda item: -item[1])
    counted = ", ".join(f"{kind} {count:,}" for kind, count in kinds) or "none"
    again = ", ".join(f"{kind} {count:,}" for kind, count in requests["retried"].items())
    retried = f"; tried again: {again}" if again else ""
    return f"{counted}{retried}; ${requests['dollars']:.4f} on AWS"


def _cache(status: Status) -> str:
    cache = status["cache"]
    rate = cache["hit_rate"]
    parts = [] if rate is None else [f"{rate:.0%} of what was read"]
    parts.append(
        f"{describe_size(cache['memory_bytes'])} in memory "
        f"(all buffers {describe_size(status['memory_used'])} "
        f"of {describe_size(status['memory_limit'])})"
    )
    if "disk" in cache:
        disk = cache["disk"]
        parts.append(
            f"{describe_size(disk['bytes'])} of {describe_size(disk['limit'])} "
            f"in {printable(disk['path'])} ({describe_size(disk['hit_bytes'])} read from there)"
        )
    return ", ".join(parts)


def _notify(notify: Status, now: float) -> str:
    """Whether changes by others are heard of, and how it went."""
    if notify["state"] == "off":
        why = f": {printable(notify['error'])}" if notify["error"] else ""
        return f"off{why}"
    age = describe_time(now - notify["since"])
    text = f"{notify['source']}, {notify['state']} for {age}, {notify['events']:,} events"
    if notify["malformed"]:
        text += f", {notify['malformed']:,} made no sense"
    if notify["last_gap"] is not None:
        ago = describe_time(now - notify["last_gap"])
        text += f"; gaps: {notify['gaps']:,}, the last one {ago} ago"
    return text + (f": {printable(notify['error'])}" if notify["error"] else "")


def _given_up(status: Status) -> Iterator[tuple[str, str]]:
    """Files that are open and that the store has refused for good."""
    count = status.get("given_up_files", 0)
    if count:
        files = "1 open file" if count == 1 else f"{count:,} open files"
        yield "given up", f"{files}; s3mount recover has what was written"
    for file in status.get("given_up", ())[:SHOWN_FILES]:
        yield "", f"{printable(file['key'])}: {printable(file['error'])}"


def _kept(status: Status) -> Iterator[tuple[str, str]]:
    """Files that only a person can decide about."""
    count = status.get("kept_files", 0)
    if count:
        files = "1 file" if count == 1 else f"{count:,} files"
        yield "kept", f"{files} that could not be uploaded; see s3mount recover"
    for file in status.get("kept", ())[:SHOWN_FILES]:
        size, reason = describe_size(file["size"]), printable(file["reason"])
        yield "", f"{printable(file['key'])}  {size}: {reason}"


def _unsaved(status: Status) -> Iterator[tuple[str, str]]:
    count = status["dirty_files"]
    if not count:
        kept = status.get("kept_files", 0)
        yield "unsaved", "nothing waits" if kept else "nothing: all is uploaded"
        return
    files = "1 file" if count == 1 else f"{count:,} files"
    size, age = describe_size(status["dirty_bytes"]), describe_time(status["dirty_age"])
    yield "unsaved", f"{files}, {size}, the oldest for {age}"
    for file in status["dirty"][:SHOWN_FILES]:
        done = file["sent"] / file["bytes"] if file["bytes"] else 0.0
        error = f": {printable(file['error'])}" if file["error"] else ""
        size, age = describe_size(file["bytes"]), describe_time(file["age"])
        yield "", f"{printable(file['key'])}  {size}  {done:.0%}  {age}{error}"
