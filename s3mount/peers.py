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


def _use_rrs(text: str) -> Translation:
    """A storage class that s3fs has an option of its own for; 0 is for the usual one."""
    return "storage-class", "STANDARD" if text.strip() in ("0", "false") else "REDUCED_REDUNDANCY"


TRANSLATED: Mapping[str, Callable[[str], Translation]] = {
    "endpoint": _endpoint,  # s3fs, goofys, geesefs
    "dbglevel": _log_level,  # s3fs
    "multipart-size": _counted_in("M", "part-size"),  # s3fs
    "ensure-diskfree": _counted_in("M", "min-free-space"),  # s3fs
    "use-sse": _use_sse,  # s3fs
    "use-rrs": _use_rrs,  # s3fs
    "s3-chunk-size": _counted_in("K", "part-size"),  # rclone
    "vfs-cache-max-size": _counted_in("K", "max-cache-size"),  # rclone
    "vfs-cache-min-free-space": _counted_in("K", "min-free-space"),  # rclone
    "allow-non-empty": lambda text: ("nonempty", text),  # rclone
    "max-memory-target": _counted_in("M", "memory"),  # mountpoint-s3
}

# What the name alone means, of those.
BARE: Mapping[str, str] = {"use-sse": "1", "use-rrs": "1", "allow-non-empty": "true"}

_S3FS = """
    attr-timeout auto-cache bandwidth-limit big-writes check-cache-dir-exist cipher-suites
    compat-dir complement-stat connect-timeout curldbg del-cache direct-io ecs enable-content-md5
    enable-noobj-cache imdsv1only mime multipart-copy-size multipart-threshold no-time-stamp-msg
    nodnscache nosscache noua noxmlns set-check-cache-sigusr1 ssl-verify-hostname tmpdir
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
    cache-age-decrement cache-age-interval cache-file-mode cache-max-hits cache-popular-threshold
    cache-to-disk-hits debug-grpc disable-xattr drop-patch-conflicts enable-mtime enable-patch
    flush-filename fuse-read-ahead-kb gc-interval hard-delete iam large-read-cutoff list-type
    max-disk-cache-fd multipart-age multipart-copy-threshold no-specials pprof
    prefer-patch-uploads print-stats read-ahead-parallel read-merge read-retry-interval
    read-retry-max read-retry-mul refresh-attr refresh-filename single-part small-read-count
    small-read-cutoff symlink-zeroed use-enoattr write-retry-interval
"""
_RCLONE = """
    args2env async-read buffer-size daemon daemon-timeout daemon-wait
    fast-list links no-checksum no-modtime no-seek noappledouble noapplexattr poll-interval rc
    s3-env-auth s3-provider transfers checkers vfs-block-norm-dupes vfs-cache-max-age
    vfs-cache-mode vfs-cache-poll-interval vfs-case-insensitive vfs-disk-space-total-size
    vfs-fast-fingerprint vfs-handle-caching vfs-links vfs-read-ahead vfs-read-chunk-size
    vfs-read-chunk-size-limit vfs-read-chunk-streams vfs-read-wait vfs-refresh vfs-used-is-size
    vfs-write-back vfs-write-wait volname write-back-cache use-server-modtime use-mmap
    allow-idmap link-perms mount-case-insensitive network-mode vfs-metadata-extension
    s3-bucket-acl s3-copy-cutoff s3-description s3-directory-markers s3-disable-checksum
    s3-disable-http2 s3-leave-parts-on-error s3-list-chunk s3-list-url-encode s3-list-version
    s3-list-versions-oldest-first s3-location-constraint s3-max-upload-parts s3-might-gzip
    s3-no-check-bucket s3-no-head s3-no-head-object s3-no-system-metadata s3-sdk-log-mode
    s3-sign-accept-encoding s3-upload-concurrency s3-upload-cutoff
    s3-use-accept-encoding-gzip s3-use-already-exists s3-use-arn-region
    s3-use-data-integrity-protections s3-use-multipart-etag s3-use-multipart-uploads
    s3-use-presigned-request s3-use-unsigned-payload s3-use-x-id
"""
_MOUNTPOINT = """
    allow-delete allow-overwrite incremental-upload log-metrics max-threads
    maximum-throughput-gbps metadata-cache-size read-part-size upload-checksums
    no-log-file debug-crt bucket-type cache-express infer-content-type initial-read-window-size
    log-directory no-log otlp-endpoint otlp-export-interval user-agent-prefix
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
    **dict.fromkeys(
        (
            *("include", "include-from", "exclude", "exclude-from", "exclude-if-present"),
            *("filter", "filter-from", "files-from", "files-from-raw", "files-from0"),
            *("min-size", "max-size", "min-age", "max-age", "max-depth", "hash-filter"),
        ),
        "nothing in a bucket is hidden; mount a prefix of it",
    ),
    "use-session-token": "tokens are found beside the keys, in credentials-file or an AWS profile",
    "s3-role-arn": "name the role in an AWS profile (option profile)",
    "load-sse-c": "put all keys into one file, the newest first, and name it in sse-c-key-file",
    "iam-role": "roles are found by themselves, or named in an AWS profile (option profile)",
}
