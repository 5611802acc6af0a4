"""What is logged, where, and what never is."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from s3mount import logs

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
LEAKS = [
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host;x-amz-date, Signature=LEAKLEAK",
    "{'Authorization': 'AWS4-HMAC-SHA256 Credential=LEAKLEAK/x', 'Host': 'kept'}",
    "[(b'authorization', b'AWS4-HMAC-SHA256 Credential=LEAKLEAK'), (b'host', b'kept')]",
    "authorization=Basic LEAKLEAK",
    "GET /b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=LEAKLEAK%2F2026&kept=1",
    "GET /b/k?kept=1&X-Amz-Signature=LEAKLEAK",
    "x-amz-security-token: LEAKLEAK+/=",
    "{'X-Amz-Security-Token': 'LEAKLEAK'}",
    "(b'x-amz-security-token', b'LEAKLEAK')",
    '{"SecretAccessKey": "LEAKLEAK", "SessionToken": "LEAKLEAK"}',
    "<SecretAccessKey>LEAKLEAK</SecretAccessKey><SessionToken>LEAKLEAK</SessionToken>",
    "aws_secret_access_key = LEAKLEAK",
    "GET /b/k?AWSAccessKeyId=LEAKLEAK&Expires=1&Signature=LEAKLEAK",
]


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("s3mount.s3", logging.WARNING, __file__, 1, message, arguments, None)


@pytest.mark.parametrize("text", LEAKS)
def test_credentials_and_signatures_are_never_logged(text):
    for formatter in (logs.TextFormatter("%(message)s"), logs.JsonFormatter()):
        line = formatter.format(record("%s", text))
        assert "LEAK" not in line
        assert "***" in line
        assert ("kept" in text) == ("kept" in line)


def test_a_secret_that_is_known_is_hidden_wherever_it_stands():
    logs.protect(SECRET)
    try:
        raise ValueError(f"bad key {SECRET}!")
    except ValueError:
        told = record("failed with %s", SECRET)
        told.exc_info = sys.exc_info()
    for formatter in (logs.TextFormatter("%(message)s"), logs.JsonFormatter()):
        line = formatter.format(told)
        assert SECRET not in line
        assert "bad key ***!" in line


def test_short_words_are_not_taken_for_secrets():
    logs.protect("")
    logs.protect("test")
    assert logs.redact("this is a test") == "this is a test"


def test_ordinary_lines_stay_as_they_are():
    line = "GET /bucket/key 503 SlowDown (request 4442587FB7D0A2F9), again in 0.4 s"
    assert logs.redact(line) == line


def test_a_name_from_the_bucket_cannot_forge_a_line():
    line = logs.TextFormatter("%(message)s").format(record("%s", "a\n2026 ERROR forged\x1b[2J"))
    assert line == "a\\n2026 ERROR forged\\x1b[2J"


def test_json_lines_are_json():
    line = json.loads(logs.JsonFormatter().format(record("%s", 'quote" ü\n')))
    assert line["message"] == 'quote" ü\n'
    assert (line["level"], line["logger"], line["pid"]) == ("warning", "s3mount.s3", os.getpid())


ROTATED = """
import logging, os, sys
from pathlib import Path
from s3mount import logs
file = Path(sys.argv[1])
logs.set_up(level="info", form="text", file=file, background=False)
log = logging.getLogger("s3mount")
log.info("one")
file.rename(file.with_name("old"))
log.info("two")
log.debug("three")
"""


def test_the_log_file_is_private_and_follows_logrotate(tmp_path):
    subprocess.run([sys.executable, "-c", ROTATED, str(tmp_path / "log")], check=True)
    for name, word in (("old", "one"), ("log", "two")):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        (line,) = (tmp_path / name).read_text().splitlines()
        assert line.endswith(f"Z INFO s3mount: {word}")


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """A syslog daemon of our own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "syslog"))
        daemon.settimeout(10)
        yield daemon


def log_file(file: Path, syslog: socket.socket) -> logs.LogFileHandler:
    instead = logs.SyslogHandler(syslog.getsockname())
    return logs.LogFileHandler(file, instead)


def test_a_log_file_that_cannot_be_opened_harms_nobody_and_is_tried_again(tmp_path, syslog):
    folder = tmp_path / "logs"
    folder.mkdir()
    with closing(log_file(folder / "log", syslog)) as handler:
        handler.handle(record("one"))
        folder.rename(tmp_path / "old")
        for word in (b"two", b"three"):
            handler.handle(record(word.decode()))
            assert syslog.recv(4096).endswith(b": " + word)
        folder.mkdir()
        handler.handle(record("four"))
        handler.handle(record("five"))
    assert (tmp_path / "old/log").read_text() == "one\n"
    assert (folder / "log").read_text() == "four\nfive\n"


def test_what_a_full_disk_does_not_take_goes_to_syslog(tmp_path, syslog, capsys):
    (tmp_path / "log").symlink_to("/dev/full")
    with closing(log_file(tmp_path / "log", syslog)) as handler:
        handler.handle(record("one"))
        assert syslog.recv(4096).endswith(b": one")
        (tmp_path / "log").unlink()
        handler.handle(record("two"))
    assert (tmp_path / "log").read_text() == "two\n"
    assert capsys.readouterr().err == ""


BACKGROUND = """
import logging, sys
from pathlib import Path
from s3mount import logs
logs.set_up(level="info", form="text", file=Path(sys.argv[1]), background=True)
log = logging.getLogger("s3mount")
log.info("quiet")
log.warning("early")
logs.detach()
log.warning("late")
print("lost")
print("lost", file=sys.stderr)
"""


def test_warnings_reach_the_terminal_until_the_daemon_lets_go_of_it(tmp_path):
    command = [sys.executable, "-c", BACKGROUND, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "s3mount: early\n")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["quiet", "early", "late"]


def test_syslog_gets_priorities_and_survives_its_restart(tmp_path):
    address = str(tmp_path / "log")
    handler = logs.SyslogHandler(address)
    handler.setFormatter(logs.TextFormatter("%(name)s: %(message)s"))
    handler.emit(record("nobody listens yet"))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(address)
            daemon.settimeout(10)
            handler.emit(record("slow"))
            expected = f"<28>s3mount[{os.getpid()}]: s3mount.s3: slow".encode()
            assert daemon.recv(4096) == expected
        Path(address).unlink()
    handler.close()


def test_a_syslog_daemon_that_is_stuck_stops_nobody(tmp_path):
    handler = logs.SyslogHandler(str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        for _ in range(2000):
            handler.emit(record("x"))
        assert daemon.recv(4096)
    handler.close()


def test_the_journal_is_told_priorities(tmp_path):
    with (tmp_path / "journal").open("w") as journal:
        status = os.fstat(journal.fileno())
        script = (
            "import logging; from s3mount import logs;"
            "logs.set_up(level='info', form='text', file=None, background=False);"
            "logging.getLogger('x').error('bad'); logging.getLogger('x').info('good')"
        )
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run([sys.executable, "-c", script], stderr=journal, env=environment, check=True)
    assert (tmp_path / "journal").read_text() == "<3>x: bad\n<6>x: good\n"
