"""Old and partial stores: each weakness does harm to who does not know of it, and the probe does.

Every test runs twice: *trusting*, with a client that takes the store for a whole one, and
*probed*, with what the probe has found.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import trio

from s3mount.errors import (
    Changed,
    Denied,
    Exists,
    InvalidRequest,
    NotFound,
    StoreError,
    Unavailable,
)
from s3mount.s3 import calls, http, reading, xml
from s3mount.s3.client import S3Client
from s3mount.s3.escaping import SAMPLES
from s3mount.s3.listing import Token
from s3mount.s3.probe import probe
from s3mount.s3.store import ABSENT, MIB, Capabilities, Precondition
from tests import oldstore
from tests.oldstore import OldStore, Weakness
from tests.servers import Server
from tests.stores import client_for, content_of, own_prefix, random_bytes, shared_bucket

OLD = {"x-amz-meta-mode": "1", "x-amz-meta-only-old": "1", "content-type": "text/plain"}
NEW = {"x-amz-meta-mode": "2", "content-type": "text/plain"}


@pytest.fixture(params=["trusting", "probed"])
def probed(request: pytest.FixtureRequest) -> bool:
    """Whether the client knows the store."""
    return request.param == "probed"


@pytest.fixture
def old_store(server: Server, probed: bool) -> Callable:
    """``async with old_store(weakness, ...) as (client, store)``: a client of such a store."""

    @asynccontextmanager
    async def make(*weaknesses: Weakness, **known) -> AsyncIterator[tuple[S3Client, OldStore]]:
        with OldStore(server, *weaknesses) as store:
            assumed = Capabilities(checksum=None)
            async with client_for(
                shared_bucket(server), url=store.url, prefix=own_prefix(), capabilities=assumed
            ) as client:
                if probed:
                    found = await probe(client, ".s3mount/")
                    for name, value in known.items():
                        assert getattr(found, name) == value, (name, found.notes)
                    client.adopt(found)
                store.counts.clear()
                yield client, store

    return make


async def all_keys(client: S3Client, prefix: str = "", *, limit: int = 1000, flat: bool = True):
    """All keys, in the order in which they come."""
    keys, token = [], None
    while True:
        page = await client.list_page(prefix, token=token, flat=flat, limit=limit)
        keys += [found.key for found in page.objects if not found.key.endswith("/")]
        keys += page.prefixes
        token = page.token
        if token is None:
            return keys


# -- signatures --------------------------------------------------------------------------------


async def test_a_store_that_knows_old_signatures_only(server: Server):
    """No probe finds that: a wrong key is answered in the same way, so people have to say it."""
    with OldStore(server, oldstore.OldSignatures()) as store:
        for signature in ("v4", "v2"):
            async with client_for(
                shared_bucket(server), url=store.url, prefix=own_prefix(), signature=signature
            ) as client:
                link = await client.presigned_url("file", 60)
                if signature == "v4":
                    with pytest.raises(Denied):
                        await client.put("file", [b"x"], headers={})
                    with pytest.raises(HTTPError, match="403") as refused:
                        await trio.to_thread.run_sync(urlopen, link)
                    refused.value.close()
                    continue
                await client.put("file", [b"content"], headers={})
                assert await content_of(client, "file") == b"content"
                assert await all_keys(client) == ["file"]
                with await trio.to_thread.run_sync(urlopen, link) as answer:
                    assert answer.read() == b"content"


# -- listings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", [True, False])
async def test_the_old_listing(old_store, probed: bool, refuses: bool):
    """One that refuses the new call is found, one that ignores it is understood as it answers."""
    known = {"list_v2": False} if refuses else {}
    async with old_store(oldstore.OldListing(refuses=refuses), **known) as (client, store):
        names = sorted(f"key-{number:02d}" for number in range(25))
        for name in names:
            await client.put(name, [b"x"], headers={})
        store.counts.clear()
        assert await all_keys(client, limit=10) == names
        # Who does not know asks the wrong call first.
        assert store.counts["ListObjects"] == (4 if refuses and not probed else 3)


async def test_who_knows_no_old_listing_does_not_get_along_with_one_that_refuses(
    old_store, probed: bool, monkeypatch: pytest.MonkeyPatch
):
    """The client asks in the old way when it is refused; here that is taken away."""
    if not probed:
        monkeypatch.setattr(reading, "InvalidRequest", KeyError)
        monkeypatch.setattr(reading, "Unsupported", KeyError)
    async with old_store(oldstore.OldListing(refuses=True)) as (client, _):
        await client.put("key", [b"x"], headers={})
        if probed:
            assert await all_keys(client) == ["key"]
            return
        with pytest.raises(InvalidRequest):
            await all_keys(client)


async def test_who_takes_every_listing_for_a_new_one_does_not_get_to_the_second_page(
    old_store, probed: bool, monkeypatch: pytest.MonkeyPatch
):
    """The client sees by the answer which call the store has understood; here it does not."""
    read = xml.listing
    if not probed:
        monkeypatch.setattr(xml, "listing", lambda *a, **how: read(*a, **how)._replace(version=2))
    async with old_store(oldstore.OldListing(refuses=False)) as (client, _):
        names = sorted(f"key-{number:02d}" for number in range(25))
        for name in names:
            await client.put(name, [b"x"], headers={})
        if probed:
            assert await all_keys(client, limit=10) == names
            return
        with pytest.raises(Unavailable, match="repeats itself"):
            await all_keys(client, limit=10)


async def test_a_listing_in_odd_order_is_complete(old_store, probed: bool):
    """Where the store names no marker, the last key by name is one; the last by place is not."""
    weaknesses = (oldstore.OddOrder(), oldstore.OldListing(refuses=True))
    async with old_store(*weaknesses) as (client, _):
        client.adopt(Capabilities(checksum=None, list_v2=False))
        names = sorted(f"key-{number:02d}" for number in range(25))
        for name in names:
            await client.put(name, [b"x"], headers={})
        if probed:
            assert sorted(await all_keys(client, limit=10)) == names
            return
        first = [found.key for found in (await client.list_page("", token=None, limit=10)).objects]
        token = str(Token(1, client.prefix + first[-1], ""))
        page = await client.list_page("", token=token, limit=10)
        assert set(first) & {found.key for found in page.objects}  # The same names once more.


async def test_directories_that_linger_in_listings(old_store, probed: bool):
    async with old_store(oldstore.Lingering(), prefixes_vanish=False) as (client, _):
        await client.put("gone/file", [b"x"], headers={})
        await client.put("here/file", [b"x"], headers={})
        await client.put("marked/", [], headers={})
        await client.delete("gone/file")
        await client.delete("gone/")
        found = await all_keys(client, flat=False)
        assert ("gone/" in found) == (not probed)
        assert {"here/", "marked/"} <= set(found)


async def test_directories_that_a_store_takes_for_files(old_store, probed: bool):
    """What goes below such a file is refused, and tried again and again, because it is a 500."""
    async with old_store(oldstore.MarkersAreFiles(), marker_objects=False) as (client, _):
        await client.put("d/", [], headers=OLD)
        if not probed:
            impatient = client.assuming(client.capabilities, 1.0)
            with pytest.raises(Unavailable):
                await impatient.put("d/x", [b"x"], headers={})
            return
        await client.put("d/x", [b"x"], headers={})
        await client.put("d/!", [b"!"], headers={})
        await client.put("d/deeper/", [], headers={})
        assert sorted(await all_keys(client, "d/", flat=False)) == ["d/!", "d/deeper/", "d/x"]
        assert await all_keys(client, "d", flat=False) == ["d/"]
        assert (await client.head("d/")).metadata["mode"] == "1"
        await client.copy("d/", "e/", headers=None, source_etag=None)
        assert (await client.head("e/")).metadata["mode"] == "1"
        assert await client.delete_many(["d/", "d/x", "d/!", "d/deeper/", "e/"]) == {}
        assert await all_keys(client) == []


# -- calls that are not there ------------------------------------------------------------------


@pytest.mark.parametrize(
    "weakness", [oldstore.Refusing("UploadPartCopy"), oldstore.IgnoresCopySource()]
)
async def test_parts_that_cannot_be_copied(old_store, probed: bool, weakness: Weakness):
    async with old_store(weakness, copy_part=False) as (client, _):
        stored = await client.put("source", [b"0123456789"], headers={})
        if probed:
            assert not client.capabilities.copy_part  # So nobody asks for it.
            return
        upload = await client.create_upload("target", headers={})
        try:
            part = await client.copy_part(
                "target", upload, 1, source="source", start=2, stop=5, source_etag=stored.etag
            )
            await client.complete_upload("target", upload, [part])
        except StoreError as error:
            assert error.status == 501  # noqa: PT017
        else:
            assert (await client.head("target")).size == 0  # Not 3, and nobody was told.
        finally:
            with contextlib.suppress(StoreError):
                await client.abort_upload("target", upload)


@pytest.mark.parametrize("silent", [False, True])
async def test_objects_that_cannot_be_deleted_together(old_store, probed: bool, silent: bool):
    weakness = oldstore.Refusing("DeleteObjects", silent=silent)
    async with old_store(weakness, delete_many=False) as (client, _):
        for name in ("a", "b", "c"):
            await client.put(name, [b"x"], headers={})
        failures = await client.delete_many(["a", "b"])
        left = await all_keys(client)
        if probed:
            assert (failures, left) == ({}, ["c"])
        else:
            assert left == ["a", "b", "c"]
            assert set(failures) == (set() if silent else {"a", "b"})


async def test_conditions_that_nobody_heeds(old_store, probed: bool):
    what = ("put", "copy", "get", "delete", "complete")
    lacking = {f"conditional_{one}": False for one in what}
    async with old_store(oldstore.IgnoresConditions(), **lacking) as (client, _):
        old = await client.put("file", [b"old"], headers={})
        await client.put("file", [b"new"], headers={})
        for error, write in (
            (Exists, lambda: client.put("file", [b"x"], headers={}, condition=ABSENT)),
            (Changed, lambda: client.put(
                "file", [b"y"], headers={}, condition=Precondition(etag=old.etag))),
            (Changed, lambda: client.delete("file", condition=Precondition(etag=old.etag))),
        ):  # fmt: skip
            if probed:
                with pytest.raises(error):
                    await write()
                assert await content_of(client, "file") == b"new"
            else:
                await write()
        if not probed:
            with pytest.raises(NotFound):  # Each of them has done its worst.
                await client.head("file")


# -- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies_parts", [True, False])
@pytest.mark.parametrize("size", [0, 6, 9 * MIB])
async def test_a_copy_that_cannot_replace_metadata(
    old_store, probed: bool, size: int, copies_parts: bool
):
    weaknesses = [oldstore.IgnoresReplace()]
    if not copies_parts:
        weaknesses.append(oldstore.Refusing("UploadPartCopy"))
    async with old_store(*weaknesses, copy_replaces=False) as (client, _):
        data = random_bytes(size)
        stored = await client.put("file", [data], headers=OLD)
        await client.copy("file", "file", headers=NEW, source_etag=stored.etag)
        info = await client.head("file")
        assert info.metadata["mode"] == ("2" if probed else "1")
        assert ("only-old" in info.metadata) == (not probed)
        assert info.size == size
        if size:
            assert await content_of(client, "file", room=size) == data


async def test_a_copy_that_drops_metadata(old_store, probed: bool):
    async with old_store(oldstore.DropsMetadata(), copy_keeps=False) as (client, _):
        stored = await client.put("old", [b"content"], headers=OLD)
        await client.copy("old", "new", headers=None, source_etag=stored.etag)
        assert (await client.head("new")).metadata.get("mode") == ("1" if probed else None)
        assert await content_of(client, "new") == b"content"
        if probed:
            await client.put("old", [b"replaced"], headers=OLD)
            with pytest.raises(Changed):
                await client.copy("old", "new", headers=None, source_etag=stored.etag)


async def test_a_store_without_copies(old_store, probed: bool):
    weakness = oldstore.Refusing("CopyObject")
    async with old_store(weakness, copy_keeps=False, copy_replaces=False) as (client, _):
        stored = await client.put("old", [b"content"], headers=OLD)
        await client.put("occupied", [b"mine"], headers={})

        async def copy_to(target: str) -> None:
            await client.copy(
                "old", target, headers=None, source_etag=stored.etag, condition=ABSENT
            )

        if not probed:
            with pytest.raises(StoreError, match="NotImplemented"):
                await copy_to("new")
            return
        await copy_to("new")
        assert (await client.head("new")).metadata["mode"] == "1"
        with pytest.raises(Exists):
            await copy_to("occupied")
        assert await content_of(client, "occupied") == b"mine"


# -- answers that are not true -----------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    ["PutObject", "CopyObject", "UploadPart", "CompleteMultipartUpload", "CreateMultipartUpload",
     "ListObjects", "GetObject", "DeleteObject", "DeleteObjects"],
)  # fmt: skip
async def test_errors_that_a_200_hides(old_store, probed: bool, operation: str, monkeypatch):
    """The defence is always there, so it is taken away where the client is to be *trusting*."""
    if not probed:
        monkeypatch.setattr(calls, "_succeeded", lambda request, answer: answer.status < 300)
        monkeypatch.setattr("s3mount.s3.download.Broken", KeyError)
    async with old_store(oldstore.ErrorsInOk(operation)) as (client, _):
        right = await everything(client)
        assert right == probed


async def everything(client: S3Client) -> bool:
    """Use each call once, and tell whether all came out as it should."""
    try:
        await client.put("file", [b"first"], headers={})
        await client.put("file", [b"second"], headers={})
        old = await client.head("file")
        if old.size != 6 or await content_of(client, "file") != b"second":
            return False
        await client.copy("file", "copy", headers=None, source_etag=old.etag)
        upload = await client.create_upload("large", headers={})
        part = await client.upload_part("large", upload, 1, [b"part"])
        await client.complete_upload("large", upload, [part])
        if await all_keys(client) != ["copy", "file", "large"]:
            return False
        await client.delete("file")
        if await client.delete_many(["copy", "large"]):
            return False
        return await all_keys(client) == []
    except (StoreError, KeyError):
        return False


@pytest.mark.parametrize("told", ["0", "5", None])
async def test_a_head_that_does_not_know_the_size(old_store, probed: bool, told: str | None):
    async with old_store(oldstore.WrongLength(told), head_size=False) as (client, _):
        stored = await client.put("file", [b"0123456789"], headers=OLD)
        await client.put("empty", [], headers=OLD)
        if not probed and told is None:
            with pytest.raises(StoreError, match="does not tell its size"):
                await client.head("file")
            return
        info = await client.head("file")
        assert info.size == (10 if probed else int(told or 0))
        assert (info.etag, info.metadata["mode"]) == (stored.etag, "1")
        if probed:
            empty = await client.head("empty")
            assert (empty.size, empty.metadata["mode"]) == (0, "1")
            with pytest.raises(NotFound):
                await client.head("nothing")


async def test_etags_that_are_no_identity(old_store, probed: bool):
    async with old_store(oldstore.OneETag(), distinct_etags=False) as (client, _):
        old = await client.put("file", [b"old"], headers={})
        new = await client.put("file", [b"new"], headers={})
        assert (old.etag != new.etag) == probed
        (listed,) = (await client.list_page("", token=None)).objects
        assert listed.etag == new.etag == (await client.head("file")).etag
        into = bytearray(3)
        if not probed:
            # Whoever has the old version open reads the new one.
            await client.get("file", 0, [memoryview(into)], etag=old.etag)
            assert into == b"new"
            await client.put("file", [b"mix"], headers={}, condition=Precondition(etag=old.etag))
            return
        with pytest.raises(Changed):
            await client.get("file", 0, [memoryview(into)], etag=old.etag)
        with pytest.raises(Changed):
            await client.put("file", [b"mix"], headers={}, condition=Precondition(etag=old.etag))
        await client.get("file", 0, [memoryview(into)], etag=new.etag)
        assert into == b"new"
        await client.put("file", [b"6th"], headers={}, condition=Precondition(etag=new.etag))
        copied = await client.copy("file", "copy", headers=None, source_etag=None)
        assert (await client.head("copy")).etag == copied.etag
        upload = await client.create_upload("file", headers={})
        part = await client.upload_part("file", upload, 1, [b"7th"])
        done = await client.complete_upload("file", upload, [part])
        assert (await client.head("file")).etag == done.etag


# -- names -------------------------------------------------------------------------------------


async def test_metadata_in_other_letters(
    old_store, probed: bool, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Names of headers know no case: who reads them as they are written finds nothing."""
    if not probed:
        monkeypatch.setattr(http, "_NAMES", {})
        monkeypatch.setattr(http, "_header_name", lambda raw, _: _as_written(raw))
    async with old_store(oldstore.ShoutedMetadata()) as (client, store):
        await client.put("file", [b"x"], headers=OLD)
        found = (await client.head("file")).metadata
        assert found.get("mode") == ("1" if probed else None)
        address = urlsplit(store.url)
        path = f"/{client.bucket}/{client.prefix}file"
        connection = HTTPConnection(address.hostname or "", address.port)
        with contextlib.closing(connection):
            connection.request("HEAD", path)
            names = dict(connection.getresponse().getheaders())
        assert "X-AMZ-META-MODE" in names
        assert "x-amz-meta-mode" not in names


