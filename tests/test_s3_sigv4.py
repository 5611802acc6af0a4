"""Signatures agree with those of botocore, whatever the key and the headers."""

import datetime
from urllib.parse import unquote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import InvalidName
from s3mount.s3.endpoint import Credentials
from s3mount.s3.sigv4 import EMPTY_SHA256, Signer, canonical_query, escape_key

HOST = "bucket.example.com:9000"
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
values = st.text("abc =;,/\"'0189~", max_size=20).map(str.strip)
metadata = st.dictionaries(st.text("abcdefgh-0123", min_size=1, max_size=10), values, max_size=5)


def authorization_of_botocore(credentials, method, path, query, headers, payload_hash, stamp):
    """What botocore sends for the same request at the same time."""
    url = f"http://{HOST}{path}" + (f"?{query}" if query else "")
    request = botocore.awsrequest.AWSRequest(method=method, url=url, headers=dict(headers))
    request.headers["X-Amz-Content-SHA256"] = payload_hash
    request.headers["X-Amz-Date"] = stamp
    request.context["timestamp"] = stamp
    request.context["signing"] = {"disableDoubleEncoding": True}
    pair = botocore.credentials.Credentials(
        credentials.access_key, credentials.secret_key, credentials.token
    )
    if credentials.token:
        request.headers["X-Amz-Security-Token"] = credentials.token
    auth = botocore.auth.S3SigV4Auth(pair, "s3", "eu-central-1")
    canonical = auth.canonical_request(request)
    text = auth.string_to_sign(request, canonical)
    return auth.signature(text, request), auth.signed_headers(auth.headers_to_sign(request))


@given(key=keys, meta=metadata, token=st.none() | st.just("token/+="))
def test_signatures_agree_with_botocore(key: str, meta: dict[str, str], token: str | None):
    credentials = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    signer = Signer("eu-central-1")
    path = "/" + escape_key(key)
    query = canonical_query([("partNumber", "7"), ("uploadId", "a/b+c=="), ("acl", "")])
    headers = {"host": HOST, **{f"x-amz-meta-{name}": value for name, value in meta.items()}}
    sent = dict(headers)
    signer.sign(credentials, "PUT", path, query, sent, "UNSIGNED-PAYLOAD")
    signature, signed = authorization_of_botocore(
        credentials, "PUT", path, query, headers, "UNSIGNED-PAYLOAD", sent["x-amz-date"]
    )
    assert f"SignedHeaders={signed}," in sent["authorization"]
    assert sent["authorization"].endswith(f"Signature={signature}")


def test_a_request_without_headers_is_signed_alike():
    credentials = Credentials("AKIDEXAMPLE", "secret")
    sent = {"host": HOST}
    Signer("eu-central-1").sign(credentials, "HEAD", "/k", "", sent, EMPTY_SHA256)
    signature, signed = authorization_of_botocore(
        credentials, "HEAD", "/k", "", {"host": HOST}, EMPTY_SHA256, sent["x-amz-date"]
    )
    assert f"SignedHeaders={signed}, Signature={signature}" in sent["authorization"]


@given(keys)
def test_an_escaped_key_is_ascii_and_comes_back(key: str):
    escaped = escape_key(key)
    assert escaped.isascii()
    assert not set(escaped) & set(' ?#+\n\\"<>')
    assert unquote(escaped, errors="strict") == key
    assert escaped.count("/") == key.count("/")


def test_a_key_with_undecodable_bytes_is_no_key():
    with pytest.raises(InvalidName):
        escape_key("a\udc80")


def test_the_clock_offset_moves_the_date():
    signer = Signer("us-east-1")
    signer.clock_offset = 86400.0 * 2
    headers = {"host": HOST}
    signer.sign(Credentials("a", "b"), "GET", "/", "", headers, EMPTY_SHA256)
    signed = datetime.datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%S%z")
    ahead = signed - datetime.datetime.now(datetime.UTC)
    assert abs(ahead.total_seconds() - 86400 * 2) < 60
    assert f"/{headers['x-amz-date'][:8]}/us-east-1/s3/" in headers["authorization"]


def test_a_change_of_region_or_key_changes_the_signature():
    signer = Signer("us-east-1")
    seen = set()
    for region, secret in (("us-east-1", "b"), ("eu-west-1", "b"), ("eu-west-1", "c")):
        signer.region = region
        headers = {"host": HOST}
        signer.sign(Credentials("a", secret), "GET", "/", "", headers, EMPTY_SHA256)
        assert f"/{region}/s3/aws4_request" in headers["authorization"]
        seen.add(headers["authorization"])
    assert len(seen) == 3


def test_credentials_do_not_show_their_secrets():
    text = repr(Credentials("AKID", "the-secret", "the-token"))
    assert "AKID" in text
    assert "the-secret" not in text
    assert "the-token" not in text
