"""The moves of the twins as a state machine of hypothesis: what fails is told in few steps."""

import contextlib
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import IN_CI
from tests.mount.twins import WEIGHTS, Twins
from tests.mounts import Bucket, Mount, Mounter

EXAMPLES = 16 if IN_CI else 8
STEPS = 120
REMOUNT_AFTER = 80  # Steps: a mount takes a second.
COMPARE_EVERY = 20
MOVES = sorted(WEIGHTS)


class Stage:
    """A mount and a local directory, for one example after the other."""

    def __init__(self, mounter: Mounter, bucket: Bucket, local: Path) -> None:
        self._mounter = mounter
        self._bucket = bucket
        self._mount: Mount = mounter(bucket, name="machine")
        self._local = local
        self._examples = 0

    def twins(self) -> Twins:
        """Two new, empty directories."""
        self._examples += 1
        roots = [base / f"example{self._examples}" for base in (self._mount.path, self._local)]
        for root in roots:
            root.mkdir()
        # SeaweedFS keeps no metadata of markers.
        return Twins(roots[0], roots[1], Random(0), directory_modes=False)

    def remount(self) -> None:
        """End the daemon, and start another one."""
        assert self._mount.umount() == 0
        self._mount = self._mounter(self._bucket, name="machine")


class Machine(RuleBasedStateMachine):
    """Every rule is one move of the twins; hypothesis decides which, and on what."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self._done = 0
        self._mounted = 0  # Steps since then.

    @initialize()
    def begin(self) -> None:
        """Start with nothing."""
        self._twins = self.stage.twins()

    # The moves are numbered by hypothesis, so that it can leave out any of them.
    @rule(move=st.sampled_from(MOVES), random=st.randoms(use_true_random=False))
    def do(self, move: str, random: Random) -> None:
        """Do one thing to both."""
        self._twins.do(move, random)
        self._done += 1
        self._mounted += 1

    @precondition(lambda self: self._mounted >= REMOUNT_AFTER)
    @rule()
    def remount(self) -> None:
        """Forget everything that is not in the store."""
        self._mounted = 0
        self._twins.close_all()
        self.stage.remount()
        self._twins.compare_trees()

    @invariant()
    def trees_are_equal(self) -> None:
        """Both show the same, whatever has been done."""
        if self._done % COMPARE_EVERY == COMPARE_EVERY - 1:
            self._twins.compare_trees()

    def teardown(self) -> None:
        """Compare once more, and make room."""
        twins = getattr(self, "_twins", None)
        if twins is None:
            return
        try:
            twins.close_all()
            twins.compare_trees()
        finally:
            twins.abandon()
            for root in (twins.remote, twins.local):
                with contextlib.suppress(OSError):
                    shutil.rmtree(root)


@pytest.mark.timeout(600)  # Only a failure takes so long: it is made smaller.
def test_any_operations_as_on_a_disk(mount: Mounter, bucket, tmp_path: Path):
    local = tmp_path / "local"
    local.mkdir()
    stage = Stage(mount, bucket, local)
    machine = type("BoundMachine", (Machine,), {"stage": stage})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
