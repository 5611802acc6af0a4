"""The tour of a mounted bucket: ordinary programs on one side, S3 on the other.

Each stop of the tour does something that people do with files, and checks both sides.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from s3mount.demo.objects import Bucket
from s3mount.demo.terminal import Terminal
from s3mount.errors import StoreError

STEP_TIMEOUT = 300.0  # Seconds for one command: a mount that hangs must not hang the demo.
APPEAR_TIMEOUT = 15.0  # Seconds until what S3 has shows in the mount; metadata-ttl is shorter.
LARGE_MIB = 64

_SAMPLE = {
    "README.md": "# A small project\n\nIt is copied into the bucket.\n",
    "main.c": '#include <stdio.h>\n\nint main(void) { return puts("hello") < 0; }\n',
    "data/table.csv": "".join(f"{number},{number * number}\n" for number in range(2000)),
    "data/empty.txt": "",
    "docs/guide/first steps.txt": "Blanks in names are fine.\n",
    "docs/grüße.txt": "So are letters of all languages: Grüße, 你好.\n",
}


class StepFailed(Exception):
    """Something was not as it has to be; the text says what."""


class Scene:
    """Where the tour takes place: a directory of the mount, and the bucket behind it."""

    def __init__(self, directory: Path, scratch: Path, bucket: Bucket, terminal: Terminal) -> None:
        self.directory = directory
        self.scratch = scratch
        self._bucket = bucket
        self._terminal = terminal

    def shell(self, command: str) -> str:
        """Run *command* in the directory, show it with its output, and return that."""
        self._terminal.command(command)
        try:
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self.directory,
                env=os.environ | {"LC_ALL": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=STEP_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{command!r} did not end within {STEP_TIMEOUT:.0f} s") from error
        self._terminal.output(done.stdout)
        if done.returncode != 0:
            raise StepFailed(f"{command!r} ended with exit code {done.returncode}")
        return done.stdout

    def check(self, claim: str, *, holds: bool) -> None:
        """Tell that *claim* was checked; raise `StepFailed` if it does not hold."""
        if not holds:
            raise StepFailed(f"this is not so: {claim}")
        self._terminal.passed(claim)

    def fetch(self, name: str) -> tuple[bytes, str]:
        """Read a file of the directory through S3; return its bytes and its Content-Type."""
        key = self._key(name)
        self._terminal.command(f's3.get_object(Bucket="{self._bucket.name}", Key="{key}")', ">>>")
        body, content_type = self._bucket.get(key)
        self._terminal.output(f"{len(body)} bytes, Content-Type: {content_type}")
        return body, content_type

    def store(self, name: str, body: bytes) -> None:
        """Write a file of the directory through S3."""
        key = self._key(name)
        shown = f's3.put_object(Bucket="{self._bucket.name}", Key="{key}", Body={body!r})'
        self._terminal.command(shown, ">>>")
        self._bucket.put(key, body)

    def listed(self) -> Sequence[str]:
        """Return the keys of the directory's files, as S3 lists them."""
        prefix = self._key("")
        return [key.removeprefix(prefix) for key in self._bucket.keys(prefix)]

    def wait_for(self, name: str) -> bool:
        """Wait until the directory has *name*; say whether that happened."""
        deadline = time.monotonic() + APPEAR_TIMEOUT
        while time.monotonic() < deadline:
            if self.directory / name in self.directory.iterdir():
                return True
            time.sleep(0.1)
        return False

    def _key(self, name: str) -> str:
        return f"{self.directory.name}/{name}"


def write_and_read(scene: Scene) -> None:
    """Write a file and read it: it is an object."""
    output = scene.shell("echo 'Hello, bucket.' > hello.txt && cat hello.txt")
    scene.check("cat shows what echo wrote", holds=output == "Hello, bucket.\n")
    body, content_type = scene.fetch("hello.txt")
    scene.check("S3 has the same bytes", holds=body == b"Hello, bucket.\n")
    scene.check("its type follows from its name", holds=content_type == "text/plain")


