"""What cannot be mounted: one line that says why, the documented exit code, and nothing left."""

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from s3mount.demo.weed import REGION, free_ports
from s3mount.mounts import find_mount
from tests.conftest import unavailable
from tests.faultproxy import FaultProxy
from tests.faults import ACCESS_DENIED, Answer
from tests.mount.trees import names
from tests.mounts import COMMAND, Bucket, Mounter, is_mounted, processes_naming, why_no_mounts
from tests.servers import CHECKOUT, Server

USAGE, FAILED = 1, 32  # Exit codes of mount(8), as the help tells them.
PATIENCE = 15.0  # Seconds in which a mount that cannot succeed has to say so.


@dataclass(frozen=True, slots=True)
class Attempt:
    """How somebody tries to mount: all that a test may get wrong."""

    bucket: str
    mountpoint: Path
    url: str
    environment: dict[str, str]
    options: tuple[str, ...] = ()

    def run(self, *, foreground: bool) -> subprocess.CompletedProcess[str]:
        """Try it."""
        arguments = [self.bucket, str(self.mountpoint), "--endpoint-url", self.url]
        arguments += ["--state-dir", f"{self.mountpoint}.state"]
        arguments += [*self.options, *(["--foreground"] if foreground else [])]
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture(params=[False, True], ids=["background", "foreground"])
def foreground(request: pytest.FixtureRequest) -> bool:
    """Whether the command stays in the foreground."""
    return request.param


@pytest.fixture
def attempt(bucket: Bucket, tmp_path: Path) -> Attempt:
    """An attempt with which nothing is wrong."""
    if reason := why_no_mounts():
        unavailable(reason)
    mountpoint, home = tmp_path / "mountpoint", tmp_path / "home"
    mountpoint.mkdir()
    (home / "run").mkdir(mode=0o700, parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_STATE_HOME": str(home / "state"),
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
        "AWS_DEFAULT_REGION": REGION,
        **bucket.credentials.environment(),
    }
    return Attempt(bucket.name, mountpoint, bucket.url, environment)


def refused(attempt: Attempt, code: int, *words: str, foreground: bool) -> str:
    """Check that an attempt fails as documented, and return its line."""
    before = find_mount(attempt.mountpoint)
    done = attempt.run(foreground=foreground)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word.lower() in lines[0].lower()
    assert find_mount(attempt.mountpoint) == before
    if before is None:
        assert processes_naming(attempt.mountpoint) == []
    for secret in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert attempt.environment.get(secret, "-none-") not in done.stderr
    return lines[0]


def with_environment(attempt: Attempt, **changes: str | None) -> Attempt:
    """The same attempt with other variables; None takes one away."""
    environment = {**attempt.environment, **changes}
    return replace(attempt, environment={k: v for k, v in environment.items() if v is not None})


# -- the bucket and who asks for it ------------------------------------------------------------


def test_no_such_bucket(attempt: Attempt, foreground: bool):
    wrong = replace(attempt, bucket="no-such-bucket-here")
    refused(wrong, FAILED, "no-such-bucket-here", "bucket", foreground=foreground)


