"""What users configure for AWS tools is what the client gets."""

import datetime
import json
import os
from pathlib import Path

import pytest
import trio

from s3mount.errors import MountError, NoCredentials
from s3mount.s3.endpoint import Credentials
from s3mount.s3.session import Resolved, Variant, resolve


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of one's own, in which nothing is configured but a key."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = s1\n"
        "[other]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = s2\n"
        "aws_session_token = t2\n"
    )
    return folder


def found(bucket: str = "bucket", **options: object) -> Resolved:
    return resolve(
        bucket,
        **{
            "profile": None,
            "region": None,
            "endpoint_url": None,
            "path_style": None,
            "no_sign_request": False,
            "ca_bundle": None,
            "verify_ssl": True,
            "insecure_http": False,
            **options,
        },
    )


def pair(resolved: Resolved) -> Credentials | None:
    async def run() -> Credentials | None:
        assert resolved.credentials is not None
        return resolved.credentials.current()

    return trio.run(run)


def test_aws_is_addressed_by_virtual_hosts():
    settings = found(region="eu-west-1").settings
    assert settings.url == "https://bucket.s3.eu-west-1.amazonaws.com"
    assert (settings.root, settings.region, settings.virtual_host) == ("", "eu-west-1", True)


def test_path_style_can_be_asked_for():
    settings = found(region="eu-west-1", path_style=True).settings
    assert settings.url == "https://s3.eu-west-1.amazonaws.com"
    assert (settings.root, settings.virtual_host) == ("/bucket", False)


def test_a_bucket_with_dots_is_not_put_before_a_wildcard_certificate():
    settings = found("my.bucket", region="eu-west-1").settings
    assert settings.host == "s3.eu-west-1.amazonaws.com"
    assert settings.root == "/my.bucket"


def test_other_endpoints_are_addressed_by_paths():
    settings = found(endpoint_url="http://127.0.0.1:9000").settings
    assert (settings.scheme, settings.authority) == ("http", "127.0.0.1:9000")
    assert (settings.root, settings.region) == ("/bucket", "us-east-1")


def test_virtual_hosts_of_other_endpoints():
    settings = found(endpoint_url="https://s3.example.org", path_style=False).settings
    assert (settings.authority, settings.root) == ("bucket.s3.example.org", "")


def test_an_endpoint_may_have_a_path():
    settings = found(endpoint_url="https://example.org/storage/v1/s3").settings
    assert (settings.host, settings.root) == ("example.org", "/storage/v1/s3/bucket")


def test_an_ipv6_endpoint():
    settings = found(endpoint_url="http://[::1]:9000").settings
    assert (settings.host, settings.authority) == ("::1", "[::1]:9000")


