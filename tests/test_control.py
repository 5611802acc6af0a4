"""The control socket: a real server and real clients, the bad ones included."""

import json
import os
import socket
import stat
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from s3mount import control, controlclient
from s3mount.controlclient import Connection, ControlError, NoDaemon, Silent
from s3mount.errors import MountError


async def echo(request, progress):
    await progress({"files": 2})
    await progress({"files": 1})
    return {"heard": request}


async def refuse(request, progress):
    raise MountError("not now")


async def break_down(request, progress):
    raise RuntimeError("oops")


async def large(request, progress):
    return "x" * (3 << 20)


async def endless(request, progress):
    while True:
        await progress({})
        await trio.sleep(0.01)


async def sleep(request, progress):
    await trio.sleep_forever()


HANDLERS = {
    "echo": echo,
    "refuse": refuse,
    "break": break_down,
    "large": large,
    "endless": endless,
    "sleep": sleep,
}


@pytest.fixture
async def path(tmp_path, nursery):
    path = tmp_path / "control.sock"
    await nursery.start(control.serve, path, HANDLERS)
    return path


async def ask(path, command, arguments=None, **how):
    def ask_blocking():
        with Connection(path) as connection:
            return connection.ask(command, arguments, **how)

    return await trio.to_thread.run_sync(ask_blocking)


async def raw(path, data: bytes) -> bytes:
    """Send *data* and nothing more, and return the whole answer."""
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        await stream.send_all(data)
        stream.socket.shutdown(socket.SHUT_WR)
        answer = b""
        with trio.fail_after(20):
            while part := await stream.receive_some(1 << 16):
                answer += part
        return answer


async def test_a_request_gets_progress_and_a_result(path):
    heard = []
    result = await ask(path, "echo", {"lazy": True}, progress=heard.append)
    assert result == {"heard": {"command": "echo", "lazy": True}}
    assert heard == [{"files": 2}, {"files": 1}]


async def test_a_refusal_arrives_in_its_own_words(path):
    with pytest.raises(ControlError, match=r"^not now$"):
        await ask(path, "refuse")
    with pytest.raises(ControlError, match="no command 'nonsense'"):
        await ask(path, "nonsense")


async def test_a_bug_in_a_handler_harms_nobody_else(path, caplog, expect_log):
    expect_log("bug in the command break")
    with pytest.raises(ControlError, match=r"bug: RuntimeError: oops"):
        await ask(path, "break")
    assert "bug in the command break" in caplog.text
    assert await ask(path, "echo")


async def test_an_answer_may_be_large(path):
    assert len(await ask(path, "large")) == 3 << 20


async def test_only_the_owner_may_connect(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_client_knows_the_process_that_serves(path):
    with Connection(path) as connection:
        assert connection.pid == os.getpid()


async def test_a_daemon_says_whose_it_is(tmp_path, nursery):
    path = tmp_path / "other.sock"
    handlers = {"hello": control.hello(tmp_path, "bucket/prefix", read_only=True)}
    await nursery.start(control.serve, path, handlers)
    answer = await ask(path, "hello")
    assert answer["mountpoint"] == str(tmp_path)
    assert (answer["source"], answer["pid"]) == ("bucket/prefix", os.getpid())


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"\n", b"not a line of JSON"),
        (b"{\n", b"not a line of JSON"),
        (b"\xff\xfe\n", b"not a line of JSON"),
        (b"[" * 60000 + b"\n", b"not a line of JSON"),
        (b"[1]\n", b"not a JSON object"),
        (b"{}\n", b"no command None"),
        (b'{"command": ["echo"]}\n', b"no command"),
        (b"x" * 100_000, b"too long"),
        (b"", b"not a line of JSON"),
    ],
)
async def test_nonsense_gets_an_error_and_harms_nobody(path, line, word):
    answer = await raw(path, line)
    assert word in answer
    assert list(json.loads(answer)) == ["error"]
    assert await ask(path, "echo")


async def test_a_handler_is_cancelled_when_its_client_hangs_up(tmp_path, nursery):
    cancelled = trio.Event()

    async def handler(request, progress):
        await progress({})
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    path = tmp_path / "x.sock"
    await nursery.start(control.serve, path, {"wait": handler})
    stream = await trio.open_unix_socket(str(path))
    await stream.send_all(b'{"command": "wait"}\n')
    assert b"progress" in await stream.receive_some(100)
    await stream.aclose()
    with trio.fail_after(10):
        await cancelled.wait()


