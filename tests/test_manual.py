"""The manual pages: typeset without complaints, complete, installed; and that documents are true.

That they are what the option table says is tested with the table, in test_config.
"""

import configparser
import os
import re
import shutil
import subprocess

import pytest

from s3mount.cli import COMMANDS, HELPERS, grammar
from s3mount.config import OPTIONS
from s3mount.options import FLAG_WORDS
from tests.conftest import unavailable
from tests.servers import CHECKOUT

PAGES = ("s3mount.1", "s3mount.toml.5", "mount.s3mount.8")


def typeset(page: str) -> str:
    """What a reader sees, as plain text."""
    if not shutil.which("man"):
        unavailable("man is missing (package man-db)")
    done = subprocess.run(
        ["man", "--warnings", "--encoding=UTF-8", "-l", str(CHECKOUT / "man" / page)],
        env={**os.environ, "MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout))


def test_the_program_has_a_page_that_says_everything():
    text = typeset("s3mount.1")
    for command in grammar.commands():
        assert command.usage in text
        for switch in command.switches:
            assert switch.names[-1] in text or switch.names[-1] == "--help"
    for option in OPTIONS:
        assert f"--{option.name}" in text
        assert " ".join(option.manual.split("`")[0].split()[1:]) in text
        for alias in option.aliases:
            assert alias.partition("=")[0] in text


def test_examples_stay_together_as_they_are_written():
    source = (CHECKOUT / "man" / "s3mount.1").read_text()
    for first, second in (("cache", "cache \\-\\-clear "), ("info report.pdf", "info \\-\\-json ")):
        assert f".nf\ns3mount {first}\ns3mount {second}" in source


def test_the_file_of_options_has_a_page():
    text = typeset("s3mount.toml.5")
    for option in OPTIONS:
        assert (f" {option.name} = " in text) == option.in_file


def test_the_helpers_have_a_page():
    text = typeset("mount.s3mount.8")
    for name in ("mount.s3mount", "umount.s3mount"):
        for switch in grammar.helper(name).switches:
            assert switch.names[-1] in text or switch.names[-1] == "--help"
    for word in FLAG_WORDS:
        assert word.lstrip("-") in text
    assert set(HELPERS) >= {"mount.s3mount", "umount.s3mount"}


@pytest.mark.parametrize("page", PAGES)
def test_a_second_typesetter_has_nothing_to_complain_of(page: str):
    if not shutil.which("mandoc"):
        unavailable("mandoc is missing (package mandoc)")
    done = subprocess.run(
        ["mandoc", "-T", "lint", str(CHECKOUT / "man" / page)],
        capture_output=True,
        text=True,
        check=False,
    )
    # A date would be another than that of the last change.
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


def test_all_pages_are_installed():
    assert sorted(path.name for path in (CHECKOUT / "man").iterdir()) == sorted(PAGES)
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    installed = setup["options.data_files"]
    for page in PAGES:
        assert installed[f"share/man/man{page[-1]}"].split() == [f"man/{page}"]


def test_help_texts_hold_no_marks_of_the_parser():
    for command in (*grammar.commands(), grammar.mounting()):
        for switch in command.switches:
            assert "%(" not in switch.help
            assert switch.help, (command.name, switch.names)
    assert [command.name for command in grammar.commands()] == sorted(COMMANDS)
