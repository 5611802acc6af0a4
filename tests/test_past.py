"""Versions, as the client lists them: in order, page by page, and as they were at one moment."""

import time
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import Denied, NotFound, Unsupported
from s3mount.s3 import xml
from s3mount.s3.endpoint import Credentials, FixedCredentials
from s3mount.s3.past import PastClient
from s3mount.s3.store import VERSIONS, Capabilities
from s3mount.s3.versions import HistoryClient
from s3mount.values import parse_moment
from tests.mounts import Bucket
from tests.servers import Server
from tests.stores import content_of, own_prefix, settings_for

STORES = ("rustfs", "minio", "moto")
TICK = {"rustfs": 0.02, "minio": 0.02, "moto": 1.1}  # Seconds to another Last-Modified.
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def client_of(kind: type[HistoryClient], bucket: Bucket, prefix: str) -> HistoryClient:
    """A client of one kind for *bucket*."""
    pair = Credentials(bucket.credentials.access_key, bucket.credentials.secret_key)
    return kind(
        settings_for(bucket.url, bucket.name),
        FixedCredentials(pair),
        bucket.name,
        prefix,
        capabilities=Capabilities(),
        timeout=20.0,
        max_connections=8,
    )


@pytest.fixture(params=STORES)
def kept(
    request: pytest.FixtureRequest,
    server_of: Callable[[str], Server],
    make_bucket: Callable[[Server], Bucket],
) -> tuple[Server, Bucket]:
    """A bucket that keeps versions, and its server."""
    server = server_of(request.param)
    bucket = make_bucket(server)
    server.client().put_bucket_versioning(
        Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"}
    )
    return server, bucket


async def all_of(client: HistoryClient, prefix: str, limit: int) -> tuple[list[str], int]:
    """What is listed below *prefix*, names and prefixes in one, and in how many pages."""
    names: list[str] = []
    pages, token = 0, None
    while True:
        page = await client.list_page(prefix, token=token, limit=limit)
        names += [listed.key for listed in page.objects] + list(page.prefixes)
        pages, token = pages + 1, page.token
        if token is None:
            return names, pages


async def test_a_listing_as_of_a_moment_is_right_on_all_sides_of_pages(kept):
    """Pages of 50 versions; of the keys some have more versions than one page holds."""
    server, bucket = kept
    s3, prefix = server.client(), own_prefix()
    counts = {"a": 3, "b": 70, "c/inner": 2, "d": 55, "e-gone": 1, "f/gone": 1, "g": 1}
    for key, count in counts.items():
        for number in range(count):
            s3.put_object(Bucket=bucket.name, Key=prefix + key, Body=b"%d" % number)
    await trio.sleep(TICK[server.name])
    for key in ("e-gone", "f/gone"):
        s3.delete_object(Bucket=bucket.name, Key=prefix + key)
    await trio.sleep(TICK[server.name])
    then_ns = time.time_ns()
    await trio.sleep(TICK[server.name])
    for key in ("b", "late", "later/file"):
        for _ in range(60):
            s3.put_object(Bucket=bucket.name, Key=prefix + key, Body=b"new")
    s3.delete_object(Bucket=bucket.name, Key=prefix + "a")
    async with client_of(PastClient, bucket, prefix) as client:
        client.at(then_ns)
        found, _ = await all_of(client, "", 50)
        assert sorted(found) == ["a", "b", "c/", "d", "g"]
        assert await content_of(client, "c/inner") == b"1"
        if server.name != "moto":  # Within one second it does not tell which came last.
            assert await content_of(client, "a") == b"2"
            assert await content_of(client, "b") == b"69"
        for key in ("late", "e-gone", "f/gone", "never"):
            with pytest.raises(NotFound):
                await client.head(key)
        with pytest.raises(Denied):
            await client.put("a", [b"!"], headers={})
        with pytest.raises(Denied):
            await client.delete("a")


async def test_a_history_of_many_pages_is_listed_whole(kept):
    server, bucket = kept
    s3, prefix = server.client(), own_prefix()
    for number in range(60):
        s3.put_object(Bucket=bucket.name, Key=f"{prefix}d/file", Body=b"%d" % number)
    for key in ("d/file/below", "d/file-2", "d/fil"):
        s3.put_object(Bucket=bucket.name, Key=prefix + key, Body=b"beside")
    async with client_of(HistoryClient, bucket, prefix) as client:
        place = f"{VERSIONS}d/file/"
        found, pages = await all_of(client, place, 25)
        versions = [name for name in found if not name.endswith("/")]
        assert pages >= 3
        assert len(set(versions)) == 60
        if server.name != "minio":  # It hides what lies below the name of an object.
            assert f"{place}below/" in found
        assert {await content_of(client, name) for name in versions} == {
            b"%d" % number for number in range(60)
        }
        found, _ = await all_of(client, f"{VERSIONS}d/", 50)
        assert {f"{VERSIONS}d/{name}/" for name in ("fil", "file", "file-2")} == set(found)
        listed = await client.versions_of("d/file")
        assert len(listed) == 60
        assert sum(one.latest for one in listed) == 1
        assert listed[0].latest


