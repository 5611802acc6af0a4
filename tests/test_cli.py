"""The commands as people type them: what they say, what they return, what they leave behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from s3mount import mounts, notify
from s3mount.cli import mount, umount
from s3mount.errors import MountError
from tests.conftest import unavailable


def s3mount(*arguments: str, **how) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "s3mount", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, stdin=-3, **how
    )


def complaint(code: int, *arguments: str) -> str:
    """Run a command that must fail with *code*, and return its one line."""
    done = s3mount(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("s3mount: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


# -- words -------------------------------------------------------------------------------------


def test_the_help_teaches():
    text = s3mount("--help").stdout
    for words in ("s3mount umount", "Exit codes", "32", "Examples:", "--endpoint-url", "AWS tools"):
        assert words in text
    assert s3mount("help").stdout == text
    assert s3mount("help", "umount").stdout == s3mount("umount", "--help").stdout
    assert "--lazy" in s3mount("help", "umount").stdout
    assert max(map(len, text.splitlines())) <= 90


def test_the_version_is_told():
    assert s3mount("--version").stdout.startswith("s3mount 0.")


def test_the_command_starts_without_what_only_the_daemon_needs():
    heavy = ["trio", "boto3", "botocore", "pyfuse3", "asyncio", "ssl", "logging.handlers"]
    script = (
        "import sys; from s3mount.cli import main;"
        "code = main(['bucket', '/nonexistent/directory']);"
        f"loaded = set({heavy}) & set(sys.modules);"
        "sys.exit(f'loaded: {loaded}' if loaded else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 32, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no bucket is given"),
        (["statu"], "there is no command statu (did you mean status?)"),
        (["unmount", "/mnt"], "write s3mount umount MOUNTPOINT"),
        (["mount", "bucket", "/mnt"], "write s3mount BUCKET MOUNTPOINT"),
        (["help", "umont"], "did you mean umount?"),
        (["bucket"], "no mountpoint is given"),
        (["bucket", "/mnt", "-o", "reed_only"], "did you mean read-only?"),
        (["bucket", "/mnt", "--memory=lots"], "'lots' is not"),
        (["bu cket", "/mnt"], "'bu cket' is not BUCKET"),
        (["umount"], "MOUNTPOINT"),
        (["umount", "/mnt", "--lasy"], "--lasy"),
        (["umount", "/mnt", "--timeout=soon"], "'soon' is not a time"),
        (["status", "--interval=0"], "'0' is not a number from 0.1 to 3600"),
        (["warmup", "/", "-j", "many"], "'many' is not a number from 1 to 64"),
        (["doctor", "bucket", "--region"], "--region: expected one argument"),
        (["doctor", "bucket", "/mnt", "more"], "one argument too many: more"),
        (
            ["install-helpers", "--root=/nonexistent/x"],
            "/nonexistent/x: there is no such directory",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_1(arguments, words):
    assert words in complaint(1, *arguments)


def test_a_bug_is_one_line_and_exit_code_4(tmp_path):
    # A daemon module that fails stands for any error that nobody has thought of.
    script = textwrap.dedent("""
        import sys
        from s3mount.cli import mount, main
        def fail(arguments): raise KeyError("what\\never")
        mount.main = fail
        sys.exit(main(sys.argv[1:]))
        """)
    command = [sys.executable, "-c", script, "bucket", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "bug: KeyError" in done.stderr
    assert "--debug" in done.stderr
    done = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


def test_a_reader_that_leaves_early_sees_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "s3mount", "--version"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert b"Traceback" not in process.communicate(timeout=60)[1]


# -- the mount point ---------------------------------------------------------------------------


def test_a_mount_point_must_be_an_empty_directory(tmp_path):
    assert "no such directory" in complaint(32, "bucket", tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "Not a directory" in complaint(32, "bucket", tmp_path / "file")
    assert "nonempty" in complaint(32, "bucket", tmp_path)


def test_a_place_where_something_is_mounted_is_refused():
    assert "type proc is mounted on /proc" in complaint(32, "bucket", "/proc")


@contextlib.contextmanager
def dead_mount(directory: Path):
    """Mount as s3mount does, and let the daemon's end of the mount go."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        unavailable("needs root and /dev/fuse")
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    command = ["mount", "-i", "-t", "fuse.s3mount", "-o", options, "my-bucket", str(directory)]
    subprocess.run(command, check=True, pass_fds=[device])
    os.close(device)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, check=False)


