"""What an object says about itself and we do not understand: it survives a change of the file."""

from collections.abc import Collection, Mapping

from s3mount.s3.store import ObjectInfo
from s3mount.storing import lasting

# What a new version of an object takes over from the old one, beside its attributes.
KEPT_HEADERS = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
    "x-amz-website-redirect-location",
)
META = "x-amz-meta-"
MTIME, CTIME = META + "mtime", META + "ctime"
OURS = ("mode", "uid", "gid", "mtime", "ctime", "atime", "rdev", "xattr")


def kept_headers(info: ObjectInfo, ours: Collection[str] = OURS) -> Mapping[str, str]:
    """The headers of an object that a new version of the same file keeps.

    *ours* are the names of metadata that are written anew.
    """
    kept = {name: info.headers[name] for name in KEPT_HEADERS if info.headers.get(name)}
    if kept.get("content-encoding") == "aws-chunked":
        del kept["content-encoding"]
    kept |= lasting(info.headers)
    for name, value in info.metadata.items():
        if name not in ours:
            kept[META + name] = value
    return kept


def differs(wanted: Mapping[str, str], declared: Mapping[str, str], mtime_ns: int) -> bool:
    """Whether attributes were changed after an upload had been told them.

    The moment of the last write is not one of them: it lies between the beginning of the
    upload and now, and to correct it would cost a copy of the whole object.
    """
    seconds, _, fraction = declared.get(MTIME, "0.0").partition(".")
    explicit = mtime_ns < int(seconds) * 1_000_000_000 + int(fraction)
    times = (MTIME, CTIME)
    kept = [{n: v for n, v in one.items() if n not in times} for one in (wanted, declared)]
    return explicit or kept[0] != kept[1]
