"""The probe tells what each store really does, and gets along with what it may not do."""

from urllib.parse import quote

import pytest
import trio

from s3mount.errors import Denied
from s3mount.s3.escaping import SAMPLES
from s3mount.s3.oddities import refused_names
from s3mount.s3.probe import look, probe
from s3mount.s3.store import Capabilities
from tests.faultproxy import FaultProxy
from tests.faults import ACCESS_DENIED, INTERNAL_ERROR, Answer, Delay
from tests.servers import Server
from tests.stores import client_for, own_prefix, shared_bucket
from tests.test_store import names

WEAK = {
    "weed": {"marker_metadata"},
    "rustfs": set(),
    "minio": {"conditional_copy", "conditional_delete", "copy_part_checksum"},
    "moto": {"conditional_copy", "conditional_complete"},
    "versitygw": {"conditional_copy", "copy_part_checksum"},
    "ceph": {"conditional_complete", "conditional_copy", "conditional_delete", "conditional_put"},
    "rclone": {
        "complete_names_etag",
        "conditional_complete",
        "conditional_copy",
        "conditional_delete",
        "conditional_get",
        "conditional_put",
        "copy_part",
        "marker_objects",
    },
}


# What no store has to have: s3mount uses it where it is, and misses it nowhere.
EXTENSIONS = {"list_metadata"}


async def test_what_each_store_lacks_is_found(any_server: Server):
    if any_server.name not in WEAK:
        pytest.skip("nobody knows what this store should lack")
    async with client_for(shared_bucket(any_server), prefix=own_prefix()) as client:
        found = await probe(client, ".s3mount/")
        # A name that may be refused is looked for twice; the last one is for what is left.
        listings = 6 if found.refused_names else 5
        assert client.statistics.requests["ListObjectsV2"] == listings
    lacking = {
        name for name in Capabilities.__slots__ if getattr(found, name) is False
    } - EXTENSIONS
    assert lacking == WEAK[any_server.name]
    assert found.checksum == "crc64nvme"
    assert len(found.notes) == len(lacking)


async def test_a_bucket_that_may_not_be_written_is_assumed_whole(weed: Server):
    with FaultProxy(weed.url) as proxy:
        for method in ("PUT", "POST", "DELETE"):
            proxy.inject(ACCESS_DENIED, method=method)
        async with client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client:
            found = await probe(client, ".s3mount/")
    (note,) = found.notes
    assert "writing was not possible" in note
    assert found == Capabilities(notes=found.notes)


async def test_a_bucket_that_may_not_be_listed_is_probed_all_the_same(weed: Server):
    with FaultProxy(weed.url) as proxy:
        proxy.inject(ACCESS_DENIED, operation="ListObjects")
        async with client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client:
            assert not await client.check_bucket()
            found = await probe(client, ".s3mount/")
    assert any("listing is denied" in note for note in found.notes)
    assert found.conditional_put


async def test_a_bucket_that_may_not_be_used_at_all_is_denied(weed: Server):
    with FaultProxy(weed.url) as proxy:
        proxy.inject(ACCESS_DENIED)
        async with client_for(shared_bucket(weed), url=proxy.url) as client:
            with pytest.raises(Denied) as caught:
                await client.check_bucket()
    assert caught.value.code == "AccessDenied"


@pytest.mark.parametrize("fault", [INTERNAL_ERROR, Answer(501, "NotImplemented")])
async def test_a_store_without_multipart_uploads_raises_nothing(weed: Server, fault: Answer):
    with FaultProxy(weed.url) as proxy:
        proxy.inject(fault, operation="CreateMultipartUpload")
        async with client_for(
            shared_bucket(weed), url=proxy.url, prefix=own_prefix(), timeout=1.0
        ) as client:
            found = await probe(client, ".s3mount/")
    assert not found.copy_part
    assert not found.conditional_complete
    assert found.conditional_put
    assert any("multipart uploads were not possible" in note for note in found.notes)


async def test_a_name_that_is_refused_once_only_is_not_a_refused_one(weed: Server):
    folder = "odd/"
    with FaultProxy(weed.url) as proxy:
        async with client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client:
            refused = await refused_names(client, folder)
            assert "a tab" not in refused
            key = quote(folder + SAMPLES["a tab"])
            once = proxy.inject(Answer(400, "InvalidArgument"), method="PUT", path=key, count=1)
            assert await refused_names(client, folder) == refused
            assert once.hits == 1


async def test_what_was_deleted_in_vain_is_deleted_again(weed: Server):
    """Stores may lose a deletion; what was put once more is deleted for good."""
    with FaultProxy(weed.url) as proxy:
        async with client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client:
            lost = proxy.inject(Answer(200, ""), method="DELETE", path="-a$", count=2)
            await probe(client, ".s3mount/")
            assert lost.hits == 2
            assert (await names(client, flat=True))[0] == []


async def test_the_first_of_several_writes_into_a_directory_goes_alone(weed: Server):
    """What ``rclone serve s3`` makes of several at once is listed, but is not there.

    The delay is over before the store sees the first write; what the proxy takes for it as a
    whole ends after its answer was read, which is when the second may already be on its way.
    """
    delay_seconds = 0.3
    with FaultProxy(weed.url) as proxy:
        async with client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client:
            proxy.inject(Delay(delay_seconds), method="PUT", path="-a$", count=1)
            proxy.inject(Delay(delay_seconds), method="PUT", path="-n/plain", count=1)
            await probe(client, ".s3mount/")
        writes = [exchange for exchange in proxy.log if exchange.request.method == "PUT"]
        named = [exchange for exchange in writes if "-n/" in exchange.request.path]
        for first, second, *_ in (writes, named):
            assert first.faults
            assert first.started + delay_seconds <= second.started


async def test_who_is_stopped_while_names_are_tried_removes_what_was_written(weed: Server):
    with FaultProxy(weed.url) as proxy:
        async with client_for(shared_bucket(weed), url=proxy.url, prefix=own_prefix()) as client:
            proxy.inject(Delay(30), method="GET")  # The listing that tells what was kept.
            with trio.move_on_after(1) as scope:
                await refused_names(client, "odd/")
            assert scope.cancelled_caught
            proxy.clear()
            assert proxy.counts()["PutObject"] > len(SAMPLES) / 2
            assert (await names(client, flat=True))[0] == []


async def test_who_must_not_write_finds_names_that_are_not_even_looked_for(
    rustfs: Server, weed: Server
):
    for server, forms in (
        (rustfs, ("//", ".", "..", "a newline", "a return")),
        (weed, (".", "..")),
    ):
        async with client_for(shared_bucket(server), prefix=own_prefix()) as client:
            found = await look(client)
            assert client.statistics.requests["HeadObject"] == len(SAMPLES) + 1
        assert found == Capabilities(refused_names=forms)