def test_a_mount_whose_daemon_has_died_is_cleared_away_by_the_next_one(tmp_path):
    with dead_mount(tmp_path):
        # Nobody listens at that address, so this fails after the way is free.
        done = s3mount(
            "bucket", tmp_path, "--url=http://127.0.0.1:9", "--timeout=1", "--start-timeout=20"
        )
        assert done.returncode != 0
        assert f"cleared {tmp_path}, left over from a daemon that has died" in done.stderr
        assert mounts.find_mount(tmp_path) is None


def test_umount_clears_a_mount_whose_daemon_has_died(tmp_path):
    directory = tmp_path / "a b\\c"
    directory.mkdir()
    with dead_mount(directory):
        found = mounts.find_mount(directory)
        assert (found.source, found.type, found.owner) == ("my-bucket", "fuse.s3mount", 0)
        done = s3mount("umount", directory)
        assert (done.returncode, done.stderr) == (0, "")
        assert mounts.find_mount(directory) is None


def test_umount_of_what_is_not_ours_is_refused(tmp_path):
    assert "is not mounted" in complaint(32, "umount", tmp_path)
    assert "type proc" in complaint(32, "umount", "/proc")


def test_the_mount_on_top_is_the_one_that_is_seen(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:21 / /mnt/a\\040b rw,relatime shared:7 - ext4 /dev/sda1 rw\n"
        "23 22 0:44 / /mnt/a\\040b rw - fuse.s3mount b/p\\040q rw,user_id=1000,group_id=9\n"
        "24 22 0:44 / /mnt/a rw - tmpfs tmpfs rw\n"
    )
    found = mounts.find_mount(Path("/mnt/a b"), table)
    assert found == mounts.Mount(Path("/mnt/a b"), "fuse.s3mount", "b/p q", 1000, frozenset({"rw"}))
    assert mounts.find_mount(Path("/mnt"), table) is None


# -- waiting for the daemon --------------------------------------------------------------------


@contextlib.contextmanager
def daemon(script: str):
    """Run *script* as the daemon that a command has started and waits for."""
    with notify.Receiver() as receiver:
        environment = {**os.environ, "NOTIFY_SOCKET": receiver.address}
        script = "import os, sys, time\nfrom s3mount import notify\n" + textwrap.dedent(script)
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                yield process, receiver
            finally:
                process.kill()


def await_ready(script: str, timeout: float = 30) -> int:
    with daemon(script) as (process, receiver):
        return mount._await_ready(process, receiver, timeout)


def test_the_command_returns_when_the_mount_answers(capfd):
    started = time.monotonic()
    assert await_ready("print('careful', file=sys.stderr); notify.ready('up'); time.sleep(60)") == 0
    assert time.monotonic() - started < 30
    assert capfd.readouterr().err == "careful\n"


def test_the_command_does_not_spin_when_the_daemon_has_let_go_of_the_terminal(capfd):
    before = time.process_time()
    script = "os.close(2); time.sleep(1); notify.ready('up'); time.sleep(60)"
    assert await_ready(script) == 0
    assert time.process_time() - before < 0.5


def test_the_reason_and_the_code_of_a_daemon_that_fails_are_passed_on(capfd):
    assert await_ready("print('s3mount: no such bucket', file=sys.stderr); sys.exit(32)") == 32
    assert capfd.readouterr().err == "s3mount: no such bucket\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.exit(3)", "ended with code 3"),
        ("sys.exit(0)", "ended with code 0"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("time.sleep(60)", "within 0.5 s"),
        ("notify.send('STATUS=hm'); time.sleep(60)", "within 0.5 s"),
    ],
)
def test_a_daemon_that_says_nothing_is_a_failure(script, words):
    with pytest.raises(MountError, match=words) as caught:
        await_ready(script, 0.5 if "sleep" in script else 30)
    assert caught.value.exit_code == 32


def test_a_flood_of_messages_does_not_stop_the_daemon(capfd):
    script = "sys.stderr.write('x' * 1_000_000); sys.stderr.flush(); notify.ready('up')"
    assert await_ready(script) == 0
    assert len(capfd.readouterr().err) == 1_000_000


