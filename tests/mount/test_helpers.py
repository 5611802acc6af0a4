"""mount(8), umount(8), fstab and findmnt(8), as they are, with our helpers installed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import unavailable
from tests.faultproxy import FaultProxy
from tests.faults import Throttle
from tests.machine import NOBODY, Machine, why_no_machine
from tests.mounts import Bucket, Mounter, processes_naming, why_no_mounts
from tests.servers import CHECKOUT, Server

MIB = 1 << 20


class Host:
    """A machine with helpers installed, a bucket, and an fstab that mounts it."""

    def __init__(self, machine: Machine, directory: Path, bucket: Bucket) -> None:
        self.machine = machine
        self.bucket = bucket
        self.path = directory / "mnt"
        self.path.mkdir()
        os.chown(self.path, NOBODY, NOBODY)
        self.keys = directory / "keys"
        self.log = directory / "log"
        self.state = directory / "state"
        self.write_keys(self.keys, 0)

    def write_keys(self, path: Path, owner: int, mode: int = 0o600) -> None:
        """Write the keys of the bucket as s3fs has them."""
        secrets = self.bucket.credentials
        path.write_text(f"{secrets.access_key}:{secrets.secret_key}\n")
        path.chmod(mode)
        os.chown(path, owner, owner)

    def give_to(self, owner: int) -> None:
        """Let *owner* be the user who mounts."""
        self.write_keys(self.keys, owner)
        self.log.touch()
        self.state.mkdir(mode=0o700)
        for path in (self.log, self.state):
            os.chown(path, owner, owner)

    @property
    def options(self) -> str:
        """What every mount here needs."""
        return (
            f"url={self.bucket.url},passwd_file={self.keys},log_file={self.log},"
            f"state_dir={self.state},timeout=5"
        )

    def line(self, *options: str, kind: str = "fuse.s3mount") -> str:
        return f"{self.bucket.name} {self.path} {kind} {','.join([self.options, *options])} 0 0\n"

    def fstab(self, text: str) -> None:
        self.machine.write("/etc/fstab", text)

    def find(self, column: str) -> str:
        """What findmnt(8) says of the mount, empty when there is none."""
        return self.machine.run("findmnt", "-no", column, str(self.path)).stdout.strip()

    def complaint(self, code: int, *command: str, **how) -> str:
        """Run a command that must fail with *code* and leave nothing; return its one line."""
        before = self.find("SOURCE")
        done = self.machine.run(*command, **how)
        assert done.returncode == code, done.stdout
        assert done.stdout.count("\n") == 1, done.stdout
        assert self.find("SOURCE") == before
        assert before or processes_naming(self.path) == []
        return done.stdout

    def contents(self, key: str) -> bytes:
        """The bytes of an object; `LookupError` where there is none."""
        client = self.bucket.client()
        try:
            return client.get_object(Bucket=self.bucket.name, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey as error:
            raise LookupError(key) from error
        finally:
            client.close()


@pytest.fixture
def host(tmp_path: Path, bucket: Bucket) -> Iterator[Host]:
    if reason := why_no_machine() or why_no_mounts():
        unavailable(reason)
    # pytest's own directories are closed to others, and some of these tests are others.
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o077 == 0:  # What pytest has made for itself.
            directory.chmod(0o755)
    try:
        machine = Machine(tmp_path, {"AWS_EC2_METADATA_DISABLED": "true"})
    except RuntimeError as error:
        unavailable(str(error))
    try:
        machine.check(*machine.s3mount, "install-helpers")
        host = Host(machine, tmp_path, bucket)
        yield host
        if host.find("SOURCE"):
            machine.check("umount", str(host.path))
    finally:
        # Only after a failure there is still something to take away.
        machine.run("umount", "-i", "-l", str(tmp_path / "mnt"))
        machine.close()


def test_mount_mounts_what_fstab_says_and_umount_ends_it(host: Host):
    host.fstab(host.line("_netdev,nofail,noauto,x-systemd.automount,noatime,uid=7"))
    host.machine.check("mount", str(host.path))
    assert host.find("SOURCE,FSTYPE") == f"{host.bucket.name} fuse.s3mount"
    assert {"rw", "nosuid", "nodev", "noatime"} <= set(host.find("OPTIONS").split(","))
    host.machine.check("sh", "-c", f"echo hello >{host.path}/a; stat -c %u {host.path} | grep 7")
    assert secret_free(host)
    assert processes_naming(host.path)
    host.machine.check("umount", str(host.path))
    assert processes_naming(host.path) == []
    assert host.find("SOURCE") == ""
    assert host.contents("a") == b"hello\n"


def test_umount_returns_when_all_is_uploaded_and_tells_how_much_is_left(host: Host, server: Server):
    with FaultProxy(server.url) as proxy:
        host.fstab(host.line("writeback", "notify=off", f"url={proxy.url}"))
        host.machine.check("mount", str(host.path))
        slow = proxy.inject(Throttle(2 * MIB), method="PUT")
        host.machine.check("dd", "if=/dev/zero", f"of={host.path}/large", "bs=1M", "count=6")
        with pytest.raises(LookupError):
            host.contents("large")
        began = time.monotonic()
        # On a terminal, as somebody sees it who waits.
        said = host.machine.check("script", "-qec", f"umount {host.path}", "/dev/null")
        assert time.monotonic() - began > 1.5
        assert host.contents("large") == bytes(6 * MIB)
        assert "uploading 1 file, " in said
        proxy.remove(slow)


@pytest.mark.parametrize("kind", ["s3mount", "fuse.s3mount"])
def test_a_comma_in_quotes_belongs_to_the_value(host: Host, kind: str):
    log = host.log.with_name("log,1")
    host.fstab(host.line(f'log_file="{log}"', "noexec", 'fsname="one,two"', kind=kind))
    host.machine.check("mount", str(host.path))
    assert host.find("SOURCE") == "one,two"
    assert "noexec" in host.find("OPTIONS").split(",")
    assert "is mounted at" in log.read_text()


def test_what_mount_may_pass_on_besides_is_understood(host: Host):
    """A namespace to mount in (-N), and the type (-t)."""
    namespace = f"/proc/{host.machine.process_id}/ns/mnt"
    environment = {**host.machine.environment, "PYTHONPATH": str(CHECKOUT)}

    def outside(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "s3mount", *command], env=environment, check=False,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    kind = ("-t", "fuse.s3mount", "-N", namespace)
    outside("mount.fuse.s3mount", host.bucket.name, str(host.path), *kind, "-o", host.options)
    assert host.find("SOURCE") == host.bucket.name
    assert not os.path.ismount(host.path)  # not out here
    outside("umount.fuse.s3mount", str(host.path), *kind)
    assert host.find("SOURCE") == ""


def test_umount_r_leaves_what_is_busy_read_only(host: Host):
    host.fstab(host.line())
    host.machine.check("mount", str(host.path))
    script = f"cd {host.path}; umount -r {host.path}"
    said = host.machine.run("sh", "-c", script).stdout
    assert "busy (in use by process " in said
    assert "; mounted again (ro" in said
    assert "ro" in host.find("OPTIONS").split(",")


def secret_free(host: Host) -> bool:
    """Say whether no process of ours has the secret among its arguments."""
    secret = os.fsencode(host.bucket.credentials.secret_key)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secret not in entry.read_bytes()
        except OSError:
            continue
    return True


@pytest.mark.parametrize("kind", ["s3mount", "fuse.s3mount"])
def test_mount_a_mounts_once(host: Host, kind: str):
    host.fstab(host.line("ro", kind=kind).replace(host.bucket.name, f"s3://{host.bucket.name}/"))
    host.machine.check("mount", "-a")
    host.machine.check("mount", "-a")
    assert host.find("SOURCE") == f"s3://{host.bucket.name}/"
    assert "ro" in host.find("OPTIONS").split(",")
    assert "already mounted" in host.machine.run("mount", str(host.path)).stdout
    host.machine.check("umount", "-a", "-t", "fuse.s3mount")
    assert host.find("SOURCE") == ""


def test_a_machine_leaves_alone_what_is_mounted_outside(
    mount: Mounter, bucket: Bucket, request: pytest.FixtureRequest
):
    outside = mount(bucket)
    host: Host = request.getfixturevalue("host")
    host.machine.check("umount", "-a", "-t", "fuse.s3mount")
    (outside.path / "still").write_bytes(b"here")
    assert host.contents("still") == b"here"


def test_umount_waits_for_every_mount_of_root(host: Host):
    arguments = [host.bucket.name, str(host.path), "-o", host.options]
    for _ in range(3):
        host.machine.check(*host.machine.s3mount, *arguments)
        host.machine.check("umount", str(host.path))
        assert processes_naming(host.path) == []
        host.machine.check(*host.machine.s3mount, *arguments)
        host.machine.check(*host.machine.s3mount, "umount", str(host.path))
    assert host.machine.check("cat", "/run/mount/utab").count("\n") <= 1


def test_the_flags_of_mount_have_their_meaning(host: Host):
    def mount(*flags: str, options: str = ""):
        given = ",".join(filter(None, [host.options, options]))
        command = ["mount", *flags, "-o", given, host.bucket.name, str(host.path)]
        return host.machine.run(*command, "-t", "s3mount")

    fake = mount("-f", "-v", options="parallel_count=20")
    assert (fake.returncode, host.find("SOURCE")) == (0, "")
    assert "ignored, because they tune other programs: parallel-count\n" in fake.stdout
    assert "the options are understood; nothing is mounted" in fake.stdout
    assert "is mounted on" not in fake.stdout
    assert mount("-f").stdout == ""
    assert "there is no option nonsense" in mount(options="nonsense").stdout
    sloppy = mount("-s", "-n", "-v", "-r", options="nonsense")
    assert sloppy.returncode == 0, sloppy.stdout
    assert "option nonsense is ignored" in sloppy.stdout
    assert f"{host.bucket.name} is mounted on {host.path}" in sloppy.stdout
    assert "ro" in host.find("OPTIONS").split(",")
    assert "everything is uploaded" in host.machine.check("umount", "-v", str(host.path))


def test_the_kernel_hears_the_options_of_mount(host: Host):
    chosen = "noexec,nosymfollow,nodiratime,dirsync,lazytime"
    host.fstab(host.line(chosen, "context=system_u:object_r:fusefs_t:s0"))  # no SELinux, no label
    host.machine.check("mount", str(host.path))
    found = set(host.find("OPTIONS").split(","))
    assert {"rw", "nosuid", "nodev", *chosen.split(",")} <= found
    host.machine.check("umount", str(host.path))
    # mount(8) does not pass on what is its default; of us somebody has to ask for it.
    command = [*host.machine.s3mount, host.bucket.name, str(host.path), "-o"]
    host.machine.check(*command, f"{host.options},suid,dev,noexec")
    found = set(host.find("OPTIONS").split(","))
    assert "noexec" in found
    assert not found & {"nosuid", "nodev"}


def test_remount_changes_what_the_kernel_allows(host: Host):
    host.fstab(host.line())
    host.machine.check("mount", str(host.path))
    writer = f"exec 3>{host.path}/b; mount -o remount,ro {host.path}"
    assert "files are open for writing" in host.complaint(32, "sh", "-c", writer)
    host.machine.check("mount", "-o", "remount,ro,noexec", str(host.path))
    assert {"ro", "noexec"} <= set(host.find("OPTIONS").split(","))
    refused = host.machine.run("touch", f"{host.path}/c")
    assert "Read-only file system" in refused.stdout
    host.machine.check("mount", "-o", "remount,rw", str(host.path))
    host.machine.check("touch", f"{host.path}/c")
    host.machine.check("umount", str(host.path))
    host.machine.check("mount", "-r", str(host.path))
    line = host.complaint(32, "mount", "-o", "remount,rw", str(host.path))
    assert "was mounted read-only" in line


def test_a_user_mounts_with_fusermount3_what_fstab_allows(host: Host):
    host.give_to(NOBODY)
    host.fstab(host.line("noauto,user,allow_other,noatime,lazytime"))
    said = host.machine.check("mount", str(host.path), user=NOBODY)
    assert "option lazytime is ignored: only root may mount so\n" in said
    assert {"user_id=65534", "noatime"} <= set(host.find("OPTIONS").split(","))
    host.machine.check("sh", "-c", f"echo mine >{host.path}/mine", user=NOBODY)
    assert host.machine.check("stat", "-c", "%u", f"{host.path}/mine") == "65534\n"
    host.machine.check("umount", str(host.path), user=NOBODY)
    assert host.find("SOURCE") == ""
    assert host.contents("mine") == b"mine\n"


def test_the_mount_of_another_user_is_not_for_us_to_end_or_to_cover(host: Host):
    host.give_to(NOBODY)
    command = [*host.machine.s3mount, host.bucket.name, str(host.path)]
    options = f"{host.options},allow_other"
    host.machine.check(*command, "-o", options, user=NOBODY)
    for words in (["umount"], ["umount", "--lazy"], ["umount", "--force"], ["versions"]):
        other = [*host.machine.s3mount, *words, str(host.path)]
        line = host.complaint(1, *other, user=NOBODY - 1)
        assert line == f"s3mount: {host.path}: only its owner and root may ask\n"
    line = host.complaint(32, *command, "-o", options, user=NOBODY - 1)
    assert f"{host.bucket.name} is already mounted on {host.path}" in line
    host.machine.check(*host.machine.s3mount, "umount", str(host.path), user=NOBODY)


@pytest.fixture
def unsafe_runtime() -> Iterator[str]:
    """A runtime directory of `NOBODY` in which the place of the sockets is root's."""
    with TemporaryDirectory(dir="/tmp") as runtime:  # Short, as such directories are.
        os.chown(runtime, NOBODY, NOBODY)
        Path(runtime, "s3mount").mkdir(mode=0o700)
        yield runtime


