"""The control plane: what users configure for AWS tools, resolved by boto3.

The only module that knows boto3 and botocore, which are imported on first use because that
takes 0.3 s.  They block, so whatever may wait for a network runs in a thread.
"""

import contextlib
import datetime
import ipaddress
import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import trio

from s3mount.errors import MountError, NoCredentials
from s3mount.s3 import passwd
from s3mount.s3.endpoint import Credentials, EndpointSettings

_PROBE_KEY = "k"
_SPARE_SECONDS = 300.0
_LOOK_SECONDS = 5.0


class SessionCredentials:
    """Credentials of a botocore session, fetched anew in time, and when they were refused.

    *load* blocks and returns fresh credentials of botocore; many requests that need new ones
    at once wait for one refresh.
    """

    def __init__(self, load: Callable[[], Any], first: Credentials, source: Any) -> None:
        self._load = load
        self._source = source
        self._known = first
        self._refreshing = trio.Lock()
        self._look_again = 0.0

    def current(self) -> Credentials | None:
        """The credentials, or None when they are about to expire."""
        if trio.current_time() >= self._look_again:
            if self._is_due():
                return None
            self._look_again = trio.current_time() + _LOOK_SECONDS
        return self._known

    def expires(self) -> float | None:
        """When the credentials end, in seconds since 1970, if they do and say so."""
        moment = getattr(self._source, "_expiry_time", None)
        return moment.timestamp() if isinstance(moment, datetime.datetime) else None

    def _is_due(self) -> bool:
        # Only some credentials of botocore have an end, and know it.
        needed = getattr(self._source, "refresh_needed", None)
        return needed is not None and bool(needed(_SPARE_SECONDS))

    async def refresh(self, refused: Credentials | None) -> Credentials:
        """Fetch the credentials anew, unless *refused* were replaced already."""
        async with self._refreshing:
            if refused is not None and refused != self._known:
                return self._known
            if refused is None and trio.current_time() < self._look_again:
                return self._known
            found = await trio.to_thread.run_sync(self._fetch, refused is not None)
            self._look_again = trio.current_time() + _LOOK_SECONDS
            return found

    def _fetch(self, anew: bool) -> Credentials:
        try:
            if anew:
                self._source = self._load()
            found = None if self._source is None else _frozen(self._source)
        except MountError as error:
            if anew:
                raise NoCredentials(f"the credentials cannot be refreshed: {error}") from error
            # They may be good for some minutes yet; if not, the store will say so.
            return self._known
        if found is None:
            raise NoCredentials("the credentials are gone: " + _HOW_TO_SIGN_IN)
        self._known = found
        return found


_HOW_TO_SIGN_IN = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run `aws configure` or `aws sso login`, "
    "or mount a public bucket with no-sign-request"
)


def _frozen(source: Any) -> Credentials:
    with _one_error():
        found = source.get_frozen_credentials()
    return Credentials(found.access_key, found.secret_key, found.token)


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Make a `MountError` of whatever botocore raises while it looks for credentials."""
    import botocore.exceptions

    try:
        yield
    except (
        MountError,
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
    ) as error:
        raise MountError(_one_line(error), 1) from error
    except Exception as error:
        # What a credential_process prints is anybody's, and botocore trips over it in many ways.
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise MountError(f"the credentials cannot be read: {reason}", 1) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What `resolve` found: where the bucket is, and the credentials (None: anonymous)."""

    settings: EndpointSettings
    credentials: SessionCredentials | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Which of AWS's endpoints for one region is meant."""

    dual_stack: bool = False
    fips: bool = False
    accelerate: bool = False


def resolve(
    bucket: str,
    *,
    profile: str | None,
    region: str | None,
    endpoint_url: str | None,
    path_style: bool | None,
    no_sign_request: bool,
    ca_bundle: str | None,
    verify_ssl: bool,
    insecure_http: bool,
    credentials_file: Path | None = None,
    passwd_file: Path | None = None,
    signature: str = "v4",
    variant: Variant | None = None,
) -> Resolved:
    """Find endpoint, region and credentials for *bucket* the way AWS tools do.

    A *credentials_file* takes the place of ``~/.aws/credentials`` and of the environment's keys,
    a *passwd_file* (of s3fs) that of everything.  Blocks, perhaps for seconds (metadata service,
    SSO).  Raises `MountError`.  *path_style* None: virtual hosts on AWS, paths elsewhere.
    """
    import botocore.exceptions

    _repair_home()
    try:
        session = _session(profile, region, credentials_file)
        settings = _settings(session, bucket, endpoint_url, path_style, variant or Variant())
        settings = replace(
            settings,
            verify_ssl=verify_ssl,
            signature=signature,
            signed_root=f"/{bucket}" if settings.virtual_host else "",
            ca_bundle=ca_bundle or session.get_config_variable("ca_bundle"),
        )
        if no_sign_request:
            return Resolved(settings=replace(settings, credential_source="none"), credentials=None)
        found = _credentials(session, bucket, passwd_file)
        if found is None:
            raise MountError(f"no credentials were found: {_HOW_TO_SIGN_IN}", 1)
        first = _frozen(found)
    except botocore.exceptions.ProfileNotFound as error:
        raise MountError(_unknown_profile(error), 1) from error
    except (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        ValueError,
    ) as error:
        raise MountError(_one_line(error), 1) from error
    _refuse_plain_text(settings, insecure_http)

    def load() -> Any:
        with _one_error():
            anew = _session(profile, region, credentials_file)
        return _credentials(anew, bucket, passwd_file)

    settings = replace(settings, credential_source=str(found.method or "unknown"))
    return Resolved(settings=settings, credentials=SessionCredentials(load, first, found))


