"""Files of the mount are objects to every tool: the AWS CLI, boto3, s3transfer, curl, a browser.

In both directions, and with the checksums that today's SDKs send and verify on their own.  The
browser's part runs where Chromium is (``apt-get install chromium``), and is skipped elsewhere.
"""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from s3mount.demo.weed import REGION, clean_environment, ended_with_us
from tests.mount.conftest import Shared
from tests.mount.programs import has, run
from tests.mount.trees import names

MIB = 1 << 20
STORES = ("rustfs", "weed", "minio")
PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
ALGORITHMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
BROWSER_TIMEOUT = 60.0


@pytest.fixture(scope="module", params=STORES)
def shared(request: pytest.FixtureRequest, sharing: Callable) -> Iterator[Shared]:
    """A mount of a bucket on each store that is there."""
    with sharing(server=request.param) as shared:
        yield shared


@pytest.fixture(scope="module")
def sdk(shared: Shared) -> Iterator[object]:
    """A boto3 client as people have it: checksums are sent and verified wherever there are any."""
    credentials = shared.bucket.credentials
    client = boto3.client(
        "s3",
        endpoint_url=shared.bucket.url,
        region_name=REGION,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        config=Config(
            s3={"addressing_style": "path"},
            signature_version="s3v4",
            request_checksum_calculation="when_supported",
            response_checksum_validation="when_supported",
        ),
    )
    yield client
    client.close()


def aws(shared: Shared, *arguments: object) -> str:
    """Run ``aws s3`` on the server of *shared*, which takes seconds: one store has to do."""
    if shared.server.name != STORES[0]:
        pytest.skip(f"the AWS CLI is tried on {STORES[0]}")
    command = ("aws", "--endpoint-url", shared.bucket.url, "s3", *map(str, arguments))
    region = {"AWS_DEFAULT_REGION": REGION}
    return run(*command, env={**shared.bucket.credentials.environment(), **region})


def where(shared: Shared, path: Path) -> str:
    """What the tools of AWS call *path*."""
    return f"s3://{shared.bucket.name}/{shared.key(path)}"


def look_again(path: Path) -> None:
    """Have the mount forget what it knows of a directory that others change."""
    os.setxattr(path, "user.s3mount.refresh", b"")


def random_bytes(seed: int, size: int) -> bytes:
    """Bytes that are the same in every run."""
    return Random(seed).randbytes(size)


