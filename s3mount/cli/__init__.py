"""The command line: one module a command."""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from s3mount import __version__
from s3mount.errors import MountError

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 1, 4, 8

# A bucket with one of these names is mounted as s3://NAME.
COMMANDS: Mapping[str, str] = {
    "demo": "s3mount.cli.demo",
    "recover": "s3mount.cli.recover",
    "sync": "s3mount.cli.sync",
    "umount": "s3mount.cli.umount",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; failures become one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except MountError as error:
        print(f"s3mount: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("s3mount: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough of it; nothing may be written there at exit.
        sys.stdout = None
        return EXIT_INTERRUPTED
    except Exception as error:
        return _report_bug(error, arguments)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if arguments in (["--version"], ["-V"]):
        print(f"s3mount {__version__}")
        return 0
    name = arguments[0] if arguments else ""
    command: Callable[[Sequence[str]], int]
    if name in COMMANDS:
        # Imported here, so that no command pays for the others' imports.
        command, arguments = import_module(COMMANDS[name]).main, arguments[1:]
    else:
        command = import_module("s3mount.cli.mount").main
    return command(arguments)


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
