"""The arguments of ``s3mount BUCKET MOUNTPOINT``, and their help, made from the option table."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from s3mount import __version__, peers
from s3mount.config import OPTIONS, Config
from s3mount.declaring import SECTIONS, Option
from s3mount.options import (
    FLAG_WORDS,
    POSITIONAL,
    Choices,
    Item,
    OptionError,
    mount_options,
    normal_name,
)

USAGE = """\
s3mount BUCKET[/PREFIX] MOUNTPOINT [options]
       s3mount umount MOUNTPOINT
       s3mount status [--watch] [MOUNTPOINT...]
       s3mount sync [PATH]
       s3mount recover [BUCKET]
       s3mount doctor [BUCKET [options]]
       s3mount info PATH...
       s3mount warmup PATH...
       s3mount cache [BUCKET|MOUNTPOINT...] [--clear]
       s3mount trace [MOUNTPOINT]
       s3mount url PATH
       s3mount versions PATH...
       s3mount undelete [-r] PATH...
       s3mount install-helpers | remove-helpers
       s3mount completion bash|zsh
       s3mount demo
       s3mount help [COMMAND]"""

DESCRIPTION = """\
Mounts an S3 bucket as a directory.  The command returns when the mount answers;
`s3mount umount MOUNTPOINT` returns when everything is uploaded."""

EPILOG = """\
Values:
  SIZE    bytes, or with K, M, G, T (powers of 1024): 512M, 1.5GiB
  TIME    seconds, or with ms, s, m, h, d: 30s, 5m
  Each option can also be given with -o (allow-other,uid=1000; a comma in a
  value is written "a,b" or a\\,b) and in a file of --config.  A bare flag is
  turned off again with -o NAME=false.

Credentials are found as the AWS tools find them: environment, ~/.aws, SSO,
web identity, instance metadata; or in a file that credentials-file or
passwd-file names.  They are never given on the command line.  For mounts of
fstab and systemd, -o env.NAME=VALUE sets a variable that is not secret.

Exit codes, as those of mount(8):
  0  mounted (or unmounted)       4  a bug in s3mount
  1  wrong usage or no permission 8  interrupted
  2  the system failed           16  mounted, but fstab could not be written
                                 32  the mount (or the unmount) failed

Examples:
  s3mount my-bucket /mnt/data
  s3mount my-bucket/photos ~/photos --profile work --ro
  s3mount s3://my-bucket /mnt/data --endpoint-url https://minio.example.com:9000
  s3mount my-bucket /mnt/data -o allow_other,uid=www-data,umask=027
  s3mount noaa-goes16 /mnt/weather --no-sign-request --region us-east-1
  s3mount --config /etc/s3mount/data.toml --foreground
"""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a command line asks for: `items` are the options as they were given."""

    config: Config
    warnings: Sequence[str]
    items: Sequence[Item]


def parse_arguments(arguments: Sequence[str]) -> tuple[Config, Sequence[str]]:
    """Return what the command line asks for, and what there is to warn about.

    Raises `OptionError` for what cannot be understood, and `SystemExit` after ``--help``.
    """
    parsed = parse_all(arguments)
    return parsed.config, parsed.warnings


def parse_all(arguments: Sequence[str]) -> Parsed:
    """As `parse_arguments`, with the options that were given."""
    found = argparse.Namespace(items=[])
    # Intermixed, because mount(8) puts options behind the arguments, and people anywhere.
    parsed, unknown = mount_parser().parse_known_intermixed_args(_spelled(arguments), found)
    if unknown:
        Choices().choose(unknown[0].partition("=")[0].lstrip("-"), "")
        raise OptionError(f"{unknown[0]} is not an option of the command line")
    if len(parsed.positional) > len(POSITIONAL):
        raise OptionError(f"one argument too many: {parsed.positional[len(POSITIONAL)]}")
    choices = Choices()
    choices.choose_all([*zip(POSITIONAL, parsed.positional, strict=False), *parsed.items])
    config = choices.config()
    return Parsed(config, choices.warnings, parsed.items)


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as an `OptionError`, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        if "ignored explicit argument" in message:
            name = message.partition(":")[0].removeprefix("argument ").split("/--")[-1].lstrip("-")
            message = f"--{name} takes no value; -o {name}=false turns it off"
        raise OptionError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def number(low: float, high: float, kind: Callable[[str], float] = float) -> Callable[[str], Any]:
    """Return the reader of an argument that is a number from *low* to *high*."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")

    return read


class _Collect(argparse.Action):
    """Appends an option to the list of items, so that the last one wins wherever it stands."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        name = (option_string or "").lstrip("-")
        if self.dest == "mount_options":
            namespace.items += mount_options(str(values))
        else:
            namespace.items.append((self.const or name, None if self.nargs == 0 else values))


def mount_parser() -> argparse.ArgumentParser:
    """Return the parser of the mount command."""
    parser = Parser(
        prog="s3mount",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("positional", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "-o",
        dest="mount_options",
        action=_Collect,
        metavar="NAME[=VALUE],...",
        help="options as in /etc/fstab, also those of mount(8), such as noatime or noexec",
    )
    parser.add_argument("-V", "--version", action="version", version=f"s3mount {__version__}")
    for section in SECTIONS:
        group = parser.add_argument_group(section)
        for option in OPTIONS:
            if option.section == section:
                _add(group, option)
    for word in FLAG_WORDS:
        if word.startswith("-"):
            continue  # _netdev is a word of fstab only
        parser.add_argument(f"--{word}", action=_Collect, nargs=0, help=argparse.SUPPRESS)
    for name in peers.TRANSLATED:
        parser.add_argument(f"--{name}", action=_Collect, help=argparse.SUPPRESS)
    return parser


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    """Add an option and its aliases; those are not shown, but in the manual."""
    letter = [f"-{option.letter}"] if option.letter else []
    text = option.manual if option.kind.metavar == "" else f"{option.manual} [{option.default}]"
    _add_spelling(group, option, [*letter, f"--{option.name}"], text.replace("%", "%%"))
    for alias in option.aliases:
        name, preset, _ = alias.partition("=")
        if preset:
            group.add_argument(f"--{name}", action=_Collect, nargs=0, help=argparse.SUPPRESS)
        else:
            _add_spelling(group, option, [f"--{name}"], argparse.SUPPRESS)


def _add_spelling(
    group: argparse._ArgumentGroup, option: Option, names: Sequence[str], text: str
) -> None:
    if option.kind.metavar:
        group.add_argument(
            *names, action=_Collect, const=option.name, metavar=option.kind.metavar, help=text
        )
    else:
        group.add_argument(*names, action=_Collect, const=option.name, nargs=0, help=text)


def _spelled(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the names of long options as the table has them.

    The argument of ``-o`` is joined to it, so that it may begin with a dash.
    """
    spelled: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if spelled[-1:] == ["-o"]:
            spelled[-1] += argument or ","
        elif name.startswith("--"):
            spelled.append("--" + normal_name(name) + equals + value)
        else:
            spelled.append(argument)
    return spelled
