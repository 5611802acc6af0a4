"""One line of ``/etc/fstab``: made from the options of a mount, and put in its place."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3mount.config import Config
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE
from s3mount.options import OPTION_OF_NAME, Item, OptionError, normal_name
from s3mount.values import PATH

# What every line has: wait for the network, and do not stop the boot when the store is away.
ALWAYS = ("_netdev", "nofail")
OURS = (FILE_SYSTEM_TYPE, "s3mount")
_NOT_FOR_A_LINE = {"update-fstab", "foreground", "debug", "sloppy", "start-timeout"}
# Options that take the place of what only this shell knows.
_FROM_ENVIRONMENT = {
    "AWS_PROFILE": "profile",
    "AWS_REGION": "region",
    "AWS_DEFAULT_REGION": "region",
    "AWS_ENDPOINT_URL_S3": "endpoint-url",
    "AWS_ENDPOINT_URL": "endpoint-url",
}


def fstab_path() -> Path:
    """Where the table is; libmount has the same variable for it."""
    return Path(os.environ.get("LIBMOUNT_FSTAB") or "/etc/fstab")


def line_of(config: Config, items: Sequence[Item], environment: Mapping[str, str]) -> str:
    """Return the line that mounts the same again; *items* are the options as they were given.

    Raises `OptionError` for what cannot be written there.
    """
    source = config.bucket + ("/" + config.prefix.rstrip("/") if config.prefix else "")
    chosen = [_word(config, name, text) for name, text in items if _belongs(name)]
    known = {word.partition("=")[0] for word in chosen}
    for variable, name in _FROM_ENVIRONMENT.items():
        if environment.get(variable) and name not in known and config.config is None:
            known.add(name)
            chosen.append(f"{name}={_protected(name, environment[variable])}")
    options = ",".join(dict.fromkeys([*ALWAYS, *chosen]))
    fields = (source, os.fspath(config.mountpoint), FILE_SYSTEM_TYPE, options)
    return "  ".join([*map(_escaped, fields), "0", "0"])


def lacks_credentials(config: Config, environment: Mapping[str, str]) -> bool:
    """Say whether the mount works only with the keys in this shell's environment."""
    chosen = (config.profile, config.credentials_file, config.passwd_file, config.config)
    return "AWS_ACCESS_KEY_ID" in environment and not any(chosen) and not config.no_sign_request


def put_line(line: str, mountpoint: Path, path: Path) -> None:
    """Write *line* into the table at *path*, in place of the one for *mountpoint*.

    All other lines stay as they are, and a crash leaves the old table or the new one.  Raises
    `MountError`.
    """
    try:
        old = path.read_text() if path.exists() else ""
        new = _replaced(old, line, mountpoint, path)
        if new != old:
            _write(path, new)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text"
        raise MountError(f"{path}: {reason}", 16) from error


def _belongs(name: str) -> bool:
    return normal_name(name) not in _NOT_FOR_A_LINE


def _word(config: Config, name: str, text: str | None) -> str:
    """One option as the line has it; a path from where the user happened to be is made whole."""
    if text is None:
        return name
    option, _ = OPTION_OF_NAME.get(normal_name(name), (None, None))
    if option is not None and option.kind is PATH:
        text = str(getattr(config, option.name.replace("-", "_")))
    return f"{name}={_protected(name, text)}"


def _protected(name: str, text: str) -> str:
    """A value with a comma is quoted, as mount(8) has it."""
    if '"' in text or "\\" in text:
        raise OptionError(f"option {name}: fstab has no place for quotes and backslashes")
    return f'"{text}"' if "," in text else text


def _escaped(text: str) -> str:
    """Write blanks and the like as fstab(5) wants them."""
    return re.sub(r"[\s\\#]", lambda match: f"\\{ord(match[0]):03o}", text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _replaced(old: str, line: str, mountpoint: Path, path: Path) -> str:
    lines = old.splitlines(keepends=True)
    for index, other in enumerate(lines):
        fields = other.split()
        if other.lstrip().startswith("#") or len(fields) < 3:
            continue
        if os.path.normpath(_unescaped(fields[1])) == os.fspath(mountpoint):
            if fields[2] not in OURS:
                raise MountError(
                    f"{path} mounts something of type {fields[2]} on {mountpoint}: "
                    "change that line yourself",
                    16,
                )
            lines[index] = line + "\n"
            return "".join(lines)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join([*lines, line + "\n"])


def _write(path: Path, text: str) -> None:
    real = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            if real.exists():
                status = real.stat()
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
            else:
                os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        temporary.replace(real)
    except BaseException:
        temporary.unlink()
        raise
