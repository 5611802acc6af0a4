"""From what people write to a `Config`: ``mount -o``, configuration files, the command line.

Whatever the source, an option is a name and a text, and passes through `Choices.choose`.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3mount import featureoptions, peers
from s3mount.config import OPTIONS, Config
from s3mount.declaring import Option
from s3mount.environment import check_variable
from s3mount.errors import MountError
from s3mount.private import why_not_private
from s3mount.values import FLAG, MOUNTPOINT, SOURCE, Kind, Source

# What mount(8) means by a word: the flags that it sets, and those that it takes back.
# libfuse and the kernel know them all; `ro` is an option of ours.
FLAG_WORDS: Mapping[str, tuple[set[str], set[str]]] = {
    "nosuid": ({"nosuid"}, set()),
    "suid": (set(), {"nosuid"}),
    "nodev": ({"nodev"}, set()),
    "dev": (set(), {"nodev"}),
    "noexec": ({"noexec"}, set()),
    "exec": (set(), {"noexec"}),
    "sync": ({"sync"}, set()),
    "async": (set(), {"sync"}),
    "dirsync": ({"dirsync"}, set()),
    "noatime": ({"noatime"}, {"relatime", "strictatime"}),
    "atime": (set(), {"noatime"}),
    "relatime": ({"relatime"}, {"noatime", "strictatime"}),
    "norelatime": (set(), {"relatime"}),
    "strictatime": ({"strictatime"}, {"noatime", "relatime"}),
    "nostrictatime": (set(), {"strictatime"}),
    "nodiratime": ({"nodiratime"}, set()),
    "diratime": (set(), {"nodiratime"}),
    "lazytime": ({"lazytime"}, set()),
    "nolazytime": (set(), {"lazytime"}),
    "nosymfollow": ({"nosymfollow"}, set()),
    "symfollow": (set(), {"nosymfollow"}),
    "nonempty": ({"nonempty"}, set()),
    "-netdev": ({"_netdev"}, set()),
}
# Labels of SELinux for everything in the mount; without SELinux they mean nothing, as everywhere.
LABELS = frozenset({"context", "fscontext", "defcontext", "rootcontext"})
# Nothing that comes out of a bucket gets root's powers unless somebody asks for it.
DEFAULT_FLAGS = frozenset({"nosuid", "nodev"})

# Words for mount(8), systemd and fstab, and what s3mount does in any case.
SILENTLY_IGNORED = {
    *("nofail", "fail", "auto", "noauto", "user", "nouser", "users", "owner", "group"),
    *("mand", "nomand", "iversion", "noiversion", "silent", "loud"),
    *("defaults", "comment", "uhelper", "helper", "subtype", "default-permissions"),
}
IGNORED = {
    "max-read": "the kernel refuses a mount that limits it",
    "auto-unmount": "a mount left behind by a crash is cleared away by the next one",
}
REFUSED = {
    "remount": "this is for mount(8): mount -o remount,ro MOUNTPOINT (see install-helpers)",
    **peers.REFUSED,
}
# ``env.NAME=VALUE``: a variable for the daemon, which mount(8) and systemd give none.
ENVIRONMENT = "env."


# The name of an option, and its text if more than the name was given.
Item = tuple[str, str | None]


class OptionError(MountError):
    """An option that cannot be understood."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


def _named_options() -> dict[str, tuple[Option, str | None]]:
    """Return each name that an option goes by, with the value that the name stands for."""
    table: dict[str, tuple[Option, str | None]] = {}
    for option in OPTIONS:
        for alias in (option.name, *option.aliases):
            name, _, value = alias.partition("=")
            table[name] = (option, value or None)
    return table


POSITIONAL: Mapping[str, Kind] = {"bucket": SOURCE, "mountpoint": MOUNTPOINT}
OPTION_OF_NAME = _named_options()


