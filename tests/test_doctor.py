"""``s3mount doctor`` is right about machines and about each of the servers."""

import json
import ssl
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from s3mount import verdicts
from s3mount.demo.weed import clean_environment
from s3mount.diagnosis import BAD, GOOD, WEAK
from s3mount.machinecheck import check_machine
from s3mount.s3.probe import WEAKNESSES
from s3mount.s3.store import Capabilities
from s3mount.storecheck import SUBJECTS
from tests.faultproxy import FaultProxy
from tests.faults import ACCESS_DENIED, Answer
from tests.mounts import Bucket, Mounter
from tests.servers import CHECKOUT, Server
from tests.terminal import watched
from tests.test_s3_probe import WEAK as LACKING
from tests.test_s3_tls import make_certificate

# What there is to know of the servers beyond their capabilities.
SORTED = {"weed": "not sorted by key", "rclone": "sorted by key"}
SMALLEST_PART = {"rclone": "none"}
DAMAGE = {"moto": "stored", "rclone": "stored", "ceph": "stored"}
REFUSED = {
    "rustfs": "names with //, ., .., a newline, a return are not kept",
    "weed": "names with //, ., .., \\ are not kept",
    "minio": "names with //, ., .. are not kept",
    "versitygw": "names with //, ., .. are not kept",
    "rclone": "names with //, ., .., a slash at the end are not kept",
    "moto": "names with a newline are not kept",
}

ALL_SUMS = "crc64nvme, crc32c, crc32, sha256, sha1"
SUMS = dict.fromkeys(DAMAGE, "none is compared with what arrives")
PRETENDED = {
    "RenameObject": {"minio", "moto", "rclone", "ceph"},
    "append": {"weed", "moto", "rclone", "ceph"},
}
WORKING = {"RenameObject": {"weed"}, "append": set()}


