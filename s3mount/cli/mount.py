"""``s3mount BUCKET MOUNTPOINT``: checks what can be checked at once, and starts the daemon."""

import errno
import gc
import logging
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from s3mount import controlclient, fstab, notify
from s3mount.cli.arguments import Parsed, parse_all
from s3mount.config import Config
from s3mount.errors import MountError
from s3mount.mounts import FILE_SYSTEM_TYPE, Mount, detach, find_mount, is_dead
from s3mount.options import OptionError
from s3mount.values import relative_to

log = logging.getLogger(__name__)

# Set for the daemon that a command has started in the background and waits for.
BACKGROUND = "S3MOUNT_BACKGROUND"
STOP_TIMEOUT = 10.0  # seconds for a daemon that is told to give up starting
FUSE_CONFIGURATION = Path("/etc/fuse.conf")


def main(arguments: Sequence[str]) -> int:
    """Mount.  Returns the exit code when the mount answers, or with ``-f`` when it has ended."""
    background = os.environ.pop(BACKGROUND, None) is not None
    parsed = parse_all(arguments)
    config = parsed.config
    if config.update_fstab and config.foreground and not background:
        raise OptionError("options update-fstab and foreground exclude each other")
    _check_mountpoint(config)
    _check_access(config)
    if config.foreground or background:
        return _serve(arguments, parsed, background=background)
    line = _fstab_line(parsed) if config.update_fstab else ""
    code = _start(arguments, config)
    if line and code == 0:
        fstab.put_line(line, config.mountpoint, fstab.fstab_path())
        print(f"s3mount: {fstab.fstab_path()} has it now: {line}")
    return code


def _fstab_line(parsed: Parsed) -> str:
    """Return the line for fstab, and say what it will lack."""
    if fstab.lacks_credentials(parsed.config, os.environ):
        print(
            "s3mount: the keys in this environment will be missing when fstab mounts: "
            "name a profile, a credentials-file or a passwd-file",
            file=sys.stderr,
        )
    return fstab.line_of(parsed.config, parsed.items, os.environ)


def _serve(arguments: Sequence[str], parsed: Parsed, *, background: bool) -> int:
    """Be the daemon."""
    config = parsed.config
    # Imported here, because the command that only starts a daemon must be quick.
    from s3mount import logs

    level = "debug" if config.debug else config.log_level
    try:
        logs.set_up(
            level=level, form=config.log_format, file=config.log_file, background=background
        )
    except OSError as error:
        raise MountError(f"option log-file: {config.log_file}: {error.strerror}", 1) from error
    for warning in parsed.warnings:
        log.warning("%s", warning)
    os.environ.update(config.environment)
    before = _working_directory()
    os.chdir("/")  # All paths are absolute by now, and no directory is kept busy.

    def read_again() -> Config:
        with relative_to(before):
            return parse_all(arguments).config

    # What is imported stays: to look for garbage in it takes 6 % of the start.  `run` enables it.
    gc.disable()
    from s3mount.daemon import run

    return run(config, read_again, background=background)


