"""The options of a mount, each declared once: the fields of `Config`.

The command line, ``mount -o``, configuration files, the help and docs/configuration.md are all
made from this table.  Only the commands and the daemon know `Config`; what is below the daemon
takes plain values.
"""
# ruff: noqa: RUF009
# Each call of `option` makes a field of its own, so nothing is shared.

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from s3mount.declaring import (
    ACCESS,
    CACHING,
    NETWORK,
    PROCESS,
    WRITING,
    Option,
    option,
)
from s3mount.featureoptions import FeatureOptions
from s3mount.values import (
    ADDRESS,
    DURATION,
    FLAG,
    GROUP,
    MEMORY,
    METADATA_TTL,
    MODE,
    NOTIFY,
    ON_OFF,
    PATH,
    SIZE,
    TEXT,
    TTL,
    USER,
    Address,
    Kind,
    between,
    choice,
    parse_duration,
    parse_size,
)

PART = Kind(
    "SIZE",
    "a size from 5M to 5G",
    between(parse_size, 5 << 20, 5 << 30),  # S3's own limits
)
CACHE_SIZE = Kind("SIZE", "a size of at least 16M, such as 10G", between(parse_size, 16 << 20))
COUNT = Kind("NUMBER", "a whole number from 1 to 1024", between(int, 1, 1024))
LIMIT = Kind("TIME", "a time of at least 1s", between(parse_duration, 1))