def _as_written(name: str) -> str:
    """A name of a header, of which only those that are no metadata are looked up in any letters."""
    return name if name.lower().startswith("x-amz-meta-") else name.lower()


@pytest.mark.parametrize(
    ("weakness", "form", "key"),
    [
        (oldstore.Picky("//"), "//", "a//b"),
        (oldstore.Picky(r"(^|/)\.(/|$)"), ".", "a/./b"),
        (oldstore.Picky(r"(^|/)\.\.(/|$)"), "..", "a/../b"),
        (oldstore.Picky(r"[\n\r]"), "a newline", "a\nb/c\r"),
        (oldstore.Picky(r"[\x00-\x1f]"), "control characters", "a\x02b/c\t"),
        (oldstore.Windows(), "\\", "a\\b"),
        (oldstore.Picky(r"[^\x00-\x7f]"), "umlauts", "\u00e4/\u00f6"),
    ],
)
async def test_names_that_a_store_refuses(old_store, probed: bool, weakness, form: str, key: str):
    async with old_store(weakness) as (client, _):
        if not probed:
            with contextlib.suppress(StoreError):  # Refused, or kept under another name.
                await client.put(key, [b"odd"], headers={})
                assert key not in await all_keys(client)
            return
        assert form in client.capabilities.refused_names
        assert form in SAMPLES
        await client.put(key, [b"odd"], headers=OLD)
        assert await all_keys(client) == [key]
        assert await content_of(client, key) == b"odd"
        folder = key[: key.rfind("/") + 1]
        assert await all_keys(client, folder) == [key]
        await client.copy(key, "plain", headers=None, source_etag=None)
        await client.copy("plain", key + "2", headers=None, source_etag=None)
        upload = await client.create_upload(key, headers={})
        assert [one.id for one in await client.list_uploads(key)] == [upload]
        await client.abort_upload(key, upload)
        assert await client.delete_many([key, key + "2", "plain"]) == {}
        assert await all_keys(client) == []