def _repair_home() -> None:
    """mount(8) and systemd start us with an odd HOME, where botocore would look in ``/.aws``."""
    if os.environ.get("HOME") == "":
        with contextlib.suppress(KeyError):
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir


def _credentials(session: Any, bucket: str, passwd_file: Path | None) -> Any:
    """The credentials of botocore for *bucket*, or None."""
    if passwd_file is None:
        with _one_error():
            found = session.get_credentials()
        # An fstab line of s3fs names no file when it lies in a usual place.
        passwd_file = None if found is not None else passwd.usual_file()
        if passwd_file is None:
            return found
    from botocore.credentials import Credentials as BotocoreCredentials

    keys = passwd.read_keys(passwd_file, bucket)
    return BotocoreCredentials(keys.access_key, keys.secret_key, method=f"file {passwd_file}")


def _session(profile: str | None, region: str | None, credentials_file: Path | None) -> Any:
    import botocore.session

    if credentials_file is not None:
        passwd.check_private(credentials_file)
        # A profile that is named outright comes before the keys of the environment.
        profile = profile or os.environ.get("AWS_PROFILE") or "default"
    session = botocore.session.Session(profile=profile or None)
    if credentials_file is not None:
        session.set_config_variable("credentials_file", str(credentials_file))
    # botocore itself ignores AWS_REGION, which every other SDK honours.
    chosen = region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    session.set_config_variable("region", chosen or "us-east-1")
    return session


def _unknown_profile(error: Exception) -> str:
    import botocore.session

    # A fresh session, which does not trip over the profile that AWS_PROFILE names.
    session = botocore.session.Session()
    session.set_config_variable("profile", "default")
    known = ", ".join(sorted(session.full_config.get("profiles", {}))) or "none"
    return f"{error}; known profiles: {known}"


def _settings(
    session: Any, bucket: str, endpoint_url: str | None, path_style: bool | None, variant: Variant
) -> EndpointSettings:
    """Let botocore write the URL of a key, and read off it where the bucket is.

    So that whatever it supports (dual-stack, FIPS, acceleration, access points, services
    sections) works here too.
    """
    chosen = _client(session, endpoint_url, "path" if path_style else "virtual", variant)
    if path_style is None and not _is_aws(chosen.meta.endpoint_url):
        chosen = _client(session, endpoint_url, "path", variant)
    elif path_style is None and "." in bucket:
        # A wildcard certificate covers no dots: botocore sees to that.
        chosen = _client(session, endpoint_url, "auto", variant)
    url = chosen.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE_KEY})
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MountError(f"{endpoint_url}: an endpoint is http://HOST[:PORT] or https://...", 1)
    _refuse_other_services(bucket, parts.hostname)
    return EndpointSettings(
        scheme=parts.scheme,
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
        root=parts.path[: -len(f"/{_PROBE_KEY}")],
        region=_region_of_arn(bucket) or chosen.meta.region_name or "us-east-1",
        virtual_host=not unquote(parts.path).endswith(f"/{bucket}/{_PROBE_KEY}"),
    )


def _client(session: Any, endpoint_url: str | None, style: str, variant: Variant) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    s3: dict[str, object] = {"addressing_style": style}
    more: dict[str, object] = {}
    # What is not asked for is left to the user's AWS configuration.
    if variant.accelerate:
        s3["use_accelerate_endpoint"] = True
    if variant.dual_stack:
        more["use_dualstack_endpoint"] = True
    if variant.fips:
        more["use_fips_endpoint"] = True
    config = Config(signature_version=UNSIGNED, s3=s3, **more)
    return session.create_client("s3", endpoint_url=endpoint_url or None, config=config)


def _region_of_arn(bucket: str) -> str:
    """The region that an access point is in, whatever region else is configured."""
    return bucket.split(":")[3] if bucket.startswith("arn:") else ""


def _refuse_other_services(bucket: str, host: str) -> None:
    """Raise `MountError` for what has the name of a bucket, and is signed in another way."""
    if not bucket.startswith("arn:"):
        return
    for name, what in _OTHER_SERVICES.items():
        if name in host or name in bucket:
            raise MountError(f"{bucket}: {what} cannot be mounted", 1)


_OTHER_SERVICES = {
    "s3-outposts": "a bucket on Outposts",
    "s3-object-lambda": "an Object Lambda access point",
    ".mrap": "a multi-region access point (use the one of a region)",
    "s3-global": "a multi-region access point (use the one of a region)",
}


def _is_aws(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _refuse_plain_text(settings: EndpointSettings, insecure_http: bool) -> None:
    if settings.secure or insecure_http or is_loopback(settings.host):
        return
    raise MountError(
        f"{settings.url}: signed requests and data would cross the network unencrypted; "
        "use https, or allow it with insecure-http",
        1,
    )


def is_loopback(host: str) -> bool:
    """Whether what is said to *host* stays on this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
