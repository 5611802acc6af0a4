"""The XML of tags, holds and restorations: answers into values, and request bodies."""

from collections.abc import Mapping
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from s3mount.s3.xml import Malformed, parse

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def _parse(body: bytes, name: str) -> tuple[ET.Element, str]:
    """Parse a body whose root is called *name*; return it and the namespace as tags carry it."""
    root = parse(body)
    namespace, brace, local = root.tag.rpartition("}")
    if local != name:
        raise Malformed(f"it is {local[:40]!r}, not {name!r}")
    return root, namespace + brace


def tags(body: bytes) -> dict[str, str]:
    """Read the answer of GetObjectTagging."""
    root, namespace = _parse(body, "Tagging")
    return {
        tag.findtext(f"{namespace}Key") or "": tag.findtext(f"{namespace}Value") or ""
        for tag in root.iter(f"{namespace}Tag")
    }


def has_object_lock(body: bytes) -> bool:
    """Read the answer of GetObjectLockConfiguration."""
    root, namespace = _parse(body, "ObjectLockConfiguration")
    return root.findtext(f"{namespace}ObjectLockEnabled") == "Enabled"


def tag_request(tags: Mapping[str, str]) -> bytes:
    """Write the body of PutObjectTagging."""
    items = "".join(
        f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
        for name, value in tags.items()
    )
    return f'<Tagging xmlns="{_NAMESPACE}"><TagSet>{items}</TagSet></Tagging>'.encode()


def legal_hold_request(held: bool) -> bytes:
    """Write the body of PutObjectLegalHold."""
    status = "ON" if held else "OFF"
    return f'<LegalHold xmlns="{_NAMESPACE}"><Status>{status}</Status></LegalHold>'.encode()


def retention_request(mode: str, until: str) -> bytes:
    """Write the body of PutObjectRetention."""
    return (
        f'<Retention xmlns="{_NAMESPACE}"><Mode>{escape(mode)}</Mode>'
        f"<RetainUntilDate>{escape(until)}</RetainUntilDate></Retention>"
    ).encode()


def restore_request(days: int, tier: str) -> bytes:
    """Write the body of RestoreObject."""
    return (
        f'<RestoreRequest xmlns="{_NAMESPACE}"><Days>{days}</Days>'
        f"<GlacierJobParameters><Tier>{escape(tier)}</Tier></GlacierJobParameters>"
        "</RestoreRequest>"
    ).encode()