def tree_of(directory: Path) -> dict[str, bytes]:
    """All files below a directory, by their paths."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# -- the AWS CLI -------------------------------------------------------------------------------


def test_aws_ls_shows_the_files_of_the_mount(shared: Shared, work: Path):
    (work / "inner").mkdir()
    (work / "inner" / "with space").write_bytes(b"12345")
    (work / "ünïcödé").write_bytes(b"123")
    shown = aws(shared, "ls", f"{where(shared, work)}/").splitlines()
    assert any(line.split() == ["PRE", "inner/"] for line in shown)
    assert any(line.endswith("3 ünïcödé") for line in shown)
    shown = aws(shared, "ls", "--recursive", where(shared, work)).splitlines()
    assert any(line.endswith(f"5 {shared.key(work)}/inner/with space") for line in shown)


def test_aws_cp_copies_out_in_and_over(shared: Shared, work: Path, tmp_path: Path):
    body = random_bytes(1, 20 * MIB + 7)
    (work / "file").write_bytes(body)
    aws(shared, "cp", "--only-show-errors", where(shared, work / "file"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == body
    other = random_bytes(2, 9 * MIB)
    (tmp_path / "in").write_bytes(other)
    aws(shared, "cp", "--only-show-errors", tmp_path / "in", where(shared, work / "file"))
    assert (work / "file").read_bytes() == other
    copy = work / "copy"
    aws(shared, "cp", "--only-show-errors", where(shared, work / "file"), where(shared, copy))
    look_again(work)
    assert copy.read_bytes() == other


def test_aws_sync_goes_both_ways_and_then_has_nothing_to_do(
    shared: Shared, work: Path, tmp_path: Path
):
    local = tmp_path / "local"
    (work / "deep" / "er").mkdir(parents=True)
    for number in range(5):
        (work / "deep" / f"file{number}").write_bytes(random_bytes(number, 1000 * number))
    (work / "deep" / "er" / "large").write_bytes(random_bytes(9, 9 * MIB))
    aws(shared, "sync", where(shared, work), local)
    assert tree_of(local) == tree_of(work)
    assert "download" not in aws(shared, "sync", where(shared, work), local)
    # And back, with a change, a new file and one less.
    (local / "deep" / "file1").write_bytes(b"changed here, to another size")
    (local / "new").write_bytes(b"new")
    (local / "deep" / "file2").unlink()
    aws(shared, "sync", "--delete", local, where(shared, work))
    look_again(work)
    assert tree_of(work) == tree_of(local)
    assert "upload" not in aws(shared, "sync", "--delete", local, where(shared, work))


def test_aws_mv_and_rm_are_seen(shared: Shared, work: Path):
    (work / "one").write_bytes(b"one")
    (work / "two").write_bytes(b"two")
    aws(shared, "mv", where(shared, work / "one"), where(shared, work / "moved"))
    aws(shared, "rm", where(shared, work / "two"))
    look_again(work)
    assert names(work) == ["moved"]
    assert (work / "moved").read_bytes() == b"one"


# -- boto3 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [0, 11, 3 * MIB + 1])
def test_an_object_with_a_checksum_of_an_sdk_is_a_file(
    shared: Shared, work: Path, sdk, algorithm: str, size: int
):
    body = random_bytes(size, size)
    key = shared.key(work / "file")
    sdk.put_object(Bucket=shared.bucket.name, Key=key, Body=body, ChecksumAlgorithm=algorithm)
    look_again(work)
    assert (work / "file").read_bytes() == body
    with (work / "file").open("ab") as file:
        file.write(b" and more")
    found = sdk.get_object(Bucket=shared.bucket.name, Key=key, ChecksumMode="ENABLED")
    assert found["Body"].read() == body + b" and more"


@pytest.mark.parametrize("size", [0, 1, 100_000, 20 * MIB + 3])
def test_files_of_the_mount_carry_checksums_that_an_sdk_verifies(
    shared: Shared, work: Path, sdk, size: int
):
    body = random_bytes(size + 1, size)
    (work / "file").write_bytes(body)
    key = shared.key(work / "file")
    head = sdk.head_object(Bucket=shared.bucket.name, Key=key, ChecksumMode="ENABLED")
    kept = {name: value for name, value in head.items() if name.startswith("Checksum")}
    found = sdk.get_object(Bucket=shared.bucket.name, Key=key, ChecksumMode="ENABLED")
    assert found["Body"].read() == body
    if shared.server.name != "weed" or size < 16 * MIB:
        assert kept, "the store keeps no checksum that anything could be verified by"
    if "ChecksumCRC32" in kept and "-" not in kept["ChecksumCRC32"]:
        expected = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        assert kept["ChecksumCRC32"] == expected


def test_a_damaged_checksum_is_not_an_object(shared: Shared, work: Path, sdk):
    """So that the tests above say something: the store looks at what an SDK sends."""
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(ClientError):
        sdk.put_object(
            Bucket=shared.bucket.name,
            Key=shared.key(work / "file"),
            Body=b"content",
            ChecksumSHA256=wrong,
        )
    look_again(work)
    assert names(work) == []


def test_what_an_sdk_writes_over_an_open_and_cached_file_is_read_anew(
    shared: Shared, work: Path, sdk
):
    path = work / "file"
    path.write_bytes(b"old")
    assert path.read_bytes() == b"old"
    sdk.put_object(Bucket=shared.bucket.name, Key=shared.key(path), Body=b"new, and longer")
    look_again(path)
    assert path.read_bytes() == b"new, and longer"
    sdk.delete_object(Bucket=shared.bucket.name, Key=shared.key(path))
    look_again(work)
    assert not path.exists()


# -- s3transfer --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC64NVME", "SHA256"])
def test_a_multipart_upload_with_checksums_is_a_file(
    shared: Shared, work: Path, sdk, tmp_path: Path, algorithm: str
):
    """CRC64NVME is of the whole object, the others are composed of those of the parts."""
    body = random_bytes(3, 17 * MIB + 5)
    (tmp_path / "local").write_bytes(body)
    path = work / "file"
    sdk.upload_file(
        str(tmp_path / "local"),
        shared.bucket.name,
        shared.key(path),
        Config=PARTS,
        ExtraArgs={"ChecksumAlgorithm": algorithm},
    )
    head = sdk.head_object(Bucket=shared.bucket.name, Key=shared.key(path))
    look_again(work)
    assert path.stat().st_size == len(body)
    with path.open("rb") as file:
        file.seek(10 * MIB - 3)
        assert file.read(7) == body[10 * MIB - 3 : 10 * MIB + 4]
    assert path.read_bytes() == body
    assert head["ETag"].strip('"').endswith("-4")
    # Changed in part through the mount: the other parts are copied on the server.
    with path.open("r+b") as file:
        file.seek(12 * MIB)
        file.write(b"patch")
    expected = body[: 12 * MIB] + b"patch" + body[12 * MIB + 5 :]
    found = sdk.get_object(Bucket=shared.bucket.name, Key=shared.key(path), ChecksumMode="ENABLED")
    assert found["Body"].read() == expected
    assert path.read_bytes() == expected


def test_large_files_of_the_mount_are_downloaded_in_ranges(
    shared: Shared, work: Path, sdk, tmp_path: Path
):
    body = random_bytes(4, 30 * MIB + 1)
    with (work / "file").open("wb") as file:
        for start in range(0, len(body), 100_000):
            file.write(body[start : start + 100_000])
    key, local = shared.key(work / "file"), tmp_path / "local"
    sdk.download_file(shared.bucket.name, key, str(local), Config=PARTS)
    assert local.read_bytes() == body
    target = work / "copy"
    sdk.copy(
        {"Bucket": shared.bucket.name, "Key": key},
        shared.bucket.name,
        shared.key(target),
        Config=PARTS,
    )
    look_again(work)
    assert target.read_bytes() == body


# -- links -------------------------------------------------------------------------------------


def link_for_put(shared: Shared, sdk, path: Path) -> str:
    """A link by which anybody may write *path*."""
    place = {"Bucket": shared.bucket.name, "Key": shared.key(path)}
    return sdk.generate_presigned_url("put_object", Params=place, ExpiresIn=600)


def test_curl_reads_and_writes_by_links(shared: Shared, work: Path, sdk, tmp_path: Path):
    body = random_bytes(5, 3 * MIB)
    (work / "out").write_bytes(body)
    link = os.getxattr(work / "out", "user.s3.presigned-url").decode()
    run("curl", "-sSf", "-o", tmp_path / "out", link)
    assert (tmp_path / "out").read_bytes() == body
    run("curl", "-sSf", "-r", "1000-1999", "-o", tmp_path / "range", link)
    assert (tmp_path / "range").read_bytes() == body[1000:2000]
    (tmp_path / "in").write_bytes(body[::-1])
    run("curl", "-sSf", "-T", tmp_path / "in", link_for_put(shared, sdk, work / "in"))
    look_again(work)
    assert (work / "in").read_bytes() == body[::-1]
    # Over a file that the mount has cached.
    run("curl", "-sSf", "-T", tmp_path / "in", link_for_put(shared, sdk, work / "out"))
    look_again(work / "out")
    assert (work / "out").read_bytes() == body[::-1]


PAGE = """<!doctype html><meta charset="utf-8"><title>s3mount</title><script>
(async () => {
  const say = what => fetch("/said", {method: "POST", body: JSON.stringify(what)});
  try {
    const links = await (await fetch("/links")).json();
    const whole = await (await fetch(links.get)).arrayBuffer();
    const part = await fetch(links.get, {headers: {Range: "bytes=5-9"}});
    const bytes = new Uint8Array(whole).reverse();
    const put = await fetch(links.put, {method: "PUT", body: bytes});
    await say({size: whole.byteLength, part: await part.text(), status: part.status,
               put: put.status});
  } catch (error) {
    await say({error: String(error)});
  }
})();
</script>"""


@contextmanager
def site(links: dict[str, str]) -> Iterator[tuple[str, list[dict], threading.Event]]:
    """A web page of another origin than the store: its address, and what it has said."""
    said: list[dict] = []
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (json.dumps(links) if self.path == "/links" else PAGE).encode()
            self.answer(body, "application/json" if self.path == "/links" else "text/html")

        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"{}", "application/json")
            done.set()

        def answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", said, done
        finally:
            server.shutdown()
            thread.join()


def browse(address: str, done: threading.Event, home: Path) -> str:
    """Show a page in headless Chromium until it is done; return what the browser complained of."""
    program = next((name for name in ("chromium", "chromium-browser") if has(name)), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-first-run", f"--user-data-dir={home / 'profile'}", address]
    command += ["--enable-logging=stderr", "--disable-background-networking", "--no-proxy-server"]
    with (home / "browser.log").open("wb") as log:
        browser = subprocess.Popen(
            ended_with_us(command),
            env={**clean_environment(), "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            done.wait(BROWSER_TIMEOUT)
        finally:
            browser.terminate()
            browser.wait(10)
    return (home / "browser.log").read_text(errors="replace")


def allow_pages(shared: Shared) -> None:
    """Let pages of other origins use links into the bucket."""
    rule = {"AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["*"], "AllowedHeaders": ["*"]}
    try:
        shared.s3.put_bucket_cors(
            Bucket=shared.bucket.name, CORSConfiguration={"CORSRules": [rule]}
        )
    except ClientError as error:
        # MinIO has no rules of buckets: it answers pages of all origins.
        if error.response["Error"]["Code"] != "NotImplemented":
            raise


def test_a_page_reads_and_writes_files_by_links(shared: Shared, work: Path, sdk, tmp_path: Path):
    allow_pages(shared)
    body = random_bytes(6, 100_000).hex().encode()
    (work / "out").write_bytes(body)
    links = {
        "get": os.getxattr(work / "out", "user.s3.presigned-url").decode(),
        "put": link_for_put(shared, sdk, work / "in"),
    }
    with site(links) as (address, said, done):
        log = browse(address, done, tmp_path)
        assert done.is_set(), log[-3000:]
    expected = {"size": len(body), "part": body[5:10].decode(), "status": 206, "put": 200}
    assert said == [expected], log[-3000:]
    look_again(work)
    assert (work / "in").read_bytes() == body[::-1]
