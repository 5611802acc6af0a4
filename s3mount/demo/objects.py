"""The demo's other view of the bucket: boto3, as any program that speaks S3 would use it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s3mount.demo.weed import REGION, Credentials
from s3mount.errors import StoreError


class Bucket:
    """One bucket of the demo's server, made when it is not there."""

    def __init__(self, url: str, name: str, credentials: Credentials) -> None:
        self.name = name
        self._s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._s3.close()

    def create(self) -> None:
        """Make the bucket; that it is there already is no error, it is our own server."""
        with _told(self.name):
            try:
                self._s3.create_bucket(Bucket=self.name)
            except self._s3.exceptions.BucketAlreadyOwnedByYou:
                return

    def get(self, key: str) -> tuple[bytes, str]:
        """Return the bytes and the Content-Type of an object."""
        with _told(key):
            answer = self._s3.get_object(Bucket=self.name, Key=key)
            with answer["Body"] as body:
                return body.read(), answer["ContentType"]

    def put(self, key: str, body: bytes) -> None:
        """Write an object."""
        with _told(key):
            self._s3.put_object(Bucket=self.name, Key=key, Body=body)

    def keys(self, prefix: str) -> Sequence[str]:
        """Return all keys that begin with *prefix*."""
        with _told(prefix):
            paginator = self._s3.get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=self.name, Prefix=prefix)
            return [found["Key"] for page in pages for found in page.get("Contents", ())]


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what boto3 raises into our own word for it."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"{name}: {error}") from error
