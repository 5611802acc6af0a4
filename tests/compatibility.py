"""Runs the suites and the doctor against every store that is found, for docs/compatibility.md.

What a store is known to do in its own way is read off what the tests and the doctor find; nothing
here says what should come out.  `tests.matrix` writes it down.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from botocore.exceptions import BotoCoreError, ClientError

from s3mount.demo.weed import Credentials, use_clean_environment
from tests.ceph import PROGRAMS
from tests.matrix import write
from tests.server import Server, ServerError
from tests.servers import CHECKOUT, SERVERS, make_server

CONFORMANCE = ("tests/test_store.py",)
POSIX = (
    "tests/mount/test_posix.py",
    "tests/mount/test_files.py",
    "tests/mount/test_cases_of_others.py",
    "tests/mount/test_odd_names.py",
    "tests/mount/test_model.py::test_random_access_to_one_file",
)
BRIEF = 2
DOCUMENT = CHECKOUT / "docs" / "compatibility.md"
LIMIT = 1200.0  # Seconds for one suite on one store.
MISSING = {
    "rustfs": "no `rustfs` on PATH, and no archive (S3MOUNT_TEST_SERVERS names its folder)",
    "minio": "not on PATH (it is a Go module: `go install github.com/minio/minio@latest`)",
    "versitygw": "not on PATH (`go install github.com/versity/versitygw/cmd/versitygw@latest`)",
    "ceph": f"not all of {', '.join(PROGRAMS)} are on PATH",
    "endpoint": "S3MOUNT_TEST_ENDPOINT is not set",
}


@dataclass(slots=True)
class Suite:
    """What became of one suite: numbers, and the reasons of what did not pass, by test."""

    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Result:
    """What was found out about one store; *why* it was not tried, or the rest."""

    name: str
    why: str = ""
    version: str = ""
    findings: dict[str, dict[str, str]] = field(default_factory=dict)
    suites: dict[str, Suite] = field(default_factory=dict)


def version_of(name: str) -> str:
    """What the program of a store calls its version."""
    if name == "moto":
        return importlib.metadata.version("moto")
    if name == "endpoint":
        return os.environ["S3MOUNT_TEST_ENDPOINT"]
    program = SERVERS[name][1]()
    assert program is not None
    argument = "version" if name in ("weed", "rclone") else "--version"
    done = subprocess.run([program, argument], capture_output=True, text=True, check=False)
    text = (done.stdout or done.stderr).strip()
    if found := re.search(r"\d+\.\d+[^\s,(]*|RELEASE\.\S+|DEVELOPMENT\.\S+", text):
        return found[0]
    return version_of_module(program) or text.partition("\n")[0]


def version_of_module(program: str) -> str:
    """The version that Go has written into a program which tells none."""
    go = shutil.which("go")
    if go is None:
        return ""
    done = subprocess.run(
        [go, "version", "-m", program], capture_output=True, text=True, check=False
    )
    found = re.search(r"^\s*mod\s+\S+\s+(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else ""


def diagnose(server: Server, directory: Path) -> dict[str, dict[str, str]]:
    """What ``s3mount doctor`` finds, by subject; raises `ServerError` when it does not end well."""
    client = server.client()
    bucket = f"test-doctor-{os.getpid()}-{int(time.time())}"
    client.create_bucket(Bucket=bucket)
    done = subprocess.run(
        [sys.executable, "-m", "s3mount", "doctor", "--json", bucket, "--endpoint-url", server.url,
         "--state-dir", str(directory / "state")],
        env={**os.environ, **server.credentials.environment()}, cwd=CHECKOUT,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    try:
        client.delete_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        print(f"  {bucket} stays: {error}", file=sys.stderr)
    if not done.stdout.startswith("{"):
        raise ServerError(f"doctor: {done.returncode}: {done.stderr[-1000:]}")
    return {one["subject"]: one for one in json.loads(done.stdout)["store"]}


def run_suite(name: str, tests: Sequence[str], directory: Path, only: str = "") -> Suite:
    """Run tests with the store *name* as the one that tests use."""
    report = directory / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line",
               f"--basetemp={directory / 't'}", f"--junitxml={report}", *tests]  # fmt: skip
    began = time.monotonic()
    environment = {**os.environ, "S3MOUNT_TEST_STORE": name}
    environment.pop("CI", None)
    if only:
        command += ["-k", only]
    try:
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True,
            check=False, timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Suite(failed={"(all)": f"not done within {LIMIT:.0f} s"})
    if not report.exists():
        return Suite(failed={"(all)": (done.stdout + done.stderr)[-300:]})
    suite = read_report(report)
    suite.seconds = time.monotonic() - began
    suite.tests = list(tests)
    return suite


def read_report(path: Path) -> Suite:
    """Read what pytest has reported."""
    suite = Suite()
    for case in ET.parse(path).getroot().iter("testcase"):
        module = case.get("classname", "").rpartition(".")[2]
        name = f"{module}::{case.get('name', '')}"
        bad = [one for one in case if one.tag in ("failure", "error")]
        if bad:
            suite.failed[name] = reason_of(bad[0])
        elif (skipped := case.find("skipped")) is not None:
            suite.skipped[name] = skipped.get("message", "")
        else:
            suite.passed += 1
    return suite


def reason_of(failure: ET.Element) -> str:
    """One line that says why a test failed."""
    text = f"{failure.get('message', '')}\n{failure.text or ''}"
    lines = [line.strip(" |+-") for line in text.splitlines()]
    told = [
        line
        for line in lines
        if re.search(r"Error|Exception:|assert |s3mount\.errors\.|not expected:|Failed:", line)
        and not re.match(r"(Base)?Exception ?Group|File |raise ", line.strip())
    ]
    lines = [line for line in lines if line]
    return (told[0] if told else lines[0] if lines else "")[:240]


def look_at(name: str, directory: Path, posix: Sequence[str] | None) -> Result:
    """Try one store; what goes wrong is part of the result."""
    result = Result(name)
    directory.mkdir()
    server = make_server(name, directory, Credentials.random())
    if server is None:
        result.why = f"not found: {MISSING.get(name, 'it is not installed')}"
        return result
    result.version = version_of(name)
    print(f"{name} {result.version}", file=sys.stderr, flush=True)
    try:
        with server:
            result.findings = diagnose(server, directory)
    except (ServerError, BotoCoreError, ClientError, subprocess.SubprocessError) as error:
        result.why = " ".join(str(error).split())[:500]
        return result
    if posix is not None:
        result.suites["conformance"] = run_suite(name, CONFORMANCE, directory, name)
        result.suites["posix"] = run_suite(name, posix, directory)
    for title, suite in result.suites.items():
        print(
            f"  {title}: {suite.passed} passed, {len(suite.failed)} failed, "
            f"{len(suite.skipped)} skipped in {suite.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return result


def main() -> None:
    """Try the stores, and write the document."""
    parser = argparse.ArgumentParser(
        prog="scripts/compatibility",
        description="Runs the conformance suite, the POSIX suite and `s3mount doctor` against "
        "every store that is found, and writes docs/compatibility.md.  Any other store is tried "
        "when S3MOUNT_TEST_ENDPOINT (a URL), S3MOUNT_TEST_ACCESS_KEY and "
        "S3MOUNT_TEST_SECRET_KEY are set: buckets test-* and shared-* are made there.",
    )
    parser.add_argument("stores", nargs="*", metavar="STORE", help=f"of {', '.join(SERVERS)}")
    parser.add_argument("--quick", action="store_true", help="ask the doctor only")
    parser.add_argument(
        "--brief", action="store_true", help="run the first part of the POSIX suite"
    )
    parser.add_argument("--results", type=Path, help="keep the results (JSON), and add to them")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="file to write")
    options = parser.parse_args()
    if unknown := set(options.stores) - set(SERVERS):
        parser.error(f"no such store: {', '.join(sorted(unknown))}")
    posix = None if options.quick else POSIX[:BRIEF] if options.brief else POSIX
    use_clean_environment()
    results: dict[str, dict] = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    with tempfile.TemporaryDirectory(prefix="s3c.", dir="/tmp") as directory:
        for name in options.stores or SERVERS:
            found = look_at(name, Path(directory, name), posix)
            results[name] = asdict(found)
            if options.results:
                options.results.write_text(json.dumps(results, indent=1))
    write(options.output, [results[name] for name in SERVERS if name in results])


if __name__ == "__main__":
    main()
