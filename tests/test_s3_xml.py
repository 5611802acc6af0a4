"""The XML of S3: listings as stores send them, errors, and what no honest store sends."""

import datetime
from urllib.parse import quote_plus
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.s3 import xml
from s3mount.s3.store import PartDone

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
writable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    xml.writable
)


def listing_xml(keys, *, prefixes=(), extra="<KeyCount>1</KeyCount>", namespace=NAMESPACE) -> bytes:
    contents = "".join(
        f"<Contents><Key>{escape(quote_plus(key, safe='/'))}</Key>"
        "<LastModified>2024-02-29T12:34:56.789Z</LastModified>"
        "<ETag>&quot;abc&quot;</ETag><Size>7</Size></Contents>"
        for key in keys
    )
    groups = "".join(
        f"<CommonPrefixes><Prefix>{escape(quote_plus(name, safe='/'))}</Prefix></CommonPrefixes>"
        for name in prefixes
    )
    root = f'<ListBucketResult xmlns="{namespace}">' if namespace else "<ListBucketResult>"
    return (
        f"<?xml version='1.0' encoding='UTF-8'?>{root}<EncodingType>url</EncodingType>"
        f"{extra}{contents}{groups}</ListBucketResult>"
    ).encode()


@given(st.lists(writable, max_size=5), st.sampled_from([NAMESPACE, ""]))
def test_keys_come_back(keys: list[str], namespace: str):
    found = xml.listing(listing_xml(["p/" + key for key in keys], namespace=namespace), "p/", "p/")
    assert [item.key for item in found.objects] == keys


def test_an_entry_has_all_it_says():
    found = xml.listing(listing_xml(["r/d/key"], prefixes=["r/d/sub dir/"]), "r/d/", "r/")
    seconds = datetime.datetime(2024, 2, 29, 12, 34, 56, tzinfo=datetime.UTC).timestamp()
    assert found.objects == [("d/key", 7, '"abc"', int(seconds) * 10**9, "STANDARD")]
    assert found.prefixes == ["d/sub dir/"]
    assert (found.truncated, found.version) == (False, 2)


def test_an_unasked_for_key_is_refused():
    with pytest.raises(xml.Malformed):
        xml.listing(listing_xml(["elsewhere/key"]), "dir/", "")
    with pytest.raises(xml.Malformed):
        xml.listing(listing_xml([], prefixes=["elsewhere/"]), "dir/", "")


def test_an_answer_of_the_old_listing_is_recognised():
    body = listing_xml(["a", "b"], extra="<Marker></Marker><IsTruncated>true</IsTruncated>")
    found = xml.listing(body, "", "")
    assert (found.version, found.truncated, found.next_token) == (1, True, "b")


@pytest.mark.parametrize("size", ["-1", "x", "1e9", str(1 << 63), "9" * 5000, ""])
def test_a_size_that_is_none(size: str):
    body = listing_xml(["a"]).replace(b"<Size>7</Size>", f"<Size>{size}</Size>".encode())
    if size:
        with pytest.raises(xml.Malformed):
            xml.listing(body, "", "")
    else:
        assert xml.listing(body, "", "").objects[0].size == 0


HOSTILE = [
    b'<!DOCTYPE a [<!ENTITY b "c">]><ListBucketResult/>',
    b'<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><Error/>',
    '<?xml version="1.0" encoding="UTF-16"?><Error/>'.encode("utf-16"),
    b'<?xml version="1.0" encoding="ISO-8859-1"?><ListBucketResult/>',
    b"<ListBucketResult>",
    b"<html><body>hello</body></html>",
    b"not xml at all",
    b"",
    b"<Error><Code>AccessDenied</Code></Error>",
]


@pytest.mark.parametrize("body", HOSTILE)
def test_what_no_store_sends_is_refused(body: bytes):
    with pytest.raises(xml.Malformed):
        xml.listing(body, "", "")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing_or_refused(body: bytes):
    with pytest.raises(xml.Malformed):
        xml.listing(body, "", "")
    xml.error_of(body)


def test_an_error_is_read_with_or_without_namespace():
    for attribute in ("", f' xmlns="{NAMESPACE}"'):
        body = (
            f"<Error{attribute}><Code>SlowDown</Code><Message>easy</Message>"
            "<RequestId>R1</RequestId><Region>eu-west-1</Region></Error>"
        ).encode()
        assert xml.error_of(body) == ("SlowDown", "easy", "R1", "eu-west-1")


def test_only_an_error_is_an_error():
    assert xml.error_of(b"<DeleteResult><Error><Code>X</Code></Error></DeleteResult>") is None
    assert xml.error_of(b"<html>Error</html>") is None


@pytest.mark.parametrize("text", ["", "yesterday", "2024-13-01T00:00:00Z", "2024-02-29", "x" * 19])
def test_a_time_that_is_none_is_zero(text: str):
    assert xml.modified_ns(text) == 0


@given(st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1)))
def test_times_are_whole_seconds(moment: datetime.datetime):
    whole = moment.replace(microsecond=0, tzinfo=datetime.UTC)
    assert xml.modified_ns(moment.isoformat(timespec="milliseconds") + "Z") == (
        int(whole.timestamp()) * 10**9
    )


@given(st.lists(writable, min_size=1, max_size=5))
def test_a_delete_request_names_just_the_keys(keys: list[str]):
    root = ET.fromstring(xml.delete_request(keys))
    named = [item.text for item in root.iter(f"{{{NAMESPACE}}}Key")]
    assert named == keys


def test_a_complete_request_lists_parts_and_checksums():
    parts = [PartDone(1, '"a&b"', 1), PartDone(2, '"c"', None)]
    body = xml.complete_request(parts, [("ChecksumCRC32C", "AAAA"), None])
    root = ET.fromstring(body)
    found = [[child.text for child in part] for part in root]
    assert found == [["1", '"a&b"', "AAAA"], ["2", '"c"']]


def test_failures_of_a_delete():
    body = (
        b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        b"<Deleted><Key>b</Key></Deleted></DeleteResult>"
    )
    assert xml.delete_failures(body) == [("a", "AccessDenied", "no")]


def test_a_listing_with_metadata_tells_how_many_tags_an_object_has():
    item = (
        "<Contents><Key>k</Key><LastModified>2026-11-21T19:44:50.061Z</LastModified>"
        "<ETag>e</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass><UserMetadata>"
        "<X-Amz-Meta-X>y</X-Amz-Meta-X></UserMetadata><UserTags>a=b&amp;c=d</UserTags></Contents>"
    )
    body = f"<ListBucketResult>{item}<IsTruncated>false</IsTruncated></ListBucketResult>".encode()
    found = xml.listing(body, "", "", metadata=True)
    assert found.headers["k"] == {"x-amz-meta-x": "y", "x-amz-tagging-count": "2"}
