"""Where log lines go, what they look like, and what they never hold: secrets."""

import errno
import json
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections import deque
from contextlib import suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TextIO

from s3mount.errors import StoreError
from s3mount.repeats import FACTS, LEFT_OUT, Repeats

log = logging.getLogger(__name__)
repeats = Repeats()  # One for the process, as there is one root logger.

# Libraries that print headers, signatures and tokens when they are asked for details.
_TALKATIVE = ("botocore", "boto3", "urllib3", "s3transfer", "awscrt")
_SYSLOG = "/dev/log"
_DAEMON_FACILITY = 3 << 3
_LAYOUT = "%(asctime)sZ %(levelname)s %(name)s: %(message)s"
_BETWEEN = r"""(?:b?["'\s>]*[:=,]\s*\(?b?["'\s]*|>)"""  # a name and its value, in any notation
_SECRET_PATTERNS = (
    re.compile(rf"(?i)(\b(?:proxy-)?authorization{_BETWEEN})[^\r\n\"']+"),
    re.compile(r"(?i)(\bAWS4-HMAC-SHA256\s)[^\r\n\"']+"),
    re.compile(
        rf"(?i)(\bx-amz-(?:signature|security-token|credential|server-side-encryption-customer-key)"
        rf"{_BETWEEN})[^\s&\"'<,;)]+"
    ),
    re.compile(
        rf"(?i)(\b(?:aws_)?(?:secret_?access_?key|session_?token|security_?token){_BETWEEN})"
        rf"[^\s&\"'<,;)]+"
    ),
    re.compile(r"(?i)([?&](?:signature|awsaccesskeyid)=)[^\s&\"'<]+"),
)
# Credentials are renewed: the last ones may still be under way in some message.
_known_secrets: deque[str] = deque(maxlen=32)


def protect(secret: str) -> None:
    """Never let *secret* appear in the log."""
    if len(secret) >= 8 and secret not in _known_secrets:  # "" and "test" are everywhere
        _known_secrets.append(secret)


def redact(text: str) -> str:
    """Return *text* with credentials and signatures replaced by ``***``."""
    for secret in _known_secrets:
        text = text.replace(secret, "***")
    for pattern in _SECRET_PATTERNS:
        text = pattern.sub(r"\1***", text)
    return text


