"""Signature Version 2 agrees with that of botocore, and servers that check it take it."""

import base64
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import Denied
from s3mount.s3 import session
from s3mount.s3.endpoint import Credentials, FixedCredentials
from s3mount.s3.probe import probe
from s3mount.s3.sigv2 import SignerV2
from s3mount.s3.sigv4 import canonical_query, escape_key
from tests.mounts import Bucket, Mounter
from tests.servers import Server
from tests.stores import client_for, content_of, own_prefix, shared_bucket
from tests.test_s3_sigv4 import keys, metadata

# Who checks Signature Version 2, as far as is known; the others know version 4 only.
SPEAKERS = ("ceph", "minio", "rustfs", "weed")
NOW = 1_700_000_000.0
PARAMETERS = st.lists(
    st.sampled_from(
        [("partNumber", "7"), ("uploadId", "a/b+c=="), ("versionId", "null"), ("prefix", "x/y"),
         ("response-content-type", "text/plain; charset=x"), ("delimiter", "/")]
    ),
    unique=True,
)  # fmt: skip


@pytest.fixture
def botocore_at_noon(monkeypatch):
    """botocore's signatures are made at `NOW`, as ours are."""
    monkeypatch.setattr("time.time", lambda: NOW)
    monkeypatch.setattr("botocore.auth.formatdate", lambda **_: formatdate(NOW, usegmt=True))


def of_botocore(kind, credentials: Credentials, method: str, url: str, headers, root: str):
    request = botocore.awsrequest.AWSRequest(method=method, url=url, headers=dict(headers))
    request.auth_path = root + urlsplit(url).path if root else None
    pair = botocore.credentials.Credentials(
        credentials.access_key, credentials.secret_key, credentials.token
    )
    kind(pair).add_auth(request)
    return request


TOKENS = st.none() | st.just("token/+=")
ROOTS = st.sampled_from(["", "/bucket"])


@pytest.mark.usefixtures("botocore_at_noon")
class TestAgainstBotocore:
    @given(key=keys, meta=metadata, token=TOKENS, root=ROOTS, parameters=PARAMETERS)
    def test_of_headers(self, key, meta, token, root, parameters):
        credentials = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG", token)
        path, query = "/" + escape_key(key), canonical_query(parameters)
        headers = {f"x-amz-meta-{name}": value for name, value in meta.items()}
        headers |= {"host": "h", "content-md5": base64.b64encode(b"x" * 16).decode()}
        headers["content-type"] = "text/plain"
        ours = dict(headers)
        SignerV2("r", root).sign(credentials, "PUT", path, query, ours, "")
        url = f"http://h{path}?{query}" if query else f"http://h{path}"
        theirs = of_botocore(
            botocore.auth.HmacV1Auth, credentials, "PUT", url, headers, root
        ).headers
        assert ours["authorization"] == theirs["Authorization"]
        assert ours["date"] == theirs["Date"]

    @given(key=keys, token=TOKENS, root=ROOTS)
    def test_of_links(self, key, token, root):
        credentials = Credentials("AKID/EXAMPLE", "wJalrXUtnFEMI/K7MDENG", token)
        path = "/" + escape_key(key)
        ours = SignerV2("r", root).presign(credentials, "h", path, 3600, "", {})
        theirs = of_botocore(
            botocore.auth.HmacV1QueryAuth, credentials, "GET", f"http://h{path}", {}, root
        ).url
        assert parse_qs(ours) == parse_qs(urlsplit(theirs).query)


@pytest.fixture(params=SPEAKERS)
def speaker(request: pytest.FixtureRequest, server_of) -> Server:
    """Each server that checks Signature Version 2."""
    return server_of(request.param)


def fetched(link: str) -> bytes:
    with urlopen(link, timeout=10) as answer:
        return answer.read()


async def test_servers_take_what_is_signed_so(speaker: Server):
    bucket = shared_bucket(speaker)
    async with client_for(bucket, prefix=own_prefix(), signature="v2") as client:
        client.adopt(await probe(client, ".s3mount/"))
        # Everything was tried, with every kind of query and header.
        assert not any("not possible" in note for note in client.capabilities.notes)
        await client.put("key+ \u00e9", [b"content"], headers={"x-amz-meta-mode": "1"})
        assert await content_of(client, "key+ \u00e9") == b"content"
        page = await client.list_page("", token=None)
        assert [found.key for found in page.objects] == ["key+ \u00e9"]
        link = await client.presigned_url("key+ \u00e9", 60)
        assert "AWSAccessKeyId=" in link
        assert await trio.to_thread.run_sync(fetched, link) == b"content"
        assert await client.delete_many(["key+ \u00e9"]) == {}


async def test_servers_refuse_what_is_signed_with_another_key(speaker: Server):
    wrong = FixedCredentials(Credentials(speaker.credentials.access_key, "of somebody else"))
    bucket = shared_bucket(speaker)
    async with client_for(bucket, credentials=wrong, signature="v2") as client:
        with pytest.raises(Denied):
            await client.put("file", [b"x"], headers={})
        with pytest.raises(Denied):
            await client.list_page("", token=None)


def test_a_bucket_in_the_host_name_is_signed(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    for path_style, root in ((True, ""), (False, "/bucket")):
        found = session.resolve(
            "bucket", endpoint_url="https://store.example.com", region=None, profile=None,
            path_style=path_style, no_sign_request=False, ca_bundle=None, verify_ssl=True,
            insecure_http=False, signature="v2",
        ).settings  # fmt: skip
        assert (found.signature, found.signed_root) == ("v2", root)


@pytest.mark.parametrize("option", ["signature=v2", "sigv2"])
def test_a_mount_that_signs_so(mount: Mounter, make_bucket, weed: Server, option: str):
    bucket: Bucket = make_bucket(weed)
    mounted = mount(bucket, "-o", option)
    (mounted.path / "file").write_bytes(b"content")
    assert (mounted.path / "file").read_bytes() == b"content"
    link = mount.run("url", str(mounted.path / "file"))
    assert fetched(link.stdout.strip()) == b"content"
    assert "AWSAccessKeyId=" in link.stdout
