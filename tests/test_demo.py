"""The demo shows what it says, leaves nothing behind, and says what failed."""

import contextlib
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from s3mount.demo.terminal import Terminal
from s3mount.demo.tour import stops
from s3mount.demo.weed import find_program
from tests.conftest import unavailable
from tests.mounts import COMMAND, is_mounted, mounted_below, why_no_mounts
from tests.servers import CHECKOUT

TIMEOUT = 120.0
LONG = "temporary" * 12  # no socket can be below it: the kernel takes 107 bytes
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which all that the demo makes lands in this test's own directory."""
    home = tmp_path / "home"
    temporary = tmp_path / LONG
    for folder in (home, temporary, home / "run"):
        folder.mkdir(mode=0o700)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONIOENCODING": "utf-8",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "TMPDIR": str(temporary),
        # What the demo does must not depend on what its user has configured.
        "AWS_PROFILE": "of-somebody-else",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """``start(*arguments)``: the running demo; nothing of it may be left in the end."""
    if reason := why_no_mounts():
        unavailable(reason)
    if find_program("weed") is None:
        unavailable("weed is not installed")
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        demo = subprocess.Popen(
            [*COMMAND, "demo", *arguments],
            env=environment | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        running.append(demo)
        return demo

    yield begin
    for demo in running:
        demo.kill()
        demo.communicate()
    assert mounted_below(tmp_path) == []
    assert processes_of(tmp_path) == []


def processes_of(directory: Path) -> list[str]:
    """Return the command lines that name *directory*: servers and daemons of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes()
                if os.fsencode(directory) in command:
                    found.append(command.replace(b"\0", b" ").decode())
    return found


def read_until(demo: subprocess.Popen[str], text: str) -> str:
    """Read what the demo says until *text* is in it."""
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"never said {text!r}:\n{said}")


def test_the_tour_checks_every_step(start: Start, tmp_path: Path):
    demo = start("--once")
    said, _ = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 0, said
    assert said.count("✓") >= 3 + len(stops())
    assert "✗" not in said
    assert "the tour is over, and everything was as it has to be" in said
    for stop in stops():
        assert (stop.__doc__ or "").strip().rstrip(".") in said
    assert list((tmp_path / LONG).iterdir()) == []


def test_says_no_secrets_and_is_plain_in_a_pipe(start: Start, tmp_path: Path):
    folder = tmp_path / "kept"
    demo = start("--once", "--dir", str(folder))
    said, _ = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 0, said
    assert "\x1b" not in said
    credentials = folder / "credentials"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    log = (folder / "s3mount.log").read_text() + (folder / "server" / "weed.log").read_text()
    secret = credentials.read_text().split()[1]
    assert secret not in said
    assert secret not in log


def test_a_directory_keeps_the_bucket(start: Start, tmp_path: Path):
    folder = tmp_path / "kept"
    first, _ = start("--once", "--dir", str(folder)).communicate(timeout=TIMEOUT)
    assert 'Key="tour/hello.txt"' in first
    demo = start("--once", "--dir", str(folder))
    second, _ = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 0, second
    assert 'Key="tour-2/hello.txt"' in second


def test_a_directory_that_cannot_be_made_is_one_clear_line(start: Start):
    demo = start("--once", "--dir", "/proc/demo")
    said = demo.communicate(timeout=TIMEOUT)[0]
    assert (demo.returncode, said.splitlines()[-1]) == (
        1, "s3mount: /proc/demo: No such file or directory",
    )  # fmt: skip


def test_a_step_that_fails_is_named(start: Start, tmp_path: Path, environment: dict[str, str]):
    programs = tmp_path / "programs"
    programs.mkdir()
    broken = programs / "tar"
    broken.write_text("#!/bin/sh\necho 'tar is out of order' >&2\nexit 3\n")
    broken.chmod(0o755)
    demo = start("--once", env={"PATH": f"{programs}:{environment['PATH']}"})
    said, _ = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 1
    assert "tar is out of order" in said
    assert "ended with exit code 3" in said
    assert "the demo failed at: Pack it, and unpack it somewhere else in the bucket" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_stops_everything(
    start: Start, tmp_path: Path, number: signal.Signals
):
    demo = start("--once")
    read_until(demo, "Append to a file")
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 1, said
    assert "ended before the tour was over" in said
    assert processes_of(tmp_path) == []
    assert mounted_below(tmp_path) == []
    assert list((tmp_path / LONG).iterdir()) == []


def test_a_signal_before_the_mount_stops_the_server(start: Start, tmp_path: Path):
    demo = start("--once")
    read_until(demo, "SeaweedFS serves S3")
    demo.send_signal(signal.SIGTERM)
    said, _ = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 1, said
    assert processes_of(tmp_path) == []
    assert list((tmp_path / LONG).iterdir()) == []


def test_a_missing_server_is_one_clear_line(start: Start, tmp_path: Path):
    # Through a Python whose packages bring no weed: the launcher alone, with an empty PATH.
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import sys, sysconfig\n"
        "sysconfig.get_path = lambda name: '/nonexistent'\n"
        "from s3mount.cli import main\n"
        "sys.exit(main(['demo', '--once']))\n"
    )
    done = subprocess.run(
        [sys.executable, str(launcher)],
        env={"PATH": "/nonexistent", "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 32
    assert "pip install 's3mount[demo]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("s3mount-demo-*"))


def test_on_a_terminal_it_stays_until_ctrl_c(start: Start, tmp_path: Path, environment):
    master, slave = pty.openpty()
    demo = subprocess.Popen(
        [*COMMAND, "demo"],
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        said = _read_terminal(master, b"Ctrl-C unmounts it")
        assert b"\x1b[32m" in said
        (folder,) = (tmp_path / LONG).iterdir()
        assert is_mounted(folder / "bucket")
        assert (folder / "bucket" / "tour" / "greeting.txt").read_text().startswith("Hello")
        assert stat.S_IMODE((folder / "environment").stat().st_mode) == 0o600
        demo.send_signal(signal.SIGINT)
        said = _read_terminal(master, b"the server is stopped")
        assert demo.wait(TIMEOUT) == 0
    finally:
        demo.kill()
        demo.wait()
        os.close(master)
    assert b"unmounted" in said
    assert list((tmp_path / LONG).iterdir()) == []


def _read_terminal(master: int, text: bytes) -> bytes:
    said = b""
    deadline = time.monotonic() + TIMEOUT
    while text not in said:
        assert time.monotonic() < deadline, said.decode()
        try:
            said += os.read(master, 4096)
        except OSError as error:  # That is how the end of a terminal's session shows.
            raise AssertionError(f"never said {text!r}:\n{said.decode()}") from error
    return said


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path):
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as stream:
        terminal = Terminal(stream)
        terminal.passed("grüße")
        terminal.output("\n".join(str(number) for number in range(100)))
    lines = path.read_text(encoding="ascii").splitlines()
    assert lines[0] == "  ok: gr\\xfc\\xdfe"
    assert "    ... 86 more lines ..." in lines
    assert len(lines) == 16