def test_a_runtime_directory_that_is_not_the_users_is_left_alone(host: Host, unsafe_runtime: str):
    host.give_to(NOBODY)
    command = [*host.machine.s3mount, host.bucket.name, str(host.path), "-o", host.options]
    pairs = (("/root", "/nonexistent"), ("/nonexistent", "/root"), ("", unsafe_runtime))
    for at_first, later in pairs:
        host.machine.check(*command, user=NOBODY, XDG_RUNTIME_DIR=at_first)
        away = [*host.machine.s3mount, "umount", str(host.path)]
        host.machine.check(*away, user=NOBODY, XDG_RUNTIME_DIR=later)
        assert host.find("SOURCE") == ""


def test_a_place_for_the_socket_that_is_not_safe_is_told_before_the_mount(
    host: Host, unsafe_runtime: str
):
    host.give_to(NOBODY)
    command = [*host.machine.s3mount, host.bucket.name, str(host.path), "-o", host.options]
    line = host.complaint(2, *command, user=NOBODY, XDG_RUNTIME_DIR=unsafe_runtime)
    assert line.startswith(
        f"s3mount: the control socket has no place: {unsafe_runtime}/s3mount must be a directory "
        "of yours with mode 0700 (XDG_RUNTIME_DIR"
    )
    assert host.find("SOURCE") == ""


