"""What can be written on a command line, as plain values: for completion and the manual pages.

It is read out of the argument parsers of the commands, so that it cannot differ from them.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from s3mount.cli import COMMANDS, HELPERS
from s3mount.cli.arguments import mount_parser
from s3mount.config import OPTIONS
from s3mount.options import FLAG_WORDS

MOUNT = "mount"  # what is done where no command is named
WITH_MOUNT_OPTIONS = frozenset({"doctor"})
FSTAB_WORDS = ("_netdev", "nofail", "noauto", "x-systemd.automount")


@dataclass(frozen=True, slots=True)
class Switch:
    """An option: what it is called, what has to follow it (perhaps nothing), what it does."""

    names: tuple[str, ...]
    metavar: str
    help: str


@dataclass(frozen=True, slots=True)
class Operand:
    """An argument that is no option, by its place."""

    metavar: str
    help: str
    is_optional: bool
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `usage`, `description` and `epilog` are texts of its help."""

    name: str
    usage: str
    description: str
    epilog: str
    switches: tuple[Switch, ...]
    operands: tuple[Operand, ...]


def commands() -> tuple[Command, ...]:
    """All commands that users give, but mounting, in the order of their names."""
    return tuple(_command(name, _parser(place)) for name, place in sorted(COMMANDS.items()))


def mounting() -> Command:
    """What is done without a command."""
    return _command(MOUNT, mount_parser())


def helper(name: str) -> Command:
    """A helper of mount(8) or umount(8)."""
    return _command(name, _parser(HELPERS[name]))


def switches(command: Command) -> tuple[Switch, ...]:
    """The options of a command, with those of a mount where it takes them."""
    more = mounting().switches if command.name in WITH_MOUNT_OPTIONS else ()
    known = {name for switch in command.switches for name in switch.names}
    return (*command.switches, *(one for one in more if not known & set(one.names)))


def mount_words() -> Iterator[str]:
    """The words of ``-o``; those that a value has to follow end in an equals sign."""
    for option in OPTIONS:
        yield option.name + ("=" if option.kind.metavar and option.kind.bare is None else "")
    yield from (word for word in FLAG_WORDS if not word.startswith("-"))
    yield from FSTAB_WORDS


def fixed_words(metavar: str) -> tuple[str, ...]:
    """The words that a metavar such as ``on|off`` lists."""
    return tuple(metavar.split("|")) if "|" in metavar else ()


def _parser(place: str) -> argparse.ArgumentParser:
    """The parser of a command: of MODULE its ``parser``, of MODULE:NAME its ``NAME_parser``."""
    module, _, function = place.partition(":")
    name = f"{function}_parser" if function else "parser"
    make: Callable[[], argparse.ArgumentParser] = getattr(import_module(module), name)
    return make()


def _command(name: str, parser: argparse.ArgumentParser) -> Command:
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    operands = tuple(_operands(actions))
    return Command(
        name,
        parser.usage or " ".join([parser.prog, "[options]", *map(_shown, operands)]),
        _plain(parser.description),
        _plain(parser.epilog),
        tuple(_switch(action) for action in actions if action.option_strings),
        operands,
    )


def _shown(operand: Operand) -> str:
    text = operand.metavar + "..." * operand.is_repeated
    return f"[{text}]" if operand.is_optional else text


def _switch(action: argparse.Action) -> Switch:
    metavar = "" if action.nargs == 0 else _metavar(action)
    return Switch(tuple(action.option_strings), metavar, _plain(action.help))


def _operands(actions: list[argparse.Action]) -> Iterator[Operand]:
    for action in actions:
        if not action.option_strings:
            optional, repeated = action.nargs in ("?", "*"), action.nargs in ("+", "*")
            yield Operand(_metavar(action), _plain(action.help), optional, repeated)


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return str(action.metavar or action.dest.upper())


def _plain(text: str | None) -> str:
    return (text or "").replace("%%", "%")
