"""Readiness: sd_notify(3) on both sides."""

import os
import select
import socket
import subprocess
import sys

from s3mount import notify
from s3mount.cli import mount

TELL = "from s3mount import notify; import sys; sys.exit(not notify.ready('up'))"


def wait_for(receiver: notify.Receiver) -> None:
    assert select.select([receiver], [], [], 10)[0]


def test_the_parent_hears_its_child():
    with notify.Receiver() as receiver:
        environment = {**os.environ, "NOTIFY_SOCKET": receiver.address}
        with subprocess.Popen([sys.executable, "-c", TELL], env=environment) as child:
            wait_for(receiver)
            assert child.wait() == 0
        assert receiver.read(child.pid) == ["READY=1", "STATUS=up", f"MAINPID={child.pid}"]


def test_nobody_else_is_believed(monkeypatch):
    with notify.Receiver() as receiver:
        monkeypatch.setenv("NOTIFY_SOCKET", receiver.address)
        assert notify.send("READY=1")
        wait_for(receiver)
        assert receiver.read(os.getpid() + 1) == []
        assert notify.send("READY=1")
        assert receiver.read(os.getpid()) == ["READY=1"]
        assert receiver.read(os.getpid()) == []


def test_systemd_is_told_over_a_path(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify.stopping("uploading")
        assert systemd.recv(4096) == b"STOPPING=1\nSTATUS=uploading"


def test_nobody_has_to_listen(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready("up")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.ready("up")
    monkeypatch.setenv("NOTIFY_SOCKET", "@s3mount-nobody-is-here")
    assert not notify.ready("up")


def test_a_listener_that_does_not_read_stops_nobody(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        told = [notify.send("STATUS=x") for _ in range(2000)]
    assert told[0]
    assert not told[-1]


def test_a_mount_that_asks_for_patience_is_waited_for_longer_than_the_time_limit():
    program = """if True:
        import time
        from s3mount import notify
        notify.extend(60)
        time.sleep(4)
        notify.ready("mounted")
    """
    with notify.Receiver() as receiver:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "NOTIFY_SOCKET": receiver.address},
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        with process.stderr:
            assert mount._await_ready(process, receiver, 3.0) == 0
        assert process.wait() == 0