async def test_what_is_no_version_is_not_found(kept):
    server, bucket = kept
    prefix = own_prefix()
    server.client().put_object(Bucket=bucket.name, Key=f"{prefix}file", Body=b"content")
    async with client_of(HistoryClient, bucket, prefix) as client:
        (listed,) = (await client.list_page(f"{VERSIONS}file/", token=None)).objects
        assert (await client.head(listed.key)).size == 7
        moment, _, version = listed.key.rpartition("/")[2].partition("-")
        for name in ("x", f"{moment}-bogus", f"20010101T000000.000Z-{version}", moment, version):
            with pytest.raises(NotFound):
                await client.head(f"{VERSIONS}file/{name}")
        with pytest.raises(NotFound):
            await client.head(f"{VERSIONS}other/{listed.key.rpartition('/')[2]}")


@pytest.mark.parametrize("name", STORES)
async def test_a_bucket_without_versions_says_so(name: str, server_of, make_bucket):
    bucket = make_bucket(server_of(name))
    async with client_of(HistoryClient, bucket, "") as client:
        assert not await client.keeps_versions()
        with pytest.raises(Unsupported, match="keeps no versions: versioning is off"):
            await client.list_page(VERSIONS, token=None)


# -- what stores answer --------------------------------------------------------------------------


def version(key: str, number: int, *, deleted: bool = False, latest: bool = False) -> str:
    """One entry of a listing; *number* is its id, and when it was made."""
    kind = "DeleteMarker" if deleted else "Version"
    return (
        f"<{kind}><Key>{key}</Key><VersionId>{number}</VersionId>"
        f"<IsLatest>{str(latest).lower()}</IsLatest>"
        f"<LastModified>2026-11-21T19:07:51.{number:03}Z</LastModified>"
        f"<ETag>&#34;e{number}&#34;</ETag><Size>{number}</Size></{kind}>"
    )


def listing(*entries: str, more: str = "") -> bytes:
    """A page of versions."""
    text = "".join(entries)
    return f'<ListVersionsResult xmlns="{NAMESPACE}">{text}{more}</ListVersionsResult>'.encode()


def test_deletions_are_put_where_they_belong():
    """RustFS tells them before all versions, moto after them."""
    entries = [version("a", n, deleted=n % 2 == 0, latest=n == 4) for n in range(5)]
    marks, others = entries[::2], entries[1::2]
    for body in (listing(*marks, *others), listing(*others, *marks), listing(*entries[::-1])):
        found = xml.version_listing(body, "", "").versions
        assert [one.id for one in found] == ["4", "3", "2", "1", "0"]
        assert [one.deleted for one in found] == [True, False, True, False, True]


def test_keys_come_in_their_order_although_deletions_are_told_first():
    """So that the last one is the one whose versions may go on on the next page."""
    body = listing(version("b", 3, deleted=True), version("a", 1), version("b", 2), version("c", 1))
    found = xml.version_listing(body, "", "").versions
    assert [one.key for one in found] == ["a", "b", "b", "c"]


def test_the_newest_of_one_moment_comes_first():
    body = listing(version("a", 1), version("a", 1, deleted=True, latest=True), version("b", 2))
    assert [one.deleted for one in xml.version_listing(body, "", "").versions] == [
        True,
        False,
        False,
    ]


def test_names_of_versions_are_unescaped_where_they_are_escaped():
    more = "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
    more += (
        "<NextKeyMarker>p%2Fx+y%5B%5D</NextKeyMarker><NextVersionIdMarker>7</NextVersionIdMarker>"
    )
    more += "<CommonPrefixes><Prefix>p/%C3%BC/</Prefix></CommonPrefixes>"
    found = xml.version_listing(listing(version("p/x+y", 1), more=more), "p/", "p/")
    assert [one.key for one in found.versions] == ["x y"]
    assert found.prefixes == ["ü/"]
    assert (found.truncated, found.next_key, found.next_version) == (True, "p/x y[]", "7")


@pytest.mark.parametrize(
    "body",
    [
        listing(version("other", 1)),
        listing("<Version><Key>p/a</Key></Version>"),
        listing("<Version><Key>p/a</Key><VersionId>1</VersionId><Size>x</Size></Version>"),
        listing("<Version><Key>p/a</Key><VersionId>1</VersionId><Size>-1</Size></Version>"),
        listing(f"<Version><Key>p/a</Key><VersionId>1</VersionId><Size>{1 << 63}</Size></Version>"),
        listing("<CommonPrefixes><Prefix>elsewhere/</Prefix></CommonPrefixes>"),
        b"<ListBucketResult/>",
        b"<html/>",
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(body: bytes):
    with pytest.raises(xml.Malformed):
        xml.version_listing(body, "p/", "p/")


# -- moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21T19:07:51.446Z", 1795288071_446000000),
        ("20261121T190751.446Z", 1795288071_446000000),
        ("2026-11-21T19:07:51Z", 1795288071_999999999),
        ("2026-11-21T20:07:51+01:00", 1795288071_999999999),
        ("@1795288071", 1795288071_999999999),
    ],
)
def test_a_moment_is_read(text: str, expected: int):
    assert parse_moment(text) == expected


@given(st.sampled_from(["2h", "2 h", "2h ago", "120m", "7200", "1h3600s"]))
def test_a_moment_may_be_how_long_ago(text: str):
    assert abs(parse_moment(text) / 1e9 - (time.time() - 7200)) < 3600  # Since we have begun.


def test_options_that_are_read_again_mean_the_same_moment():
    assert parse_moment("yesterday") == parse_moment("1d") == parse_moment("24h")


@pytest.mark.parametrize("text", ["", "soon", "12:00", "2026-13-01", "2026-11-21T25:00", "-1h"])
def test_what_is_no_moment_is_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011 (any will do)
        parse_moment(text)
