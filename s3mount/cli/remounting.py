"""``mount -o remount``: changes how the kernel lets programs in; the rest is the daemon's."""

from collections.abc import Mapping, Sequence

from s3mount import controlclient
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, MS_FLAGS, Mount, change_flags, find_mount
from s3mount.options import FLAG_WORDS, Item, normal_name
from s3mount.values import canonical, parse_source

DAEMON_TIMEOUT = 5.0  # seconds for a daemon to say what it serves
_READ_ONLY: Mapping[str, bool] = {"ro": True, "read-only": True, "rw": False}


def remount(directory: str, source: str | None, items: Sequence[Item]) -> str:
    """Change the flags of a mount as *items* of ``mount -o`` say; return what holds now.

    A *source* has to be the one that is mounted there.  Raises `MountError`.
    """
    found = find_mount(canonical(directory))
    if found is None or found.type != FILE_SYSTEM_TYPE:
        raise MountError(f"{directory} is not a mount of s3mount")
    if source is not None:
        _check_source(source, found)
    flags = _changed_flags(set(found.flags), items)
    if "ro" in found.flags and "ro" not in flags:
        _refuse_to_write(found)
    try:
        change_flags(found, flags)
    except PermissionError as error:
        raise MountError(f"{found.mountpoint}: only root may change a mount", 1) from error
    except OSError as error:
        why = " (files are open for writing)" if "ro" in flags else ""
        raise MountError(f"{found.mountpoint}: {error.strerror}{why}") from error
    return ",".join(["ro" if "ro" in flags else "rw", *sorted(flags & {*MS_FLAGS} - {"ro"})])


def _check_source(source: str, found: Mount) -> None:
    """Refuse to change one mount when another one is meant."""
    try:
        same = source == found.source or parse_source(source) == parse_source(found.source)
    except ValueError:
        same = False
    if not same:
        raise MountError(f"{found.source}, not {source}, is mounted on {found.mountpoint}")


def _changed_flags(flags: set[str], items: Sequence[Item]) -> set[str]:
    for name, _ in items:
        word = normal_name(name)
        if word in _READ_ONLY:
            flags = flags | {"ro"} if _READ_ONLY[word] else flags - {"ro"}
        elif word in FLAG_WORDS:
            added, removed = FLAG_WORDS[word]
            flags = (flags - removed) | added
    return flags


def _refuse_to_write(found: Mount) -> None:
    """A daemon that was started to read has not found out how its store can be written to."""
    path = controlclient.find_socket(found.mountpoint, found.owner)
    try:
        if path is None:
            raise controlclient.NoDaemon("no daemon")
        with controlclient.Connection(path) as connection:
            answer = connection.ask("hello", timeout=DAEMON_TIMEOUT)
    except controlclient.ControlError as error:
        raise MountError(f"the daemon of {found.mountpoint} does not answer: {error}") from error
    if isinstance(answer, Mapping) and answer.get("read_only"):
        raise MountError(
            f"{found.mountpoint} was mounted read-only: unmount it, and mount it again"
        )
