"""The benchmark's own parts: what it reports, how its proxy delays, what its loads notice."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import processes, report
from benchmarks.data import MIB, PAGE_SIZE, SMALL_SIZE, page_number, small_name, stamped
from benchmarks.delay_line import BURST, DelayLine
from benchmarks.goals import GOALS, Goal, Measure, verdict
from benchmarks.latency_proxy import Traffic
from benchmarks.load import LOADS, Job, WrongData
from benchmarks.meter import LoadReport, Meter, Phase
from benchmarks.proxy_process import ProxyProcess
from benchmarks.results import Cell, Table
from benchmarks.server import Credentials
from benchmarks.systems import SYSTEMS, MountFailed, Target, mounted
from benchmarks.workloads import ROWS, WORKLOADS

DELAY_MS = 10.0
RATE = 90e6
MESSAGE = 100  # bytes

# ---------------------------------------------------------------------------- delay line


def test_bytes_leave_after_the_delay_and_not_before():
    line = DelayLine(delay=0.010, rate=RATE, opened=0.0)
    line.arrive(1.000, 500)
    assert line.allowance(1.009) == 0
    assert line.next_time() == pytest.approx(1.010)
    assert line.allowance(1.011) == 500


def test_what_comes_before_the_connection_is_set_up_counts_from_then_on():
    line = DelayLine(delay=0.010, rate=RATE, opened=1.020)
    line.arrive(1.000, 1)
    assert line.next_time() == pytest.approx(1.030)


def test_a_later_message_does_not_leave_with_an_earlier_one():
    line = DelayLine(delay=0.010, rate=RATE, opened=0.0)
    line.arrive(1.000, 100)
    line.arrive(1.005, 100)
    assert line.allowance(1.012) == 100
    line.leave(100)
    assert line.next_time() == pytest.approx(1.015)


def test_a_part_may_leave_and_the_rest_follows_in_its_time():
    line = DelayLine(delay=0.0, rate=1000.0, opened=0.0)
    line.arrive(1.0, 300)
    line.leave(100)
    assert line.queued == 200
    assert line.next_time() == pytest.approx(1.1)


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 0.02), st.integers(1, 1 << 20)), min_size=1, max_size=20
    )
)
def test_no_more_leaves_than_the_rate_allows_and_nothing_is_lost(arrivals):
    line = DelayLine(delay=0.010, rate=RATE, opened=0.0)
    now = first = 1.0
    gone = 0
    for pause, size in arrivals:
        now += pause
        line.arrive(now, size)
        size = line.allowance(now)
        line.leave(size) if size else None
        gone += size
        assert gone <= max(0.0, now - first - 0.010) * RATE + BURST + 1
    while line.queued:
        now += 0.0005
        if size := line.allowance(now):
            line.leave(size)
            gone += size
        assert gone <= max(0.0, now - first - 0.010) * RATE + BURST + 1
    assert gone == sum(size for _, size in arrivals)


# --------------------------------------------------------------------------------- proxy


@contextlib.contextmanager
def serving(answer):
    """A server on loopback that lets *answer* deal with each connection in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    thread = threading.Thread(target=deal_with, args=(connection,))
                    threads.append(thread)
                    thread.start()

        def deal_with(connection):
            with connection, contextlib.suppress(ConnectionError):
                answer(connection)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in [accepting, *threads]:
                thread.join(10)


@contextlib.contextmanager
def proxied(answer, folder):
    """A proxy before such a server."""
    with serving(answer) as port:
        proxy = ProxyProcess(port, folder / "traffic", DELAY_MS, RATE)
        try:
            yield proxy
        finally:
            proxy.stop()


