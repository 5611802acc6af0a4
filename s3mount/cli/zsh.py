"""The script that makes zsh complete the command line, with the help of each option beside it."""

from collections.abc import Iterator, Mapping

from s3mount.cli import grammar
from s3mount.cli.grammar import MOUNT, Command, Switch

SCRIPT = r"""#compdef s3mount
# Completion of s3mount for zsh; made by `s3mount completion zsh`.

_s3mount_mounts() { # the mount points of s3mount, as the kernel lists them
    local -a points
    points=(${(f)"$(while read -r _ point kind _; do
        [[ $kind == fuse.s3mount ]] && printf '%b\n' "${point//\\/\\0}"
    done </proc/self/mounts)"})
    _wanted mounts expl 'mount of s3mount' compadd -a points
}

_s3mount_list() { # the argument of -o
    _values -s , 'mount option' \
@WORDS@
}

_s3mount_commands() {
    local -a commands
    commands=(
@COMMANDS@
    )
    _describe -t commands 'command' commands
}

_s3mount() {
    local curcontext=$curcontext state line
    typeset -A opt_args
    if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then
        _s3mount_commands
        return
    fi
    case $words[2] in
    help) _s3mount_commands ;;
@CASES@
    esac
}

_s3mount "$@"
"""

KINDS: Mapping[str, str] = {
    "PATH": "_files",
    "DIR": "_files -/",
    "USER": "_users",
    "GROUP": "_groups",
    "MOUNTPOINT": "_s3mount_mounts",
    "NAME[=VALUE],...": "_s3mount_list",
}


def script() -> str:
    """Return the script."""
    every = grammar.commands()
    mounting = grammar.mounting()
    texts = {
        "@WORDS@": " \\\n".join(_words(mounting)),
        "@COMMANDS@": "\n".join(f"        {_quoted(_described(command))}" for command in every),
        "@CASES@": "\n".join([*map(_case, every), _case(mounting)]),
    }
    text = SCRIPT
    for mark, filling in texts.items():
        text = text.replace(mark, filling)
    return text


def _described(command: Command) -> str:
    return f"{command.name}:{_line(command.description)}"


def _case(command: Command) -> str:
    """One branch: the options and operands of a command."""
    is_mount = command.name == MOUNT
    lines = [*_switches(command), *_operands(command)]
    head = "*) _arguments -s" if is_mount else f"{command.name}) shift words; ((CURRENT--))"
    rest = "" if is_mount else "\n        _arguments -s"
    return f"    {head}{rest} \\\n" + " \\\n".join(f"        {one}" for one in lines) + " ;;"


def _switches(command: Command) -> Iterator[str]:
    for switch in grammar.switches(command):
        for name in switch.names:
            yield _quoted(_switch(switch, name))


def _switch(switch: Switch, name: str) -> str:
    """One spelling of an option, as `_arguments` wants it."""
    repeated = "*" if name == "-o" else ""
    ending = "=" if switch.metavar and name.startswith("--") else ""
    return f"{repeated}{name}{ending}[{_bracketed(switch.help)}]{_value(switch.metavar)}"


def _value(metavar: str) -> str:
    if not metavar:
        return ""
    words = grammar.fixed_words(metavar)
    action = f"({' '.join(words)})" if words else KINDS.get(metavar, "")
    return f":{metavar.replace(':', '')}:{action}"


def _operands(command: Command) -> Iterator[str]:
    if command.name == MOUNT:
        yield from (_quoted(":bucket: "), _quoted(":mount point:_files -/"))
    for operand in command.operands:
        place = "*:" if operand.is_repeated else "::" if operand.is_optional else ":"
        yield _quoted(place + _value(operand.metavar).removeprefix(":"))


def _words(mounting: Command) -> Iterator[str]:
    """The words of ``-o`` as `_values` wants them."""
    known = {name: switch for switch in mounting.switches for name in switch.names}
    for word in grammar.mount_words():
        name, equals, _ = word.partition("=")
        switch = known.get(f"--{name}")
        text = f"[{_bracketed(switch.help)}]" if switch else ""
        value = _value(switch.metavar) if switch else ""
        if value and not equals:
            value = f":{value}"  # may follow, and need not
        yield f"        {_quoted(name + text + value)}"


def _line(text: str) -> str:
    """The first sentence of a text, in one line."""
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def _bracketed(text: str) -> str:
    return "".join(f"\\{one}" if one in "[]\\:" else one for one in " ".join(text.split()))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