def test_giving_up_ends_a_daemon_that_does_not_want_to(tmp_path, monkeypatch):
    monkeypatch.setattr(mount, "STOP_TIMEOUT", 0.5)
    script = "import signal; signal.signal(15, signal.SIG_IGN); notify.ready(''); time.sleep(60)"
    with daemon(script) as (process, receiver):
        assert mount._await_ready(process, receiver, 30) == 0
        mount._give_up(process, tmp_path)
        assert process.returncode == -signal.SIGKILL


def test_a_signal_ends_the_wait_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt), mount._stoppable():
        signal.raise_signal(signal.SIGTERM)


def test_the_daemon_does_not_import_from_where_the_user_is(tmp_path):
    (tmp_path / "trio.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "mnt").mkdir()
    script = textwrap.dedent("""
        import sys
        from s3mount.cli import mount
        process = mount._spawn(["--version"], "@nobody")
        sys.exit(process.communicate(timeout=60)[1].decode() or process.returncode)
        """)
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- asking the daemon to unmount ----------------------------------------------------------------

UMOUNT_DAEMON = """
import sys, trio
from pathlib import Path
from s3mount import control

async def umount(request, progress):
    await progress({"files": 3, "bytes": 5 << 30})
    await progress({"files": 1, "bytes": 100})
    nursery.cancel_scope.cancel()
    return {"left": LEFT, "request": request}

async def stay(request, progress):
    return {"left": []}

async def busy(request, progress):
    from s3mount.errors import MountError
    raise MountError("in use by process 7")

async def main():
    global nursery
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, Path(sys.argv[1]), {"umount": HANDLER})
        print("ready", flush=True)
        await trio.sleep(60)

trio.run(main)
"""


@contextlib.contextmanager
def umount_daemon(path: Path, handler: str = "umount", left: str = "[]"):
    script = UMOUNT_DAEMON.replace("HANDLER", handler).replace("LEFT", left)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            with umount.Connection(path) as connection:
                yield connection, process
        finally:
            process.kill()


def refusal(connection: umount.Connection, wish: umount.Wish) -> str:
    with pytest.raises(MountError) as caught:
        umount._ask(connection, MOUNTED, wish)
    assert caught.value.exit_code == 32
    return str(caught.value)


MOUNTED = mounts.Mount(Path("/mnt/x"), "fuse.s3mount", "bucket", 0, frozenset())
PATIENT = umount.Wish(lazy=False, force=False, timeout=None)
HASTY = umount.Wish(lazy=False, force=False, timeout=0.5)


def test_umount_returns_when_the_daemon_has_ended(tmp_path):
    with umount_daemon(tmp_path / "s") as (connection, process):
        assert umount._ask(connection, MOUNTED, PATIENT) == 0
        assert process.wait(0.5) == 0


def test_umount_says_what_could_not_be_uploaded(tmp_path):
    with umount_daemon(tmp_path / "s", left='list("abcdef")') as (connection, _):
        assert "6 files could not be uploaded (a, b, c, d, e, ...)" in refusal(connection, PATIENT)


def test_umount_repeats_what_the_daemon_says(tmp_path):
    with umount_daemon(tmp_path / "s", "busy") as (connection, _):
        assert refusal(connection, PATIENT) == "/mnt/x: in use by process 7"


def test_umount_waits_as_long_as_it_was_told_to(tmp_path):
    with umount_daemon(tmp_path / "s", "stay") as (connection, process):
        message = refusal(connection, HASTY)
        assert "within 0.5 s" in message
        assert f"process {process.pid}) goes on" in message
        assert process.poll() is None


def test_a_lazy_umount_does_not_wait_for_the_daemon(tmp_path):
    with umount_daemon(tmp_path / "s", "stay") as (connection, process):
        assert umount._ask(connection, MOUNTED, PATIENT._replace(lazy=True)) == 0
        assert process.poll() is None


def test_umount_survives_the_death_of_the_daemon(tmp_path):
    with umount_daemon(tmp_path / "s") as (connection, process):
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        assert "/mnt/x: the" in refusal(connection, PATIENT)
        timer.join()


def test_progress_is_told_in_words():
    assert umount.describe_progress({"files": 3, "bytes": 1288490189}) == (
        "uploading 3 files, 1.2 GiB left"
    )
    assert (
        umount.describe_progress({"files": 1, "bytes": 100}) == "uploading 1 file, 100 bytes left"
    )
    assert umount.describe_size(5 << 50) == "5120.0 TiB"
