"""What the documents say of options, commands and lines of fstab is what the program does."""

import ast
import errno
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3mount import peers
from s3mount.cli import COMMANDS, HELPERS, grammar
from s3mount.cli.arguments import parse_arguments
from s3mount.config import OPTIONS, Config
from s3mount.options import FLAG_WORDS, OPTION_OF_NAME, OptionError, normal_name
from tests.servers import CHECKOUT

DOCUMENTS = sorted(
    path
    for path in (CHECKOUT / "README.md", *(CHECKOUT / "docs").iterdir())
    if path.name not in ("metadata.md", "reliability.md")
)
MIGRATING = (CHECKOUT / "docs" / "migrating.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
LINES = re.compile(r"```fstab\n(.+?)```", re.DOTALL)


def known_options() -> set[str]:
    names = {f"--{name}" for name in (*OPTION_OF_NAME, *FLAG_WORDS, *peers.TRANSLATED)}
    for command in (*grammar.commands(), grammar.mounting(), *map(grammar.helper, HELPERS)):
        names |= {name for switch in command.switches for name in switch.names}
    return names


def code(text: str) -> Iterator[str]:
    """What is marked as code: between backquotes, in blocks, and in indented lines."""
    yield from re.findall(r"`([^`\n]+)`", text)
    yield from re.findall(r"```[a-z]*\n(.+?)```", text, re.DOTALL)
    yield from re.findall(r"^    (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_option_in_a_document_exists(path: Path):
    known, checked = known_options(), 0
    for piece in code(path.read_text()):
        for line in piece.splitlines():
            mine = re.search(r"(?:^|[ /])s3mount ([a-z][a-z-]+)(?=$|[ .,])", line)
            if mine and not mine[1].startswith("my-"):
                assert mine[1] in {*COMMANDS, "help"} or " /" in line, (path.name, line)
                checked += 1
            if re.match(r"(--[a-z]|sudo |s3mount |mount )", line) and "pipx" not in line:
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line):
                    assert option in known, (path.name, option, line)
                    checked += 1
    assert checked or "s3mount" not in path.read_text()


def test_the_readme_names_what_people_need():
    text = (CHECKOUT / "README.md").read_text()
    for command in COMMANDS:
        if command != "remove-helpers":
            assert f"s3mount {command}" in text or f"scripts/{command}" in text, command
    for path in (CHECKOUT / "docs").iterdir():
        assert f"docs/{path.name}" in text, path.name


def test_documents_link_to_what_is_there():
    for path in (*DOCUMENTS, CHECKOUT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


def read(source: str, options: str) -> tuple[Config, list[str]]:
    config, warnings = parse_arguments([source, "/mnt/x", "-o", options])
    return replace(config, environment={}), list(warnings)


@pytest.mark.parametrize(("theirs", "ours"), ROW.findall(MIGRATING))
def test_options_of_others_are_what_the_tables_say(theirs: str, ours: str):
    assert normal_name(ours.partition("=")[0]) in {option.name for option in OPTIONS}
    config, warnings = read("my-bucket", theirs)
    assert config == read("my-bucket", ours)[0]
    assert config != read("my-bucket", "rw")[0]  # else the row would show nothing
    assert warnings == []


def test_lines_of_fstab_move_here():
    blocks = LINES.findall(MIGRATING)
    assert len(blocks) == 5
    for block in blocks:
        before, after = (line.split() for line in block.splitlines())
        assert (before[1], before[3:]) == (after[1], after[3:])  # the type changes, and no option
        assert after[2] == "fuse.s3mount"
        config, warnings = read(after[0], after[3])
        assert config.bucket == "my-bucket"
        assert all("they tune other programs" in warning for warning in warnings)


def test_what_has_to_change_in_a_line_is_refused_and_not_misunderstood():
    with pytest.raises(OptionError, match="a size of at least 16M"):
        read("my-bucket", "max-cache-size=1024")  # MiB for mountpoint-s3
    with pytest.raises(OptionError, match="nothing in a bucket is hidden"):
        read("my-bucket", "exclude=*.tmp")
    with pytest.raises(OptionError):
        read("my-bucket", "config=/etc/rclone.conf")


def test_the_commands_of_the_readme_are_understood():
    lines = (CHECKOUT / "README.md").read_text().splitlines()
    commands = re.findall(r"`(s3mount [^`]+ /mnt/data[^`]*)`", "\n".join(lines))
    mounts = [one for one in commands if one.split()[1] not in COMMANDS]
    assert len(mounts) >= 5
    for command in mounts:
        assert parse_arguments(shlex.split(command)[1:])[1] == []


def messages_of_the_program() -> str:
    """All texts in the program, one a line, without what is put into them."""
    texts = []
    for path in (CHECKOUT / "s3mount").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sdrg]|%\.\d[fg]", "\n", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "\n" for part in node.values
                )
                texts.append("".join(parts))
    return "\n".join([*texts, *(os.strerror(number) for number in errno.errorcode)])


def test_the_messages_of_troubleshooting_are_those_of_the_program():
    text = (CHECKOUT / "docs" / "troubleshooting.md").read_text()
    symptoms = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    said, checked = messages_of_the_program().lower(), 0
    for symptom in symptoms:
        for message in re.findall(r"`([^`]+)`", symptom):
            if re.search(r"\(\w+, request|^mount: ", message):
                continue  # S3 and mount(8) say this
            for fragment in (part.strip(" :;").lower() for part in re.split(r"…| \(", message)):
                if len(fragment) > 7:
                    assert fragment in said, fragment
                    checked += 1
    assert checked > 25
