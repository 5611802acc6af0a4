"""The options that say which store and bucket a mount is of, and how requests are made.

They are the first part of the table of options: `s3mount.config.Config` has the others.
"""
# ruff: noqa: RUF009
# Each call of `option` makes a field of its own, so nothing is shared.

from dataclasses import dataclass
from pathlib import Path

from s3mount.declaring import STORE, option
from s3mount.values import ADDRESSING, FLAG, MOMENT, PATH, PREFIX, TEXT, URL, choice


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """The choices for the store of one mount."""

    prefix: str = option(
        PREFIX,
        STORE,
        "mount only the keys below this prefix, the same as BUCKET/PREFIX",
        default="",
        shown="the whole bucket",
    )
    as_of: int | None = option(
        MOMENT,
        STORE,
        "mount a bucket that keeps versions as it was then, read-only; a time without a zone is "
        "this machine's",
        shown="as it is",
        aliases=("s3-version-at",),
    )
    endpoint_url: str | None = option(
        URL,
        STORE,
        "address of the store; without it AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the "
        "AWS profile are asked",
        shown="AWS S3",
        aliases=("url", "s3-endpoint", "host"),
    )
    region: str | None = option(
        TEXT,
        STORE,
        "region of the bucket; without it AWS_REGION, AWS_DEFAULT_REGION and the AWS profile "
        "are asked, and the store itself corrects a wrong one",
        shown="us-east-1",
        aliases=("s3-region",),
    )
    profile: str | None = option(
        TEXT,
        STORE,
        "section of ~/.aws/config and ~/.aws/credentials to use",
        shown="AWS_PROFILE",
        aliases=("s3-profile",),
    )
    credentials_file: Path | None = option(
        PATH,
        STORE,
        "file of AWS credentials to use in place of ~/.aws/credentials and of the environment; "
        "nobody else may be allowed to read it",
        shown="AWS_SHARED_CREDENTIALS_FILE",
        aliases=("shared-config", "s3-shared-credentials-file"),
    )
    passwd_file: Path | None = option(
        PATH,
        STORE,
        "file of keys as s3fs has it: lines KEY:SECRET or BUCKET:KEY:SECRET; nobody else may be "
        "allowed to read it",
        shown="where nothing else is found: ~/.passwd-s3fs, /etc/passwd-s3fs",
    )
    path_style: bool | None = option(
        ADDRESSING,
        STORE,
        "put the bucket into the path of a request, not into the host name; auto does so for "
        "every store but AWS",
        default="auto",
        aliases=(
            "force-path-style=true",
            "use-path-request-style=true",
            "s3-force-path-style",
            "subdomain=false",
        ),
    )
    signature: str = option(
        choice("v4", "v2"),
        STORE,
        "version of the signatures: v2, which does not protect what is written, is for stores "
        "that know no other",
        default="v4",
        aliases=("sigv2=v2", "sigv4=v4", "s3-v2-auth=v2"),
    )
    no_sign_request: bool = option(
        FLAG,
        STORE,
        "use no credentials, for public buckets",
        default="false",
        aliases=("anonymous", "public-bucket"),
    )
    ca_bundle: Path | None = option(
        PATH,
        STORE,
        "file of certificates (PEM) to trust in place of the system's",
        shown="AWS_CA_BUNDLE, else the system's",
        aliases=("cacert",),
    )
    no_verify_ssl: bool = option(
        FLAG,
        STORE,
        "accept any certificate: whoever is on the way can read and change everything",
        default="false",
        aliases=("no-check-certificate",),
    )
    insecure_http: bool = option(
        FLAG,
        STORE,
        "allow requests with credentials over plain http:// to another machine",
        default="false",
    )
