"""Puts objects into the bucket and looks at them, straight at the server.

boto3 does what is rare.  Thousands of small objects go through sockets with a signature of our
own, because boto3 would take most of a run for them (605 PUTs a second against 3000).
"""

import contextlib
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote

import botocore.exceptions

from benchmarks.server import Server, connect

LOADER_THREADS = 4
REGION = "us-east-1"
PATIENCE = 60.0  # seconds until a server that has just started takes its first object
EMPTY_UPLOADS: Mapping[str, str] = {}


class Bucket:
    """One bucket on the server that is measured against."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self._server = server
        self._client = connect(server)

    def create(self) -> None:
        """Make the bucket, and wait until it really takes an object."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=self.name)
                self._client.put_object(Bucket=self.name, Key="ready", Body=b"")
                self._client.delete_object(Bucket=self.name, Key="ready")
                return
            except botocore.exceptions.ClientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def put_small(
        self, keys: Iterable[str], body: bytes, metadata: Mapping[str, str] = EMPTY_UPLOADS
    ) -> None:
        """Put the same *body* under many keys, as fast as the server takes it."""
        waiting = iter(keys)
        taking = threading.Lock()
        failures: list[Exception] = []

        def load() -> None:
            try:
                with _Uploader(self._server, self.name, body, metadata) as uploader:
                    while (key := _take(waiting, taking)) is not None:
                        uploader.put(key)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(LOADER_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def put_large(self, key: str, pieces: Iterable[bytes]) -> None:
        """Put one object as a multipart upload, a piece a part."""
        target = {"Bucket": self.name, "Key": key}
        upload = self._client.create_multipart_upload(**target)["UploadId"]
        parts = []
        for number, piece in enumerate(pieces, 1):
            answer = self._client.upload_part(
                **target, UploadId=upload, PartNumber=number, Body=piece
            )
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._client.complete_multipart_upload(
            **target, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def copy(self, source: str, target: str) -> None:
        """Copy an object of at most 5 GiB on the server."""
        self._client.copy_object(
            Bucket=self.name, Key=target, CopySource={"Bucket": self.name, "Key": source}
        )

    def sizes(self, prefix: str) -> dict[str, int]:
        """The sizes of all objects under *prefix*, markers of directories left out."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return {
            item["Key"]: item["Size"]
            for page in pages
            for item in page.get("Contents", ())
            if not item["Key"].endswith("/")
        }

    def read(self, key: str, start: int, size: int) -> bytes:
        """Read *size* bytes of an object from *start* on."""
        span = f"bytes={start}-{start + size - 1}"
        answer = self._client.get_object(Bucket=self.name, Key=key, Range=span)
        return answer["Body"].read()

    def delete(self, prefix: str) -> None:
        """Delete all under *prefix*."""
        while True:
            page = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix)
            keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            if not keys:
                return
            self._client.delete_objects(Bucket=self.name, Delete={"Objects": keys, "Quiet": True})


def _take(waiting: Iterator[str], taking: threading.Lock) -> str | None:
    with taking:
        return next(waiting, None)


class _Uploader:
    """One connection that puts one body under many keys."""

    def __init__(
        self, server: Server, bucket: str, body: bytes, metadata: Mapping[str, str]
    ) -> None:
        self._host = f"127.0.0.1:{server.port}"
        self._bucket = bucket
        self._body = body
        self._credentials = server.credentials
        self._metadata = sorted((f"x-amz-meta-{k}", v) for k, v in metadata.items())
        self._body_hash = hashlib.sha256(body).hexdigest()
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "_Uploader":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def put(self, key: str) -> None:
        """Put the body under *key*."""
        path = quote(f"/{self._bucket}/{key}")
        headers = self._signed_headers(path)
        head = "".join([f"PUT {path} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in headers)])
        length = f"content-length: {len(self._body)}\r\n\r\n"
        self._socket.sendall((head + length).encode() + self._body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionError(f"the server hung up at the PUT of {key}")
            answer += received
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"PUT of {key}: {answer[:200]!r}")

    def _signed_headers(self, path: str) -> list[tuple[str, str]]:
        """The headers of a PUT with their signature, version 4."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
        headers = [
            ("host", self._host),
            ("x-amz-content-sha256", self._body_hash),
            ("x-amz-date", stamp),
            *self._metadata,
        ]
        names = ";".join(name for name, _ in headers)
        lines = [f"{name}:{value}" for name, value in headers]
        request = "\n".join(["PUT", path, "", *lines, "", names, self._body_hash])
        request_hash = hashlib.sha256(request.encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, request_hash])
        signature = hmac.new(self._signing_key(stamp[:8]), text.encode(), hashlib.sha256)
        value = (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature.hexdigest()}"
        )
        return [*headers, ("authorization", value)]

    def _signing_key(self, day: str) -> bytes:
        key = f"AWS4{self._credentials.secret_key}".encode()
        for word in (day, REGION, "s3", "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        return key