async def test_a_client_that_leaves_in_the_middle_of_progress_harms_nobody(path, caplog):
    for _ in range(20):
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b'{"command": "endless"}\n')
        await stream.receive_some(100)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
    await trio.sleep(0.1)
    assert await ask(path, "echo")
    assert not caplog.records


async def test_silent_clients_do_not_keep_others_out_for_ever(mock_clock, path):
    silent = [await trio.open_unix_socket(str(path)) for _ in range(control.MAX_CLIENTS)]
    # Clients are let in in turn, so by now all the silent ones are: time stands still meanwhile.
    with pytest.raises(ControlError):
        await ask(path, "echo")
    mock_clock.jump(control.REQUEST_TIMEOUT)
    for stream in silent:
        assert b"error" in await stream.receive_some(1000)
        await stream.aclose()
    assert await ask(path, "echo")


async def test_the_answer_arrives_even_when_the_mount_ends_with_it(tmp_path):
    path = tmp_path / "x.sock"
    heard: list[object] = []

    async with trio.open_nursery() as nursery:

        async def umount(request, progress):
            nursery.cancel_scope.cancel()
            return "unmounted"

        await nursery.start(control.serve, path, {"umount": umount})

        def client():
            with Connection(path) as connection:
                heard.append(connection.ask("umount"))

        thread = threading.Thread(target=client)
        thread.start()
        await trio.sleep(10)
    thread.join(10)
    assert heard == ["unmounted"]


async def test_the_socket_goes_with_the_server_and_a_dead_one_is_replaced(tmp_path):
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoDaemon):
        Connection(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, path, HANDLERS)
        assert await ask(path, "echo")
        nursery.cancel_scope.cancel()
    assert not path.exists()
    with pytest.raises(NoDaemon):
        Connection(path)


async def test_a_client_does_not_wait_longer_than_it_wants(path):
    with pytest.raises(Silent):
        await ask(path, "sleep", timeout=0.2)
    with pytest.raises(Silent):
        await ask(path, "endless", timeout=0.3)


def test_sockets_of_root_are_in_run_and_each_mount_has_its_own(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only for root")
    one, two = (controlclient.socket_path(tmp_path / name) for name in "ab")
    assert one != two
    assert one.parent == two.parent
    assert str(one).startswith("/run/s3mount/")
    assert stat.S_IMODE(one.parent.stat().st_mode) == 0o700


def test_only_directories_of_users_are_looked_into():
    if os.geteuid() != 0:
        pytest.skip("only root looks into those of others")
    with (
        TemporaryDirectory(prefix="s3mount-test-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX) as other,
    ):
        other.bind(f"{folder}/other.sock")
        assert Path(folder, "other.sock") not in controlclient.all_sockets()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b'"x"\n'])
def test_who_does_not_speak_our_language_is_no_bug_of_ours(tmp_path, answer: bytes):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "x.sock"))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with Connection(tmp_path / "x.sock") as connection, pytest.raises(ControlError):
            connection.ask("status", timeout=30)
        thread.join()


def test_a_directory_that_others_can_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(controlclient, "_folders", lambda owner: [tmp_path / "run"])
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(PermissionError, match="0700"):
        controlclient.socket_path(tmp_path)
    (tmp_path / "run").rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        controlclient.socket_path(tmp_path)


def test_a_user_is_found_wherever_the_socket_is(monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root gives directories away")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    usual = Path("/tmp/s3mount-4242")
    with TemporaryDirectory(dir="/tmp") as runtime:  # Short, as such directories are.
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        assert controlclient._folders(4242) == [usual], "it is root's"
        os.chown(runtime, 4242, 4242)
        assert controlclient._folders(4242) == [Path(runtime, "s3mount"), usual]
        long = Path(runtime, "x" * 100)
        long.mkdir()
        os.chown(long, 4242, 4242)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
        assert controlclient._folders(4242) == [usual]
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert controlclient._folders(4242) == [usual], "it is gone"
