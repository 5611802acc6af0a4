"""What this machine can spare: the memory that this process may use."""

from pathlib import Path, PurePosixPath


def usable_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of RAM that this process may use: the machine's, or its cgroup's limit."""
    total = _total_memory(proc / "meminfo")
    return min([total, *_cgroup_limits(proc / "self/cgroup", cgroups)])


def _total_memory(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{meminfo} has no MemTotal")


def _cgroup_limits(membership: Path, cgroups: Path) -> list[int]:
    """Return every memory limit on the way from the root to our cgroup (versions 1 and 2)."""
    limits = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = cgroups / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            limit = _text(root / folder.relative_to("/") / name).strip()
            if limit.isdigit():  # version 2 says "max" for no limit
                limits.append(int(limit))
    return limits


def _text(path: Path) -> str:
    """Return what a kernel file says, or nothing: in a container many of them are missing."""
    try:
        return path.read_text()
    except OSError:
        return ""