def state_directory() -> Path:
    """Return where journals live: the system's place for root, the user's for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/s3mount")
    base = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(base, "s3mount")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(FeatureOptions):
    """The choices for one mount: sizes in bytes, times in seconds, paths absolute.

    `prefix` is empty or ends in a slash; `mountpoint` is the real path.  `mount_flags` holds
    the words of mount(8) that hold for this mount, such as ``nosuid``, ``noatime`` or ``ro``.
    `environment` are variables for the daemon, perhaps secret ones; `labels` are those of SELinux.
    """

    def __post_init__(self) -> None:
        if self.as_of is not None:
            object.__setattr__(self, "ro", True)  # The past does not change.

    bucket: str
    mountpoint: Path
    mount_flags: frozenset[str]
    environment: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    ro: bool = option(
        FLAG,
        ACCESS,
        "refuse every change (EROFS)",
        default="false",
        aliases=("read-only", "rw=false"),
    )
    uid: int = option(
        USER,
        ACCESS,
        "owner of everything that has no owner of its own",
        compute=os.getuid,
        shown="the user who mounts",
    )
    gid: int = option(
        GROUP,
        ACCESS,
        "group of everything that has no group of its own",
        compute=os.getgid,
        shown="the user who mounts",
    )
    file_mode: int = option(
        MODE,
        ACCESS,
        "permissions of files that have none of their own",
        default="0644",
        aliases=("file-perms",),
    )
    dir_mode: int = option(
        MODE,
        ACCESS,
        "permissions of directories that have none of their own",
        default="0755",
        aliases=("dir-perms",),
    )
    umask: int = option(MODE, ACCESS, "bits taken out of file-mode and dir-mode", default="0000")
    allow_other: bool = option(
        FLAG,
        ACCESS,
        "let other users in, as far as the permissions allow; a user other than root needs "
        "user_allow_other in /etc/fuse.conf",
        default="false",
    )
    allow_root: bool = option(
        FLAG, ACCESS, "let root in, and no other user but the owner", default="false"
    )
    attributes: bool = option(
        ON_OFF,
        ACCESS,
        "keep modes, owners and times in the objects' metadata, as s3fs does; off is faster "
        "for `ls -l` and shows the defaults for all",
        default="on",
    )
    exclusive_create: str = option(
        choice("open", "close"),
        ACCESS,
        "when a file made with O_EXCL is claimed in the store: at open, which costs a request "
        "and shows an empty object at once, or at close",
        default="close",
    )
    metadata_ttl: float = option(
        METADATA_TTL,
        CACHING,
        "how long names, sizes and times may be out of date when others change the bucket",
        default="60s",
        aliases=("stat-cache-expire", "stat-cache-ttl", "dir-cache-time"),
    )
    negative_ttl: float = option(
        TTL,
        CACHING,
        "how long the absence of a name is remembered",
        default="5s",
        aliases=("negative-metadata-ttl", "negative-timeout"),
    )
    notify: str = option(
        NOTIFY,
        CACHING,
        "who tells of changes that others make, so that they are seen at once: the store (listen, "
        "the API of RustFS and MinIO), or a queue of SQS that this mount has for itself; auto "
        "asks the store, unless that is AWS",
        default="auto",
    )
    memory: int = option(
        MEMORY,
        CACHING,
        "budget for all buffers and caches; auto is an eighth of what the machine (or cgroup) "
        "has, at least 32M, at most 256M",
        default="auto",
    )
    cache: Path | None = option(
        PATH,
        CACHING,
        "directory for a cache on disk that outlives the mount",
        aliases=("use-cache", "cache-dir"),
    )
    max_cache_size: int = option(
        CACHE_SIZE, CACHING, "most that the cache on disk may hold", default="10G"
    )
    min_free_space: int = option(
        SIZE,
        CACHING,
        "free space that the cache on disk, and files that wait for writeback, leave to others",
        default="1G",
    )
    read_ahead: int | None = option(
        SIZE,
        CACHING,
        "most that is read ahead of a sequential reader; 0 reads nothing ahead",
        shown="a share of memory",
        aliases=("max-read-ahead",),
    )
    writeback: bool = option(
        FLAG,
        WRITING,
        "let close and fsync return when the data is safe in the local journal, and upload "
        "after that",
        default="false",
    )
    writeback_limit: int = option(
        SIZE,
        WRITING,
        "most bytes that wait to be uploaded with writeback; while more do, close uploads by "
        "itself, as without it",
        default="10G",
    )
    part_size: int = option(
        PART,
        WRITING,
        "size of the parts of an upload; it grows by itself for files of more than 10,000 parts",
        default="8M",
        aliases=("write-part-size",),
    )
    state_dir: Path = option(
        PATH,
        WRITING,
        "directory for files that are being written and for what is not uploaded yet",
        compute=state_directory,
        shown="/var/lib/s3mount, or ~/.local/state/s3mount for a user",
    )
    shutdown_timeout: float = option(
        DURATION,
        WRITING,
        "how long a daemon that was told to stop (SIGTERM, Ctrl-C) goes on uploading",
        default="5m",
    )
    connections: int = option(COUNT, NETWORK, "most connections to the store", default="64")
    timeout: float = option(
        LIMIT,
        NETWORK,
        "how long a failing store is tried before a program gets an error",
        default="60s",
    )
    hard: bool = option(
        FLAG,
        NETWORK,
        "let programs wait for a failing store for as long as it takes, as NFS does; soft, "
        "the opposite, is the default",
        default="false",
        aliases=("soft=false",),
    )
    foreground: bool = option(
        FLAG,
        PROCESS,
        "stay in the foreground and log to the terminal",
        default="false",
        letter="f",
        in_file=False,
    )
    start_timeout: float = option(
        LIMIT, PROCESS, "how long to wait for the mount to answer", default="90s"
    )
    config: Path | None = option(
        PATH,
        PROCESS,
        "file of options (TOML); what is given elsewhere comes before it",
        in_file=False,
    )
    debug: bool = option(
        FLAG,
        PROCESS,
        "log everything, and show where in the program an error came from",
        default="false",
        letter="d",
    )
    log_level: str = option(
        choice("debug", "info", "warning", "error"),
        PROCESS,
        "what is worth a line in the log",
        default="info",
    )
    log_file: Path | None = option(
        PATH,
        PROCESS,
        "file to log to",
        shown="the terminal in the foreground, else syslog",
        aliases=("logfile",),
    )
    log_format: str = option(
        choice("text", "json"), PROCESS, "lines for people or for programs", default="text"
    )
    log_slow: float = option(
        DURATION,
        PROCESS,
        "log what a program had to wait for as long as that; 0 is for never",
        default="10s",
    )
    fsname: str | None = option(
        TEXT,
        PROCESS,
        "what findmnt(8) and df(1) show as the source of the mount",
        shown="BUCKET[/PREFIX]",
        aliases=("devname",),
    )
    sloppy: bool = option(
        FLAG,
        PROCESS,
        "ignore options that do not exist, with a warning, as `mount -s` does",
        default="false",
        in_file=False,
    )
    update_fstab: bool = option(
        FLAG,
        PROCESS,
        "write this mount into /etc/fstab once it works, in place of the line that is there for "
        "the mount point",
        default="false",
        in_file=False,
    )
    status_listen: Address | None = option(
        ADDRESS,
        PROCESS,
        "serve a page, /status.json, /metrics (for Prometheus) and /healthz there over HTTP; "
        "whoever reaches the address can read names of files",
    )
    no_fast_init: bool = option(
        FLAG,
        PROCESS,
        "talk to the kernel without the changes that make many programs in one directory fast; "
        "for kernels on which the mount fails otherwise",
        default="false",
    )


def _options() -> tuple[Option, ...]:
    return tuple(
        item.metadata["option"]._replace(name=item.name.replace("_", "-"))
        for item in fields(Config)
        if "option" in item.metadata
    )


OPTIONS = _options()
