"""What the shells complete, asked of real shells; and that the scripts know every command."""

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mount.cli import COMMANDS, bash, grammar, zsh
from s3mount.config import OPTIONS
from tests.conftest import unavailable

PATIENCE = 60.0  # seconds

ASK_BASH = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
compopt() { :; }
_s3mount
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "s3mount"
    path.write_text(bash.script())
    return path


@pytest.fixture
def offers(bash_script: Path, tmp_path: Path):
    """``offers("s3mount umo")``: what bash has to choose from."""

    def ask(line: str, setup: str = "") -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", setup + ASK_BASH, "bash", bash_script, line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    return ask


def test_bash_completes_commands(offers):
    assert offers("s3mount um") == ["umount"]
    assert set(offers("s3mount ")) == {*COMMANDS, "help"}
    assert offers("s3mount help war") == ["warmup"]
    assert set(offers("s3mount completion ")) == {"bash", "zsh"}


def test_bash_completes_every_option(offers):
    assert {f"--{option.name}" for option in OPTIONS} <= set(offers("s3mount bucket /mnt --"))
    for command in grammar.commands():
        names = {name for switch in command.switches for name in switch.names}
        assert names <= set(offers(f"s3mount {command.name} -"))
    assert "--endpoint-url" in offers("s3mount doctor bucket --end")


def test_bash_completes_the_values_of_options(offers, tmp_path: Path):
    (tmp_path / "keys.pem").touch()
    (tmp_path / "a directory").mkdir()
    assert offers("s3mount b /mnt --attributes o") == ["on", "off"]
    assert offers("s3mount b /mnt --attributes=of") == ["off"]
    assert offers("s3mount b /mnt --uid roo") == ["root"]
    assert offers("s3mount b /mnt --ca-bundle ke") == ["keys.pem"]
    assert offers("s3mount b ") == ["a directory"]
    assert offers("s3mount b a\\ dir") == ["a directory"]
    assert offers("s3mount b /mnt --region ") == []
    # Where = does not cut words, the whole word is replaced.
    whole = "COMP_WORDBREAKS=' '; "
    assert offers("s3mount b /mnt --attributes=of", whole) == ["--attributes=off"]


def test_bash_completes_the_list_behind_o(offers):
    assert offers("s3mount b /mnt -o allow-o") == ["allow-other"]
    assert offers("s3mount b /mnt -o ro,allow_o") == ["ro,allow-other"]
    assert offers("s3mount b /mnt -o ro,ui") == ["ro,uid="]
    assert offers("s3mount b /mnt -o ro,uid=roo") == ["root"]
    assert offers("s3mount b /mnt -o uid=root,noati") == ["root,noatime"]
    assert "nosuid" in offers("s3mount b /mnt -o ")


def test_bash_completes_mounts_and_nothing_else(offers, tmp_path: Path):
    # The kernel escapes blanks in its list.
    table = tmp_path / "mounts"
    table.write_text(
        "b /mnt/one fuse.s3mount rw 0 0\nb /mnt/a\\040b fuse.s3mount rw 0 0\n"
        "/dev/x /mnt/other ext4 rw 0 0\n"
    )
    script = bash.script()
    assert script.count("/proc/self/mounts") == 1
    (tmp_path / "c").write_text(script.replace("/proc/self/mounts", str(table)))
    source = f'bash() {{ :; }}; set -- {tmp_path}/c "$2"; '
    assert offers("s3mount umount /mnt/", source) == ["/mnt/one", "/mnt/a b"]
    assert offers("s3mount umount /mnt/a", source) == ["/mnt/a b"]


class Terminal:
    """A shell at a terminal, as somebody who types sees it."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process_id, self._descriptor = pty.fork()
        if self.process_id == 0:
            os.execvpe(command[0], command, {**os.environ, **environment})
        self.seen = ""

    def type(self, text: str, *expected: str) -> None:
        """Type, and wait until all of *expected* is on the screen."""
        self.seen = ""
        os.write(self._descriptor, text.encode())
        deadline = time.monotonic() + PATIENCE
        while not all(words in self.seen for words in expected):
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise AssertionError(f"{expected} is not shown: {self.seen!r}")
            self.seen += os.read(self._descriptor, 4096).decode(errors="replace")

    def close(self) -> None:
        os.kill(self.process_id, signal.SIGKILL)
        os.waitpid(self.process_id, 0)
        os.close(self._descriptor)


@contextlib.contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Terminal]:
    shell = Terminal(list(command), {"TERM": "dumb", "LC_ALL": "C.UTF-8", **environment})
    try:
        yield shell
    finally:
        shell.close()


def test_bash_completes_at_a_terminal(bash_script: Path, tmp_path: Path):
    (tmp_path / "some dir").mkdir()
    with terminal("bash", "--norc", "-i", PS1="> ", HISTFILE="") as shell:
        shell.type(f"cd {tmp_path}; source {bash_script}; echo re''ady\n", "ready")
        shell.type("s3mount umo\t", "s3mount umount ")
        shell.type("\x15s3mount b some\t", "some\\ dir")
        shell.type("\x15s3mount b /mnt --log-level=wa\t", "--log-level=warning")
        shell.type("\x15s3mount b /mnt -o ro,uid=roo\t", "ro,uid=root")


def test_zsh_completes_at_a_terminal(tmp_path: Path):
    if not shutil.which("zsh"):
        unavailable("zsh is missing (package zsh)")
    (tmp_path / "_s3mount").write_text(zsh.script())
    (tmp_path / "some dir").mkdir()
    setup = f"cd {tmp_path}; fpath=({tmp_path} $fpath); autoload -U compinit; compinit -D -u"
    with terminal("zsh", "-f", "-i", PS1="> ", HOME=str(tmp_path)) as shell:
        shell.type(f"unsetopt zle_bracketed_paste; {setup}; echo re''ady\n", "ready")
        shell.type("s3mount umo\t", "s3mount umount ")
        shell.type("\x15s3mount b some\t", "some\\ dir")
        shell.type("\x15s3mount b /mnt --log-level=wa\t", "--log-level=warning")
        shell.type("\x15s3mount b /mnt -o ro,uid=roo\t", "ro,uid=root")
        shell.type("\x15s3mount warmup --metad\t", "--metadata-only")
        shell.type("\x15s3mount b /mnt --log-f\t\t", "--log-file", "file to log to")


def test_the_command_prints_the_scripts(capsys):
    from s3mount.cli import main

    for shell, text in (("bash", bash.script()), ("zsh", zsh.script())):
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == text
    assert main(["completion", "fish"]) == 1
    assert "fish" in capsys.readouterr().err