def diagnose(mount: Mounter, bucket: Bucket, *options: str, code: int = 0, url: str = "") -> dict:
    done = mount.run(
        "doctor", "--json", bucket.name, "--endpoint-url", url or bucket.url, *options,
        env=bucket.credentials.environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode in (code, 32), done.stdout
    found = json.loads(done.stdout)
    if code == 0:
        assert all(one["level"] != BAD for one in found["store"]), done.stdout
    return {one["subject"]: one for one in found["store"]}


def test_the_doctor_is_right_about_each_store(
    mount: Mounter, any_server: Server, make_bucket, tmp_path: Path
):
    if any_server.name not in LACKING:
        pytest.skip("nobody knows what this store should lack")
    bucket, name = make_bucket(any_server), any_server.name
    found = diagnose(mount, bucket, "--state-dir", str(tmp_path / "state"))
    weak = {subject for subject, one in found.items() if one["level"] == WEAK}
    expected = {SUBJECTS[capability][0] for capability in LACKING[name]}
    if DAMAGE.get(name) == "stored":
        expected.add("damaged bodies")
        expected.add("algorithms")
    if name == "rclone":
        expected |= {"2 KB of metadata", "key a beside a/b"}
    expected |= {subject for subject, servers in PRETENDED.items() if name in servers}
    assert weak == expected
    for subject in ("credentials", "name", "connection", "clock", "bucket", "checksums"):
        assert found[subject]["level"] == GOOD
    assert found["clock"]["found"] == "agrees with the store's"
    assert found["listing order"]["found"] == SORTED.get(name, "sorted by key")
    assert found["smallest part"]["found"] == SMALLEST_PART.get(name, "5 MiB, as on AWS")
    assert found["damaged bodies"]["found"] == DAMAGE.get(name, "refused")
    assert found["algorithms"]["found"] == SUMS.get(name, ALL_SUMS)
    for subject, servers in WORKING.items():
        assert (found[subject]["found"] == "works") == (name in servers)
    if name in REFUSED:
        assert found["odd names"]["found"] == REFUSED[name]
    left = any_server.client().list_objects_v2(Bucket=bucket.name).get("Contents", [])
    assert left == []
    uploads = any_server.client().list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    assert uploads == []


def test_the_status_tells_what_each_store_lacks(mount: Mounter, any_server: Server, make_bucket):
    # What is weak is a warning when it is mounted, too.
    mount.expect_log("conditional writes|cannot copy parts", optional=True)
    mounted = mount(make_bucket(any_server))
    done = mount.run("status", "--json", str(mounted.path))
    (found,) = json.loads(done.stdout)["mounts"]
    lacking = {f"the store {WEAKNESSES[name]}" for name in LACKING[any_server.name]}
    assert set(found["notes"]) == lacking
    assert found["endpoint"] == any_server.url
    told = mount.run("status", str(mounted.path)).stdout
    assert all(f"note        {note}" in told for note in lacking)


def test_mounts_use_what_the_doctor_has_found(mount: Mounter, bucket: Bucket, tmp_path: Path):
    state = ("--state-dir", str(tmp_path / "state"))

    def trials() -> int:
        mounted = mount(bucket, *state)
        done = mount.run("status", "--json", str(mounted.path))
        mounted.umount()
        (found,) = json.loads(done.stdout)["mounts"]
        assert any("directories" in note for note in found["notes"])
        return found["requests"]["requests"].get("PutObject", 0)

    assert trials() > 5
    diagnose(mount, bucket, *state)
    assert trials() == 0
    (kept,) = (tmp_path / "state" / verdicts.FOLDER).iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text("damaged")
    assert trials() > 5


def test_what_is_only_assumed_is_not_kept(mount: Mounter, bucket: Bucket, server, tmp_path: Path):
    state = tmp_path / "state"
    with FaultProxy(server.url) as proxy:
        for method in ("PUT", "POST", "DELETE"):
            proxy.inject(ACCESS_DENIED, method=method)
        found = diagnose(mount, bucket, "--state-dir", str(state), url=proxy.url)
    assert "writing was not possible" in found["trials"]["found"]
    assert not (state / verdicts.FOLDER).exists()


def test_a_verdict_is_for_one_store_one_day_and_one_version(tmp_path: Path):
    found = Capabilities(copy_part=False, notes=("a note",))
    verdicts.remember(tmp_path, "http://a", "b", found)
    assert verdicts.recall(tmp_path, "http://a", "b") == found
    assert verdicts.recall(tmp_path, "http://a", "c") is None
    assert verdicts.recall(tmp_path, "http://c", "b") is None
    (path,) = (tmp_path / verdicts.FOLDER).iterdir()
    record = json.loads(path.read_text())
    for change in (
        {"time": record["time"] - verdicts.GOOD_FOR},
        {"time": record["time"] + 60},
        {"version": "0"},
        {"capabilities": {"copy_part": True}},
    ):
        path.write_text(json.dumps(record | change))
        assert verdicts.recall(tmp_path, "http://a", "b") is None
    path.write_text(json.dumps(record))
    path.chmod(0o640)
    assert verdicts.recall(tmp_path, "http://a", "b") is None


@pytest.mark.parametrize(
    ("options", "subject", "words"),
    [
        (["--url=http://127.0.0.1:9"], "connection", "Connection refused"),
        (["--url=http://nowhere.invalid", "--insecure-http"], "name", "nowhere.invalid"),
        (["--profile=nobody"], "credentials", "nobody"),
        (["--passwd-file=/nonexistent"], "credentials", "/nonexistent"),
    ],
)
def test_what_is_bad_is_told_and_is_a_failure(
    mount: Mounter, bucket: Bucket, options, subject, words
):
    found = diagnose(mount, bucket, *options, code=32)
    assert found[subject]["level"] == BAD
    assert words in found[subject]["found"]


def test_the_certificate_of_the_store_is_looked_at(
    mount: Mounter, bucket: Bucket, server: Server, tmp_path: Path
):
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    state = ("--state-dir", str(tmp_path / "state"), "--ro")
    with FaultProxy(server.url, tls=context) as proxy:
        strange = diagnose(mount, bucket, *state, url=proxy.url, code=32)["TLS"]
        assert (strange["level"], "self-signed" in strange["found"]) == (BAD, True)
        assert "ca-bundle" in strange["means"]
        # It ends tomorrow, which is soon.
        trusted = diagnose(mount, bucket, *state, f"--ca-bundle={certificate}", url=proxy.url)
        assert trusted["TLS"]["level"] == WEAK
        assert trusted["TLS"]["found"] == "TLSv1.3, the certificate is good for 1 days"
        assert trusted["bucket"]["level"] == GOOD
        blind = diagnose(mount, bucket, *state, "--no-verify-ssl", url=proxy.url)["TLS"]
        assert (blind["level"], blind["found"]) == (WEAK, "TLSv1.3, not verified")


@pytest.mark.parametrize(("seconds", "words"), [(-600, "s ahead of"), (600, "s behind")])
def test_a_clock_that_is_wrong_is_told(
    mount: Mounter, bucket: Bucket, server: Server, tmp_path: Path, seconds: int, words: str
):
    with FaultProxy(server.url) as proxy:
        moment = formatdate(time.time() + seconds, usegmt=True)
        proxy.inject(Answer(403, "AccessDenied", {"Date": moment}), method="HEAD", count=1)
        state = ("--state-dir", str(tmp_path / "state"), "--ro")
        clock = diagnose(mount, bucket, *state, url=proxy.url)["clock"]
    assert clock["level"] == WEAK
    assert words in clock["found"]
    assert abs(int(clock["found"].split()[0]) - 600) <= 5


def test_a_bucket_that_is_missing_is_bad(mount: Mounter, bucket: Bucket):
    missing = Bucket("no-such-bucket-anywhere", bucket.url, bucket.credentials)
    found = diagnose(mount, missing, code=32)["bucket"]
    assert (found["level"], "does not exist" in found["found"]) == (BAD, True)


def test_the_words_are_a_table(mount: Mounter, bucket: Bucket, server, tmp_path: Path):
    with FaultProxy(server.url) as proxy:
        done = mount.run(
            "doctor", bucket.name, "--url", proxy.url, "--state-dir", str(tmp_path / "state"),
            env=bucket.credentials.environment(),
        )  # fmt: skip
    assert "This machine:\n  ok    kernel " in done.stdout
    assert f"The store of {bucket.name}:\n  ok    credentials " in done.stdout
    assert "  weak  metadata of directories" in done.stdout
    assert bucket.credentials.secret_key not in done.stdout


def test_the_doctor_without_a_bucket_looks_at_the_machine_only(mount: Mounter):
    done = mount.run("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["store"] == []
    assert {"kernel", "/dev/fuse", "helpers"} <= {one["subject"] for one in found["machine"]}
    assert mount.run("doctor", "--nonsense").returncode == 1


def test_the_table_has_colours_on_a_terminal(bucket: Bucket, tmp_path: Path):
    keys = bucket.credentials.environment()
    home = {"HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    environment = {**clean_environment(), **keys, **home}
    options = ["--url", bucket.url, "--state-dir", str(tmp_path / "state")]
    shown = watched(["doctor", bucket.name, *options], environment)[1]
    assert "  \x1b[32mok   \x1b[0m conditional PUT " in shown
    assert "  \x1b[33mweak \x1b[0m metadata of directories " in shown
    code, shown = watched(["doctor", bucket.name, "--url=http://127.0.0.1:9"], environment)
    assert (code, "  \x1b[31mbad  \x1b[0m connection " in shown) == (32, True)


def machine(root: Path) -> dict:
    return {one.subject: one for one in check_machine(root)}


def test_a_machine_is_looked_at_as_it_is(tmp_path: Path):
    for name in ("etc", "sbin", "dev"):
        (tmp_path / name).mkdir()
    bare = machine(tmp_path)
    assert bare["/dev/fuse"].level == BAD
    assert bare["helpers"].level == WEAK
    assert "install-helpers" in bare["helpers"].means
    assert "updatedb" not in bare
    (tmp_path / "dev/fuse").touch()
    (tmp_path / "etc/fuse.conf").write_text("# x\nuser_allow_other\n")
    (tmp_path / "etc/updatedb.conf").write_text('PRUNEFS="NFS nfs fuse.sshfs"\n')
    for name in ("mount.fuse.s3mount", "umount.fuse.s3mount"):
        (tmp_path / "sbin" / name).touch()
    ready = machine(tmp_path)
    assert (ready["/dev/fuse"].level, ready["helpers"].level) == (GOOD, GOOD)
    assert ready["allow_other"].found == "every user may ask for it"
    assert ready["updatedb"].level == WEAK
    assert str(tmp_path / "etc/updatedb.conf") in ready["updatedb"].means
    (tmp_path / "etc/updatedb.conf").write_text('PRUNEFS = "nfs fuse.s3mount"\n')
    assert machine(tmp_path)["updatedb"].level == GOOD


def test_few_descriptors_are_a_weakness(tmp_path: Path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert machine(tmp_path)["descriptors"].level == WEAK
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
