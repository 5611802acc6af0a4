"""The command line: one module a command.

A helper of mount(8) and umount(8) is a command of that name.
"""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from s3mount import __version__
from s3mount.errors import MountError

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 1, 4, 8

# A bucket with one of these names is mounted as s3://NAME.  MODULE or MODULE:FUNCTION.
COMMANDS: Mapping[str, str] = {
    "cache": "s3mount.cli.cache",
    "completion": "s3mount.cli.completion",
    "demo": "s3mount.cli.demo",
    "doctor": "s3mount.cli.doctor",
    "info": "s3mount.cli.info",
    "install-helpers": "s3mount.cli.helpers",
    "recover": "s3mount.cli.recover",
    "remove-helpers": "s3mount.cli.helpers:remove",
    "status": "s3mount.cli.status",
    "sync": "s3mount.cli.sync",
    "trace": "s3mount.cli.trace",
    "umount": "s3mount.cli.umount",
    "undelete": "s3mount.cli.undelete",
    "url": "s3mount.cli.url",
    "versions": "s3mount.cli.versions",
    "warmup": "s3mount.cli.warmup",
}
# What people type who come from other programs, and what they mean.
MISTAKEN: Mapping[str, str] = {
    "mount": "s3mount BUCKET MOUNTPOINT",
    "unmount": "s3mount umount MOUNTPOINT",
}
HELPERS: Mapping[str, str] = {
    "mount.s3mount": "s3mount.cli.mounthelper",
    "mount.fuse.s3mount": "s3mount.cli.mounthelper",
    "umount.s3mount": "s3mount.cli.umounthelper",
    "umount.fuse.s3mount": "s3mount.cli.umounthelper",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; failures become one line on standard error."""
    arguments = list(_command_line() if argv is None else argv)
    program = arguments[0] if arguments and arguments[0] in HELPERS else "s3mount"
    try:
        return _run(arguments)
    except MountError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough of it; nothing may be written there at exit.
        sys.stdout = None
        return EXIT_INTERRUPTED
    except Exception as error:
        return _report_bug(error, arguments)


def _command_line() -> list[str]:
    """The arguments; a helper may also be a link to us."""
    name = Path(sys.argv[0]).name
    return [name, *sys.argv[1:]] if name in HELPERS else sys.argv[1:]


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = _help_on(arguments[1:2])
    if arguments in (["--version"], ["-V"]):
        print(f"s3mount {__version__}")
        return 0
    name = arguments[0] if arguments else ""
    place = COMMANDS.get(name) or HELPERS.get(name)
    if place is not None:
        arguments = arguments[1:]
    else:
        _refuse_mistaken(name, alone=len(arguments) == 1)
    module, _, function = (place or "s3mount.cli.mount").partition(":")
    # Imported here, so that no command pays for the others' imports.
    command: Callable[[Sequence[str]], int] = getattr(import_module(module), function or "main")
    return command(arguments)


def _help_on(words: list[str]) -> list[str]:
    """The arguments that show the help of a command; without *words* that of mounting."""
    for word in words:
        if word not in {*COMMANDS, *HELPERS}:
            raise MountError(f"there is no command {word}{_nearest(word)}", EXIT_USAGE)
    return [*words, "--help"]


def _refuse_mistaken(name: str, *, alone: bool) -> None:
    """Refuse a word that was meant for a command; one that stands *alone* is no bucket."""
    if name in MISTAKEN:
        raise MountError(f"there is no command {name}: write {MISTAKEN[name]}", EXIT_USAGE)
    if alone and not name.startswith("-") and (hint := _nearest(name)):
        raise MountError(f"there is no command {name}{hint}", EXIT_USAGE)


def _nearest(name: str) -> str:
    # Imported here: it takes 5 ms, and only mistakes need it.
    matches = import_module("difflib").get_close_matches(name, COMMANDS, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _report_bug(error: Exception, arguments: Sequence[str]) -> int:
    if {"-d", "--debug"} & set(arguments):
        # Only then: a user can do nothing with a traceback.
        redact = import_module("s3mount.logs").redact
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    text = " ".join(str(error).split())
    print(
        f"s3mount: bug: {type(error).__name__}: {text} (run with --debug for details)",
        file=sys.stderr,
    )
    return EXIT_BUG
