"""From the options of a mount to a client that has found its bucket and what the store can do."""

from __future__ import annotations

import logging
import math
import time

import trio

from s3mount.config import Config
from s3mount.errors import MountError, StoreError, WrongRegion
from s3mount.s3 import session
from s3mount.s3.customerkeys import read_keys
from s3mount.s3.endpoint import EndpointSettings
from s3mount.s3.features import FeatureChoices, Features
from s3mount.s3.past import PastClient
from s3mount.s3.probe import look, probe
from s3mount.s3.store import Capabilities
from s3mount.s3.versions import HistoryClient
from s3mount.verdicts import recall

log = logging.getLogger(__name__)


async def connect(config: Config, source: str) -> HistoryClient:
    """Return a client for the bucket that knows what its store can do; *source* names it.

    Raises `MountError` when the bucket cannot be used.
    """
    client = await client_for(config)
    try:
        await _check(client, source, config)
    except BaseException:
        await client.aclose()
        raise
    return client


async def client_for(config: Config) -> HistoryClient:
    """Return a client that has asked the store nothing yet.

    Raises `MountError` when the options or the credentials are no good.
    """
    resolved = await trio.to_thread.run_sync(
        lambda: session.resolve(
            config.bucket,
            endpoint_url=config.endpoint_url,
            region=config.region,
            profile=config.profile,
            path_style=config.path_style,
            no_sign_request=config.no_sign_request,
            ca_bundle=str(config.ca_bundle) if config.ca_bundle else None,
            verify_ssl=not config.no_verify_ssl,
            insecure_http=config.insecure_http,
            credentials_file=config.credentials_file,
            passwd_file=config.passwd_file,
            signature=config.signature,
            variant=session.Variant(
                dual_stack=config.dual_stack, fips=config.fips, accelerate=config.accelerate
            ),
        )
    )
    features = Features(await trio.to_thread.run_sync(feature_choices, config))
    refuse_plain_keys(features.choices, resolved.settings, config.insecure_http)
    kind = HistoryClient if config.as_of is None else PastClient
    client = kind(
        resolved.settings,
        resolved.credentials,
        config.bucket,
        config.prefix,
        capabilities=Capabilities(),
        timeout=math.inf if config.hard else config.timeout,
        max_connections=config.connections,
        features=features,
    )
    if config.as_of is not None and isinstance(client, PastClient):
        client.at(config.as_of)
    return client


def feature_choices(config: Config) -> FeatureChoices:
    """What the options say of the store's features.  Blocks; raises `MountError`."""
    return FeatureChoices(
        storage_class=config.storage_class,
        sse=config.sse or ("aws:kms" if config.sse_kms_key_id else None),
        sse_kms_key_id=config.sse_kms_key_id,
        bucket_key=config.bucket_key,
        customer_keys=read_keys(config.sse_c_key_file) if config.sse_c_key_file else (),
        acl=config.acl,
        tags=config.tags,
        requester_pays=config.requester_pays,
        expected_bucket_owner=config.expected_bucket_owner,
        restore=config.restore == "auto",
        restore_days=config.restore_days,
        restore_tier=config.restore_tier.capitalize(),
        refuse_held=config.object_lock == "refuse",
    )


def refuse_plain_keys(
    choices: FeatureChoices, settings: EndpointSettings, insecure_http: bool
) -> None:
    """Raise `MountError` when customer keys would cross a network unencrypted."""
    exposed = not settings.secure and not session.is_loopback(settings.host)
    if choices.customer_keys and exposed and not insecure_http:
        raise MountError(f"{settings.url}: customer keys (sse-c-key-file) need https", 1)


async def _check(client: HistoryClient, source: str, config: Config) -> None:
    try:
        await client.check_bucket()
        if isinstance(client, PastClient):
            await client.check_past(time.time())
        known = None  # With customer keys a store may be able to do less.
        if config.sse_c_key_file is None:
            known = recall(config.state_dir, client.settings.url, config.bucket)
        if known is None:
            known = await (look(client) if config.ro else probe(client, ".s3mount/"))
        client.adopt(known)
    except StoreError as error:
        raise MountError(f"{source}: {error}{_hint(error)}") from error
    _tell_weaknesses(source, client.capabilities)


def _tell_weaknesses(source: str, found: Capabilities) -> None:
    if not found.conditional_put:
        log.warning(
            "%s: the store has no conditional writes: of two hosts that change one file at "
            "the same time, the last one wins unnoticed",
            source,
        )
    if not found.copy_part:
        log.warning(
            "%s: the store cannot copy parts: a change in a large file uploads all of it",
            source,
        )


def _hint(error: StoreError) -> str:
    """What to do about a store that refuses a mount."""
    if isinstance(error, WrongRegion) and error.region:
        return f" (the bucket is in {error.region}: try --region {error.region})"
    return ""
