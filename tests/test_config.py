"""The option table, and everything that is made from it."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount import fstab, peers, values
from s3mount.cli.arguments import mount_parser, parse_all, parse_arguments
from s3mount.config import OPTIONS, Config
from s3mount.declaring import SECTIONS
from s3mount.errors import MountError
from s3mount.machine import usable_memory
from s3mount.options import (
    FLAG_WORDS,
    IGNORED,
    OPTION_OF_NAME,
    SILENTLY_IGNORED,
    OptionError,
    split_mount_options,
)

ROOT = Path(__file__).parents[1]
MIB = 1 << 20


def configure(*arguments: str) -> Config:
    config, _ = parse_arguments(["bucket", "/mnt", *arguments])
    return config


def refusal(*arguments: str) -> str:
    with pytest.raises(OptionError) as caught:
        configure(*arguments)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_refused(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return True
    return False


# -- the table ---------------------------------------------------------------------------------


def test_every_option_is_on_the_command_line_and_in_its_help():
    help_text = mount_parser().format_help()
    for option in OPTIONS:
        assert f"--{option.name}" in help_text
        assert option.section in SECTIONS


def test_no_name_means_two_options():
    names = [alias.partition("=")[0] for o in OPTIONS for alias in (o.name, *o.aliases)]
    assert len(names) == len(set(names))
    assert not set(names) & {*FLAG_WORDS, "bucket", "mountpoint"}


def test_the_manual_is_what_the_table_says():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "gendocs", "--check"], check=False)
    assert done.returncode == 0


def test_defaults():
    config = configure()
    assert config.metadata_ttl == 60
    assert config.negative_ttl == 5
    assert config.part_size == 8 * MIB
    assert (config.file_mode, config.dir_mode, config.umask) == (0o644, 0o755, 0)
    assert (config.uid, config.gid) == (os.getuid(), os.getgid())
    assert 32 * MIB <= config.memory <= 256 * MIB
    assert config.path_style is None
    assert config.mount_flags == {"nosuid", "nodev"}
    assert not config.ro


# -- what is mounted ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("my-bucket", "my-bucket", ""),
        ("my-bucket/", "my-bucket", ""),
        ("my-bucket/a/b", "my-bucket", "a/b/"),
        ("my-bucket:a/b/", "my-bucket", "a/b/"),
        ("my-bucket:/a", "my-bucket", "a/"),
        ("s3://my-bucket", "my-bucket", ""),
        ("s3://my-bucket/a b/ü/", "my-bucket", "a b/ü/"),
        ("s3://demo", "demo", ""),
        ("Old_Bucket.name", "Old_Bucket.name", ""),
        ("my-bucket/a//", "my-bucket", "a//"),
        ("ap-abc123def456-s3alias/x", "ap-abc123def456-s3alias", "x/"),
        (
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-ap/pre/fix",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-ap",
            "pre/fix/",
        ),
        (
            "s3://arn:aws:s3::123456789012:accesspoint/alias.mrap",
            "arn:aws:s3::123456789012:accesspoint/alias.mrap",
            "",
        ),
    ],
)
def test_a_source_is_a_bucket_and_a_prefix(text, bucket, prefix):
    assert values.parse_source(text) == (bucket, prefix)


@pytest.mark.parametrize(
    "text", ["", "s3://", "/", "a", "-bucket", "bu cket", "bucket?x", "a..b", "x" * 300, "b\0cket"]
)
def test_a_source_that_is_none_is_refused(text):
    assert is_refused(values.parse_source, text)


def test_a_prefix_can_be_an_option_but_not_a_second_one():
    assert configure("--prefix", "a/b").prefix == "a/b/"
    with pytest.raises(OptionError, match="two prefixes"):
        parse_arguments(["bucket/x", "/mnt", "-o", "prefix=y"])


def test_the_mount_point_is_made_absolute_and_its_links_are_followed(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    real = (tmp_path / "real").resolve()
    for spelling in ("real", "link", "chain/", "./link/../real/", str(tmp_path / "chain")):
        assert values.canonical(spelling) == real


def test_links_that_lead_round_in_a_circle_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert values.canonical(tmp_path / "a").parent == tmp_path.resolve()


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64k", 65536),
        ("8M", 8 * MIB),
        ("8MiB", 8 * MIB),
        ("8mb", 8 * MIB),
        ("1.5G", 3 << 29),
        ("2 TiB", 2 << 40),
        ("9223372036854775807", 9223372036854775807),
    ],
)
def test_sizes(text, size):
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "M", "1X", "1e3", "٣", "1.2.3", "inf"])
def test_wrong_sizes(text):
    assert is_refused(values.parse_size, text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("10s", 10), ("5m", 300), ("1h", 3600), ("250ms", 0.25)]
)
def test_times(text, seconds):
    assert values.parse_duration(text) == seconds


def test_times_to_live_have_words():
    assert values.parse_ttl("indefinite") == math.inf
    assert 0 < values.parse_ttl("minimal") < 1
    assert values.parse_ttl("0") == 0


def test_modes_are_octal():
    assert values.parse_mode("0644") == values.parse_mode("644") == 0o644
    for text in ("8", "rw", "17777", "0x1", "-1"):
        assert is_refused(values.parse_mode, text)


def test_users_have_names_and_numbers():
    assert values.parse_user("root") == 0
    assert values.parse_user("12345") == 12345
    for text in ("nobody-has-this-name", "-1", "4294967295", "4294967296"):
        assert is_refused(values.parse_user, text)


def test_memory_is_a_size_or_a_share():
    assert values.parse_memory("512M") == 512 * MIB
    assert values.parse_memory("50%") == max(32 * MIB, usable_memory() // 2)
    for text in ("1M", "0%", "101%", "x%"):
        assert is_refused(values.parse_memory, text)


def test_memory_is_what_the_tightest_cgroup_allows(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:    8388608 kB\nMemFree: 1 kB\n")
    (proc / "self" / "cgroup").write_text("0::/system.slice/a.service\n")
    assert usable_memory(proc, cgroups) == 8 << 30
    (cgroups / "system.slice" / "a.service").mkdir(parents=True)
    (cgroups / "system.slice" / "a.service" / "memory.max").write_text("max\n")
    (cgroups / "system.slice" / "memory.max").write_text("1073741824\n")
    assert usable_memory(proc, cgroups) == 1 << 30


def test_memory_is_what_an_old_cgroup_allows(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:    8388608 kB\n")
    (proc / "self" / "cgroup").write_text("5:cpu:/x\n4:memory:/docker/abc\n")
    (cgroups / "memory").mkdir(parents=True)
    (cgroups / "memory" / "memory.limit_in_bytes").write_text("536870912\n")
    assert usable_memory(proc, cgroups) == 512 * MIB


# -- the command line and -o -------------------------------------------------------------------


def test_options_stand_anywhere():
    for arguments in (
        ["--ro", "bucket", "/mnt", "--uid=7"],
        ["bucket", "--uid", "7", "/mnt", "--ro"],
        ["bucket", "/mnt", "-o", "ro,uid=7"],
        ["bucket", "/mnt", "-oro", "-o", "uid=7"],
    ):
        config, _ = parse_arguments(arguments)
        assert (config.bucket, config.mountpoint) == ("bucket", Path("/mnt"))
        assert config.ro
        assert config.uid == 7


def test_dashes_and_underscores_are_equal():
    assert configure("--allow_other").allow_other
    assert configure("-o", "allow-other").allow_other
    assert configure("-o", "--allow_other").allow_other
    assert configure("-o", "endpoint_url=http://h:1").endpoint_url == "http://h:1"


def test_the_last_choice_holds():
    assert not configure("-o", "ro,rw").ro
    assert configure("-o", "rw,ro").ro
    assert configure("--uid=1", "-o", "uid=2").uid == 2
    assert configure("-o", "uid=2", "--uid=1").uid == 1
    assert not configure("--allow-other", "-o", "allow_other=false").allow_other


def test_options_of_other_mounts_are_understood():
    config = configure("-o", "url=https://h,use_path_request_style,stat_cache_expire=9,read_only")
    assert config.endpoint_url == "https://h"
    assert config.path_style is True
    assert config.metadata_ttl == 9
    assert config.ro
    assert configure("--force-path-style").path_style is True
    assert configure("-o", "subdomain").path_style is False
    assert configure("-o", "soft").hard is False
    assert configure("-o", "public_bucket=1").no_sign_request


def test_what_mount_passes_on_is_accepted():
    config = configure(
        "-o",
        "rw,_netdev,nofail,noauto,user,defaults,x-systemd.automount,x-anything=1,X-mount.mkdir,"
        "comment=hi,fsname=s3,subtype=s3mount,default_permissions,noatime,noexec,sync,nomand,"
        'silent,noiversion,nosymfollow,context="system_u:object_r:fusefs_t:s0:c1,c2"',
    )
    flags = {"_netdev", "nosuid", "nodev", "noatime", "noexec", "sync", "nosymfollow"}
    assert config.mount_flags == flags
    assert config.labels == {"context": "system_u:object_r:fusefs_t:s0:c1,c2"}
    assert "no label" in refusal("-o", "context")


def test_mount_flags_take_each_other_back():
    assert configure("-o", "suid").mount_flags == {"nodev"}
    assert configure("-o", "noatime,relatime").mount_flags == {"nosuid", "nodev", "relatime"}
    assert configure("-o", "sync,async,noexec,exec").mount_flags == {"nosuid", "nodev"}
    assert "ro" in configure("--ro").mount_flags
    assert "nonempty" in configure("-o", "nonempty").mount_flags
    assert "noatime" in configure("--noatime").mount_flags


def test_what_mount_fuse3_adds_by_itself_gives_nobody_root_powers():
    assert configure("-o", "ro,uid=5,dev,suid").mount_flags == {"nosuid", "nodev", "ro"}
    assert configure("-o", "suid,dev").mount_flags == set()


def test_ignored_options_are_told():
    _, warnings = parse_arguments(["bucket", "/mnt", "-o", "max_read=131072,auto_unmount"])
    assert ["max-read" in warnings[0], "auto-unmount" in warnings[1]] == [True, True]
    _, warnings = parse_arguments(["bucket", "/mnt", "--no-verify-ssl"])
    assert "no-verify-ssl" in warnings[0]


def test_quotes_and_backslashes_protect_commas():
    assert configure("-o", 'prefix="a,b",ro').prefix == "a,b/"
    assert configure("-o", r"prefix=a\,b\\c,ro").prefix == "a,b\\c/"
    assert configure("-o", ",ro,,").ro
    assert "quote" in refusal("-o", 'prefix="a')
    assert "backslash" in refusal("-o", "prefix=a\\")


@given(st.lists(st.text(), min_size=1))
def test_every_text_can_be_given_in_mount_options(items):
    escaped = [item.replace("\\", "\\\\").replace(",", "\\,").replace('"', '\\"') for item in items]
    assert split_mount_options(",".join(escaped)) == items


def message_for(*arguments: str) -> str:
    """Return what the user is told, or nothing; whatever else is raised fails the test."""
    try:
        configure(*arguments)
    except OptionError as error:
        return str(error)
    return ""


@given(st.text(st.sampled_from('ro,="\\-_uid19xX\0 ')))
def test_no_mount_options_end_in_a_traceback(text):
    assert "\n" not in message_for("-o", text)


@given(st.sampled_from(sorted(OPTION_OF_NAME)), st.text())
def test_a_complaint_names_its_option(name, text):
    if name != "config":  # that would read a file
        message = message_for("-o", name + "=" + re.sub(r'[\\",]', "", text))
        assert not message or name in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--end-point-url=x"], ["end-point-url", "did you mean endpoint-url?"]),
        (["-o", "reed_only"], ["reed-only", "did you mean read-only?"]),
        (["--nosuidd"], ["did you mean nosuid?"]),
        (["-o", "zzzz"], ["no option zzzz", "--help"]),
        (["--memory", "lots"], ["memory", "'lots'", "512M"]),
        (["-o", "umask=9"], ["umask", "'9'", "octal"]),
        (["-o", "part_size=1M"], ["part-size", "5M to 5G"]),
        (["-o", "max-cache-size=1024"], ["max-cache-size", "at least 16M"]),
        (["-o", "uid"], ["uid", "missing"]),
        (["--region"], ["--region"]),
        (["--ro=false"], ["--ro takes no value", "-o ro=false"]),
        (["-o", "exclusive_create=never"], ["exclusive-create", "one of open, close"]),
        (["-o", "connections=0"], ["connections", "1 to 1024"]),
        (["-o", "remount,ro"], ["remount", "mount(8)"]),
        (["-o", "endpoint_url=host:9000"], ["endpoint-url", "https://host:9000"]),
        (["-o", "nosuid=false"], ["nosuid", "opposite"]),
        (["-o", "soft=false"], ["soft", "write hard"]),
        (["-o", "allow_other,allow_root"], ["exclude each other"]),
        (["third"], ["too many", "third"]),
        (["-x"], ["no option x"]),
        (["--config", "/nonexistent/file"], ["/nonexistent/file", "No such file"]),
    ],
)
def test_a_mistake_gets_one_line_that_helps(arguments, words):
    message = refusal(*arguments)
    for word in words:
        assert word in message


def test_a_password_in_an_address_is_refused_and_not_repeated():
    message = refusal("--endpoint-url", "http://user:hunter22@host")
    assert "hunter22" not in message
    assert "password" in message


def test_nothing_to_mount_is_told_with_the_usage():
    with pytest.raises(OptionError, match=r"no bucket.*MOUNTPOINT"):
        parse_arguments([])
    with pytest.raises(OptionError, match=r"no mountpoint"):
        parse_arguments(["bucket"])


# -- files -------------------------------------------------------------------------------------


def configure_by_file(path: Path, text: str, *arguments: str) -> Config:
    path.write_text(text)
    return parse_arguments([*arguments, "--config", str(path)])[0]


def test_a_file_can_hold_everything(tmp_path):
    config = configure_by_file(
        tmp_path / "x.toml",
        """
        bucket = "s3://my-bucket/photos"
        mountpoint = "/mnt"
        endpoint_url = "http://127.0.0.1:9000"
        allow-other = true
        uid = 7
        file-mode = "0600"
        metadata-ttl = 1.5
        noatime = true
        """,
    )
    assert (config.bucket, config.prefix) == ("my-bucket", "photos/")
    assert (config.uid, config.file_mode, config.metadata_ttl) == (7, 0o600, 1.5)
    assert config.allow_other
    assert "noatime" in config.mount_flags


def test_the_command_line_comes_before_the_file(tmp_path):
    text = 'bucket = "one"\nmountpoint = "/mnt"\nuid = 7\nro = true'
    arguments = ["two", "/tmp", "-o", "rw", "--uid", "8"]
    config = configure_by_file(tmp_path / "x.toml", text, *arguments)
    assert (config.bucket, config.mountpoint, config.uid, config.ro) == (
        "two",
        Path("/tmp"),
        8,
        False,
    )


def test_a_file_can_be_named_in_mount_options(tmp_path):
    (tmp_path / "x.toml").write_text("uid = 7")
    assert configure("-o", f"gid=9,config={tmp_path}/x.toml").uid == 7


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("umask = 0o027", "text"),
        ("umask = 27", "text"),
        ("foreground = true", "command line"),
        ('config = "x"', "command line"),
        ("regoin = 'x'", "did you mean region"),
        ("uid = [1]", "text"),
        ("uid = ", "end of document"),
        ("memory = 'lots'", "512M"),
        ("\xff = 1", "x.toml"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, text, word):
    (tmp_path / "x.toml").write_bytes(text.encode("latin-1"))
    message = refusal("--config", str(tmp_path / "x.toml"))
    assert str(tmp_path / "x.toml") in message
    assert word in message


# -- lines of other programs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (
            "_netdev,allow_other,use_path_request_style,url=https://host:9000,endpoint=eu-west-1,"
            "passwd_file=/etc/keys,use_cache=/c,umask=0022,mp_umask=0022,multipart_size=64,"
            "parallel_count=20,dbglevel=warn,ensure_diskfree=500,stat_cache_expire=900",
            {
                "allow_other": True,
                "path_style": True,
                "endpoint_url": "https://host:9000",
                "region": "eu-west-1",
                "passwd_file": Path("/etc/keys"),
                "cache": Path("/c"),
                "umask": 0o022,
                "part_size": 64 * MIB,
                "log_level": "warning",
                "min_free_space": 500 * MIB,
                "metadata_ttl": 900,
            },
        ),
        (
            "--file-mode=0666,--endpoint=http://host,--uid=7,--stat-cache-ttl=1m0s,--cheap",
            {
                "file_mode": 0o666,
                "endpoint_url": "http://host",
                "region": None,
                "uid": 7,
                "metadata_ttl": 60,
            },
        ),
        (
            "rw,args2env,dir_cache_time=1h30m,vfs_cache_max_size=2G,s3_chunk_size=16384,"
            "cache_dir=/c,vfs_cache_max_age=1h",
            {"metadata_ttl": 5400, "max_cache_size": 2 << 30, "part_size": 16 * MIB},
        ),
        (
            "force-path-style,read-only,max-threads=16,allow-delete,no-sign-request,"
            "max-memory-target=512",
            {"path_style": True, "ro": True, "no_sign_request": True, "memory": 512 * MIB},
        ),
        (
            "use_rrs,host=http://host,multipart_threshold=25,ssl_verify_hostname=2,nodnscache",
            {
                "storage_class": configure("--storage-class", "REDUCED_REDUNDANCY").storage_class,
                "endpoint_url": "http://host",
            },
        ),
        (
            "allow_non_empty,devname=data,s3_no_check_bucket,s3_version_at=2026-03-29T16:30:00Z",
            {
                "mount_flags": frozenset({"nosuid", "nodev", "nonempty", "ro"}),
                "fsname": "data",
                "as_of": configure("--as-of", "2026-03-29T16:30:00Z").as_of,
            },
        ),
    ],
    ids=["s3fs", "goofys", "rclone", "mountpoint-s3", "s3fs-2", "rclone-2"],
)
def test_the_options_of_other_programs_are_understood(options, values):
    config, warnings = parse_arguments(["bucket", "/mnt", "-o", options])
    assert {name: getattr(config, name) for name in values} == values
    assert len(warnings) == 1
    assert "tune other programs" in warnings[0]


def test_other_programs_units_count_on_the_command_line_too():
    config = configure("--endpoint", "http://host", "--multipart-size=64", "--ensure-diskfree=2G")
    assert (config.endpoint_url, config.part_size) == ("http://host", 64 * MIB)
    assert config.min_free_space == 2 << 30


def test_names_of_other_programs_mean_one_thing_here():
    names = {alias.partition("=")[0] for o in OPTIONS for alias in (o.name, *o.aliases)}
    groups = [set(peers.TRANSLATED), set(peers.WITHOUT_MEANING), set(peers.REFUSED)]
    groups += [set(FLAG_WORDS), SILENTLY_IGNORED, set(IGNORED), names]
    together = [name for group in groups for name in group]
    assert len(together) == len(set(together))


def test_what_would_be_a_broken_promise_is_refused():
    assert "headers-file" in refusal("-o", "ahbe_conf=/etc/headers")
    assert "mount a prefix" in refusal("-o", "exclude=*.tmp")
    assert "beside the keys" in refusal("-o", "use_session_token")
    assert "seen by everybody" in refusal("-o", "sse_c=c2VjcmV0")
    line = refusal("-o", "secret_access_key=hunter22")
    assert "seen by everybody" in line
    assert "hunter22" not in line


def test_a_sloppy_mount_ignores_what_does_not_exist():
    config, warnings = parse_arguments(["bucket", "/mnt", "-o", "nonsense=1,ro,sloppy"])
    assert config.ro
    assert warnings == ["option nonsense is ignored: there is none of this name"]


# -- variables and secrets ---------------------------------------------------------------------


def test_variables_are_for_the_daemon_and_keep_their_case():
    config = configure("-o", "env.AWS_CONFIG_FILE=/x,env.http_proxy=http://host:1")
    assert config.environment == {"AWS_CONFIG_FILE": "/x", "http_proxy": "http://host:1"}


@pytest.mark.parametrize(
    "word",
    [
        "env.AWS_SECRET_ACCESS_KEY=hunter22",
        "env.AWS_SESSION_TOKEN=hunter22",
        "env.HTTPS_PROXY=http://me:hunter22@host",
        "env.A-B=hunter22",
        "env.=hunter22",
    ],
)
def test_a_variable_that_others_could_read_is_no_secret(word):
    assert "hunter22" not in refusal("-o", word)


def test_secret_variables_belong_into_a_private_file(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text('[env]\nAWS_SECRET_ACCESS_KEY = "hunter22"\n')
    file.chmod(0o600)
    config = configure("--config", str(file))
    assert config.environment == {"AWS_SECRET_ACCESS_KEY": "hunter22"}
    assert "hunter22" not in repr(config)
    file.chmod(0o640)
    assert "hunter22" not in refusal("--config", str(file))


# -- fstab -------------------------------------------------------------------------------------


def fstab_line(*arguments: str, environment=None) -> str:
    parsed = parse_all(["bucket/a b", "/mnt/a b", *arguments])
    return fstab.line_of(parsed.config, parsed.items, environment or {})


def test_a_line_of_fstab_mounts_the_same_again():
    line = fstab_line(
        "--uid=7", "-o", 'noatime,cache=./c,fsname="x,y"', "-d", "--update-fstab",
        environment={"AWS_PROFILE": "work", "AWS_DEFAULT_REGION": "r"},
    )  # fmt: skip
    source, mountpoint, kind, options, *rest = line.split()
    assert (source, mountpoint, kind) == (r"bucket/a\040b", r"/mnt/a\040b", "fuse.s3mount")
    assert rest == ["0", "0"]
    assert options == (
        f'_netdev,nofail,uid=7,noatime,cache={Path.cwd()}/c,fsname="x,y",profile=work,region=r'
    )
    again = configure("-o", options)
    assert (again.uid, again.fsname, again.profile) == (7, "x,y", "work")


def test_what_fstab_cannot_hold_is_refused():
    with pytest.raises(OptionError, match="no place for quotes"):
        fstab_line("--fsname", 'a"b')


def test_only_the_line_of_the_mount_point_changes(tmp_path):
    table = tmp_path / "fstab"
    table.write_text("# /mnt/x fuse.s3mount\n\nUUID=1 / ext4 x 0 1\nold /mnt/x/ s3mount a 0 0")
    table.chmod(0o640)
    fstab.put_line("new", Path("/mnt/x"), table)
    text = "# /mnt/x fuse.s3mount\n\nUUID=1 / ext4 x 0 1\nnew\n"
    assert table.read_text() == text
    assert table.stat().st_mode & 0o777 == 0o640
    fstab.put_line("more", Path("/mnt/y"), table)
    assert table.read_text() == text + "more\n"
    with pytest.raises(MountError, match="of type ext4") as caught:
        fstab.put_line("new", Path("/"), table)
    assert caught.value.exit_code == 16
    assert list(tmp_path.iterdir()) == [table]


def test_a_table_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(MountError, match="No such file") as caught:
        fstab.put_line("new", Path("/mnt"), tmp_path / "missing" / "fstab")
    assert caught.value.exit_code == 16


# -- features of the store ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sse=aws:kms,sse_c_key_file=/k", "sse-c-key-file and sse exclude each other"),
        ("sse=AES256,sse_kms_key_id=k", "sse-kms-key-id is for sse=aws:kms"),
        ("bucket_key", "bucket-key is for sse=aws:kms"),
        ("accelerate,fips", "accelerate and fips exclude each other"),
        ("fips,endpoint_url=http://127.0.0.1:9000", "fips is for AWS's own endpoints"),
        ("accelerate,path_style", "accelerate needs the bucket in the host name"),
        ("requester_pays,no_sign_request", "requester-pays needs credentials"),
        ("acl=everybody", "'everybody' is not one of private"),
        ("tags=a", "'a' is not up to 10 tags"),
        ("expected_bucket_owner=12345", "12 digits"),
        ("storage_class=>20M:STANDARD_IA", "is not a storage class, or rules"),
        ("restore=perhaps", "never, auto"),
    ],
)
def test_features_that_contradict_each_other_are_refused_in_one_line(text: str, words: str):
    assert words in refusal("-o", text)


def test_the_features_of_other_programs_have_their_names_here():
    old = configure("-o", "use_sse,storage_class=standard_ia,default_acl=public-read")
    assert (old.sse, old.acl) == ("AES256", "public-read")
    assert old.storage_class.value("any", 0) == "STANDARD_IA"
    assert configure("-o", "use_sse=1").sse == "AES256"
    assert configure("-o", "use_sse=kmsid:some-key").sse_kms_key_id == "some-key"
    assert configure("-o", "use_sse=custom:/etc/keys").sse_c_key_file == Path("/etc/keys")
    assert configure("--s3-server-side-encryption", "aws:kms").sse == "aws:kms"
    assert configure("--transfer-acceleration").accelerate
    assert configure("--requester-pays", "--expected-bucket-owner", "1" * 12).requester_pays
