"""Option names of s3fs, goofys, geesefs, rclone and mountpoint-s3, for fstab lines that move here.

Plain synonyms are aliases in `s3mount.config`.  Here are the names that mean something else, or
count in other units, there; those that only tune the other program; and those that are refused,
because to ignore them would break a promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# What an option becomes here: name and text.
Translation = tuple[str, str]


def _counted_in(unit: str, name: str) -> Callable[[str], Translation]:
    """Translate a size whose bare numbers count *unit*."""

    def translate(text: str) -> Translation:
        return name, text + unit if text.strip().isdigit() else text

    return translate


def _endpoint(text: str) -> Translation:
    """goofys means an address by it, s3fs a region."""
    return ("endpoint-url" if "://" in text else "region"), text


def _log_level(text: str) -> Translation:
    words = {"crit": "error", "critical": "error", "err": "error", "warn": "warning"}
    words |= {"information": "info", "dbg": "debug", "notice": "info"}
    word = text.strip().lower()
    return "log-level", words.get(word, word)


def _use_sse(text: str) -> Translation:
    """s3fs says by one option which sort of encryption it is, and with which key."""
    kind, _, detail = text.partition(":")
    if kind.lower() in ("custom", "c"):
        return "sse-c-key-file", detail
    if kind.lower() in ("kmsid", "k"):
        return ("sse-kms-key-id", detail) if detail else ("sse", "aws:kms")
    return ("sse", "AES256") if text.strip() == "1" else ("sse", text)


TRANSLATED: Mapping[str, Callable[[str], Translation]] = {
    "endpoint": _endpoint,  # s3fs, goofys, geesefs
    "dbglevel": _log_level,  # s3fs
    "multipart-size": _counted_in("M", "part-size"),  # s3fs
    "ensure-diskfree": _counted_in("M", "min-free-space"),  # s3fs
    "use-sse": _use_sse,  # s3fs
    "s3-chunk-size": _counted_in("K", "part-size"),  # rclone
    "vfs-cache-max-size": _counted_in("K", "max-cache-size"),  # rclone
    "vfs-cache-min-free-space": _counted_in("K", "min-free-space"),  # rclone
}

# What the name alone means, of those.
BARE: Mapping[str, str] = {"use-sse": "1"}

_S3FS = """
    attr-timeout auto-cache bandwidth-limit big-writes check-cache-dir-exist compat-dir
    complement-stat connect-timeout curldbg direct-io enable-content-md5 enable-noobj-cache
    enable-unsigned-payload entry-timeout free-space-ratio hard-remove instance-name kernel-cache
    list-object-max-keys listobjectsv1 listobjectsv2 max-background max-dirty-data
    max-readahead max-stat-cache-size max-thread-count max-write mp-umask multireq-max
    noobj-cache nocopyapi nomixupload nomultipart norenameapi notsup-compat-dir parallel-count
    readwrite-timeout retries singlepart-copy-limit splice-move splice-read
    splice-write stat-cache-interval-expire streamupload update-parent-dir-stat use-wtf8
    use-xattr
"""
_GOOFYS = """
    cheap debug-fuse debug-s3 enable-perms enable-specials entry-limit fsync-on-close
    http-timeout ignore-fsync max-flushers max-parallel-copy max-parallel-parts memory-limit
    no-dir-object no-implicit-dir part-sizes read-ahead-large read-ahead-small read-retry-attempts
    setuid setgid type-cache-ttl use-content-type
"""
_GEESEFS = """
    enable-mtime iam list-type no-specials
"""
_RCLONE = """
    args2env async-read buffer-size daemon daemon-timeout daemon-wait
    fast-list links no-checksum no-modtime no-seek noappledouble noapplexattr poll-interval rc
    s3-env-auth s3-provider transfers checkers vfs-block-norm-dupes vfs-cache-max-age
    vfs-cache-mode vfs-cache-poll-interval vfs-case-insensitive vfs-disk-space-total-size
    vfs-fast-fingerprint vfs-handle-caching vfs-links vfs-read-ahead vfs-read-chunk-size
    vfs-read-chunk-size-limit vfs-read-chunk-streams vfs-read-wait vfs-refresh vfs-used-is-size
    vfs-write-back vfs-write-wait volname write-back-cache use-server-modtime use-mmap
"""
_MOUNTPOINT = """
    allow-delete allow-overwrite incremental-upload log-metrics max-threads
    maximum-throughput-gbps metadata-cache-size read-part-size upload-checksums
    no-log-file debug-crt
"""
# They tune another program, or allow what is allowed here anyway.
WITHOUT_MEANING = frozenset(" ".join((_S3FS, _GOOFYS, _GEESEFS, _RCLONE, _MOUNTPOINT)).split())

_SECRET = (
    "a secret in an option is seen by everybody who runs `ps` (use profile, credentials-file, "
    "passwd-file, sse-c-key-file, or [env] in a private file of options)"
)
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("access-key", "access-key-id", "aws-access-key-id", "aws-secret-access-key"),
            *("secret", "secret-key", "secret-access-key", "session-token", "password"),
            *("s3-access-key-id", "s3-secret-access-key", "s3-session-token"),
            *("sse-c", "s3-sse-customer-key", "s3-sse-customer-key-base64"),
        ),
        _SECRET,
    ),
    "ahbe-conf": "write the lines as GLOB NAME: VALUE, and name the file in headers-file",
    "load-sse-c": "put all keys into one file, the newest first, and name it in sse-c-key-file",
    "iam-role": "roles are found by themselves, or named in an AWS profile (option profile)",
}
