"""Says what was measured on and with: machine, kernel, versions."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.server import Server
from benchmarks.systems import System


def describe(server: Server, systems: Sequence[System]) -> dict[str, str]:
    """The facts about this machine and the versions of all that takes part, by name."""
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {_memory() / 2**30:.0f} GiB memory",
        "kernel": f"{platform.system()} {platform.release()}",
        "server": f"{server.name} ({server.version}), data {server.storage}",
        **{system.name: system.version() for system in systems},
        "Python": platform.python_version(),
        "pyfuse3": _package_version("pyfuse3"),
    }


def _processor() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