def append(scene: Scene) -> None:
    """Append to a file."""
    scene.shell("echo 'One more line.' >> hello.txt && cat hello.txt")
    body, _ = scene.fetch("hello.txt")
    scene.check("S3 has both lines", holds=body == b"Hello, bucket.\nOne more line.\n")


def copy_a_tree(scene: Scene) -> None:
    """Copy a directory into the bucket."""
    sample = scene.scratch / "project"
    for name, text in _SAMPLE.items():
        path = sample / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    scene.shell(f"cp -r '{sample}' project && ls -l project")
    scene.shell(f"diff -r '{sample}' project")
    scene.check("diff finds no difference", holds=True)
    found = {key for key in scene.listed() if key.startswith("project/") and not key.endswith("/")}
    expected = {f"project/{name}" for name in _SAMPLE}
    scene.check(f"S3 lists the same {len(expected)} files", holds=found == expected)


def pack_and_unpack(scene: Scene) -> None:
    """Pack it, and unpack it somewhere else in the bucket."""
    scene.shell("tar -czf project.tar.gz project && tar -tzf project.tar.gz")
    _, content_type = scene.fetch("project.tar.gz")
    scene.check("it is an archive to S3, too", holds=content_type == "application/gzip")
    scene.shell("mkdir restored && tar -xzf project.tar.gz -C restored")
    scene.shell("diff -r project restored/project")
    scene.check("what came out is what went in", holds=True)


def see_what_others_write(scene: Scene) -> None:
    """Another program writes an object: it is a file."""
    scene.store("report.csv", b"month,sales\nMay,42\n")
    scene.check("the object appears in the directory", holds=scene.wait_for("report.csv"))
    output = scene.shell("ls -l report.csv && cat report.csv")
    scene.check("cat reads it", holds=output.endswith("month,sales\nMay,42\n"))


def write_a_large_file(scene: Scene) -> None:
    """Write a large file, which travels in parts while it is written."""
    scene.shell(f"dd if=/dev/urandom of=large.bin bs=1M count={LARGE_MIB} conv=fsync 2>&1")
    digest = scene.shell("sha256sum large.bin").split()[0]
    body, _ = scene.fetch("large.bin")
    same = hashlib.sha256(body).hexdigest() == digest
    scene.check("the mount and S3 have the same SHA-256", holds=same)


def use_git(scene: Scene) -> None:
    """Keep a git repository in the bucket."""
    scene.shell("git init --quiet --initial-branch main repository && cp hello.txt repository/")
    identity = "-c user.name=Demo -c user.email=demo@localhost"
    scene.shell(
        "cd repository && git add hello.txt && "
        f"git {identity} commit --quiet --message 'First commit' && git log --oneline --stat"
    )
    scene.shell("cd repository && git fsck --strict && git status --short")
    scene.check("git finds its repository whole", holds=True)


def rename_and_remove(scene: Scene) -> None:
    """Rename and remove."""
    scene.shell("mv hello.txt greeting.txt && rm -r restored && ls")
    keys = scene.listed()
    scene.check(
        "S3 has the new name and not the old one",
        holds="greeting.txt" in keys and "hello.txt" not in keys,
    )
    left = [key for key in keys if key.startswith("restored/project")]
    scene.check("what was removed is gone from S3", holds=not left)


Stop = Callable[[Scene], None]


def stops() -> Sequence[Stop]:
    """Return the stops of the tour, in their order."""
    last: list[Stop] = [use_git] if shutil.which("git") else []
    return [
        write_and_read,
        append,
        copy_a_tree,
        pack_and_unpack,
        see_what_others_write,
        write_a_large_file,
        *last,
        rename_and_remove,
    ]


def run_tour(scene: Scene, terminal: Terminal, before_each: Callable[[], None]) -> str | None:
    """Make the tour; return what failed, None when nothing did."""
    for stop in stops():
        before_each()
        name = (stop.__doc__ or stop.__name__).strip().rstrip(".")
        terminal.blank()
        terminal.title(name)
        try:
            stop(scene)
        except (StepFailed, StoreError, OSError) as error:
            terminal.failed(str(error))
            return name
    return None
