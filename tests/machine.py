"""A machine for one test: a mount namespace where /sbin, /etc, /run and /dev can be changed.

What is written there goes into a directory of the test; nobody outside sees
it, nor what is mounted.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers import CHECKOUT

NOBODY = 65534

# The namespace lives as long as this process, which ends with its standard input.
ENTER = r"""
set -eu
mount --make-rprivate /
mkdir -p "$1/dev"
mount -t tmpfs tmpfs "$1/dev"
mknod -m 666 "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
mount -t tmpfs tmpfs "$1/layers"
test=$1
# Where other users get at them, too.
mkdir "$1/python" "$1/checkout"
mount --bind "$2" "$1/python"
mount --bind "$3" "$1/checkout"
shift 3
for directory in /usr/sbin /etc /run "$@"; do
    layer=$test/layers/$(basename "$directory")
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay overlay \
        -o "lowerdir=$directory,upperdir=$layer/upper,workdir=$layer/work" "$directory"
done
# What others have mounted outside: `umount -a` here would have their daemons end.
umount -a -i -l -c -t fuse.s3mount || :
echo user_allow_other >>/etc/fuse.conf
: >/etc/fstab
echo ready
cat
"""


def why_no_machine() -> str | None:
    """Return the reason why there can be no such machine here, None when there can."""
    if os.geteuid() != 0:
        return "a mount namespace needs root"
    missing = [name for name in ("unshare", "nsenter", "setpriv") if not shutil.which(name)]
    return f"{missing[0]} is missing (package util-linux)" if missing else None


def _closed_directories() -> list[Path]:
    """Directories above the interpreter that other users cannot pass: an overlay opens them."""
    above = reversed(Path(sys.base_prefix).resolve().parents)
    return [path for path in above if not path.stat().st_mode & stat.S_IXOTH]


class Machine:
    """A mount namespace, entered for each command; *environment* is all that commands know.

    `s3mount` is the command that runs this checkout, for any user.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.environment = {
            "PATH": os.defpath + ":/usr/sbin:/sbin",
            "PYTHONPATH": str(directory / "checkout"),
            "PYTHONWARNINGS": "default",
            **environment,
        }
        (directory / "layers").mkdir()
        python = directory / "python" / Path(sys.executable).relative_to(sys.prefix)
        self.s3mount = (str(python), "-P", "-m", "s3mount")
        command = ["unshare", "--mount", "sh", "-c", ENTER, "sh"]
        self._process = subprocess.Popen(
            [*command, directory, sys.prefix, CHECKOUT, *_closed_directories()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            rest = self._process.communicate()[0]
            raise RuntimeError(f"no machine: {line}{rest}")

    @property
    def process_id(self) -> int:
        """The process whose namespace it is."""
        return self._process.pid

    def close(self) -> None:
        """Let the namespace go; its mounts end with its processes."""
        self._process.communicate()

    def run(self, *command: str, user: int = 0, **variables: str):
        """Run a command to its end, as *user*; return it with output and exit code."""
        change = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return subprocess.run(
            [*self._enter(), *(change if user else []), *map(str, command)],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )

    def check(self, *command: str, **how) -> str:
        """Run a command that has to succeed, and return its output."""
        done = self.run(*command, **how)
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file that only this machine has."""
        self.check("sh", "-c", f'printf %s "$1" >"{path}" && chmod {mode:o} "{path}"', "sh", text)

    def _enter(self) -> Sequence[str]:
        return ["nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--"]