class Choices:
    """Collects what was chosen, the later choice winning, and makes a `Config` of it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._values: dict[str, object] = {}
        self._flags = set(DEFAULT_FLAGS)
        self._environment: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._unused: list[str] = []

    def choose(self, name: str, text: str | None, *, private: bool = False) -> None:
        """Take one option; *text* is None when only its name was given.

        With *private* it was found where nobody else can read it, and may be a secret.
        """
        if name.startswith(ENVIRONMENT):
            variable = name.removeprefix(ENVIRONMENT)
            self._environment[variable] = _variable(variable, text or "", private=private)
            return
        name = normal_name(name)
        if text is None:
            text = peers.BARE.get(name)
        if text is not None and name in peers.TRANSLATED:
            name, text = peers.TRANSLATED[name](text)
        if name in FLAG_WORDS:
            self._choose_flag(name, text)
        elif name in LABELS:
            self._labels[name] = _label(name, text or "")
        elif name in OPTION_OF_NAME:
            option, value = OPTION_OF_NAME[name]
            self._values[option.name] = _option_value(option, name, value, text)
        elif name in POSITIONAL:
            self._values[name] = _parse(POSITIONAL[name], name, text or "")
        else:
            self._choose_other(name)

    def _choose_flag(self, name: str, text: str | None) -> None:
        if text is not None and not _parse(FLAG, name, text):
            raise OptionError(f"option {name}: write its opposite, or leave it out")
        added, removed = FLAG_WORDS[name]
        self._flags = (self._flags - removed) | added

    def _choose_other(self, name: str) -> None:
        if name in REFUSED:
            raise OptionError(f"option {name}: {REFUSED[name]}")
        if name in IGNORED:
            self.warnings.append(f"option {name} is ignored: {IGNORED[name]}")
        elif name in peers.WITHOUT_MEANING:
            self._unused.append(name)
        elif name not in SILENTLY_IGNORED and not name.startswith("x-"):
            shown = name if name.isprintable() else repr(name)
            if not self._values.get("sloppy"):
                raise OptionError(f"there is no option {shown}{_nearest(name)}")
            self.warnings.append(f"option {shown} is ignored: there is none of this name")

    def choose_all(self, items: Sequence[Item]) -> None:
        """Take options in their order; those of a configuration file come before all of them."""
        for name, text in items:
            if normal_name(name) == "sloppy":
                self.choose(name, text)
        for name, text in items:
            if normal_name(name) == "config":
                self._take_file(_option_value(OPTION_OF_NAME["config"][0], name, None, text))
        for name, text in items:
            self.choose(name, text)

    def _take_file(self, path: object) -> None:
        file = Path(str(path))
        table = _read_toml(file)
        private = why_not_private(file) is None
        for name, value in _flat(table):
            try:
                self.choose(name, _toml_text(name, value), private=private)
            except OptionError as error:
                raise OptionError(f"{path}: {error}") from error

    def config(self) -> Config:
        """Return what was chosen; raises `OptionError` when it does not fit together."""
        values = {name.replace("-", "_"): value for name, value in self._values.items()}
        for name in POSITIONAL:
            if name not in values:
                raise OptionError(f"no {name} is given (usage: s3mount BUCKET[/PREFIX] MOUNTPOINT)")
        _merge_source(values)
        past = values.get("as_of") is not None
        flags = self._flags | ({"ro"} if values.get("ro") or past else set())
        config = Config(
            mount_flags=frozenset(flags),
            environment=self._environment,
            labels=self._labels,
            **values,  # type: ignore[arg-type]
        )
        _check(config)
        if self._unused:
            names = ", ".join(dict.fromkeys(self._unused))
            self.warnings.append(f"ignored, because they tune other programs: {names}")
        if config.no_verify_ssl:
            self.warnings.append("option no-verify-ssl: the store is not who it says, perhaps")
        return config


def normal_name(name: str) -> str:
    """Return the name of an option as the table has it: ``--allow_other`` is ``allow-other``."""
    return name.strip().removeprefix("--").replace("_", "-").lower()


def mount_options(text: str) -> list[Item]:
    """Read the argument of ``mount -o``."""
    texts = [item for item in split_mount_options(text) if item]
    # mount.fuse3 ends root's list so when nobody asked for either: that is not asking.
    if texts[-2:] == ["dev", "suid"]:
        del texts[-2:]
    parts = [item.partition("=") for item in texts]
    return [(name, value if equals else None) for name, equals, value in parts]


def split_mount_options(text: str) -> list[str]:
    """Split at commas; double quotes and backslashes protect what they hold.

    Raises `OptionError` for a quotation or an escape that does not end.
    """
    return list(_split(iter(text), text))


def _split(characters: Iterator[str], text: str) -> Iterator[str]:
    item, quoted = "", False
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise OptionError(f"nothing follows the last backslash of {text!r}")
            item += escaped
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            yield item
            item = ""
        else:
            item += character
    if quoted:
        raise OptionError(f"a double quote is missing in {text!r}")
    yield item


def _option_value(option: Option, name: str, preset: str | None, text: str | None) -> object:
    if preset is not None:
        # ``rw=false`` or ``soft=no`` would be riddles; ``use_path_request_style=1`` is common.
        if text is not None and not _parse(FLAG, name, text):
            raise OptionError(f"option {name}: write {option.name} for the opposite")
        text = preset
    elif text is None:
        text = option.kind.bare
    if text is None:
        raise OptionError(f"option {name}: a value is missing ({option.kind.expected})")
    return _parse(option.kind, name, text)


def _parse(kind: Kind, name: str, text: str) -> object:
    try:
        return kind.parse(text)
    except (ValueError, OverflowError) as error:
        shown = "***" if str(error) == "***" else repr(text)
        raise OptionError(f"option {name}: {shown} is not {kind.expected}") from error


def _label(name: str, text: str) -> str:
    if not text or '"' in text:
        raise OptionError(f"option {name}: {text!r} is no label of SELinux")
    return text


def _variable(name: str, value: str, *, private: bool) -> str:
    try:
        check_variable(name, value, private=private)
    except ValueError as error:
        raise OptionError(f"option {ENVIRONMENT}{name}: {error}") from error
    return value


def _nearest(name: str) -> str:
    """Suggest what may have been meant."""
    known = [*OPTION_OF_NAME, *FLAG_WORDS, *POSITIONAL, *peers.TRANSLATED]
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else " (see s3mount --help)"


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: {error}") from error


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The items of a file; those of its table ``[env]`` with that before their names."""
    for name, value in table.items():
        if name == ENVIRONMENT[:-1] and isinstance(value, dict):
            yield from ((ENVIRONMENT + variable, text) for variable, text in value.items())
        else:
            yield name, value


