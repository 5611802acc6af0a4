"""The manual pages, made from the option table, the argument parsers and the words of mount(8)."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from s3mount import __version__, peers
from s3mount.cli import grammar
from s3mount.cli.arguments import DESCRIPTION, EPILOG
from s3mount.cli.grammar import Command, Switch
from s3mount.config import OPTIONS
from s3mount.declaring import SECTIONS, Option
from s3mount.options import FLAG_WORDS, IGNORED, LABELS, SILENTLY_IGNORED

MARK = '.\\" Made by scripts/gendocs from the option table and the commands.  Change it there.'
ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "`": "\\(ga", "~": "\\(ti"}
# Paragraphs of the help become sections of the manual by the words that they begin with.
TITLES = {
    "Values": "VALUES",
    "Credentials": "CREDENTIALS",
    "Exit codes": "EXIT STATUS",
    "Examples": "EXAMPLES",
}
FILES = (
    ("/etc/s3mount/NAME.toml", "options of the service s3mount@NAME, see s3mount.toml(5)"),
    (
        "/var/lib/s3mount, ~/.local/state/s3mount",
        "files that are being written, journals of what is not uploaded yet, what stores can do",
    ),
    ("/run/s3mount, $XDG_RUNTIME_DIR/s3mount", "control sockets of the mounts that run"),
    ("/sbin/mount.s3mount, /sbin/mount.fuse.s3mount", "what mount(8) starts"),
    ("~/.aws/config, ~/.aws/credentials", "profiles and credentials, as the AWS tools have them"),
    ("/etc/passwd-s3fs, ~/.passwd-s3fs", "keys as s3fs has them, where nothing else is found"),
)
SIGNALS = (
    (
        "SIGTERM, SIGINT",
        "uploads what is left, unmounts and ends; a second one leaves at once, and keeps what is "
        "not uploaded",
    ),
    ("SIGHUP", "reads the file of options again, and drops what is known of names"),
    ("SIGUSR1", "writes the state of the mount into the log"),
    ("SIGUSR2", "logs everything, and the next time only what log-level says"),
)


def pages(example: str) -> dict[str, str]:
    """Return the text of each page by its name; *example* is a file of options."""
    return {
        "s3mount.1": _page(_program()),
        "mount.s3mount.8": _page(_helper()),
        "s3mount.toml.5": _page(_file(example)),
    }


# -- roff ------------------------------------------------------------------------------------------


def _page(lines: Iterable[str]) -> str:
    """Put the lines of a page together: text in short lines, and no paragraph macro for nothing."""
    done: list[str] = []
    is_literal = False
    for line in lines:
        if line == ".PP" and done[-1].startswith((".SH", ".SS")):
            continue
        is_literal = line == ".nf" or (is_literal and line != ".fi")
        is_text = not is_literal and not line.startswith(".")
        done += _wrapped(line) if is_text else [line]
    return "\n".join(done) + "\n"


def _wrapped(line: str) -> Iterator[str]:
    for part in textwrap.wrap(line, 78, break_long_words=False, break_on_hyphens=False):
        yield f"\\&{part}" if part.startswith((".", "'")) else part


def escaped(text: str) -> str:
    """Return *text* as roff shows it literally: each dash is one that can be typed."""
    return "".join(ESCAPES.get(character, character) for character in text)


def prose(text: str) -> str:
    """Return a paragraph in one line; what stands in backquotes is bold."""
    parts = " ".join(text.split()).split("`")
    return "".join(bold(part) if at % 2 else escaped(part) for at, part in enumerate(parts))


def head(name: str, section: int, summary: str) -> Iterator[str]:
    """Begin a page."""
    yield MARK
    yield f'.TH {name.upper()} {section} "" "s3mount {__version__}" "s3mount"'
    # No hyphenation and no filled lines: names of options are long, and are copied.
    yield from (".nh", ".ad l", ".SH NAME", f"{escaped(name)} \\- {escaped(summary)}")


def literal(text: str) -> Iterator[str]:
    """Show lines as they are."""
    yield from (".PP", ".RS 4", ".nf")
    for line in text.splitlines():
        shown = escaped(line)
        yield f"\\&{shown}" if shown.startswith((".", "\\(aq")) else shown
    yield from (".fi", ".RE")


def item(tag: str, text: str) -> Iterator[str]:
    """One entry of a list."""
    yield from (".TP", tag, prose(text) or "\\&")


def bold(text: str) -> str:
    """Return a name as it is typed."""
    return f"\\fB{escaped(text)}\\fR"


def italic(text: str) -> str:
    """Return what stands for something else."""
    return f"\\fI{escaped(text)}\\fR"


def sentence(text: str) -> str:
    """Return *text* with a capital and a full stop."""
    return text[0].upper() + text[1:] + "." * (not text.endswith("."))


def words(names: Iterable[str]) -> str:
    """Return a list of names, in a fixed order."""
    return ", ".join(f"`{name}`" for name in sorted(names))


# -- s3mount(1) ------------------------------------------------------------------------------------


OPTIONS_TEXT = """\
Each option has the same name in `-o NAME=VALUE` (dashes and underscores are equal) and in
s3mount.toml(5). Options of mount(8) count behind -o, or with two dashes: {words}."""


def _program() -> Iterator[str]:
    yield from head("s3mount", 1, "mount an S3 bucket as a directory")
    yield from (".SH SYNOPSIS", *_synopsis())
    yield from (".SH DESCRIPTION", prose(DESCRIPTION))
    yield from (".SH COMMANDS",)
    for command in grammar.commands():
        yield from _command(command)
    yield from (".SH OPTIONS", prose(OPTIONS_TEXT.format(words=_mount_words())))
    yield from item(_names(Switch(("-o",), "NAME[=VALUE],...", "")), "Options as in /etc/fstab.")
    for section in SECTIONS:
        yield from _section(section)
    yield from _paragraphs(EPILOG)
    yield from _list("FILES", FILES)
    yield from _list("SIGNALS", SIGNALS)
    others = ("mount(8)", "fstab(5)", "fusermount3(1)", "systemd.mount(5)")
    yield from _see_also("mount.s3mount(8)", "s3mount.toml(5)", *others)


def _synopsis() -> Iterator[str]:
    usages = ["s3mount BUCKET[/PREFIX] MOUNTPOINT [options]"]
    usages += [command.usage for command in grammar.commands()]
    yield escaped(usages[0])
    for usage in usages[1:]:
        yield from (".br", escaped(usage))


def _command(command: Command) -> Iterator[str]:
    yield from (f".SS {command.name}", f"{bold(command.usage)}", ".PP", prose(command.description))
    for operand in command.operands:
        if operand.help:
            yield from item(italic(operand.metavar), sentence(operand.help))
    for switch in command.switches:
        if "--help" not in switch.names:
            yield from item(_names(switch), sentence(switch.help))
    yield from _paragraphs(command.epilog, titled=False)


def _names(switch: Switch) -> str:
    names = ", ".join(bold(name) for name in switch.names)
    return f"{names} {italic(switch.metavar)}" if switch.metavar else names


def _section(title: str) -> Iterator[str]:
    yield f".SS {title}"
    for option in OPTIONS:
        if option.section == title:
            letter = f"{bold('-' + option.letter)}, " if option.letter else ""
            value = f" {italic(option.kind.metavar)}" if option.kind.metavar else ""
            yield from item(f"{letter}{bold('--' + option.name)}{value}", _meaning(option))


def _meaning(option: Option) -> str:
    text = sentence(option.manual)
    if option.kind.metavar:
        text += f" Default: {option.default}."
    if option.kind.metavar.isupper():
        text += f" Expected: {option.kind.expected}."
    if option.aliases:
        text += f" Also: {', '.join(map(_alias, option.aliases))}."
    return text


def _alias(alias: str) -> str:
    name, equals, value = alias.partition("=")
    return f"`{name}` (for {value})" if equals else f"`{name}`"


def _paragraphs(epilog: str, *, titled: bool = True) -> Iterator[str]:
    """The paragraphs of a help text: lists as they are, the rest as prose."""
    for paragraph in filter(None, epilog.strip("\n").split("\n\n")):
        title = next((to for begin, to in TITLES.items() if paragraph.startswith(begin)), None)
        first, _, rest = paragraph.partition("\n")
        if titled and title:
            yield f".SH {title}"
        if re.match(r"\s", first):
            yield from literal(_dedented(paragraph))
        elif re.match(r"\s", rest):
            yield from (".PP", prose(first), *literal(_dedented(rest)))
        else:
            yield from (".PP", prose(paragraph))


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in text.splitlines())


def _list(title: str, entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f".SH {title}"
    for tag, text in entries:
        yield from item(bold(tag), sentence(text))


def _see_also(*references: str) -> Iterator[str]:
    parts = (reference.partition("(") for reference in references)
    yield from (".SH SEE ALSO", ", ".join(f"{bold(name)}({number}" for name, _, number in parts))


def _mount_words() -> str:
    return words(word.replace("-netdev", "_netdev") for word in FLAG_WORDS)


# -- mount.s3mount(8) ------------------------------------------------------------------------------

HELPER = """\
mount(8) starts `mount.s3mount` for file systems of type `s3mount`, and `mount.fuse.s3mount` for
the type `fuse.s3mount`; umount(8) starts `umount.s3mount` and `umount.fuse.s3mount`. `s3mount
install-helpers` makes them, a package brings them. Mounting returns when the mount answers;
unmounting returns when everything is in the store and the daemon has ended."""

ENVIRONMENT = """\
Mounts of fstab and of systemd have none of the user's environment. `-o env.NAME=VALUE` sets a
variable for the daemon; it is refused where the value is a secret. Credentials come from
`profile`, `credentials-file`, `passwd-file`, or the table [env] of a private file of options
(`config`)."""

REMOUNT = """\
`mount -o remount` changes the options of mount(8), also from rw to ro and back; everything else
stays as it is."""

FSTAB = """\
my-bucket  /mnt/data  fuse.s3mount  _netdev,nofail,allow_other,uid=1000,profile=prod  0 0
my-bucket/dir  /mnt/app  fuse.s3mount  _netdev,x-systemd.automount,config=/etc/s3mount/app.toml  0 0
"""


BEHIND = """\
All options of s3mount(1) are understood, and these of mount(8): {words}. nosuid and nodev are the
default. Labels of SELinux ({labels}) are handed to the kernel, where it has SELinux and root
mounts. These are meant for others, and do nothing: {silent}, and what begins with x-."""

OTHERS = """\
As other programs mean them are read: {translated}. These are refused, as to ignore them would break
a promise or show a secret: {refused}."""


def _helper() -> Iterator[str]:
    yield from head("mount.s3mount", 8, "mount and unmount S3 buckets with mount(8) and umount(8)")
    yield ".SH SYNOPSIS"
    yield escaped("mount -t fuse.s3mount [-fnrsvw] [-o OPTIONS] BUCKET[/PREFIX] MOUNTPOINT")
    yield from (".br", escaped("umount [-flnrv] MOUNTPOINT"))
    yield from (".SH DESCRIPTION", prose(HELPER))
    yield from (".PP", prose(ENVIRONMENT), ".PP", prose(REMOUNT))
    for program in ("mount", "umount"):
        yield f".SH OPTIONS OF {program}(8)"
        for switch in grammar.helper(f"{program}.s3mount").switches:
            if "--help" not in switch.names:
                yield from item(_names(switch), sentence(switch.help or "options, see below"))
    silent = words(SILENTLY_IGNORED)
    yield from (
        ".SH OPTIONS BEHIND \\-o",
        prose(BEHIND.format(words=_mount_words(), labels=words(LABELS), silent=silent)),
    )
    for name, why in IGNORED.items():
        yield from (".PP", prose(f"`{name}` is ignored with a warning: {why}."))
    translated, refused = words(peers.TRANSLATED), words(peers.REFUSED)
    yield from (".PP", prose(OTHERS.format(translated=translated, refused=refused)))
    yield from _paragraphs(_paragraph_of(EPILOG, "Exit codes"))
    yield from (".SH EXAMPLES", "Lines of /etc/fstab:", *literal(FSTAB))
    yield from _see_also("s3mount(1)", "s3mount.toml(5)", "mount(8)", "umount(8)", "fstab(5)")


def _paragraph_of(text: str, beginning: str) -> str:
    return next(one for one in text.split("\n\n") if one.startswith(beginning))


# -- s3mount.toml(5) -------------------------------------------------------------------------------

FILE = """\
A file of options is TOML. s3mount reads it with `--config FILE`, the service `s3mount@NAME` reads
/etc/s3mount/NAME.toml. What is given on the command line comes before what the file says. An
option that does not exist, or a value that is none, is an error that names the line's option."""

