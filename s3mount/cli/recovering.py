"""``s3mount recover`` where no daemon runs: what it would do, done here."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from s3mount.rules import Rule, Rules
from s3mount.s3 import session
from s3mount.s3.checksum import function
from s3mount.s3.client import S3Client
from s3mount.s3.customerkeys import read_keys
from s3mount.s3.features import FeatureChoices, Features
from s3mount.s3.store import Capabilities
from s3mount.write.extents import PartGrid
from s3mount.write.keeper import Keeper, act
from s3mount.write.mountjournal import MountJournal
from s3mount.write.slots import Slots

TIMEOUT = 60.0
CONNECTIONS = 16


def run(
    folder: Path, about: Mapping[str, Any], action: str, names: Sequence[str]
) -> Mapping[str, Sequence[str]]:
    """Take over the slots in *folder*, and do *action* to the files of these names."""
    return trio.run(partial(_run, folder, about, action, names))


async def _run(
    folder: Path, about: Mapping[str, Any], action: str, names: Sequence[str]
) -> Mapping[str, Sequence[str]]:
    client = await _connect(about)
    try:
        mine = await MountJournal.open(
            Slots.at(folder), function("crc64nvme"), {**about, "mountpoint": ""}, adopt=True
        )
        try:
            grid = PartGrid(int(about["part_size"]))
            keeper = Keeper(client, mine, grid, attributes=bool(about["attributes"]))
            return await act(keeper, action, names)
        finally:
            await mine.close()
    finally:
        await client.aclose()


async def _connect(about: Mapping[str, Any]) -> S3Client:
    resolved = await trio.to_thread.run_sync(
        lambda: session.resolve(
            about["bucket"],
            endpoint_url=about["endpoint"],
            region=about["region"],
            profile=about["profile"],
            path_style=about["path_style"],
            no_sign_request=about["no_sign_request"],
            ca_bundle=about["ca_bundle"],
            verify_ssl=about["verify_ssl"],
            insecure_http=about["insecure_http"],
            # Journals of earlier versions do not name these.
            credentials_file=_path(about.get("credentials_file")),
            passwd_file=_path(about.get("passwd_file")),
        )
    )
    return S3Client(
        resolved.settings,
        resolved.credentials,
        about["bucket"],
        about["prefix"],
        capabilities=Capabilities(),
        timeout=min(TIMEOUT, math.inf),
        max_connections=CONNECTIONS,
        features=Features(choices_of(about.get("features") or {})),
    )


def choices_of(said: Mapping[str, Any]) -> FeatureChoices:
    """How the mount stored its objects, as its journal says; raises `MountError`."""
    plain = ("bucket_key", "acl", "tags", "requester_pays", "expected_bucket_owner")
    key, path = said.get("sse_kms_key_id"), _path(said.get("sse_c_key_file"))
    return FeatureChoices(
        storage_class=Rules(tuple(Rule(*fields) for fields in said.get("storage_class", ()))),
        sse=said.get("sse") or ("aws:kms" if key else None),
        sse_kms_key_id=key,
        customer_keys=read_keys(path) if path is not None else (),
        **{name: said[name] for name in plain if name in said},
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
