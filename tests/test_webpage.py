"""What a mount serves over HTTP: page, state, metrics and health; nothing harms the mount."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from s3mount.page import PAGE
from s3mount.webpage import MAX_CLIENTS
from tests.conftest import unavailable
from tests.mounts import Bucket, Mount, Mounter, MountFailed
from tests.servers import CHECKOUT

CONTRIB = CHECKOUT / "contrib"


@dataclass(frozen=True)
class Site:
    """A mount that serves HTTP at *port*."""

    mount: Mount
    bucket: Bucket
    port: int

    def get(self, path: str, method: str = "GET", host: str = "127.0.0.1"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type"), answer.read().decode()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            answer = b""
            while part := stream.recv(1 << 16):
                answer += part
            return answer

    def metrics(self) -> dict[tuple[str, str], float]:
        text = self.get("/metrics")[2]
        return {
            (sample.name, next(iter(sample.labels.values()), "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if "le" not in sample.labels
        }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def site(mount: Mounter, bucket: Bucket, tmp_path: Path) -> Site:
    port = free_port()
    options = ("--status-listen", f"127.0.0.1:{port}", "--cache", str(tmp_path / "cache"))
    return Site(mount(bucket, *options), bucket, port)


def test_the_state_is_told_as_json_and_health_in_a_word(site: Site):
    (site.mount.path / "a").write_bytes(b"abc")
    code, kind, text = site.get("/status.json?x=1")
    assert (code, kind) == (200, "application/json")
    found = json.loads(text)
    assert (found["source"], found["state"]) == (site.bucket.name, "serving")
    assert found["operations"]["write"]["bytes"] == 3
    assert site.bucket.credentials.secret_key not in text
    assert site.get("/healthz")[::2] == (200, "serving\n")


def test_a_mount_that_ends_is_not_healthy(site: Site, mount: Mounter):
    with held_open(site.mount.path / "late", 100):
        assert until(lambda: json.loads(site.get("/status.json")[2])["dirty_bytes"] == 100)
        assert mount.run("umount", "--lazy", str(site.mount.path)).returncode == 0
        assert site.get("/healthz")[::2] == (503, "ending\n")
        assert site.metrics()["s3mount_serving", ""] == 0
    assert site.mount.wait(60) == 0


def test_prometheus_reads_the_metrics(site: Site):
    (site.mount.path / "a").write_bytes(b"abc")
    found = site.metrics()
    assert found["s3mount_operation_bytes_total", "write"] == 3
    assert found["s3mount_operation_seconds_count", "write"] == 1
    assert found["s3mount_operation_seconds_sum", "write"] > 0
    assert found["s3mount_requests_total", "PutObject"] >= 1
    assert found["s3mount_dirty_files", ""] == 0
    assert found["s3mount_serving", ""] == 1
    text = site.get("/metrics")[2]
    rows = re.findall(r'operation_seconds_bucket\{le="([^"]+)",operation="write"\} ([\d.]+)', text)
    counts = [float(count) for _, count in rows]
    assert counts == sorted(counts)
    assert (rows[-1][0], counts[-1]) == ("+Inf", 1.0)


def test_everything_that_the_dashboard_and_the_alerts_ask_for_is_there(
    mount: Mounter, bucket: Bucket, tmp_path: Path
):
    port = free_port()
    cache = ("--cache", str(tmp_path / "cache"))
    mounted = mount(bucket, "--status-listen", str(port), *cache)
    site = Site(mounted, bucket, port)
    text = site.get("/metrics")[2]
    families = {family.name for family in text_string_to_metric_families(text)}
    dashboard = json.loads((CONTRIB / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((CONTRIB / "prometheus-alerts.yml").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    names = {name for text in asked for name in re.findall(r"s3mount_\w+", text)}
    assert len(names) > 15
    # There only when the credentials have an end.
    names.discard("s3mount_credentials_expire_timestamp_seconds")
    bare = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in names}
    assert bare <= families, bare - families


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("src", "href") if name in found]


def test_the_page_needs_nothing_from_elsewhere(site: Site):
    code, kind, text = site.get("/")
    assert (code, kind, text) == (200, "text/html; charset=utf-8", PAGE)
    tags = Tags()
    tags.feed(text)
    assert tags.addresses == []
    assert "://" not in text
    assert "innerHTML" not in text  # names of files are text, never markup
    used = set(re.findall(r'(?:\$|table)\("(\w+)"', text))
    assert used
    assert used == set(tags.ids)
    # Every field that the page shows is one that a mount tells.
    found = json.loads(site.get("/status.json")[2])
    shown = text[text.index("const show") : text.index("const look")]
    fields = set(re.findall(r"\bs\.([a-z_]+)(?:\.([a-z_]+\b(?!\()))?", shown))
    assert len(fields) > 20
    for name, inner in fields:
        assert name in found
        assert not inner or inner in found[name], (name, inner)


def in_a_browser(site: Site, profile: Path, *options: str) -> str:
    """The page as a headless Chromium has it after two seconds, scripts and all."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        unavailable("no Chromium is installed (package chromium)")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{site.port}/"],
        env={**os.environ, "HOME": str(profile)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_a_browser_shows_what_the_mount_does(site: Site, tmp_path: Path):
    (site.mount.path / "done").write_bytes(b"abc")
    with held_open(site.mount.path / "<b>open", 5000):
        assert until(lambda: json.loads(site.get("/status.json")[2])["dirty_bytes"] == 5000)
        text = in_a_browser(site, tmp_path / "profile", "--dump-dom")
    shown = Shown()
    shown.feed(text)
    assert shown.title == f"{site.bucket.name} - s3mount"
    assert shown.texts["title"] == f"{site.bucket.name} at {site.mount.path}"
    assert shown.texts["state"].startswith("serving for ")
    assert "not uploaded" in shown.texts["cards"]
    assert "1 file" in shown.texts["cards"]
    assert "<b>open" in shown.texts["dirty"]  # a name is never markup
    assert "done" not in shown.texts["dirty"]
    assert "create" in shown.texts["operations"]
    assert "PutObject" in shown.texts["requests"]
    assert shown.texts["errors"] == "none"
    picture = tmp_path / "page.png"
    in_a_browser(site, tmp_path / "profile", "--window-size=420,900", f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")


class Shown(HTMLParser):
    """What a page shows: its title, and the text in each element that has an id."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.title = ""
        self._path: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self._path.append((tag, dict(attributes).get("id")))

    def handle_endtag(self, tag):
        while self._path and self._path.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self._path and self._path[-1][0] == "title":
            self.title += data
        for _, name in self._path:
            if name is not None:
                self.texts[name] = f"{self.texts.get(name, '')} {data}".strip()


# The kernel hands over what was written, which is no fsync: nothing is uploaded yet.
HOLD = """
import ctypes, os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(descriptor, b"x" * int(sys.argv[2]))
zero, before_write_after = ctypes.c_int64(0), 7
assert ctypes.CDLL(None).sync_file_range(descriptor, zero, zero, before_write_after) == 0
sys.stdin.read()
"""


@contextlib.contextmanager
def held_open(path: Path, size: int) -> Iterator[None]:
    """A file that another process is writing: a child of ours would flush it when it starts."""
    command = [sys.executable, "-c", HOLD, str(path), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0


def until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


def test_only_questions_that_make_sense_are_answered(site: Site):
    assert site.get("/nothing")[0] == 404
    assert site.get("/", method="POST")[0] == 405
    assert site.get("/status.json", method="HEAD")[::2] == (200, "")
    for host in ("localhost:1", "127.0.0.1", "[::1]:9180", "10.0.0.7:80"):
        assert site.get("/healthz", host=host)[0] == 200
    # A name that an attacker lets a victim's browser resolve to this machine.
    assert site.get("/status.json", host="evil.example.com")[0] == 403
    assert site.raw(b"GET /status.json HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")
    for nonsense in (b"\r\n\r\n", b"GET\r\n\r\n", b"\xff" * 20 + b"\r\n\r\n", b"x" * (8 << 20)):
        assert site.raw(nonsense).startswith(b"HTTP/1.1 400")
    assert site.raw(b"") == b""
    assert (site.mount.path / "still").write_bytes(b"here") == 4


def test_silent_clients_do_not_keep_others_out_for_ever(site: Site):
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", site.port)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=30))
            for _ in range(MAX_CLIENTS + 4)
        ]
        for client in clients[MAX_CLIENTS:]:
            assert client.recv(1) == b""
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # still heard
            clients[0].recv(1)
        assert until(lambda: is_answered(site))


def is_answered(site: Site) -> bool:
    try:
        return site.get("/healthz")[0] == 200
    except OSError:
        return False


def test_a_port_that_is_taken_is_told_before_anything_is_mounted(mount: Mounter, bucket: Bucket):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MountFailed) as caught:
            mount(bucket, "--status-listen", address)
    assert caught.value.exit_code == 1
    assert f"s3mount: option status-listen: {address}: Address already in use" in str(caught.value)


def test_nobody_listens_unless_asked(mount: Mounter, bucket: Bucket):
    mounted = mount(bucket)
    listening = Path(f"/proc/{mounted.process_id}/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in listening if line.split()[3] == "0A"}
    ours = [entry.readlink() for entry in Path(f"/proc/{mounted.process_id}/fd").iterdir()]
    assert not {f"socket:[{inode}]" for inode in inodes} & {str(link) for link in ours}
