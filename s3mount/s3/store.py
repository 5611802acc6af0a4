"""The object store in our words: the protocol that caches and writers speak, and its values.

Keys are relative to the mounted prefix: the client adds and strips it.  Nothing above this
module knows HTTP, XML, signatures or boto3.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import quote

from s3mount.errors import StoreError

MIB = 1 << 20
MIN_PART_SIZE = 5 * MIB  # S3 refuses smaller parts, except the last one.
MAX_PARTS = 10_000
MAX_SIZE = (1 << 63) - 1  # Bytes of a file: st_size has a sign.
CLOCK_SLACK_NS = 5_000_000_000  # Between our clock and the store's.
STORE_SLACK_NS = 1_000_000_000  # Between the clocks of a store's machines.
DATE_STEP_NS = 1_000_000_000  # A store tells whole seconds.
MAX_COPY_SIZE = 5 << 30  # CopyObject and UploadPartCopy take at most 5 GiB.

# Where the mount shows what the bucket does not list: both end in a slash, as prefixes do.
OWN = ".s3mount/"
VERSIONS = f"{OWN}versions/"
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What HEAD or GET tells about one version of an object.

    `size` is that of the whole object in bytes, also when a range was asked for; `etag` is
    verbatim, quotes included; `modified_ns` is Last-Modified in nanoseconds since the epoch;
    `metadata` holds the user metadata, names in lower case without ``x-amz-meta-``.
    `headers` are all headers of the answer, names in lower case.
    """

    key: str
    size: int
    etag: str
    modified_ns: int
    metadata: Mapping[str, str]
    headers: Mapping[str, str]


class ListedObject(NamedTuple):
    """What LIST tells about one object: no metadata.  A tuple, because lists are long."""

    key: str
    size: int
    etag: str
    modified_ns: int
    storage_class: str


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing: `prefixes` end in ``/``; `token` continues, None ends.

    `described` is what HEAD would say, by key, of objects whose metadata came along.
    """

    objects: Sequence[ListedObject]
    prefixes: Sequence[str]
    token: str | None
    described: Mapping[str, ObjectInfo] = field(default_factory=dict)


class ListedVersion(NamedTuple):
    """One version of an object, or (`deleted`) the marker of its deletion.

    `moment_ns` is its Last-Modified as exactly as the store tells it; HEAD tells whole seconds.
    """

    key: str
    id: str
    size: int
    etag: str
    moment_ns: int
    latest: bool
    deleted: bool
    storage_class: str
    owner: str


@dataclass(frozen=True, slots=True)
class VersionPage:
    """One page of versions, those of one key together, newest first; else as `ListPage`."""

    versions: Sequence[ListedVersion]
    prefixes: Sequence[str]
    token: str | None


@dataclass(frozen=True, slots=True)
class FileSlice:
    """The bytes ``start <= i < stop`` of an open local file, to be sent from there."""

    descriptor: int
    start: int
    stop: int


Body = Sequence[Buffer] | FileSlice


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says of an object that it has just taken.

    `moment_ns` is when it said so, by its own clock (0: it did not tell).  `stored_as` is what
    `s3mount.storing.lasting` says of it, None where that is not known.
    """

    etag: str
    version_id: str | None = None
    moment_ns: int = 0
    stored_as: Mapping[str, str] | None = None

    def between(self, began_ns: int) -> tuple[int, int]:
        """The moments between which Last-Modified lies, of a write that we began at *began_ns*.

        By the store's clock where it told the time, else by ours; never quite right.  What
        another host does to the metadata between them is taken for our write.
        """
        now_ns = time.time_ns()
        if not self.moment_ns:
            return began_ns - CLOCK_SLACK_NS, now_ns + CLOCK_SLACK_NS
        first_ns = self.moment_ns - (now_ns - began_ns) - STORE_SLACK_NS
        return first_ns, self.moment_ns + DATE_STEP_NS + STORE_SLACK_NS


@dataclass(frozen=True, slots=True)
class StoredChecksum:
    """The checksum of a whole object, as its store keeps it, and how to arrive at the same.

    `of` goes on with a checksum (0 to begin) over more bytes; `join` makes that of adjoining
    bytes from theirs, given the size of the second piece.
    """

    value: int
    of: Callable[[Buffer, int], int]
    join: Callable[[int, int, int], int]


@dataclass(frozen=True, slots=True)
class PartDone:
    """One finished part of a multipart upload: its number (from 1), ETag and checksum."""

    number: int
    etag: str
    crc: int | None


class ListedPart(NamedTuple):
    """A part of an unfinished upload, as the store lists it; `crc` is None if it tells none."""

    number: int
    size: int
    etag: str
    crc: int | None


class ListedUpload(NamedTuple):
    """An unfinished upload, as the store lists it.

    `begun_ns` is when, by the clock of the store, in whole seconds; `algorithm` is the checksum
    that it was begun with, in lower case, empty if the store does not tell.
    """

    id: str
    begun_ns: int
    algorithm: str