TYPES = """\
Flags are true or false. Sizes and times are texts such as "512M" and "5m", or numbers of bytes
and seconds. Paths and octal permission bits are texts in any case. bucket (as `BUCKET[/PREFIX]`)
and mountpoint are options here. Options of mount(8) are flags: `noatime = true`. Dashes and
underscores in names are equal."""

TABLE = """\
The table [env] sets variables for the daemon. Secrets may stand there if nobody else may read the
file (mode 0600)."""

RELOAD = """\
SIGHUP (`systemctl reload s3mount@NAME`) takes over metadata-ttl, negative-ttl, log-level and
debug; the others count at the next start. A file that is wrong changes nothing."""


def _file(example: str) -> Iterator[str]:
    yield from head("s3mount.toml", 5, "options of a mount of s3mount")
    yield from (".SH SYNOPSIS", escaped("/etc/s3mount/NAME.toml"))
    for text in (FILE, TYPES, TABLE, RELOAD):
        yield from ((".SH DESCRIPTION" if text is FILE else ".PP"), prose(text))
    yield ".SH OPTIONS"
    yield from item(f"{bold('bucket')} = {italic('BUCKET[/PREFIX]')}", "What is mounted.")
    yield from item(f"{bold('mountpoint')} = {italic('PATH')}", "Where it is mounted.")
    for section in SECTIONS:
        yield f".SS {section}"
        for option in OPTIONS:
            if option.section == section and option.in_file:
                value = option.kind.metavar or "true|false"
                yield from item(f"{bold(option.name)} = {italic(value)}", _meaning(option))
    yield from (".SH EXAMPLES", *literal(example))
    yield from _see_also("s3mount(1)", "mount.s3mount(8)", "systemd.service(5)")
