"""Programs that people run on files: the same environment for all, and a failure that tells."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from s3mount.demo.weed import clean_environment, find_program
from tests.conftest import unavailable

PROGRAM_TIMEOUT = 120.0

# Nothing of the user's own configuration, and no time zone but one.
ENVIRONMENT: Mapping[str, str] = {
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


def need(name: str) -> str:
    """The path of a program that `scripts/bootstrap` installs; without it the test ends here."""
    program = find_program(name)
    if program is None:
        unavailable(f"{name} is not installed")
    return str(program)


def has(name: str) -> bool:
    """Whether a program is there; `scripts/bootstrap` need not have installed it."""
    return shutil.which(name) is not None


def run(
    *command: str | Path | int,
    cwd: Path | None = None,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PROGRAM_TIMEOUT,
) -> str:
    """Run a program that must succeed, and return what it printed."""
    done = subprocess.run(
        [need(str(command[0])), *map(str, command[1:])],
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean_environment(), **ENVIRONMENT, **(env or {})},
        timeout=timeout,
        check=False,
    )
    words = " ".join(map(str, command))
    assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


READ = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"


@contextmanager
def python(script: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on *path*, and end it if it is still there afterwards."""
    command = [sys.executable, "-c", script, path]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield program
    finally:
        program.kill()
        program.wait(PROGRAM_TIMEOUT)
        program.communicate()