@dataclass(frozen=True, slots=True)
class Precondition:
    """When a write may take effect: always, only over `etag`, or only over nothing.

    A `lenient` one is what the writer expects and does not insist on: where it does not hold, the
    write is made over what there is.  It keeps a request that the store carries out late, after
    its connection broke, from undoing later ones; stores without conditions do not hear of it.
    """

    etag: str | None = None
    absent: bool = False
    lenient: bool = False


ALWAYS = Precondition()


def expecting(etag: str | None) -> Precondition:
    """The lenient condition of who replaces or deletes version *etag*, if that is known."""
    return Precondition(etag=etag, lenient=True) if etag else ALWAYS


EXPECTING_NOTHING = Precondition(absent=True, lenient=True)
ABSENT = Precondition(absent=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store can do, found by trying it, never by its name.

    `checksum` is the algorithm that uploads carry (``crc64nvme``, ``crc32c``, or None);
    `copy_part_checksum` says whether parts may be copied into a multipart upload that has one;
    `complete_names_etag` whether the ETag that a completion answers is the object's;
    `distinct_etags` whether other content has another ETag; `marker_objects` whether an object
    ``d/`` may be beside what is in it, `marker_metadata` whether it keeps metadata; `list_metadata`
    whether a listing tells metadata when asked to, as MinIO's does; `copy_keeps`, `copy_replaces`
    whether a copy heeds the directives COPY and REPLACE; `head_size` whether HEAD tells the size;
    `prefixes_vanish` whether a directory is not listed any more when all in it is deleted.
    `refused_names` are the forms of names (of `escaping.SAMPLES`) that are not kept as they are,
    `notes` say in sentences what is weaker than it should be, or could not be tried.
    """

    conditional_put: bool = True
    conditional_complete: bool = True
    conditional_delete: bool = True
    conditional_get: bool = True
    conditional_copy: bool = True
    copy_part: bool = True
    copy_part_checksum: bool = True
    delete_many: bool = True
    list_v2: bool = True
    unsigned_payload: bool = True
    checksum: str | None = "crc64nvme"
    max_metadata_size: int = 2048
    complete_names_etag: bool = True
    distinct_etags: bool = True
    marker_objects: bool = True
    marker_metadata: bool = True
    list_metadata: bool = False
    copy_keeps: bool = True
    copy_replaces: bool = True
    head_size: bool = True
    prefixes_vanish: bool = True
    refused_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ObjectLinks(Protocol):
    """How the objects of a mount are reached by other means."""

    def full_key(self, key: str) -> str:
        """The key in the bucket, the mounted prefix included."""
        ...

    def url(self, key: str) -> str:
        """``s3://bucket/key``, as the tools of AWS take it."""
        ...

    async def presigned_url(self, key: str, seconds: int) -> str:
        """A link by which anybody may GET the object for *seconds* (at most a week)."""
        ...


class ObjectExtras(Protocol):
    """What hangs on an object beside its bytes, and is changed without a new version of them.

    All methods raise `StoreError`, `Unsupported` where the store has no such thing.
    """

    async def tags(self, key: str) -> Mapping[str, str]:
        """The tags of an object."""
        ...

    async def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Give an object these tags and no others."""
        ...

    async def set_acl(self, key: str, acl: str) -> None:
        """Give an object a canned ACL."""
        ...

    async def set_legal_hold(self, key: str, held: bool) -> None:
        """Begin or end a legal hold of an object."""
        ...

    async def set_retention(self, key: str, mode: str, until: str) -> None:
        """Retain an object in *mode* until a moment in ISO 8601."""
        ...

    async def restore(self, key: str, days: int) -> None:
        """Ask for an archived object to be readable for some *days*; it may take hours."""
        ...


class ObjectHistory(Protocol):
    """The older versions of the objects of a bucket, with keys of their own by `version_key`."""

    async def keeps_versions(self) -> bool:
        """Whether the bucket keeps versions, or has done so once."""
        ...

    async def list_versions(
        self, prefix: str, *, token: str | None, flat: bool = False, limit: int = 1000
    ) -> VersionPage:
        """List one page of the versions of what is under *prefix*; unless *flat*, one level."""
        ...

    async def versions_of(self, key: str) -> Sequence[ListedVersion]:
        """All versions of one object and its deletions, the newest first."""
        ...

    async def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version, or one marker of a deletion, for good."""
        ...


class ObjectStore(Protocol):
    """One bucket, seen from one prefix.

    All methods may run in many tasks at once.  They retry what is safe to repeat, verify
    what can be verified, finish within the store's time limit, and raise nothing but
    `StoreError` (and `trio.Cancelled`).
    """

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do, as far as it is known by now."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Describe the object at *key*."""
        ...

    async def get(
        self,
        key: str,
        start: int,
        into: Sequence[memoryview],
        *,
        etag: str | None,
        progress: Callable[[int], None] | None = None,
        urgent: bool = True,
        size: int | None = None,
        restore: bool = False,
    ) -> ObjectInfo:
        """Fill the buffers *into*, one after the other, with the bytes from *start* on.

        At the object's end fewer bytes arrive: ``min(info.size - start, room)``.  *progress*
        hears the count of bytes that are in place whenever it has grown.  With *etag* no byte
        of another version arrives: `Changed` instead.  Raises `InvalidRange` when *start* is
        not inside the object (an empty object has no inside).  A request that is not *urgent*
        yields its place in the queue for a connection.  Who knows the *size* of the object should
        tell: many stores send the checksum only with a whole object that no range was asked of.
        An archived object is `Archived`; with *restore* somebody needs its bytes, so that the
        mount says so, or has it restored, as it is told to.
        """
        ...

    async def stored_checksum(self, key: str, *, etag: str) -> StoredChecksum | None:
        """What the store keeps as the checksum of this version; None if it keeps none."""
        ...

    async def list_page(
        self,
        prefix: str,
        *,
        token: str | None,
        flat: bool = False,
        limit: int = 1000,
        metadata: bool = False,
    ) -> ListPage:
        """List one page of what is under *prefix*; unless *flat*, one level only.

        With *metadata* a store that has `Capabilities.list_metadata` tells those of objects.
        """
        ...

    async def put(
        self,
        key: str,
        body: Body,
        *,
        headers: Mapping[str, str],
        condition: Precondition = ALWAYS,
        crc: int | None = None,
    ) -> Stored:
        """Write an object.  *headers* are Content-Type, ``x-amz-meta-*`` and the like.

        *crc* is the checksum of the body by `Capabilities.checksum`; the client computes it
        when it is None.  Raises `Changed` or `Exists` when *condition* does not hold.
        """
        ...

    async def copy(
        self,
        source: str,
        target: str,
        *,
        headers: Mapping[str, str] | None,
        source_etag: str | None,
        condition: Precondition = ALWAYS,
        size: int = 0,
        stored_as: Mapping[str, str] | None = None,
    ) -> Stored:
        """Copy on the server, at most `MAX_COPY_SIZE`; *headers* replace metadata (None: keep).

        *size* is that of the object.  Where *headers* is None, *stored_as* are those of them
        that say how the object is stored (see `s3mount.storing`): a copy does not keep that by
        itself.  Without either the store is asked.
        """
        ...

    async def delete(self, key: str, *, condition: Precondition = ALWAYS) -> None:
        """Delete an object; that there is none is no error."""
        ...

    async def awaken(self, key: str) -> None:
        """Return when the bytes of an archived object can be read; raises `Asleep`."""
        ...

    async def remove(self, key: str, *, condition: Precondition = ALWAYS) -> None:
        """Delete an object for somebody who asked for that; raises `Held` where it is held."""
        ...

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        """Delete any number of objects, and return the failures by key."""
        ...

    async def create_upload(
        self, key: str, *, headers: Mapping[str, str], copies: bool = True
    ) -> str:
        """Begin a multipart upload and return its id.

        Unless *copies*, no part of it will be copied; then it has a checksum on more stores.
        """
        ...

    async def upload_part(
        self, key: str, upload_id: str, number: int, body: Body, *, crc: int | None = None
    ) -> PartDone:
        """Send part *number* (from 1)."""
        ...

    async def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        *,
        source: str,
        start: int,
        stop: int,
        source_etag: str,
    ) -> PartDone:
        """Make bytes ``start <= i < stop`` of *source* part *number*, on the server."""
        ...

    async def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[PartDone],
        *,
        condition: Precondition = ALWAYS,
    ) -> Stored:
        """Make the object out of *parts*, ordered by number.

        A completion whose answer was lost is recognised as done.
        """
        ...

    async def list_uploads(self, key: str) -> Sequence[ListedUpload]:
        """The unfinished uploads of *key*, whoever has begun them; the first thousand at most."""
        ...

    async def list_parts(self, key: str, upload_id: str) -> Sequence[ListedPart]:
        """The parts that an unfinished upload has."""
        ...

    async def own_version(self, key: str) -> ObjectInfo | None:
        """What is at *key*, if an unanswered write of ours made it; else asks nobody, and None."""
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; that there is none is no error."""
        ...


class VersionedStore(ObjectStore, ObjectHistory, Protocol):
    """A bucket with its past."""


def version_key(version: ListedVersion) -> str:
    """The key under which one version can be read: ``.s3mount/versions/KEY/TIME-VERSIONID``."""
    seconds, fraction = divmod(version.moment_ns, 1_000_000_000)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    name = f"{moment}.{fraction // 1_000_000:03}Z-{quote(version.id, safe='')}"
    return f"{VERSIONS}{version.key}/{name}"