def _toml_text(name: str, value: object) -> str:
    """Return a value of a TOML file as it would be written elsewhere."""
    entry = OPTION_OF_NAME.get(normal_name(name))
    option = entry[0] if entry else None
    if option is not None and not option.in_file:
        raise OptionError(f"option {name} belongs on the command line, not into a file")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    text_only = option is None or option.kind.text_only
    if not isinstance(value, int | float) or text_only:
        raise OptionError(f'option {name}: write it as a text, such as "..."')
    return str(value)


def _merge_source(values: dict[str, Any]) -> None:
    """Put the bucket's own prefix and the option's together."""
    source: Source = values["bucket"]
    prefix = values.get("prefix", "")
    if source.prefix and prefix and source.prefix != prefix:
        raise OptionError(f"two prefixes are given: {source.prefix} and {prefix}")
    values["bucket"], values["prefix"] = source.bucket, source.prefix or prefix


def _check(config: Config) -> None:
    """Refuse options that contradict each other."""
    if config.allow_other and config.allow_root:
        raise OptionError("options allow-other and allow-root exclude each other")
    if config.ca_bundle is not None and config.no_verify_ssl:
        raise OptionError("options ca-bundle and no-verify-ssl exclude each other")
    sources = ("credentials_file", "passwd_file", "no_sign_request")
    given = [name.replace("_", "-") for name in sources if getattr(config, name)]
    if len(given) > 1:
        raise OptionError(f"options {' and '.join(given)} exclude each other")
    _check_features(config)


def _check_features(config: Config) -> None:
    """Refuse features that contradict each other, or the way to the store."""
    if contradiction := featureoptions.check(config):
        raise OptionError(contradiction)
    if config.requester_pays and config.no_sign_request:
        raise OptionError("option requester-pays needs credentials, not no-sign-request")
    ways = [name.replace("_", "-") for name in ("dual_stack", "fips", "accelerate")
            if getattr(config, name)]  # fmt: skip
    if ways and config.endpoint_url is not None:
        raise OptionError(f"option {ways[0]} is for AWS's own endpoints, not for endpoint-url")
    if config.accelerate and (config.path_style or "." in config.bucket):
        raise OptionError("option accelerate needs the bucket in the host name, without dots")
    if config.path_style and config.bucket.startswith("arn:"):
        raise OptionError("option path-style: an access point is reached by its host name only")