def test_no_credentials(attempt: Attempt, foreground: bool):
    wrong = with_environment(attempt, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    refused(wrong, USAGE, "credentials", foreground=foreground)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key(attempt: Attempt, variable: str, foreground: bool):
    wrong = with_environment(attempt, **{variable: "WRONGWRONGWRONGWRONG"})
    refused(wrong, FAILED, attempt.bucket, foreground=foreground)


def test_a_profile_that_is_not_there(attempt: Attempt, foreground: bool):
    wrong = replace(attempt, options=("--profile", "nobodys"))
    refused(wrong, USAGE, "nobodys", foreground=foreground)


def test_access_denied(attempt: Attempt, proxy: FaultProxy, foreground: bool):
    proxy.inject(ACCESS_DENIED)
    refused(replace(attempt, url=proxy.url), FAILED, "denied", foreground=foreground)


def test_a_wrong_region_is_named(attempt: Attempt, proxy: FaultProxy, foreground: bool):
    elsewhere = Answer(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-north-7"})
    proxy.inject(elsewhere)
    refused(replace(attempt, url=proxy.url), FAILED, "eu-north-7", foreground=foreground)


# -- the endpoint ------------------------------------------------------------------------------


def test_an_endpoint_that_refuses(attempt: Attempt, foreground: bool):
    with free_ports(1) as (port,):
        pass
    wrong = replace(attempt, url=f"http://127.0.0.1:{port}")
    refused(wrong, FAILED, str(port), foreground=foreground)


class Website(http.server.BaseHTTPRequestHandler):
    """Something that speaks HTTP, and not S3."""

    def do_GET(self) -> None:
        """Answer as websites do."""
        body = b"<!doctype html><title>It works!</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def website() -> Iterator[str]:
    """The URL of a server that is no S3 server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_endpoint_that_is_not_s3(attempt: Attempt, website: str, foreground: bool):
    refused(replace(attempt, url=website), FAILED, "S3", foreground=foreground)


def test_a_name_that_does_not_resolve(attempt: Attempt, foreground: bool):
    wrong = replace(attempt, url="https://no-such-host.invalid:9000")
    refused(wrong, FAILED, "no-such-host.invalid", foreground=foreground)


def test_credentials_do_not_cross_the_network_in_the_clear(attempt: Attempt, foreground: bool):
    wrong = replace(attempt, url="http://192.0.2.1:9000")
    refused(wrong, USAGE, "unencrypted", "insecure-http", foreground=foreground)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "nonsense", "http://user:secret@127.0.0.1"])
def test_an_endpoint_that_is_no_address(attempt: Attempt, url: str, foreground: bool):
    line = refused(replace(attempt, url=url), USAGE, "endpoint-url", foreground=foreground)
    assert "secret" not in line


# -- the mount point ---------------------------------------------------------------------------


def test_a_mount_point_that_is_missing(attempt: Attempt, foreground: bool):
    wrong = replace(attempt, mountpoint=attempt.mountpoint / "missing")
    refused(wrong, FAILED, "missing", foreground=foreground)


def test_a_mount_point_that_is_a_file(attempt: Attempt, foreground: bool):
    (attempt.mountpoint / "file").touch()
    wrong = replace(attempt, mountpoint=attempt.mountpoint / "file")
    refused(wrong, FAILED, "directory", foreground=foreground)


def test_a_mount_point_that_is_not_empty(attempt: Attempt, foreground: bool):
    (attempt.mountpoint / "file").touch()
    refused(attempt, FAILED, "not empty", "nonempty", foreground=foreground)


def test_a_mount_point_that_is_mounted(
    attempt: Attempt, mount: Mounter, bucket: Bucket, foreground: bool
):
    mounted = mount(bucket)
    wrong = replace(
        attempt, mountpoint=mounted.path, environment=dict(mounted.environment), bucket=bucket.name
    )
    refused(wrong, FAILED, "already mounted", foreground=foreground)
    assert names(mounted.path) == []


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metadata-tll", "5s"), ("metadata-tll", "mean metadata-ttl?")),
        (("-o", "alow_other"), ("alow-other", "mean allow-other?")),
        (("--memory", "lots"), ("memory", "lots")),
        (("--memory", "1M"), ("memory", "32M")),
        (("--part-size", "1M"), ("part-size", "5M")),
        (("--file-mode", "rw-r--r--"), ("file-mode",)),
        (("--uid", "no-such-user-here"), ("uid", "no-such-user-here")),
        (("--connections", "0"), ("connections",)),
        (("--metadata-ttl", "-5s"), ("metadata-ttl",)),
        (("--log-level", "chatty"), ("log-level", "chatty")),
        (("--config", "/nonexistent.toml"), ("/nonexistent.toml",)),
        (("one-argument-too-many",), ("one-argument-too-many",)),
    ],
)
def test_options_that_are_wrong(
    attempt: Attempt, options: tuple[str, ...], words: tuple[str, ...], foreground: bool
):
    refused(replace(attempt, options=options), USAGE, *words, foreground=foreground)


@pytest.mark.parametrize("bucket_name", ["", "UPPER CASE", "s3://", "a", "x" * 64])
def test_a_bucket_name_that_is_none(attempt: Attempt, bucket_name: str, foreground: bool):
    wrong = replace(attempt, bucket=bucket_name)
    done = wrong.run(foreground=foreground)
    assert done.returncode in (USAGE, FAILED)
    assert len(done.stderr.splitlines()) == 1
    assert not is_mounted(attempt.mountpoint)


# -- a bucket that allows less -----------------------------------------------------------------


def test_a_bucket_that_may_not_be_listed(
    mount: Mounter, bucket: Bucket, proxy: FaultProxy, server: Server
):
    client = server.client()
    client.put_object(Bucket=bucket.name, Key="known/file", Body=b"content")
    proxy.inject(ACCESS_DENIED, operation="ListObjects")
    mount.expect_log("denied|AccessDenied", optional=True)
    root = mount(bucket, url=proxy.url).path
    with pytest.raises(PermissionError):
        names(root)
    (root / "new").write_bytes(b"new")
    assert (root / "new").read_bytes() == b"new"
    assert client.get_object(Bucket=bucket.name, Key="new")["Body"].read() == b"new"
    (root / "new").rename(root / "renamed")
    (root / "renamed").unlink()
    assert not (root / "renamed").exists()
    client.put_object(Bucket=bucket.name, Key="at-the-top", Body=b"content")
    assert (root / "at-the-top").read_bytes() == b"content"


def test_a_known_name_below_a_directory_that_may_not_be_listed(
    mount: Mounter, bucket: Bucket, proxy: FaultProxy, server: Server
):
    client = server.client()
    client.put_object(Bucket=bucket.name, Key="known/", Body=b"")
    client.put_object(Bucket=bucket.name, Key="known/file", Body=b"content")
    proxy.inject(ACCESS_DENIED, operation="ListObjects")
    mount.expect_log("denied|AccessDenied", optional=True)
    root = mount(bucket, url=proxy.url).path
    assert (root / "known" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("options", [(), ("--ro",)])
def test_a_bucket_that_may_only_be_read(
    mount: Mounter, bucket: Bucket, proxy: FaultProxy, server: Server, options: tuple[str, ...]
):
    client = server.client()
    client.put_object(Bucket=bucket.name, Key="directory/file", Body=b"content")
    for method in ("PUT", "POST", "DELETE"):
        proxy.inject(ACCESS_DENIED, method=method)
    mount.expect_log("denied|AccessDenied|kept in|could not be saved", optional=True)
    root = mount(bucket, *options, url=proxy.url).path
    file = root / "directory" / "file"
    assert names(root) == ["directory"]
    assert file.read_bytes() == b"content"
    refusals = (
        lambda: (root / "new").write_bytes(b"new"),
        lambda: file.write_bytes(b"changed"),
        lambda: file.unlink(),
        lambda: file.rename(root / "elsewhere"),
        lambda: (root / "made").mkdir(),
    )
    for refusal in refusals:
        with pytest.raises(OSError, match=r"Permission denied|Read-only"):
            refusal()
    assert names(root) == ["directory"]
    assert names(root / "directory") == ["file"]
    assert file.read_bytes() == b"content"
    assert client.get_object(Bucket=bucket.name, Key="directory/file")["Body"].read() == b"content"
