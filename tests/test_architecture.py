"""The layers hold: imports point downwards, libraries have doors, modules stay small."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
MAX_LINES = 500

# Lowest first.  A module may import from its own layer and from those below it; the longest
# prefix that fits a module's name says which layer is its own.
LAYERS = (
    (
        "s3mount",
        "s3mount.apart",
        "s3mount.errors",
        "s3mount.metrics",
        "s3mount.noticer",
        "s3mount.exposition",
        "s3mount.memory",
        "s3mount.private",
        "s3mount.machine",
        "s3mount.repeats",
        "s3mount.tracing",
    ),
    ("s3mount.s3.store", "s3mount.s3.changes"),
    (
        "s3mount.attributes",
        "s3mount.checksums",
        "s3mount.content",
        "s3mount.rules",
        "s3mount.storing",
        "s3mount.write.extents",
    ),
    ("s3mount.s3",),
    ("s3mount.cache",),
    ("s3mount.write",),
    ("s3mount.fs",),
    (
        "s3mount.callers",
        "s3mount.paths",
        "s3mount.request",
        "s3mount.watchedrequest",
        "s3mount.fuse",
        "s3mount.kernelcache",
    ),
    # What a daemon or a command needs beside the way of the data.  Nobody below sees it, least
    # of all the configuration: constructors take plain values.
    (
        "s3mount.config",
        "s3mount.control",
        "s3mount.controlclient",
        "s3mount.declaring",
        "s3mount.diagnosis",
        "s3mount.environment",
        "s3mount.featureoptions",
        "s3mount.fstab",
        "s3mount.journaling",
        "s3mount.kernel",
        "s3mount.logs",
        "s3mount.mounts",
        "s3mount.notify",
        "s3mount.options",
        "s3mount.page",
        "s3mount.peers",
        "s3mount.storeoptions",
        "s3mount.values",
        "s3mount.verdicts",
    ),
    (
        "s3mount.caches",
        "s3mount.connecting",
        "s3mount.ending",
        "s3mount.machinecheck",
        "s3mount.prices",
        "s3mount.reloading",
        "s3mount.reporting",
        "s3mount.sampling",
        "s3mount.service",
        "s3mount.watch",
        "s3mount.webpage",
    ),
    ("s3mount.storecheck", "s3mount.commands", "s3mount.assembly", "s3mount.pastcommands"),
    ("s3mount.daemon",),
    ("s3mount.demo",),
    ("s3mount.cli", "s3mount.__main__"),
)

# The S3 client is built in one place; everybody else knows the protocol in `s3mount.s3.store`.
S3_USERS = (
    "s3mount.s3",
    "s3mount.assembly",
    "s3mount.connecting",
    "s3mount.daemon",
    "s3mount.reporting",
    "s3mount.sampling",
    "s3mount.storecheck",
    "s3mount.cli",
)

DOORS: Mapping[str, tuple[str, ...]] = {
    "pyfuse3": (
        "s3mount.fuse",
        "s3mount.request",
        "s3mount.watchedrequest",
        "s3mount.kernel",
        "s3mount.kernelcache",
        "s3mount.ending",
        "s3mount.daemon",
    ),
    "boto3": ("s3mount.s3.session", "s3mount.demo"),
    "botocore": ("s3mount.s3.session", "s3mount.demo"),
    "awscrt": ("s3mount.s3.checksum",),
    "cachetools": ("s3mount.cache",),
    "prometheus_client": ("s3mount.exposition",),
    "rich": ("s3mount.cli.statusview",),
    "argparse": ("s3mount.cli", "s3mount.config"),
}


def is_inside(module: str, prefixes: tuple[str, ...]) -> bool:
    """Say whether *module* is one of *prefixes* or lies in one of those packages."""
    return any(module == one or module.startswith(f"{one}.") for one in prefixes)


def module_name(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((CHECKOUT / "s3mount").rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """Yield the full name of everything that *module* imports, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                # ``from s3mount.s3 import xml`` imports a module, not a name in one.
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def layer_of(module: str) -> int:
    """Return the index of the layer of *module*."""
    fits = [
        (len(prefix), index)
        for index, layer in enumerate(LAYERS)
        for prefix in layer
        # "s3mount" itself is a layer's name, and every module's prefix.
        if module == prefix or (prefix != "s3mount" and module.startswith(f"{prefix}."))
    ]
    assert fits, f"{module} has no layer: write it into LAYERS"
    return max(fits)[1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str):
    upward = [
        name for name in imports(module) if name in MODULES and layer_of(name) > layer_of(module)
    ]
    assert not upward, f"{module} imports from above: {upward}"


def test_there_are_no_cycles():
    graph = {
        module: {name for name in imports(module) if name in MODULES and name != module}
        for module in MODULES
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")
    assert set(order) >= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_daemon_builds_the_s3_client(module: str):
    used = [
        name
        for name in imports(module)
        if is_inside(name, ("s3mount.s3",))
        and name not in ("s3mount.s3", "s3mount.s3.store", "s3mount.s3.changes")
    ]
    assert not used or is_inside(module, S3_USERS), f"{module} uses {used}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_come_in_through_their_doors(module: str):
    inside = [
        name
        for name in imports(module)
        if (library := name.partition(".")[0]) in DOORS and not is_inside(module, DOORS[library])
    ]
    assert not inside, f"{module} imports {inside}, which is for others to do"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small_and_say_what_they_are_for(module: str):
    text = MODULES[module].read_text()
    assert text.count("\n") <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
