"""What every object store has to do, tried on every server there is.

Each client works by what the probe finds, as a mount does: a store that ignores conditions
keeps them as long as nobody else writes at the same moment.
"""

import os
from collections.abc import AsyncIterator

import pytest
import trio

from s3mount.errors import (
    Changed,
    Exists,
    InvalidName,
    InvalidRange,
    InvalidRequest,
    NoSuchBucket,
    NotFound,
    StoreError,
    Unavailable,
)
from s3mount.s3.calls import Request
from s3mount.s3.client import S3Client
from s3mount.s3.probe import probe
from s3mount.s3.store import ABSENT, MIN_PART_SIZE, FileSlice, ObjectStore, Precondition
from s3mount.write import orphans
from s3mount.write.records import UploadRecord
from tests.mounts import Bucket
from tests.servers import Server
from tests.stores import client_for, content_of, own_prefix, random_bytes, shared_bucket

PLAIN = {"content-type": "text/plain", "x-amz-meta-mtime": "1700000000.123456789"}


@pytest.fixture
async def store(any_server: Server) -> AsyncIterator[S3Client]:
    async with client_for(shared_bucket(any_server), prefix=own_prefix()) as client:
        client.adopt(await probe(client, ".s3mount/"))
        yield client


async def names(store: ObjectStore, prefix: str = "", *, flat: bool = False, limit: int = 1000):
    """List everything under *prefix*: keys, prefixes and the number of pages."""
    keys, prefixes, pages, token = [], [], 0, None
    while True:
        page = await store.list_page(prefix, token=token, flat=flat, limit=limit)
        # SeaweedFS lists a folder that was there once as an object of its own.
        keys += [item.key for item in page.objects if not item.key.endswith("/")]
        prefixes += page.prefixes
        pages, token = pages + 1, page.token
        if token is None:
            return keys, prefixes, pages


async def test_what_was_put_is_there(store: S3Client):
    stored = await store.put("file", [b"hel", bytearray(b"lo"), memoryview(b"!")], headers=PLAIN)
    info = await store.head("file")
    assert (info.key, info.size, info.etag) == ("file", 6, stored.etag)
    assert info.metadata["mtime"] == "1700000000.123456789"
    assert info.headers["content-type"].startswith("text/plain")
    assert await content_of(store, "file") == b"hello!"


async def test_put_replaces(store: S3Client):
    old = await store.put("file", [b"old"], headers={})
    new = await store.put("file", [b"newer"], headers={})
    assert old.etag != new.etag
    assert await content_of(store, "file") == b"newer"


async def test_an_empty_object_has_no_inside(store: S3Client):
    await store.put("empty", [], headers={})
    assert (await store.head("empty")).size == 0
    with pytest.raises(InvalidRange):
        await store.get("empty", 0, [memoryview(bytearray(1))], etag=None)


async def test_a_range_fills_buffers_one_after_the_other(store: S3Client):
    stored = await store.put("file", [b"0123456789"], headers={})
    first, second = bytearray(3), bytearray(4)
    heard: list[int] = []
    into = [memoryview(first), memoryview(second)]
    info = await store.get("file", 2, into, etag=stored.etag, progress=heard.append)
    assert (bytes(first), bytes(second)) == (b"234", b"5678")
    assert info.size == 10
    assert heard == sorted(set(heard))
    assert heard[-1] == 7


async def test_at_the_end_fewer_bytes_arrive(store: S3Client):
    await store.put("file", [b"0123456789"], headers={})
    into = bytearray(b"........")
    info = await store.get("file", 6, [memoryview(into)], etag=None)
    assert bytes(into) == b"6789...."
    assert info.size == 10


async def test_a_range_beyond_the_end_is_refused(store: S3Client):
    await store.put("file", [b"0123456789"], headers={})
    with pytest.raises(InvalidRange):
        await store.get("file", 10, [memoryview(bytearray(1))], etag=None)


async def test_a_whole_object_of_known_size(store: S3Client):
    data = random_bytes(300_000)
    stored = await store.put("file", [data], headers={})
    into = bytearray(400_000)
    info = await store.get("file", 0, [memoryview(into)], etag=stored.etag, size=len(data))
    assert into[: info.size] == data


async def test_get_refuses_bytes_of_another_version(store: S3Client):
    old = await store.put("file", [b"old bytes"], headers={})
    await store.put("file", [b"new bytes"], headers={})
    into = bytearray(9)
    with pytest.raises(Changed):
        await store.get("file", 0, [memoryview(into)], etag=old.etag)
    assert bytes(into) == bytes(9)


