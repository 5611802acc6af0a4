"""What a mount needs of its store: a name, a way there, a clock, credentials; what it can do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from s3mount.config import Config
from s3mount.connecting import client_for
from s3mount.diagnosis import BAD, GOOD, WEAK, Finding
from s3mount.errors import MountError, StoreError
from s3mount.s3.client import S3Client
from s3mount.s3.endpoint import EndpointSettings
from s3mount.s3.http import moment_of
from s3mount.s3.probe import WEAKNESSES, probe
from s3mount.s3.session import SessionCredentials, is_loopback
from s3mount.s3.store import Capabilities
from s3mount.s3.trials import PRETENDS, WORKS, Facts, try_more

SCRATCH = ".s3mount/"
TIMEOUT = 10.0  # seconds for a connection
MAX_SKEW = 60.0  # seconds; AWS refuses requests after 15 minutes
SOON = 14 * 86400.0  # seconds before a certificate ends, in which to tell

_ASSUMED = re.compile("assumed|not possible")

# What a capability is for, and what follows from it where it is there.
SUBJECTS = {
    "conditional_put": ("conditional PUT", "of two hosts that create one file, one wins"),
    "conditional_complete": ("conditional complete", "the same for large files"),
    "conditional_delete": ("conditional DELETE", "what somebody has just changed is not deleted"),
    "conditional_get": ("GET with If-Match", "an open file is of one version"),
    "conditional_copy": ("conditional copy", "a rename replaces nothing unasked"),
    "copy_part": ("UploadPartCopy", "a small change in a large file sends little"),
    "copy_part_checksum": ("checksums of copied parts", "a changed large file keeps its checksum"),
    "delete_many": ("DeleteObjects", "trees are deleted a thousand at a time"),
    "list_v2": ("ListObjectsV2", ""),
    "unsigned_payload": ("unsigned payload", "no SHA-256 of what is written"),
    "complete_names_etag": ("ETag of an upload", ""),
    "distinct_etags": ("ETags", "every change is noticed"),
    "marker_objects": ("markers of directories", ""),
    "marker_metadata": ("metadata of directories", "modes and owners of directories are kept"),
    "copy_keeps": ("metadata in a copy", "a rename keeps them"),
    "copy_replaces": ("new metadata by a copy", "chmod sends no content"),
    "head_size": ("size told by HEAD", ""),
    "prefixes_vanish": ("listings without deleted directories", ""),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings about a store at *url*, and what it can do, if all of that was tried."""

    findings: tuple[Finding, ...]
    capabilities: Capabilities | None = None
    url: str = ""


async def check_store(config: Config) -> Verdict:
    """Look at the store of a mount; scratch keys are made in the bucket, and removed."""
    try:
        client = await client_for(config)
    except MountError as error:
        return Verdict((Finding("credentials", BAD, str(error)),))
    async with client:
        findings = [_credentials(client)]
        findings += await trio.to_thread.run_sync(lambda: list(_way(client.settings)))
        if any(finding.level == BAD for finding in findings):
            return Verdict(tuple(findings))
        try:
            listable = await client.check_bucket()
        except StoreError as error:
            return Verdict((*findings, Finding("bucket", BAD, str(error))))
        findings.append(_bucket(client, listable=listable))
        if config.ro:
            return Verdict(tuple(findings))
        found = await probe(client, SCRATCH)
        client.adopt(found)
        facts = await try_more(client, SCRATCH)
        findings += [*_capabilities(found), *_facts(facts)]
        # What is only assumed must not be taken for found by whoever mounts next.
        tried = found if not any(_ASSUMED.search(note) for note in found.notes) else None
        return Verdict(tuple(findings), tried, client.settings.url)


def _credentials(client: S3Client) -> Finding:
    source = client.credential_source
    text = f"from {client.settings.credential_source}" if source else "none, as asked"
    if isinstance(source, SessionCredentials) and (end := source.expires()) is not None:
        minutes = (end - time.time()) / 60
        text += f", good for {minutes:.0f} min, and renewed in time"
    return Finding("credentials", GOOD, text)


def _bucket(client: S3Client, *, listable: bool) -> Finding:
    where = f"{client.bucket} in {client.settings.region}"
    if not listable:
        return Finding("bucket", WEAK, f"{where} may not be listed", "ls fails; known names work")
    return Finding("bucket", GOOD, where)


# -- the way there -------------------------------------------------------------------------------


def _way(settings: EndpointSettings) -> Iterator[Finding]:
    """Name, connection, certificate and clock.  Blocks."""
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield Finding("name", BAD, f"{settings.host}: {error.strerror}", "check DNS, endpoint-url")
        return
    addresses = sorted({str(entry[4][0]) for entry in found})
    took = (time.monotonic() - began) * 1e3
    yield Finding("name", GOOD, f"{settings.host} is {', '.join(addresses[:3])} ({took:.0f} ms)")
    try:
        yield from _talk(settings)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        yield Finding("TLS", BAD, reason, "ca-bundle names the certificates to trust")
    except OSError as error:
        yield Finding("connection", BAD, f"{settings.url}: {error.strerror or error}")
    except http.client.HTTPException as error:
        yield Finding("connection", BAD, f"{settings.url} does not speak HTTP: {error}")


