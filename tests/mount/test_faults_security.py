"""Who may see what: secrets, other users, and objects that somebody has made to do harm.

The numbers are those of the table in docs/reliability.md.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.faultproxy import FaultProxy
from tests.faults import ACCESS_DENIED, Point, Reset
from tests.mount.conftest import Shared
from tests.mounts import Bucket, Mounter
from tests.servers import Server

MIB = 1 << 20
NOBODY = 65534
LINK = {"mode": str(0o120777)}


@pytest.fixture(scope="module")
def shared(sharing) -> Iterator[Shared]:
    with sharing("--negative-ttl", "0s") as shared:
        yield shared


@pytest.mark.parametrize("target", ["/etc/shadow", "../../../../etc/passwd", "x" * 1000, "."])
def test_check_45_links_are_returned_and_not_followed(shared: Shared, work: Path, target: str):
    shared.put(work / "link", target.encode(), Metadata=LINK)
    assert os.readlink(work / "link") == target  # noqa: PTH115  (it would be made a Path)
    assert (work / "link").is_symlink()
    (work / "link").unlink()
    assert shared.key(work / "link") not in shared.all_keys(work)


def test_check_46_secrets_are_nowhere_to_be_read(
    mount: Mounter, bucket: Bucket, server: Server, tmp_path: Path
):
    mount.expect_log(r"injected by the fault proxy|kept|recover|could not be saved", optional=True)
    secret, access = bucket.credentials.secret_key, bucket.credentials.access_key
    with FaultProxy(server.url) as proxy:
        mounted = mount(bucket, "--debug", "--state-dir", str(tmp_path / "state"), url=proxy.url)
        (mounted.path / "file").write_bytes(b"x" * 20 * MIB)
        assert len((mounted.path / "file").read_bytes()) == 20 * MIB
        link = os.getxattr(mounted.path / "file", "user.s3.presigned-url").decode()
        signature = link.partition("Signature=")[2]
        proxy.inject(ACCESS_DENIED, method="PUT")
        with pytest.raises(PermissionError):
            (mounted.path / "other").write_bytes(b"x")
        proxy.clear()
        status = mount.run("status", str(mounted.path), env=mounted.environment)
        command = Path(f"/proc/{mounted.process_id}/cmdline").read_text()
        mounted.umount()
    seen = [mounted.log, command, status.stdout]
    seen += [
        path.read_bytes().decode("latin-1")
        for path in (tmp_path / "state").rglob("*")
        if path.is_file()
    ]
    for text in seen:
        assert secret not in text
        assert signature not in text
        assert "AWS4-HMAC-SHA256" not in text
    assert access not in command


def test_check_48_others_may_not_even_look(shared: Shared):
    if os.geteuid() != 0:
        unavailable("only root can be somebody else")
    process = os.fork()
    if process == 0:
        os.chdir(shared.root)  # The way there is for root alone.
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            list(Path().iterdir())
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == errno.EACCES


def test_check_54_nothing_stays_behind(
    mount: Mounter, bucket: Bucket, server: Server, tmp_path: Path
):
    """Neither of uploads that were begun and given up, nor of files that had no room in memory."""
    state = tmp_path / "state"
    with FaultProxy(server.url) as proxy:
        options = ("--memory", "32M", "--part-size", "5M", "--state-dir", str(state))
        mounted = mount(bucket, *options, url=proxy.url)
        proxy.inject(Reset(Point.REQUEST_BODY, 100_000), operation="UploadPart", probability=0.3)
        (mounted.path / "finished").write_bytes(b"x" * 40 * MIB)
        with (mounted.path / "removed").open("wb", buffering=0) as file:
            for _ in range(40):
                file.write(bytes(MIB))
            (mounted.path / "removed").unlink()
        with (mounted.path / "emptied").open("wb", buffering=0) as file:
            for _ in range(40):
                file.write(bytes(MIB))
            file.truncate(0)
        proxy.clear()
        assert mounted.umount() == 0
    client = server.client()
    assert not client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket.name)["Contents"]]
    assert keys == ["emptied", "finished"]
    staged = [path for path in state.rglob("*") if path.is_file() and path.stat().st_size > MIB]
    assert staged == []