async def test_what_is_not_there_is_not_found(store: S3Client):
    with pytest.raises(NotFound):
        await store.head("nothing")
    with pytest.raises(NotFound):
        await store.get("nothing", 0, [memoryview(bytearray(1))], etag=None)


async def test_creation_refuses_to_overwrite(store: S3Client):
    await store.put("file", [b"first"], headers={}, condition=ABSENT)
    with pytest.raises(Exists):
        await store.put("file", [b"second"], headers={}, condition=ABSENT)
    assert await content_of(store, "file") == b"first"


async def test_of_many_creators_one_wins(store: S3Client):
    if not store.capabilities.conditional_put:
        pytest.skip("the store ignores conditions")
    winners = []

    async def create(number: int) -> None:
        try:
            await store.put("file", [b"%d" % number], headers={}, condition=ABSENT)
        except Exists:
            return
        winners.append(b"%d" % number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(create, number)
    assert winners == [await content_of(store, "file")]


async def test_a_replacement_refuses_another_version(store: S3Client):
    old = await store.put("file", [b"old"], headers={})
    new = await store.put("file", [b"new"], headers={}, condition=Precondition(etag=old.etag))
    with pytest.raises(Changed):
        await store.put("file", [b"x"], headers={}, condition=Precondition(etag=old.etag))
    assert (await store.head("file")).etag == new.etag


async def test_a_replacement_refuses_to_create(store: S3Client):
    old = await store.put("file", [b"old"], headers={})
    await store.delete("file")
    with pytest.raises(Changed):
        await store.put("file", [b"x"], headers={}, condition=Precondition(etag=old.etag))


async def test_a_body_from_a_file(store: S3Client, tmp_path):
    data = random_bytes(3 << 20)
    path = tmp_path / "body"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        await store.put("file", FileSlice(descriptor, 1000, len(data) - 7), headers={})
    finally:
        os.close(descriptor)
    assert await content_of(store, "file", room=len(data)) == data[1000:-7]


async def test_a_file_that_is_too_short_is_not_stored(store: S3Client, tmp_path):
    path = tmp_path / "body"
    path.write_bytes(b"short")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(StoreError, match="ends before"):
            await store.put("file", FileSlice(descriptor, 0, 10), headers={}, crc=1)
    finally:
        os.close(descriptor)
    with pytest.raises(NotFound):
        await store.head("file")


async def test_a_copy_keeps_or_replaces_metadata(store: S3Client):
    stored = await store.put("source", [b"data"], headers=PLAIN)
    await store.copy("source", "kept", headers=None, source_etag=stored.etag)
    changed = {"x-amz-meta-mtime": "5.0", "content-type": "text/plain"}
    await store.copy("source", "replaced", headers=changed, source_etag=stored.etag)
    assert (await store.head("kept")).metadata["mtime"] == PLAIN["x-amz-meta-mtime"]
    assert (await store.head("replaced")).metadata["mtime"] == "5.0"
    assert await content_of(store, "replaced") == b"data"


async def test_a_copy_onto_nothing_refuses_to_overwrite(store: S3Client):
    await store.put("source", [b"data"], headers={})
    await store.put("target", [b"other"], headers={})
    with pytest.raises(Exists):
        await store.copy("source", "target", headers=None, source_etag=None, condition=ABSENT)
    assert await content_of(store, "target") == b"other"


async def test_a_copy_of_nothing_is_not_found(store: S3Client):
    with pytest.raises(NotFound):
        await store.copy("nothing", "target", headers=None, source_etag=None)


async def test_delete(store: S3Client):
    await store.put("file", [b"data"], headers={})
    await store.delete("file")
    await store.delete("file")
    with pytest.raises(NotFound):
        await store.head("file")


async def test_delete_refuses_another_version(store: S3Client):
    old = await store.put("file", [b"old"], headers={})
    await store.put("file", [b"new"], headers={})
    with pytest.raises(Changed):
        await store.delete("file", condition=Precondition(etag=old.etag))
    assert await content_of(store, "file") == b"new"


async def test_delete_many(store: S3Client):
    keys = [f"many-{number} <&> ü" for number in range(30)]
    for key in keys:
        await store.put(key, [b"x"], headers={})
    assert await store.delete_many([*keys, "many-nothing"]) == {}
    assert (await names(store, "many"))[0] == []


async def test_a_listing_shows_one_level(store: S3Client):
    for key in ("top", "d/one", "d/two", "d/e/deep"):
        await store.put(key, [b"x"], headers={})
    keys, prefixes, _ = await names(store)
    assert (sorted(keys), prefixes) == (["top"], ["d/"])
    keys, prefixes, _ = await names(store, "d/")
    assert (sorted(keys), prefixes) == (["d/one", "d/two"], ["d/e/"])
    keys, prefixes, _ = await names(store, flat=True)
    assert sorted(keys) == ["d/e/deep", "d/one", "d/two", "top"]
    assert prefixes == []


async def test_listed_objects_agree_with_head(store: S3Client):
    stored = await store.put("file", [b"12345"], headers={})
    (listed,) = (await store.list_page("", token=None)).objects
    info = await store.head("file")
    assert listed.size == info.size == 5
    assert listed.etag == info.etag == stored.etag
    assert listed.modified_ns == info.modified_ns > 0


async def test_pages_are_complete_and_unique(store: S3Client):
    wanted = [f"a{mark}{number}" for mark in ("", "-", ".") for number in range(4)]
    for key in [*wanted, "a/inside"]:
        await store.put(key, [b"x"], headers={})
    keys, prefixes, pages = await names(store, limit=5)
    assert sorted(keys) == sorted(wanted)
    assert prefixes == ["a/"]
    assert pages > 1


async def test_a_listing_of_nothing_is_empty(store: S3Client):
    assert await names(store, "nothing/") == ([], [], 1)


async def test_multipart(store: S3Client):
    first, second = random_bytes(MIN_PART_SIZE), random_bytes(100_000)
    upload = await store.create_upload("big", headers=PLAIN, copies=False)
    parts = [
        await store.upload_part("big", upload, 1, [first[:1000], first[1000:]]),
        await store.upload_part("big", upload, 2, [second]),
    ]
    stored = await store.complete_upload("big", upload, parts, condition=ABSENT)
    info = await store.head("big")
    assert (info.size, info.etag) == (len(first) + len(second), stored.etag)
    assert await content_of(store, "big", room=info.size) == first + second


async def test_copied_parts(store: S3Client):
    if not store.capabilities.copy_part:
        pytest.skip("the store cannot copy parts")
    data = random_bytes(MIN_PART_SIZE + 1000)
    source = await store.put("source", [data], headers={})
    upload = await store.create_upload("target", headers=PLAIN)
    copied = await store.copy_part(
        "target", upload, 1, source="source", start=1000, stop=len(data), source_etag=source.etag
    )
    sent = await store.upload_part("target", upload, 2, [b"tail"])
    await store.complete_upload("target", upload, [copied, sent])
    found = await content_of(store, "target", room=len(data))
    assert found == data[1000:] + b"tail"
    assert (await store.head("target")).metadata["mtime"] == PLAIN["x-amz-meta-mtime"]


async def test_completion_refuses_another_version(store: S3Client):
    base = await store.put("big", [b"base"], headers={})
    upload = await store.create_upload("big", headers={}, copies=False)
    part = await store.upload_part("big", upload, 1, [b"new"])
    await store.put("big", [b"somebody else"], headers={})
    with pytest.raises(Changed):
        await store.complete_upload("big", upload, [part], condition=Precondition(etag=base.etag))
    assert await content_of(store, "big") == b"somebody else"
    await store.abort_upload("big", upload)


async def test_unfinished_uploads_of_a_key_are_listed_with_their_parts(store: S3Client):
    one = await store.create_upload("big", headers={}, copies=False)
    two = await store.create_upload("big", headers={}, copies=False)
    other = await store.create_upload("bigger", headers={})
    part = await store.upload_part("big", two, 3, [b"part"])
    listed = {upload.id: upload for upload in await store.list_uploads("big")}
    assert set(listed) == {one, two}
    assert all(upload.begun_ns > 0 for upload in listed.values())
    assert await store.list_parts("big", one) == []
    (found,) = await store.list_parts("big", two)
    assert (found.number, found.size, found.etag) == (3, 4, part.etag)
    for key, upload in (("big", one), ("big", two), ("bigger", other)):
        await store.abort_upload(key, upload)
    assert await store.list_uploads("big") == []
    with pytest.raises(NotFound):
        await store.list_parts("big", two)


@pytest.mark.parametrize(
    ("number", "size"), [("0", "1"), ("10001", "1"), ("1", "-1"), ("1", str(1 << 63)), ("1", "x")]
)
async def test_a_part_that_cannot_be_is_refused(weed: Server, number: str, size: str):
    request = Request("ListParts", "GET", "big", "/big")
    async with client_for(shared_bucket(weed), prefix=own_prefix()) as client:
        with pytest.raises(Unavailable, match="part"):
            client._listed_part(request, {"PartNumber": number, "Size": size})


async def begun(key: str, store: ObjectStore) -> float:
    """When an upload of *key* was begun: by the clock of the store, which moto has stopped."""
    return max(upload.begun_ns for upload in await store.list_uploads(key)) / 1e9


async def test_an_upload_that_only_the_store_knows_is_aborted(
    store: S3Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(orphans, "QUIET", 0.0)
    ours = await store.create_upload("big", headers={}, copies=False)
    in_use = await store.create_upload("big", headers={}, copies=False)
    await store.upload_part("big", in_use, 1, [b"part"])
    intended = UploadRecord("big", "", {}, time=await begun("big", store))
    assert await orphans.abort_unnamed(store, intended, set)
    assert [upload.id for upload in await store.list_uploads("big")] == [in_use]
    with pytest.raises(NotFound):
        await store.list_parts("big", ours)
    await store.abort_upload("big", in_use)


async def test_an_upload_that_may_be_of_somebody_else_is_left_alone(
    store: S3Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(orphans, "QUIET", 0.0)
    one = await store.create_upload("big", headers={}, copies=False)
    now = await begun("big", store)
    for since in (now + 3600, now - 3600):  # It was begun long before, or long after.
        assert await orphans.abort_unnamed(store, UploadRecord("big", "", {}, time=since), set)
    intended = UploadRecord("big", "", {}, time=now)
    assert await orphans.abort_unnamed(store, intended, lambda: {one})
    two = await store.create_upload("big", headers={}, copies=False)
    assert await orphans.abort_unnamed(store, intended, set)
    assert {upload.id for upload in await store.list_uploads("big")} == {one, two}
    for upload in (one, two):
        await store.abort_upload("big", upload)


async def test_an_aborted_upload_leaves_nothing(store: S3Client):
    upload = await store.create_upload("big", headers={})
    await store.upload_part("big", upload, 1, [b"part"])
    await store.abort_upload("big", upload)
    await store.abort_upload("big", upload)
    with pytest.raises(NotFound):
        await store.head("big")


ODD_KEYS = [
    "with space",
    "plus+and%41percent",
    "ünïcödé/日本語/🦊",
    "?query&amp;=#fragment",
    "quotes'\"<>\\^`{|}~",
    "$,;:@!()*[]",
    "back\\slash",
    "trailing.",
    "..hidden",
    # Some stores refuse these, or make other names of them: there they are escaped.
    "a//b",
    "/a",
    "./a",
    "a/../b",
    "new\nline",
]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_keys_are_kept_byte_for_byte(store: S3Client, key: str):
    await store.put(key, [key.encode()], headers={})
    assert await content_of(store, key) == key.encode()
    assert (await names(store, flat=True))[0] == [key]
    assert await store.delete_many([key]) == {}
    assert (await names(store, flat=True))[0] == []


async def test_a_key_that_is_too_long_is_kept_or_refused(store: S3Client):
    key = "k" * 1015
    try:
        await store.put(key, [b"long"], headers={})
    except (InvalidName, InvalidRequest, NotFound, Unavailable):
        return
    assert await content_of(store, key) == b"long"
    await store.delete(key)


async def test_a_key_that_is_no_utf8_is_refused(store: S3Client):
    with pytest.raises(InvalidName):
        await store.head("\udcff")


async def test_a_header_with_a_line_end_is_refused(store: S3Client):
    with pytest.raises(InvalidRequest):
        await store.put("file", [b"x"], headers={"x-amz-meta-a": "b\r\nx-amz-acl: public-read"})


async def test_a_bucket_that_is_there_may_be_used(store: S3Client):
    assert await store.check_bucket()


async def test_a_bucket_that_is_not_there_is_named(any_server: Server):
    missing = Bucket("no-such-bucket", any_server.url, any_server.credentials)
    async with client_for(missing) as client:
        with pytest.raises(NoSuchBucket):
            await client.check_bucket()


async def test_the_probe_leaves_nothing_behind(store: S3Client):
    await store.put("file", [b"x"], headers={})
    await probe(store, ".s3mount/")
    assert (await names(store, flat=True))[0] == ["file"]


async def test_many_requests_share_few_connections(store: S3Client, any_server: Server):
    if any_server.name in ("moto", "versitygw"):
        pytest.skip(f"{any_server.name} closes every connection")
    await store.put("file", [b"data"], headers={})

    async def look() -> None:
        for _ in range(5):
            await store.head("file")

    before = store.statistics.connections
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(look)
    assert store.statistics.connections - before <= 8
    assert store.statistics.requests["HeadObject"] >= 100
