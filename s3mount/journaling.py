"""What the journal of a mount says of the mount: enough to go on with it, and no secret."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from s3mount.config import Config


def describe(config: Config, *, endpoint: str, region: str, path_style: bool) -> dict[str, object]:
    """What `s3mount recover` needs to reach the same bucket in the same way."""
    return {
        "endpoint": endpoint,
        "region": region,
        "path_style": path_style,
        "profile": config.profile,
        "credentials_file": _path(config.credentials_file),
        "passwd_file": _path(config.passwd_file),
        "bucket": config.bucket,
        "prefix": config.prefix,
        "part_size": config.part_size,
        "attributes": config.attributes,
        "mountpoint": str(config.mountpoint),
        "no_sign_request": config.no_sign_request,
        "ca_bundle": _path(config.ca_bundle),
        "verify_ssl": not config.no_verify_ssl,
        "insecure_http": config.insecure_http,
        "features": _features(config),
    }


def _features(config: Config) -> dict[str, object]:
    """How objects are stored; customer keys by the name of their file only."""
    return {
        "storage_class": [astuple(rule) for rule in config.storage_class.rules],
        "sse": config.sse,
        "sse_kms_key_id": config.sse_kms_key_id,
        "bucket_key": config.bucket_key,
        "sse_c_key_file": _path(config.sse_c_key_file),
        "acl": config.acl,
        "tags": config.tags,
        "requester_pays": config.requester_pays,
        "expected_bucket_owner": config.expected_bucket_owner,
    }


def _path(path: Path | None) -> str | None:
    return str(path) if path is not None else None