def test_a_lazy_umount_returns_while_a_file_is_open(host: Host):
    host.fstab(host.line())
    host.machine.check("mount", str(host.path))
    script = (
        f"exec 3>{host.path}/late; umount {host.path} && exit 9; umount -lv {host.path} || exit 8"
    )
    said = host.machine.check("sh", "-c", f"{script}; echo late >&3; exec 3>&-")
    assert "busy" in said
    assert f"{host.path} is unmounted\n" in said  # and nobody says that all is uploaded
    assert host.contents("late") == b"late\n"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("url=http://127.0.0.1:9", 32, "127.0.0.1:9"),
        ("reed_only", 1, "did you mean"),
        ("passwd_file=/nonexistent/keys", 1, "/nonexistent/keys: No such file"),
        ("config=/nonexistent/toml", 1, "/nonexistent/toml: No such file"),
        ("profile=nobody,passwd_file=", 1, "passwd-file"),
        ("secret_access_key=hidden", 1, "seen by everybody"),
        ("env.AWS_SECRET_ACCESS_KEY=hidden", 1, "is a secret"),
        ("iam_role=reader", 1, "named in an AWS profile"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_code_of_mount(host: Host, options, code, words):
    given = f"{host.options},{options}"
    command = ["mount", "-t", "fuse.s3mount", "-o", given, host.bucket.name, str(host.path)]
    line = host.complaint(code, *command)
    assert words in line
    assert "hidden" not in line
    assert "s3mount: " in line


def test_keys_that_others_can_read_are_refused(host: Host):
    host.write_keys(host.keys, 0, 0o644)
    host.fstab(host.line())
    line = host.complaint(1, "mount", str(host.path))
    assert f"others may read it (try: chmod 600 {host.keys})" in line
    host.write_keys(host.keys, NOBODY)
    assert "belongs to another user" in host.complaint(1, "mount", str(host.path))


def test_what_a_user_cannot_read_is_told(host: Host):
    host.give_to(NOBODY)
    host.write_keys(host.keys, 0)
    host.fstab(host.line("noauto,user"))
    line = host.complaint(1, "mount", str(host.path), user=NOBODY)
    assert f"{host.keys}: Permission denied" in line
    toml = host.keys.with_name("options.toml")
    toml.write_text("ro = true\n")
    toml.chmod(0o600)
    host.fstab(host.line("noauto,user", f"config={toml}"))
    line = host.complaint(1, "mount", str(host.path), user=NOBODY)
    assert f"{toml}: Permission denied" in line


def test_credentials_come_from_a_file_a_profile_or_a_private_file_of_options(host: Host):
    secrets = host.bucket.credentials
    aws = host.keys.with_name("credentials")
    aws.write_text(
        f"[work]\naws_access_key_id = {secrets.access_key}\n"
        f"aws_secret_access_key = {secrets.secret_key}\n"
    )
    aws.chmod(0o600)
    toml = host.keys.with_name("options.toml")
    toml.write_text(
        f'[env]\nAWS_ACCESS_KEY_ID = "{secrets.access_key}"\n'
        f'AWS_SECRET_ACCESS_KEY = "{secrets.secret_key}"\n'
    )
    general = host.options.replace(f"passwd_file={host.keys},", "")
    for chosen in (
        f"credentials_file={aws},profile=work",
        f"env.AWS_SHARED_CREDENTIALS_FILE={aws},profile=work",
        f"config={toml}",
    ):
        toml.chmod(0o600)
        command = ["mount", "-t", "s3mount", "-o", f"{general},{chosen}", host.bucket.name]
        # A key in the environment that is wrong: what is chosen outright comes before it.
        wrong = {} if chosen.startswith("env") else {"AWS_ACCESS_KEY_ID": "wrong"}
        host.machine.check(*command, str(host.path), AWS_SECRET_ACCESS_KEY="wrong", **wrong)
        host.machine.check("umount", str(host.path))
    toml.chmod(0o644)
    assert "is a secret" in host.complaint(1, *command, str(host.path))


def test_update_fstab_writes_the_line_once_the_mount_works(host: Host):
    host.fstab("# mine\nproc /proc proc defaults 0 0")
    name = [host.bucket.name, str(host.path), *("-o", host.options), "--ro", "--update-fstab"]
    host.machine.check(*host.machine.s3mount, *name)
    host.machine.check("umount", str(host.path))
    host.machine.check(*host.machine.s3mount, *name, "-o", "umask=027")
    host.machine.check("umount", str(host.path))
    lines = host.machine.check("cat", "/etc/fstab").splitlines()
    assert lines[:2] == ["# mine", "proc /proc proc defaults 0 0"]
    assert len(lines) == 3
    assert lines[2].split()[:3] == [host.bucket.name, str(host.path), "fuse.s3mount"]
    assert {"_netdev", "nofail", "ro", "umask=027"} <= set(lines[2].split()[3].split(","))
    host.machine.check("mount", "-a")
    assert host.find("SOURCE") == host.bucket.name
    host.machine.check("umount", str(host.path))
    # What is mounted stays so; only the table is not written.
    done = host.machine.run(*host.machine.s3mount, *name, LIBMOUNT_FSTAB="/nonexistent/fstab")
    assert "s3mount: /nonexistent/fstab: No such file or directory\n" in done.stdout
    assert (done.returncode, host.find("SOURCE")) == (16, host.bucket.name)
    host.machine.check("umount", str(host.path))
    wrong = host.machine.run(*host.machine.s3mount, *name, "--url=http://127.0.0.1:9")
    assert wrong.returncode == 32
    assert host.machine.check("cat", "/etc/fstab").splitlines() == lines


def test_helpers_are_removed_and_those_of_others_are_left(host: Host):
    assert host.machine.check(*host.machine.s3mount, "remove-helpers").count("\n") == 4
    assert host.machine.run("ls", "/sbin/mount.s3mount").returncode != 0
    host.machine.write("/sbin/umount.s3mount", "#!/bin/sh\n", 0o755)
    line = host.complaint(1, *host.machine.s3mount, "install-helpers")
    assert "is not of s3mount's making" in line
    assert host.machine.check(*host.machine.s3mount, "remove-helpers") == ""
    assert host.machine.run("ls", "/sbin/mount.s3mount").returncode != 0
