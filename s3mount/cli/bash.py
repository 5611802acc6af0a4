"""The script that makes bash complete the command line; it starts no program when TAB is hit."""

from collections.abc import Iterator, Mapping

from s3mount.cli import grammar
from s3mount.cli.grammar import MOUNT, Command

SCRIPT = r"""# Completion of s3mount for bash; made by `s3mount completion bash`.

_s3mount_mounts() { # the mount points of s3mount, as the kernel lists them
    local point kind
    while read -r _ point kind _; do
        [[ $kind == fuse.s3mount ]] && printf '%b\n' "${point//\\/\\0}"
    done </proc/self/mounts
}

_s3mount_switches() { # of a command
    case $1 in
@SWITCHES@
    esac
}

_s3mount_kind() { # what follows an option of a command; nothing where nothing does
    case $1:$2 in
@KINDS@
    esac
}

_s3mount_operand() { # what the other arguments of a command are
    case $1 in
@OPERANDS@
    esac
}

_s3mount_offer() { # of what kind, beginning how
    local kind=$1 begin=$2 one
    case $kind in
    words:*) mapfile -t COMPREPLY < <(compgen -W "${kind#words:}" -- "$begin") ;;
    files) compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$begin") ;;
    directories) compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$begin") ;;
    users) mapfile -t COMPREPLY < <(compgen -u -- "$begin") ;;
    groups) mapfile -t COMPREPLY < <(compgen -g -- "$begin") ;;
    mounts) compopt -o filenames 2>/dev/null
        while IFS= read -r one; do
            [[ $one == "$begin"* ]] && COMPREPLY+=("$one")
        done < <(_s3mount_mounts) ;;
    esac
}

_s3mount_list() { # the argument of -o: only what stands behind the last comma is completed
    local text=$1 done= one
    [[ $text == *,* ]] && done=${text%,*},
    text=${text##*,}
    compopt -o nospace 2>/dev/null
    if [[ $text == *=* ]]; then
        _s3mount_offer "$(_s3mount_kind mount "--${text%%=*}")" "${text#*=}"
        done+=${text%%=*}=
    else
        mapfile -t COMPREPLY < <(compgen -W "@WORDS@" -- "${text//_/-}")
    fi
    for one in "${!COMPREPLY[@]}"; do
        COMPREPLY[one]=$done${COMPREPLY[one]}
    done
}

_s3mount() {
    # bash cuts words at = and :, so the line is read again, backslashes and all.
    local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} words one
    COMPREPLY=()
    # shellcheck disable=SC2162  # backslashes are to be understood
    read -a words <<<"$line"
    [[ $line == *[[:space:]] && $line != *\\[[:space:]] ]] && words+=("")
    local at=$((${#words[@]} - 1)) command=mount
    local current=${words[at]} before=${words[at - 1]}
    if ((at > 1)) && [[ " @COMMANDS@ " == *" ${words[1]} "* ]]; then
        command=${words[1]}
    fi
    if [[ $before == -o ]]; then
        _s3mount_list "$current"
    elif [[ $current == --*=* ]]; then
        _s3mount_offer "$(_s3mount_kind "$command" "${current%%=*}")" "${current#*=}"
        for one in "${!COMPREPLY[@]}"; do
            COMPREPLY[one]=${current%%=*}=${COMPREPLY[one]}
        done
    elif [[ -n $(_s3mount_kind "$command" "$before") ]]; then
        _s3mount_offer "$(_s3mount_kind "$command" "$before")" "$current"
    elif [[ $current == -* ]]; then
        _s3mount_offer "words:$(_s3mount_switches "$command")" "$current"
    elif ((at == 1)); then
        _s3mount_offer "words:@COMMANDS@ help" "$current"
    elif [[ ${words[1]} == help ]]; then
        _s3mount_offer "words:@COMMANDS@" "$current"
    else
        _s3mount_offer "$(_s3mount_operand "$command")" "$current"
    fi
    # bash replaces only what stands behind its last cut.
    local cuts=${COMP_WORDBREAKS//[^=:]/}
    if [[ -n $cuts ]]; then
        one=${current%"${current##*["$cuts"]}"}
        COMPREPLY=("${COMPREPLY[@]#"$one"}")
    fi
}

complete -F _s3mount s3mount
"""

KINDS: Mapping[str, str] = {
    "PATH": "files",
    "DIR": "directories",
    "USER": "users",
    "GROUP": "groups",
    "MOUNTPOINT": "mounts",
}


def script() -> str:
    """Return the script."""
    every = (*grammar.commands(), grammar.mounting())
    texts = {
        "@SWITCHES@": "\n".join(map(_switches, every)),
        "@KINDS@": "\n".join(line for command in every for line in _kinds(command)),
        "@OPERANDS@": "\n".join(filter(None, map(_operand, every))),
        "@WORDS@": " ".join(grammar.mount_words()),
        "@COMMANDS@": " ".join(command.name for command in grammar.commands()),
    }
    text = SCRIPT
    for mark, filling in texts.items():
        text = text.replace(mark, filling)
    return text


def kind_of(metavar: str) -> str:
    """What is offered for a metavar; something unknown is said to be there, but offered nothing."""
    words = grammar.fixed_words(metavar)
    return "words:" + " ".join(words) if words else KINDS.get(metavar, "anything")


def _switches(command: Command) -> str:
    names = dict.fromkeys(name for switch in grammar.switches(command) for name in switch.names)
    return f"    {command.name}) echo '{' '.join(names)}' ;;"


def _kinds(command: Command) -> Iterator[str]:
    for switch in grammar.switches(command):
        if switch.metavar:
            names = "|".join(f"{command.name}:{name}" for name in switch.names)
            yield f"    {names}) echo '{kind_of(switch.metavar)}' ;;"


def _operand(command: Command) -> str:
    """The last operand counts: those before it are buckets, whose names nobody here knows."""
    kind = kind_of(command.operands[-1].metavar) if command.operands else ""
    if command.name == MOUNT:
        kind = "directories"
    return f"    {command.name}) echo '{kind}' ;;" if kind else ""