class TextFormatter(logging.Formatter):
    """One line for people; control characters in names cannot forge another one."""

    def __init__(self, layout: str) -> None:
        super().__init__(layout, "%Y-%m-%d %H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = "".join(
            character if character.isprintable() else ascii(character)[1:-1]
            for character in record.message
        )
        if left_out := getattr(record, LEFT_OUT, 0):
            record.message += f" ({left_out} more like it were left out before)"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            "pid": record.process,
            **_facts(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = redact("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(fields, ensure_ascii=False)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    """What a record tells beside its text: path, errno, request id, how many were left out."""
    facts: dict[str, object] = {}
    for argument in record.args if isinstance(record.args, tuple) else ():
        if isinstance(argument, StoreError):
            facts = {"code": argument.code, "request_id": argument.request_id}
    for name, value in getattr(record, FACTS, {}).items():
        facts[name] = redact(value) if isinstance(value, str) else value
    if left_out := getattr(record, LEFT_OUT, 0):
        facts[LEFT_OUT] = left_out
    return facts


class JournalFormatter(TextFormatter):
    """A line with the priority that systemd reads: ``<4>``."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{_priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class SyslogHandler(logging.Handler):
    """Sends records to the local syslog daemon, and never waits for it.

    The standard handler blocks when the daemon is slow; here that would stop the mount.
    """

    def __init__(self, address: str = _SYSLOG) -> None:
        super().__init__()
        self._address = address
        self._socket: socket.socket | None = None

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"<{_DAEMON_FACILITY | _priority(record.levelno)}>s3mount[{os.getpid()}]: "
        message = (mark + self.format(record)).encode(errors="backslashreplace")
        for _ in range(2):  # The daemon may have been restarted since the last message.
            try:
                self._connection().send(message)
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()
            else:
                return

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _connection(self) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            connection.setblocking(False)
            try:
                connection.connect(self._address)
            except OSError:
                connection.close()
                raise
            self._socket = connection
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class LogFileHandler(WatchedFileHandler):
    """Appends to a file that only its owner may read, and follows logrotate.

    What the file does not take goes to *instead*: who logs something is not to fail for it.
    """

    def __init__(self, file: Path, instead: SyslogHandler) -> None:
        super().__init__(file)
        self._instead = instead

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # where it was to be opened anew
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)
            return
        with suppress(OSError, ValueError):  # What is left in its buffer goes, too.
            super().close()  # The next record opens the file again.
        self._instead.handle(record)

    def close(self) -> None:
        self._instead.close()
        super().close()

    def _open(self) -> TextIO:  # type: ignore[override]  # the base class says TextIOWrapper
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.baseFilename, flags, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


class Recent(logging.Handler):
    """Keeps the last warnings and errors, for ``s3mount status``."""

    def __init__(self, count: int) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(TextFormatter("%(message)s"))
        self.addFilter(repeats)
        self._entries: deque[tuple[float, str, str]] = deque(maxlen=count)

    def emit(self, record: logging.LogRecord) -> None:
        self._entries.append((record.created, record.levelname.lower(), self.format(record)))

    def entries(self) -> list[dict[str, object]]:
        """Return what is kept, the latest last."""
        return [
            {"time": round(when, 3), "level": level, "message": message}
            for when, level, message in self._entries
        ]


class StartupHandler(logging.StreamHandler[TextIO]):
    """Shows warnings to the person who typed the command, until `detach`."""


class Unheard(logging.Filter):
    """Takes answers to requests that the kernel has given up for what they are: no matter.

    Whoever asked was killed, or the mount is gone; pyfuse3 calls it an error.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be logged."""
        return not record.getMessage().endswith(f"failed with {os.strerror(errno.ENOENT)}")


def set_up(*, level: str, form: str, file: Path | None, background: bool) -> None:
    """Send log records of at least *level* to where they belong.

    In the background that is *file* or syslog, and until `detach` is called warnings also go
    to standard error, where the command that started us is listening.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pyfuse3").addFilter(Unheard())
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in _handlers(form, file, background=background):
        handler.addFilter(repeats)
        root.addHandler(handler)


def tell_left_out(*, all_of_it: bool = False) -> None:
    """Say how many repeats were left out, where none has come since; or of everything."""
    for record in repeats.summaries(all_of_them=all_of_it):
        logging.getLogger(record.name).handle(record)


def set_level(level: str) -> None:
    """Log records of at least *level* from now on."""
    logging.getLogger().setLevel(level.upper())


def toggle_debug(level: str) -> bool:
    """Log everything, or if that is so already, only from *level* on; return which."""
    everything = logging.getLogger().level > logging.DEBUG
    set_level("debug" if everything else level)
    return everything


def detach() -> None:
    """Let go of the terminal.  In the foreground this does nothing.

    To be called when the mount answers and before that is told: afterwards nobody reads what
    is written to standard error.
    """
    root = logging.getLogger()
    silent = [handler for handler in root.handlers if isinstance(handler, SyslogHandler)]
    if silent and not Path(_SYSLOG).exists():
        log.warning(
            "there is no syslog here (%s): what the mount has to say from now on is lost, "
            "unless option log-file names a file for it",
            _SYSLOG,
        )
    for handler in [handler for handler in root.handlers if isinstance(handler, StartupHandler)]:
        root.removeHandler(handler)
        handler.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def _handlers(form: str, file: Path | None, *, background: bool) -> list[logging.Handler]:
    handlers: list[logging.Handler] = []
    syslog = SyslogHandler()
    _with_format(syslog, form, "%(name)s: %(message)s")
    if file is not None:
        handlers.append(_with_format(LogFileHandler(file, syslog), form, _LAYOUT))
    elif background:
        handlers.append(syslog)
    if background:
        startup = StartupHandler(sys.stderr)
        startup.setLevel(logging.WARNING)
        startup.setFormatter(TextFormatter("s3mount: %(message)s"))
        handlers.append(startup)
    elif file is None:
        handlers.append(_terminal(form))
    return handlers


def _terminal(form: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    if form == "text" and _is_journal(sys.stderr):
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
        return handler
    return _with_format(handler, form, _LAYOUT)


def _with_format(handler: logging.Handler, form: str, layout: str) -> logging.Handler:
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(layout))
    return handler


def _is_journal(stream: TextIO) -> bool:
    """Say whether *stream* is the one that systemd connected to its journal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _priority(level: int) -> int:
    """Return the priority of syslog(3) for a *level* of logging."""
    for least, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4)):
        if level >= least:
            return priority
    return 6 if level >= logging.INFO else 7