def _talk(settings: EndpointSettings) -> Iterator[Finding]:
    connection: http.client.HTTPConnection
    if settings.secure:
        context = ssl.create_default_context(cafile=settings.ca_bundle)
        if not settings.verify_ssl:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            settings.host, settings.port, timeout=TIMEOUT, context=context
        )
    else:
        connection = http.client.HTTPConnection(settings.host, settings.port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        began = time.monotonic()
        connection.connect()
        took = (time.monotonic() - began) * 1e3
        yield Finding("connection", GOOD, f"{settings.url} ({took:.0f} ms)")
        if isinstance(connection.sock, ssl.SSLSocket):
            yield _certificate(connection.sock, verified=settings.verify_ssl)
        elif not is_loopback(settings.host):
            yield Finding("TLS", WEAK, "not spoken", "whoever is on the way can read everything")
        connection.request("HEAD", "/", headers={"Host": settings.authority})
        yield _clock(connection.getresponse().getheader("Date"))


def _certificate(connection: ssl.SSLSocket, *, verified: bool) -> Finding:
    version = str(connection.version())
    certificate = connection.getpeercert() or {}
    if not verified:
        return Finding("TLS", WEAK, f"{version}, not verified", "anybody could be the store")
    left = ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()
    text = f"{version}, the certificate is good for {left / 86400:.0f} days"
    return Finding("TLS", WEAK if left < SOON else GOOD, text)


def _clock(date: str | None) -> Finding:
    moment = moment_of(date)
    if moment is None:
        return Finding("clock", WEAK, "the store does not tell its time")
    skew = time.time() - moment
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store's"
    if abs(skew) > MAX_SKEW:
        return Finding("clock", WEAK, text, "s3mount corrects for it; other tools will not")
    return Finding("clock", GOOD, text if abs(skew) >= 2 else "agrees with the store's")


# -- what the store can do ------------------------------------------------------------------------


def _capabilities(found: Capabilities) -> Iterator[Finding]:
    known = {f"the store {text}" for text in WEAKNESSES.values()}
    for name, (subject, follows) in SUBJECTS.items():
        if getattr(found, name):
            yield Finding(subject, GOOD, "works", follows)
        else:
            yield Finding(subject, WEAK, "does not work", f"the store {WEAKNESSES[name]}")
    if found.checksum is None:
        yield Finding("checksums", WEAK, "none", "what is damaged on the way is not noticed")
    else:
        yield Finding("checksums", GOOD, found.checksum, "what is written is checked by the store")
    for note in found.notes:
        if note not in known and "no checksum of what" not in note:
            yield Finding("trials", WEAK, note)


def _facts(facts: Facts) -> Iterator[Finding]:
    if facts.sorted_listing is not None:
        order = "sorted by key" if facts.sorted_listing else "not sorted by key"
        yield Finding("listing order", GOOD, order, "s3mount does not depend on it")
    if facts.minimum_part is not None:
        size = "5 MiB, as on AWS" if facts.minimum_part else "none"
        yield Finding("smallest part", GOOD, size, "s3mount sends no smaller ones")
    yield from _checksums(facts)
    if facts.large_metadata is not None:
        level = GOOD if facts.large_metadata else WEAK
        text = "kept" if facts.large_metadata else "not kept"
        yield Finding("2 KB of metadata", level, text, "for extended attributes")
    yield from _names(facts)
    yield from _extensions(facts)


def _checksums(facts: Facts) -> Iterator[Finding]:
    if facts.refuses_damage is not None:
        level = GOOD if facts.refuses_damage else WEAK
        text = "refused" if facts.refuses_damage else "stored"
        means = "" if facts.refuses_damage else "the store does not compare checksums"
        yield Finding("damaged bodies", level, text, means)
    if facts.algorithms:
        text = ", ".join(facts.algorithms)
        yield Finding("algorithms", GOOD, text, "damage on the way is noticed by any of them")
    elif facts.algorithms is not None:
        means = "what is read is compared with what was sent all the same"
        yield Finding("algorithms", WEAK, "none is compared with what arrives", means)


def _names(facts: Facts) -> Iterator[Finding]:
    if facts.refused_names is not None:
        names = ", ".join(facts.refused_names)
        text = f"names with {names} are not kept" if names else "all forms are kept"
        means = "s3mount writes them in another way (%s3esc:)" if names else ""
        yield Finding("odd names", GOOD, text, means)
    if facts.file_and_folder is not None:
        level = GOOD if facts.file_and_folder else WEAK
        text = "both are kept" if facts.file_and_folder else "not both can be there"
        means = "s3mount shows both" if facts.file_and_folder else "s3mount makes no such pair"
        yield Finding("key a beside a/b", level, text, means)


def _extensions(facts: Facts) -> Iterator[Finding]:
    """Calls that only some stores have; who takes them for plain writes is dangerous to others."""
    tried = (
        ("RenameObject", facts.renaming, "leaves an empty object", "copies and deletes"),
        ("append", facts.appending, "overwrites the object", "copies parts"),
    )
    for subject, outcome, harm, instead in tried:
        if outcome == PRETENDS:
            means = f"s3mount never asks for it, and {instead}; tools that do lose data"
            yield Finding(subject, WEAK, f"is answered 200, and {harm}", means)
        elif outcome is not None:
            text = "works" if outcome == WORKS else "refused"
            yield Finding(subject, GOOD, text, f"s3mount does without, and {instead}")