def connected(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def receive(connection, size):
    data = bytearray()
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return bytes(data)


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def test_a_round_trip_takes_both_delays_and_the_first_one_the_set_up_too(tmp_path):
    with proxied(echo, tmp_path) as proxy, connected(proxy) as connection:
        took = []
        for _ in range(3):
            begin = time.monotonic()
            connection.sendall(bytes(MESSAGE))
            assert receive(connection, MESSAGE) == bytes(MESSAGE)
            took.append(time.monotonic() - begin)
    # The first message was sent an instant after connect() had returned.
    assert took[0] >= 0.035
    assert min(took[1:]) >= 0.0195


def test_large_data_come_through_unchanged_both_ways(tmp_path):
    data = os.urandom(5 << 20)
    with proxied(echo, tmp_path) as proxy, connected(proxy) as connection:
        sending = threading.Thread(target=connection.sendall, args=(data,))
        sending.start()
        received = receive(connection, len(data))
        sending.join()
    assert received == data


def test_one_connection_is_no_faster_than_its_rate(tmp_path):
    size = 9_000_000
    with proxied(lambda c: c.sendall(bytes(size)), tmp_path) as proxy, connected(proxy) as client:
        begin = time.monotonic()
        assert len(receive(client, size)) == size
        assert time.monotonic() - begin >= 0.9 * size / RATE


def test_the_end_of_one_direction_leaves_the_other_open(tmp_path):
    def answer_after_the_end(connection):
        count = 0
        while data := connection.recv(65536):
            count += len(data)
        connection.sendall(str(count).encode())

    with proxied(answer_after_the_end, tmp_path) as proxy, connected(proxy) as connection:
        connection.sendall(bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection, 10) == b"1000"


def test_a_server_that_is_not_there_ends_the_connection(tmp_path):
    proxy = ProxyProcess(processes.free_port(), tmp_path / "traffic", DELAY_MS, RATE)
    try:
        with connected(proxy) as connection, contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    finally:
        proxy.stop()


def test_traffic_is_counted(tmp_path):
    with proxied(echo, tmp_path) as proxy:
        before = proxy.traffic()
        for _ in range(2):
            with connected(proxy) as connection:
                for _ in range(3):
                    connection.sendall(bytes(MESSAGE))
                    receive(connection, MESSAGE)
        assert proxy.traffic() - before == Traffic(600, 600, 6, 2)


# ------------------------------------------------------------------------------- results


def phase(amount, seconds, **rest):
    return Phase("any", amount, seconds, **rest)


def cell(amount, seconds, **rest):
    return Cell(best=phase(amount, seconds, cpu=0.5), memory=100 * 10**6, **rest)


def table(way="direct", **cells):
    """A table with cells named ``system_row``."""
    places = {tuple(reversed(name.split("_"))): each for name, each in cells.items()}
    return Table(way, ["s3mount", "s3fs", "rclone"], places)


def test_units_are_rates_or_times():
    assert ROWS["read"].value(phase(2_000_000, 2)) == 1.0
    assert ROWS["small1"].value(phase(1000, 4)) == 250
    assert ROWS["append"].value(phase(1024, 0.25)) == 0.25
    assert ROWS["first"].value(phase(1, 0.25)) == 250
    assert ROWS["read"].better(2, 1)
    assert ROWS["append"].better(1, 2)


def test_the_better_of_two_runs_is_kept_with_the_warts_of_both():
    slow = cell(100, 2, arrived=False)
    fast = replace(cell(100, 1), memory=50)
    for one, other in ((slow, fast), (fast, slow)):
        joined = one.joined(other, ROWS["small1"])
        assert joined.best.seconds == 1
        assert joined.memory == 100 * 10**6
        assert not joined.arrived
    failed = fast.joined(Cell(failure="no answer"), ROWS["small1"])
    assert failed.best.seconds == 1
    assert failed.failure == "no answer"
    assert Cell(failure="no answer").joined(fast, ROWS["small1"]).best.seconds == 1


def test_the_best_peer_did_the_whole_job():
    found = table(
        s3mount_create1=cell(900, 1),
        s3fs_create1=cell(300, 1),
        rclone_create1=cell(1500, 1, arrived=False),
    )
    assert found.best_peer(ROWS["create1"]) == 300
    assert found.advantage(ROWS["create1"], 300) == 3.0


def test_where_no_peer_did_the_whole_job_the_best_one_counts():
    found = table(s3mount_write=cell(9, 1), rclone_write=cell(3e6, 1, arrived=False))
    assert found.best_peer(ROWS["write"]) == 3.0


def test_of_times_the_shorter_is_the_better():
    found = table(s3mount_append=cell(1, 0.1), s3fs_append=cell(1, 0.4), rclone_append=cell(1, 0.2))
    assert found.best_peer(ROWS["append"]) == 0.2
    assert found.advantage(ROWS["append"], 0.2) == pytest.approx(2.0)


def test_a_goal_tells_whether_it_is_reached_or_that_nothing_is_known():
    row = ROWS["read"]
    found = table(s3mount_read=cell(1 << 30, 1), s3fs_read=cell(1 << 30, 2))
    assert Goal(Measure.S3FS, 2.0).reached(found, row) is True
    assert Goal(Measure.BEST_PEER, 2.1).reached(found, row) is False
    assert Goal(Measure.CPU_PER_GIB, 0.5, at_most=True).reached(found, row) is True
    assert Goal(Measure.RECEIVED, 1.0, at_most=True).reached(found, row) is None
    assert Goal(Measure.S3FS, 2.0).reached(table(), row) is None
    text = verdict(found, row)
    assert text == ">= 1.5 x better peer (yes); <= 0.6 s CPU per GiB (yes)"


def test_requests_are_judged_for_each_file():
    traffic = Traffic(0, 0, requests=210, connections=1)
    found = table("proxy", s3mount_small1=Cell(best=phase(200, 1, traffic=traffic)))
    assert verdict(found, ROWS["small1"]) == "<= 1.05 requests each (yes)"


def test_goals_are_tied_to_rows_that_exist():
    assert {key for _, key in GOALS} <= set(ROWS)
    assert len(ROWS) == sum(len(workload.rows) for workload in WORKLOADS.values())


def test_the_table_shows_failures_and_marks_and_says_what_they_mean():
    found = table(
        s3mount_create1=Cell(failure="no mount: unknown option"),
        s3fs_create1=cell(300, 1),
        rclone_create1=cell(1500, 1, arrived=False),
        s3fs_ls=cell(5000, 1, attributes_shown=False, failure="timed out"),
    )
    found = replace(found, bare={"create1": 2000.0})
    text = report.full_report([found], {"machine": "2 cores"}, "scripts/bench", "2030-01-01")
    lines = text.splitlines()
    creating = next(line for line in lines if line.startswith("| create 4 KiB files, uploaded"))
    assert [part.strip() for part in creating.split("|")[2:7]] == [
        "failed",
        "300 (1667 µs, 100 MB)",
        "1,500† (333 µs, 100 MB)",
        "2,000",
        "-",
    ]
    listing = next(line for line in lines if line.startswith("| ls -l, "))
    assert "5,000‡§" in listing
    assert "- machine: 2 cores" in lines
    assert any(line.startswith("- † ") for line in lines)
    assert any(line.startswith("- ‡ ") for line in lines)
    assert any(line.endswith("s3mount: no mount: unknown option") for line in lines)
    assert any(line.endswith("s3fs: timed out") for line in lines)


def test_every_line_of_a_table_has_the_same_columns():
    found = table(s3mount_read=cell(1, 1), rclone_read=cell(1, 1))
    for text in (report.detailed_table(found), report.short_table(found)):
        assert len({line.count("|") for line in text.splitlines()}) == 1
        assert len({len(line) for line in text.splitlines()}) == 1


def test_the_traffic_table_shows_bytes_and_requests():
    found = table(
        "proxy", s3fs_append=Cell(best=phase(1, 1, traffic=Traffic(5_250_000, 12_000, 7, 1)))
    )
    assert "5.25 / 0.01, 7" in report.traffic_table(found)


def test_the_table_of_cpu_shows_what_daemon_and_server_allow(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    busy = Cell(best=phase(1000, 2, cpu=0.5, server_cpu=1.5))
    found = table(s3mount_small1=busy, s3fs_small1=cell(500, 1))
    line = report.cpu_table(found).splitlines()[-1]
    assert [part.strip() for part in line.split("|")[2:-1]] == [
        "500 µs + 1500 µs",
        "-",
        "-",
        "1,000",
    ]


def test_the_readme_is_filled_between_its_marks_and_again(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks -->\nearlier\n<!-- /benchmarks -->\nafter\n")
    found = table(s3mount_read=cell(2e9, 1), s3fs_read=cell(1e9, 1))
    report.fill_readme(readme, [found])
    once = readme.read_text()
    report.fill_readme(readme, [found])
    assert readme.read_text() == once
    assert once.startswith("before\n<!-- benchmarks -->\n")
    assert once.endswith("<!-- /benchmarks -->\nafter\n")
    assert "earlier" not in once
    assert "| 2,000 " in once


def test_a_readme_without_marks_is_noticed(tmp_path):
    readme = tmp_path / "README.md"
    assert not report.has_marks(readme)
    readme.write_text("<!-- benchmarks -->\n")
    assert not report.has_marks(readme)
    readme.write_text("<!-- benchmarks -->\n<!-- /benchmarks -->\n")
    assert report.has_marks(readme)


# --------------------------------------------------------------------------------- loads


def job_for(load, directory, **rest):
    given_values = {"count": 20, "size": 2 * MIB, "threads": 2, "time_box": 5.0, **rest}
    return Job(
        load=load,
        directory=str(directory),
        daemon=os.getpid(),
        server=os.getpid(),
        statistics=None,
        archive="",
        scratch=str(directory),
        **given_values,
    )


def do(load, directory, **rest):
    """Do a load on a local directory, and return its phases by name."""
    job = job_for(load, directory, **rest)
    meter = Meter(job.daemon, job.server, None)
    LOADS[load](job, meter)
    return {each.name: each for each in meter.phases}


def test_a_write_behind_is_compared_with_a_local_one(tmp_path):
    phases = do("write_behind", tmp_path)
    assert phases["write"].amount == 2 * MIB
    assert phases["ratio"].seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert GOALS["direct", "copied"][0].text(ROWS["copied"]) == "<= 1.3 times"


def test_each_page_knows_its_number():
    content = stamped(2 * MIB, 7)
    assert len(content) == 2 * MIB
    assert page_number(content[:PAGE_SIZE]) == 7
    assert page_number(content[-PAGE_SIZE:]) == 7 + 511


def test_reading_checks_what_it_reads(tmp_path):
    content = stamped(2 * MIB, 0)
    (tmp_path / "file").write_bytes(content)
    phases = do("read_file", tmp_path)
    assert [each.amount for each in phases.values()] == [2 * MIB] * 3
    assert do("read_random", tmp_path, count=512)["read"].amount == 512
    (tmp_path / "file").write_bytes(content[:-1])
    with pytest.raises(WrongData, match="ended at"):
        do("read_file_once", tmp_path)
    content[MIB : MIB + 8] = bytes(8)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(WrongData, match="wrong bytes at 1048576"):
        do("read_file_once", tmp_path)
    with pytest.raises(WrongData, match="wrong bytes in page 256"):
        do("read_random", tmp_path, count=512)


def test_writing_writes_what_reading_expects(tmp_path):
    assert do("write_file", tmp_path)["write"].amount == 2 * MIB
    assert do("read_file_once", tmp_path)["read"].amount == 2 * MIB
    assert do("write_pieces", tmp_path)["write"].amount == 2 * MIB


def test_small_files_are_created_read_and_listed(tmp_path):
    assert do("create_small_files", tmp_path)["files"].amount == 20
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {SMALL_SIZE}
    assert do("read_small_files", tmp_path)["files"].amount == 20
    assert do("list_long", tmp_path)["list"].amount == 20
    phases = do("list_names", tmp_path)
    assert phases["list"].amount == 20
    assert 0 < phases["first"].seconds <= phases["list"].seconds
    with pytest.raises(WrongData, match="20 entries instead of 21"):
        do("list_long", tmp_path, count=21)
    with pytest.raises(FileNotFoundError):
        do("read_small_files", tmp_path, count=21)


def test_a_time_box_ends_a_load_early(tmp_path):
    assert do("create_small_files", tmp_path, time_box=0.0)["files"].amount == 0


def test_a_changed_file_is_changed_where_it_should_be(tmp_path):
    (tmp_path / "file").write_bytes(stamped(2 * MIB, 1))
    do("append", tmp_path)
    do("patch", tmp_path)
    content = (tmp_path / "file").read_bytes()
    assert len(content) == 2 * MIB + 1024
    assert content.startswith(stamped(2 * MIB, 1)[:MIB])
    assert not any(content[MIB : MIB + PAGE_SIZE])


def test_removing_says_why_it_failed(tmp_path):
    with pytest.raises(OSError, match="No such file or directory"):
        do("remove_tree", tmp_path)


def test_a_load_process_reports_in_json(tmp_path):
    (tmp_path / small_name(0)).write_bytes(bytes(SMALL_SIZE))
    job = job_for("read_small_files", tmp_path, count=1)
    process = processes.start_module("benchmarks.load", [job.as_json()], log=subprocess.PIPE)
    output, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, "")
    assert '"amount": 1' in output


def test_a_load_that_did_nothing_has_failed(tmp_path):
    job = job_for("create_small_files", tmp_path, time_box=0.0)
    process = processes.start_module("benchmarks.load", [job.as_json()], log=subprocess.PIPE)
    output, complaint = process.communicate(timeout=60)
    assert (process.returncode, output, complaint) == (1, "", "nothing was done in time\n")


def test_a_report_survives_its_way_between_processes():
    sent = LoadReport((phase(1, 2, traffic=Traffic(1, 2, 3, 4)), phase(5, 6)), False)
    assert LoadReport.from_json(sent.as_json()) == sent


# ----------------------------------------------------------------- processes and systems


def reap(group):
    """Wait for the orphans of a process group, where the session adopts them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def test_cpu_and_memory_of_children_count():
    script = "import os; os.fork(); print(flush=True)\nwhile True: pass"
    process = processes.start(
        [sys.executable, "-c", script], log=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 30
        while processes.cpu_seconds(process.pid) < 0.1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert processes.cpu_seconds(process.pid) >= 0.1
        assert processes.peak_memory(process.pid) > 10 * MIB
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        processes.end(process)
        reap(process.pid)


def test_a_process_that_will_not_end_is_ended():
    script = "trap '' TERM; echo; while :; do sleep 0.1; done"
    process = processes.start(["sh", "-c", script], log=subprocess.DEVNULL, stdout=subprocess.PIPE)
    process.stdout.readline()
    processes.end(process, patience=0.2)
    reap(process.pid)
    assert process.returncode == -signal.SIGKILL


def test_a_system_that_cannot_mount_says_so_in_its_own_words(tmp_path):
    target = Target(
        bucket="bucket",
        url="http://127.0.0.1:1",
        server_name="none",
        credentials=Credentials("key", "secret"),
        mountpoint=tmp_path / "mount",
        scratch=tmp_path / "scratch",
    )
    target.scratch.mkdir()
    complaining = ["sh", "-c", "echo first; echo 'no such bucket' >&2; exit 32"]
    system = replace(SYSTEMS["s3fs"], command=lambda each: (complaining, each.environment))
    with pytest.raises(MountFailed, match=r"^no such bucket$"), mounted(system, target):
        pass
    missing = replace(SYSTEMS["s3fs"], command=lambda each: (["/nowhere"], each.environment))
    with pytest.raises(MountFailed, match="No such file"), mounted(missing, target):
        pass


def test_no_secret_is_in_the_arguments_of_a_system(tmp_path):
    target = Target(
        bucket="bucket",
        url="http://127.0.0.1:1",
        server_name="MinIO",
        credentials=Credentials("access-key", "secret-key"),
        mountpoint=tmp_path / "mount",
        scratch=tmp_path,
        persistent=True,
        writeback=True,
    )
    for system in SYSTEMS.values():
        with contextlib.suppress(MountFailed):
            command, environment = system.command(target)
            assert "secret-key" not in " ".join(map(str, command))
            assert environment["AWS_SECRET_ACCESS_KEY"] == "secret-key"


def test_an_unknown_workload_is_refused():
    process = processes.start_module("benchmarks", ["--only", "nothing"], log=subprocess.PIPE)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "'nothing' is not one of read, " in complaint
