"""Puts the demo on and takes it off: server, bucket, mount, tour, and everything away again."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from s3mount.demo.objects import Bucket
from s3mount.demo.terminal import Terminal
from s3mount.demo.tour import Scene, run_tour
from s3mount.demo.weed import REGION, Credentials, Weed, use_clean_environment
from s3mount.errors import MountError
from s3mount.mounts import find_mount

BUCKET = "demo-bucket"  # "demo" alone would be the command
MOUNT_TIMEOUT = 90.0  # seconds
UMOUNT_TIMEOUT = 120.0  # seconds
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """Somebody wants the demo to end: what KeyboardInterrupt is, for the other signals too."""


class Ending:
    """Raises `Ended` when a signal asks for the end, unless that is deferred.

    Where the signal arrives a library may swallow what is raised, an import or a destructor
    for one, so the wish is also remembered, and `check` is asked before each next step.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._is_deferred = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._end) for number in _ENDING_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Ended` if the end was asked for."""
        if self._wanted:
            raise Ended

    def defer(self) -> None:
        """From now on only remember the wish: what is being done must not stop half-way."""
        self._is_deferred = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Do what is in the block to its end; raise `Ended` behind it."""
        self._is_deferred = True
        yield
        self._is_deferred = False
        self.check()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
        if not self._is_deferred:
            raise Ended


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything is: `folder` holds the server's data, the mount point and the rest."""

    folder: Path
    url: str
    environment: Mapping[str, str]

    @property
    def mountpoint(self) -> Path:
        """Where the bucket is mounted."""
        return self.folder / "bucket"

    @property
    def environment_file(self) -> Path:
        """A file for shells, with what AWS tools need to find the server."""
        return self.folder / "environment"


def put_on(directory: Path | None, terminal: Terminal, *, stays: bool) -> int:
    """Show the demo; return the exit code when all that was started has been stopped.

    Everything goes into *directory*, which stays, or into one that is removed.  If the demo
    *stays*, it waits for somebody to end it.
    """
    with Ending() as ending, ExitStack() as stack:
        try:
            return _play(directory, terminal, stack, ending, stays=stays)
        except Ended:
            terminal.failed("ended before the tour was over")
            return 1
        finally:
            ending.defer()


def _play(
    directory: Path | None, terminal: Terminal, stack: ExitStack, ending: Ending, *, stays: bool
) -> int:
    terminal.title("s3mount demo: a bucket on an S3 server of its own, as a directory")
    use_clean_environment()
    with ending.deferred():
        folder = _folder(directory, stack)
    credentials = _credentials(folder)
    weed = _serve(Weed(folder / "server", credentials), terminal, stack)
    bucket = stack.enter_context(Bucket(weed.url, BUCKET, credentials))
    bucket.create()
    terminal.passed(f"there is a bucket named {BUCKET}")
    stage = Stage(folder, weed.url, os.environ | credentials.environment())
    with ending.deferred():
        _mount(stage, terminal, stack)
    failed = _tour(stage, bucket, terminal, ending)
    terminal.blank()
    if failed is not None:
        terminal.failed(f"the demo failed at: {failed}")
        return 1
    terminal.passed("the tour is over, and everything was as it has to be")
    if not stays:
        return 0
    try:
        return _stay(stage, weed, terminal, stack)
    except Ended:
        return 0


def _folder(directory: Path | None, stack: ExitStack) -> Path:
    """Return the directory for everything; a temporary one goes when the stack does."""
    if directory is not None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MountError(f"{directory}: {error.strerror}", 1) from error
        return directory.resolve()
    folder = Path(tempfile.mkdtemp(prefix="s3mount-demo-")).resolve()
    stack.callback(_remove, folder)
    return folder


def _remove(folder: Path) -> None:
    # Never through a mount that is still there: that would delete what is in the bucket.
    if find_mount(folder / "bucket") is None:
        shutil.rmtree(folder)


def _credentials(folder: Path) -> Credentials:
    """Return the key pair of *folder*: the bucket belongs to it when the demo comes back."""
    path = folder / "credentials"
    if path.exists():
        access_key, secret_key = path.read_text().split()
        return Credentials(access_key, secret_key)
    credentials = Credentials.random()
    _write_secret(path, f"{credentials.access_key}\n{credentials.secret_key}\n")
    return credentials


def _write_secret(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _serve(weed: Weed, terminal: Terminal, stack: ExitStack) -> Weed:
    started = time.monotonic()
    stack.callback(terminal.passed, "the server is stopped")
    stack.callback(weed.stop)
    weed.start()
    terminal.passed(f"SeaweedFS serves S3 at {weed.url} ({time.monotonic() - started:.1f} s)")
    return weed


def _mount(stage: Stage, terminal: Terminal, stack: ExitStack) -> None:
    stage.mountpoint.mkdir(mode=0o700, exist_ok=True)
    arguments = [BUCKET, str(stage.mountpoint), "--endpoint-url", stage.url, "--region", REGION]
    # Others write to this bucket as well, and the tour wants to see that soon.
    arguments += ["--metadata-ttl", "1s", "--log-file", str(stage.folder / "s3mount.log")]
    arguments += ["--state-dir", str(stage.folder / "state")]
    terminal.blank()
    terminal.title("Mount it")
    terminal.command(shlex.join(["s3mount", *arguments]))
    started = time.monotonic()
    stack.callback(_unmount, stage, terminal)
    done = _run_s3mount(arguments, stage.environment, MOUNT_TIMEOUT)
    terminal.output(done.stdout)
    if done.returncode != 0:
        raise MountError(f"the mount failed with exit code {done.returncode}")
    terminal.passed(f"mounted ({time.monotonic() - started:.1f} s)")


def _unmount(stage: Stage, terminal: Terminal) -> None:
    if find_mount(stage.mountpoint) is None:
        return
    terminal.blank()
    umount = ["umount", str(stage.mountpoint)]
    terminal.command(shlex.join(["s3mount", *umount]))
    done = _run_s3mount(umount, stage.environment, UMOUNT_TIMEOUT)
    if done.returncode != 0:
        # Somebody still works there.  The server goes, so this has to go as well.
        terminal.output(done.stdout)
        _run_s3mount([*umount, "--force"], stage.environment, UMOUNT_TIMEOUT)
    if find_mount(stage.mountpoint) is None:
        terminal.passed("unmounted")
    else:
        terminal.failed(f"{stage.mountpoint} is still mounted")


def _run_s3mount(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    # In a session of its own: Ctrl-C is for us, and we unmount before anything else ends.
    command = [sys.executable, "-m", "s3mount", *arguments]
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 32, f"not finished within {timeout:.0f} s")


def _tour(stage: Stage, bucket: Bucket, terminal: Terminal, ending: Ending) -> str | None:
    try:
        directory = _new_directory(stage.mountpoint)
    except OSError as error:
        terminal.failed(str(error))
        return "making a directory in the bucket"
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=stage.folder) as scratch:
        scene = Scene(directory, Path(scratch), bucket, terminal)
        return run_tour(scene, terminal, before_each=ending.check)


def _new_directory(mountpoint: Path) -> Path:
    """Make a directory for this tour; an earlier one keeps its own."""
    directory, number = mountpoint / "tour", 1
    while directory.exists():
        number += 1
        directory = mountpoint / f"tour-{number}"
    directory.mkdir()
    return directory


def _write_environment_file(stage: Stage, stack: ExitStack) -> None:
    values = {
        name: stage.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    }
    values |= {"AWS_ENDPOINT_URL": stage.url, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in values.items()]
    _write_secret(stage.environment_file, "".join(lines))
    stack.callback(stage.environment_file.unlink, missing_ok=True)


def _explain(stage: Stage, terminal: Terminal) -> None:
    terminal.blank()
    terminal.title(f"The bucket {BUCKET} stays mounted at {stage.mountpoint}")
    terminal.text("  Work in it from another terminal.  With the AWS CLI:")
    terminal.command(f". {shlex.quote(str(stage.environment_file))}")
    terminal.command(f"aws s3 ls --recursive s3://{BUCKET}/")
    terminal.command(f"aws s3 cp /etc/hostname s3://{BUCKET}/")
    terminal.blank()
    terminal.text("Ctrl-C unmounts it and stops the server.")


def _stay(stage: Stage, weed: Weed, terminal: Terminal, stack: ExitStack) -> int:
    """Wait until the mount or the server is gone; return the exit code."""
    _write_environment_file(stage, stack)
    _explain(stage, terminal)
    while find_mount(stage.mountpoint) is not None and weed.is_running:
        time.sleep(0.5)
    if weed.is_running:
        terminal.text("somebody has unmounted it: this is the end")
        return 0
    terminal.failed(f"the server has ended; its log is {weed.log_path}")
    return 1