@pytest.mark.parametrize(
    ("variables", "option", "region"),
    [
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, None, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, None, "eu-west-2"),
        ({"AWS_REGION": "eu-west-1"}, "eu-west-3", "eu-west-3"),
        ({}, None, "eu-north-1"),
    ],
)
def test_the_region(
    variables: dict[str, str],
    option: str | None,
    region: str,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (environment / "config").write_text("[default]\nregion = eu-north-1\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert found(region=option).settings.region == region


def test_endpoints_from_environment_and_services(
    environment: Path, monkeypatch: pytest.MonkeyPatch
):
    (environment / "config").write_text(
        "[default]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = http://127.0.0.1:1\n"
    )
    assert found().settings.port == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert found().settings.port == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    assert found().settings.port == 3
    assert found(endpoint_url="http://127.0.0.1:4").settings.port == 4


def test_dual_stack_and_fips_endpoints(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    assert found(region="us-west-2").settings.host == "bucket.s3.dualstack.us-west-2.amazonaws.com"
    monkeypatch.delenv("AWS_USE_DUALSTACK_ENDPOINT")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert found(region="us-west-2").settings.host == "bucket.s3-fips.us-west-2.amazonaws.com"


def test_profiles():
    assert pair(found()) == Credentials("AKIDDEFAULT", "s1", None)
    other = found(profile="other")
    assert pair(other) == Credentials("AKIDOTHER", "s2", "t2")
    assert other.settings.credential_source == "shared-credentials-file"


@pytest.mark.parametrize("where", ["option", "environment"])
def test_an_unknown_profile_is_told_with_those_there_are(
    where: str, monkeypatch: pytest.MonkeyPatch
):
    if where == "environment":
        monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(MountError, match=r"nope.*default, other"):
        found(profile="nope" if where == "option" else None)


def test_no_credentials_is_told_with_what_to_do(environment: Path):
    (environment / "credentials").unlink()
    with pytest.raises(MountError, match="no-sign-request"):
        found()
    assert found(no_sign_request=True).credentials is None


def test_an_empty_home_is_repaired(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    found()
    assert Path(os.environ["HOME"]).is_absolute()


def test_plain_http_is_for_loopback_or_the_bold():
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert not found(endpoint_url=f"http://{host}:9000").settings.secure
    with pytest.raises(MountError, match="insecure-http"):
        found(endpoint_url="http://nas.example.org:9000")
    found(endpoint_url="http://nas.example.org:9000", insecure_http=True)
    found(endpoint_url="http://nas.example.org:9000", no_sign_request=True)


@pytest.mark.parametrize("url", ["nas:9000", "ftp://nas", "http://", "nonsense"])
def test_an_endpoint_that_is_none_is_one_clear_error(url: str):
    with pytest.raises(MountError) as caught:
        found(endpoint_url=url)
    assert len(str(caught.value).splitlines()) == 1


def test_the_ca_bundle(environment: Path, monkeypatch: pytest.MonkeyPatch):
    assert found(ca_bundle="/own.pem").settings.ca_bundle == "/own.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/theirs.pem")
    assert found().settings.ca_bundle == "/theirs.pem"


def test_what_is_resolved_shows_no_secret():
    assert "s2" not in repr(found(profile="other"))


# ------------------------------------------------------------------------- refreshing


def hand_out(environment: Path, *, expires_in: float) -> Path:
    """Configure a credential process that counts its calls in its key; return the counter."""
    counter = environment / "calls"
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=expires_in)
    answer = {"Version": 1, "SecretAccessKey": "s", "SessionToken": "t"}
    if expires_in < float(10**8):
        answer["Expiration"] = moment.isoformat()
    write_process(
        environment,
        "import json, pathlib\n"
        f"path = pathlib.Path({str(counter)!r})\n"
        "number = int(path.read_text()) + 1 if path.exists() else 1\n"
        "path.write_text(str(number))\n"
        f"answer = json.loads({json.dumps(answer)!r})\n"
        "print(json.dumps({**answer, 'AccessKeyId': f'K{number}'}))\n",
    )
    (environment / "config").write_text(
        f"[profile process]\ncredential_process = {environment / 'process'}\n"
    )
    return counter


def write_process(environment: Path, script: str | None) -> None:
    """Make *script* the credential process; with None there is no such program any more."""
    path = environment / "process"
    path.unlink(missing_ok=True)
    if script is not None:
        path.write_text(f"#!/usr/bin/env python3\n{script}")
        path.chmod(0o755)


async def test_credentials_that_expire_are_refreshed_once_for_all(environment: Path):
    counter = hand_out(environment, expires_in=60.0)
    source = found(profile="process").credentials
    assert source is not None
    begun = int(counter.read_text())
    assert source.current() is None
    got = []

    async def ask() -> None:
        got.append(await source.refresh(None))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert int(counter.read_text()) == begun + 1
    assert {one.access_key for one in got} == {f"K{begun + 1}"}


async def test_credentials_that_last_are_left_alone(environment: Path):
    counter = hand_out(environment, expires_in=7200.0)
    source = found(profile="process").credentials
    assert source is not None
    assert source.current() == Credentials("K1", "s", "t")
    assert counter.read_text() == "1"


async def test_refused_credentials_are_read_again(environment: Path):
    source = found().credentials
    assert source is not None
    old = source.current()
    assert await source.refresh(old) == old
    (environment / "credentials").write_text(
        "[default]\naws_access_key_id = AKIDNEW\naws_secret_access_key = new\n"
    )
    assert await source.refresh(old) == Credentials("AKIDNEW", "new", None)
    assert source.current() == Credentials("AKIDNEW", "new", None)
    # Whoever was refused with the old pair meanwhile gets the new one without ado.
    assert await source.refresh(old) == Credentials("AKIDNEW", "new", None)


async def test_credentials_that_are_gone_are_missed(environment: Path):
    source = found().credentials
    assert source is not None
    (environment / "credentials").unlink()
    with pytest.raises(NoCredentials):
        await source.refresh(source.current())


@pytest.mark.parametrize(
    "script",
    ["", "print('[]')", "print('{')", "print('null')", "print('\\n'.join('ab'))", None],
)
def test_a_credential_process_that_fails_is_one_clear_error(environment: Path, script: str | None):
    hand_out(environment, expires_in=60.0)
    write_process(environment, script)
    with pytest.raises(MountError) as caught:
        found(profile="process")
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("script", ["", "print('[]')", None])
@pytest.mark.parametrize("expires_in", [60.0, 7200.0])
async def test_a_credential_process_that_fails_later_leaves_the_old_credentials(
    environment: Path, script: str | None, expires_in: float, expect_log
):
    hand_out(environment, expires_in=expires_in)
    source = found(profile="process").credentials
    assert source is not None
    old = await source.refresh(Credentials("somebody else's", ""))
    write_process(environment, script)
    if expires_in == 60.0:
        expect_log("Refreshing temporary credentials failed")
        assert await source.refresh(None) == old
    with pytest.raises(NoCredentials, match="cannot be refreshed"):
        await source.refresh(old)
    assert await source.refresh(Credentials("somebody else's", "")) == old


def key_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_file_of_s3fs_comes_before_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    keys = key_file(tmp_path / "keys", "# mine\nother:AK1:SK1\nAK2:SK2\nbucket:AK3:SK3\n")
    assert pair(found(passwd_file=keys)) == Credentials("AK3", "SK3")
    assert pair(found("another", passwd_file=keys)) == Credentials("AK2", "SK2")
    assert found(passwd_file=keys).settings.credential_source == f"file {keys}"


def test_a_key_file_is_read_again_when_the_store_refuses_its_keys(tmp_path):
    keys = key_file(tmp_path / "keys", "AK1:SK1")
    resolved = found(passwd_file=keys)

    async def refresh() -> Credentials:
        return await resolved.credentials.refresh(resolved.credentials.current())

    keys.write_text("AK2:SK2")
    assert trio.run(refresh) == Credentials("AK2", "SK2")
    keys.chmod(0o644)
    with pytest.raises(NoCredentials, match="others may read it"):
        trio.run(refresh)


def test_the_usual_key_file_of_s3fs_is_found_when_nothing_else_is(tmp_path, environment):
    assert pair(found()).access_key == "AKIDDEFAULT"
    (environment / "credentials").unlink()
    with pytest.raises(MountError, match="no credentials"):
        found()
    key_file(tmp_path / ".passwd-s3fs", "AK:SK")
    assert pair(found()) == Credentials("AK", "SK")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no keys for the bucket"),
        ("other:AK:hunter22", "no keys for the bucket"),
        ("AK:x\nhunter22", "line 2: not KEY:SECRET"),
        ("a:b:c:hunter22", "line 1"),
    ],
)
def test_a_key_file_that_is_wrong_is_told_without_what_is_in_it(tmp_path, text, words):
    with pytest.raises(MountError, match=words) as caught:
        found(passwd_file=key_file(tmp_path / "keys", text))
    assert caught.value.exit_code == 1
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("option", ["passwd_file", "credentials_file"])
def test_a_file_of_secrets_that_others_can_read_is_refused(tmp_path, option):
    with pytest.raises(MountError, match="chmod 600"):
        found(**{option: key_file(tmp_path / "keys", "AK:SK", 0o640)})
    with pytest.raises(MountError, match="No such file"):
        found(**{option: tmp_path / "missing"})


