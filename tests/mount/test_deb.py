"""The Debian package: built, installed by dpkg, used, and purged, in a root of its own.

That root shows the system through an overlay whose changes are kept in memory, so nothing of it
reaches the machine.
"""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.mounts import Bucket, why_no_mounts
from tests.servers import CHECKOUT

# $1: a directory of the test, $2: the package.  The namespace ends with its standard input.
ENTER = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
for directory in dev tmp run mnt; do
    mount -t tmpfs -o mode=755 tmpfs "$1/root/$directory"
done
for device in null zero full random urandom fuse; do
    : >"$1/root/dev/$device"
    mount --bind "/dev/$device" "$1/root/dev/$device"
done
mount -t proc -o ro proc "$1/root/proc"
cp "$2" "$1/root/tmp/s3mount.deb"
rm -rf "$1/root/var/lib/s3mount" "$1/root/etc/s3mount" "$1"/root/usr/sbin/*mount*.s3mount
rm -f "$1/root/var/lib/man-db/auto-update" # an index of all manuals would take a while
mkdir "$1/root/mnt/data"
echo ready
cat
"""


class Root:
    """A system of its own, entered for each command."""

    def __init__(self, directory: Path, package: Path) -> None:
        self.path = directory
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", ENTER, "sh", directory, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            raise RuntimeError(f"no root: {line}{self._process.communicate()[0]}")

    def close(self) -> None:
        """Let it go, with everything that was written."""
        self._process.communicate()

    def run(self, *command: str, inside: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end with the environment of a fresh machine."""
        enter = ["nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--"]
        change = ["chroot", str(self.path / "root")] if inside else []
        return subprocess.run(
            [*enter, *change, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def check(self, *command: str) -> str:
        """Run a command that has to succeed, and return its output."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file that nobody else may read."""
        self.check("sh", "-c", 'umask 077; printf %s "$1" >"$2"', "sh", text, path)

    def changes(self) -> list[str]:
        """What is there now and was not before, by name, but for what every package leaves."""
        upper = f"{self.path}/upper"
        # A character device there says that something of the machine is gone.
        find = ("find", upper, "-name", "*s3mount*", "!", "-type", "c")
        return self.run(*find, inside=False).stdout.splitlines()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("dpkg-deb", "unshare", "nsenter") if not shutil.which(name)]
    if reason := why_no_mounts() or ("root is needed" if os.geteuid() != 0 else ""):
        unavailable(reason)
    if missing:
        unavailable(f"{missing[0]} is missing (packages dpkg and util-linux)")
    if sys.base_prefix != "/usr":
        unavailable("a package is built with the system's Python")
    done = subprocess.run(
        [sys.executable, CHECKOUT / "scripts/mkdeb", "--fast", tmp_path_factory.mktemp("deb")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Path(done.stdout.strip())


@pytest.fixture
def root(package: Path, tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path, package)
    try:
        yield root
    finally:
        root.run("umount", "-l", "/mnt/data")
        root.close()


def test_the_package_is_installed_used_and_purged(root: Root, bucket: Bucket):
    root.check("dpkg", "--force-unsafe-io", "--install", "/tmp/s3mount.deb")
    assert root.check("s3mount", "--version").startswith("s3mount ")
    # Nothing of it comes from the checkout, or from libraries that Debian's own programs see.
    where = "import s3mount, trio, boto3; print(*(m.__file__ for m in (s3mount, trio, boto3)))"
    for path in root.check("/usr/lib/s3mount/bin/python3", "-I", "-c", where).split():
        assert path.startswith("/usr/lib/s3mount/lib/python3.")
    unit = root.check("cat", "/usr/lib/systemd/system/s3mount@.service")
    program = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert program.startswith("ExecStart=/usr/bin/s3mount --foreground ")
    for page in ("s3mount", "mount.s3mount", "s3mount.toml"):
        assert root.check("man", "-w", page).startswith("/usr/share/man/man")
    root.check("bash", "-c", "source /usr/share/bash-completion/completions/s3mount")

    use_a_mount(root, bucket)
    refused = root.run("dpkg", "--remove", "s3mount")
    assert refused.returncode != 0
    assert "unmount this first (s3mount umount DIRECTORY): /mnt/data" in refused.stdout
    root.check("umount", "/mnt/data")
    assert read(bucket, "written") == b"by the package"

    # What was never uploaded outlives even a purge.
    root.check("mkdir", "-p", "/var/lib/s3mount/journals/mount/slot", "/var/lib/s3mount/stores")
    purged = root.check("dpkg", "--purge", "s3mount")
    assert "/var/lib/s3mount/journals is kept" in purged
    root.check("rmdir", "/var/lib/s3mount/journals/mount/slot")
    postrm = (CHECKOUT / "packaging/postrm").read_text()
    assert root.check("sh", "-c", postrm, "postrm", "purge") == ""
    assert root.changes() == []


def use_a_mount(root: Root, bucket: Bucket) -> None:
    """Mount with mount(8), and write and read a file."""
    keys = bucket.credentials
    root.write(
        "/etc/s3mount/credentials",
        f"[default]\naws_access_key_id = {keys.access_key}\n"
        f"aws_secret_access_key = {keys.secret_key}\n",
    )
    options = f"endpoint_url={bucket.url},credentials_file=/etc/s3mount/credentials"
    root.check("mount", "-t", "fuse.s3mount", bucket.name, "/mnt/data", "-o", options)
    root.check("sh", "-c", "printf 'by the package' >/mnt/data/written")
    word = secrets.token_hex(8)
    client = bucket.client()
    client.put_object(Bucket=bucket.name, Key="put", Body=word.encode())
    client.close()
    assert root.check("cat", "/mnt/data/put") == word
    status = root.check("s3mount", "status", "/mnt/data")
    assert bucket.name in status
    assert "/mnt/data" in root.check("findmnt", "-n", "-t", "fuse.s3mount")


def read(bucket: Bucket, key: str) -> bytes:
    client = bucket.client()
    try:
        return client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    finally:
        client.close()
