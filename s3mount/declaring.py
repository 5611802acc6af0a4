"""How an option is declared: a field of a dataclass that carries its place in the manual."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple

from s3mount.values import Kind

STORE = "Store"
OBJECTS = "Objects"
ACCESS = "Access"
CACHING = "Caching"
WRITING = "Writing"
NETWORK = "Network"
PROCESS = "Process"
SECTIONS = (STORE, OBJECTS, ACCESS, CACHING, WRITING, NETWORK, PROCESS)


class Option(NamedTuple):
    """One option, as the commands and the manual see it.

    Names have dashes.  An alias ``NAME=VALUE`` is a flag: another spelling of the option with
    that value.  `default` is what the manual says about it.
    """

    name: str
    kind: Kind
    section: str
    manual: str
    default: str
    aliases: tuple[str, ...]
    letter: str
    in_file: bool


def option(
    kind: Kind,
    section: str,
    manual: str,
    *,
    default: str | None = None,
    shown: str = "none",
    compute: Callable[[], object] = lambda: None,
    aliases: tuple[str, ...] = (),
    letter: str = "",
    in_file: bool = True,
) -> Any:
    """Declare a field of `Config`: its place in the manual, and how text becomes its value.

    The default is given as the text that a user would write, or computed and *shown* as told.
    """
    text = default
    return field(
        default_factory=compute if text is None else lambda: kind.parse(text),
        metadata={
            "option": Option("", kind, section, manual, text or shown, aliases, letter, in_file)
        },
    )