def test_a_credentials_file_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    file = key_file(
        tmp_path / "aws",
        "[default]\naws_access_key_id = AKID1\naws_secret_access_key = 1\n"
        "[two]\naws_access_key_id = AKID2\naws_secret_access_key = 2\n",
    )
    assert pair(found(credentials_file=file)).access_key == "AKID1"
    assert pair(found(credentials_file=file, profile="two")).access_key == "AKID2"
    with pytest.raises(MountError, match="known profiles: "):
        found(credentials_file=file, profile="three")


@pytest.mark.parametrize(
    ("variant", "host"),
    [
        ({"dual_stack": True}, "bucket.s3.dualstack.eu-west-1.amazonaws.com"),
        ({"fips": True}, "bucket.s3-fips.eu-west-1.amazonaws.com"),
        (
            {"fips": True, "dual_stack": True},
            "bucket.s3-fips.dualstack.eu-west-1.amazonaws.com",
        ),
        ({"accelerate": True}, "bucket.s3-accelerate.amazonaws.com"),
        (
            {"accelerate": True, "dual_stack": True},
            "bucket.s3-accelerate.dualstack.amazonaws.com",
        ),
    ],
)
def test_aws_has_endpoints_of_several_kinds(variant: dict[str, bool], host: str):
    region = "us-east-1" if "fips" in variant else "eu-west-1"
    settings = found(region=region, variant=Variant(**variant)).settings
    assert settings.host == host.replace("eu-west-1", region)
    assert settings.region == region


def test_an_access_point_is_a_bucket_by_its_arn():
    arn = "arn:aws:s3:us-west-2:123456789012:accesspoint/finance"
    settings = found(arn, region="eu-west-1").settings
    assert settings.host == "finance-123456789012.s3-accesspoint.us-west-2.amazonaws.com"
    assert (settings.root, settings.region, settings.virtual_host) == ("", "us-west-2", True)


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ("arn:aws:s3::123456789012:accesspoint/abcdef0123456.mrap", "multi-region access point"),
        (
            "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/x",
            "Object Lambda access point",
        ),
        ("arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/x", "on Outposts"),
    ],
)
def test_what_is_signed_in_another_way_is_refused(bucket: str, words: str):
    with pytest.raises(MountError, match=words):
        found(bucket)