def _working_directory() -> Path:
    """Where relative paths begin; ``/`` if it is gone, where there can have been none."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def _check_mountpoint(config: Config) -> None:
    """Refuse a directory that cannot be mounted on; what a dead daemon left is cleared away."""
    path = config.mountpoint
    _clear_dead(path)
    nonempty = "nonempty" in config.mount_flags
    if (mount := find_mount(path)) is not None and (mount.type == FILE_SYSTEM_TYPE or not nonempty):
        raise MountError(_why_mounted(mount))
    try:
        with os.scandir(path) as entries:
            if not nonempty and next(entries, None) is not None:
                raise MountError(f"{path} is not empty (-o nonempty mounts over what is there)")
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENOENT:
            reason = "there is no such directory to mount on"
        elif error.errno == errno.EACCES and path.is_dir():
            return  # An owner may mount where he may not list.
        raise MountError(f"{path}: {reason}") from error


def _clear_dead(path: Path) -> None:
    """Take a mount away whose daemon has died ("Transport endpoint is not connected")."""
    mount = find_mount(path)
    if mount is None or mount.type != FILE_SYSTEM_TYPE or _is_served(mount) or not is_dead(path):
        return
    try:
        detach(mount, lazy=True)
    except OSError as error:
        command = shlex.join(["sudo", "umount", "-l", os.fspath(path)])
        raise MountError(
            f"{path} is left over from a daemon that has died: `{command}` clears it"
        ) from error
    print(f"s3mount: cleared {path}, left over from a daemon that has died", file=sys.stderr)


def _why_mounted(mount: Mount) -> str:
    """Say what is mounted there."""
    if mount.type != FILE_SYSTEM_TYPE:
        return (
            f"something of type {mount.type} is mounted on {mount.mountpoint} "
            "(-o nonempty mounts over it)"
        )
    return f"{mount.source} is already mounted on {mount.mountpoint}"


def _is_served(mount: Mount) -> bool:
    """Say whether a daemon listens for this mount, be it stuck or not."""
    try:
        path = controlclient.find_socket(mount.mountpoint, mount.owner)
    except PermissionError:
        return True  # Another user's: that is not for us to doubt.
    if path is None:
        return False
    try:
        controlclient.Connection(path).close()
    except controlclient.NoDaemon:
        return False
    except controlclient.ControlError:
        pass
    return True


def _check_access(config: Config) -> None:
    """Say clearly what fusermount3 would refuse in its own words."""
    if os.geteuid() == 0 or not (config.allow_other or config.allow_root):
        return
    try:
        lines = FUSE_CONFIGURATION.read_text().splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise MountError(
            f"option allow-other needs the line user_allow_other in {FUSE_CONFIGURATION}", 1
        )


def _start(arguments: Sequence[str], config: Config) -> int:
    """Start the daemon, and wait until its mount answers."""
    with notify.Receiver() as receiver, _stoppable():
        process = _spawn(arguments, receiver.address)
        try:
            return _await_ready(process, receiver, config.start_timeout)
        except BaseException:
            _give_up(process, config.mountpoint)
            raise
        finally:
            assert process.stderr is not None
            process.stderr.close()


def _spawn(arguments: Sequence[str], address: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "NOTIFY_SOCKET": address, BACKGROUND: "1"}
    # With -P nothing is imported from the directory where the user happens to be, unless
    # that, or PYTHONPATH, is where we come from.
    home = os.fspath(Path(__file__).parents[2])
    if sys.path[0] == home:
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [home, environment.get("PYTHONPATH")])
        )
    command = [sys.executable, "-P", "-m", "s3mount", "--foreground", *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end this block as Ctrl-C does, so that no daemon is orphaned."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _await_ready(
    process: subprocess.Popen[bytes], receiver: notify.Receiver, timeout: float
) -> int:
    """Return 0 when the mount answers, or the code of the daemon that has given up.

    What the daemon writes to its standard error meanwhile, the user reads.  It may ask for more
    than *timeout* seconds while it finishes what a crash has cut off.
    """
    assert process.stderr is not None
    errors = _Relay(process.stderr.fileno())
    ended = os.pidfd_open(process.pid)
    poller = select.poll()
    for source in (errors.descriptor, receiver.fileno(), ended):
        poller.register(source, select.POLLIN)
    deadline = time.monotonic() + timeout
    try:
        while (left := deadline - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poller.poll(left * 1000)]
            if errors.descriptor in ready and not errors.relay():
                poller.unregister(errors.descriptor)  # closed, by `logs.detach`
            told = receiver.read(process.pid)
            if "READY=1" in told:
                errors.relay()
                return 0
            deadline = max([deadline, *map(_extended, told)])
            if ended in ready:
                errors.relay()
                return _code_of_failure(process.wait(), told=errors.told)
    finally:
        os.close(ended)
    raise MountError(f"the mount did not answer within {timeout:g} s (option start-timeout)")


def _extended(line: str) -> float:
    """Until when a daemon has asked to be waited for, if that is what *line* says; else 0."""
    name, _, microseconds = line.partition("=")
    asked = name == "EXTEND_TIMEOUT_USEC" and microseconds.isdecimal()
    return time.monotonic() + int(microseconds) / 1e6 if asked else 0.0


class _Relay:
    """Copies what comes out of a pipe to standard error, without ever waiting for it."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.told = False

    def relay(self) -> bool:
        """Copy what is there; False at the end."""
        while True:
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.told = True
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()


def _code_of_failure(code: int, *, told: bool) -> int:
    """Return the exit code for a daemon that ended too early, saying why if it did not."""
    if code < 0:
        raise MountError(f"the daemon was killed by {signal.Signals(-code).name}")
    if code == 0 or not told:
        raise MountError(f"the daemon ended with code {code} before the mount answered")
    return code


def _give_up(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """End the daemon, and take away the mount that it may leave behind."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        mount = find_mount(mountpoint)
        if mount is not None and mount.type == FILE_SYSTEM_TYPE:
            with suppress(OSError):  # The reason why we give up is told, and matters more.
                detach(mount, lazy=True)
