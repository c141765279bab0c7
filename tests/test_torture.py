"""Kills and full disks at every stage of the three commands: the same commands end where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.torture import STAGES

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")
def test_twenty_kills_and_ten_full_disks_change_no_weight_and_no_result() -> None:
    command = [sys.executable, "-m", "tests.support.torture", "--kills", "20", "--full", "10"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    trials = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, [trial["faults"] for trial in trials if trial.get("faults")] or done.stderr[-3000:]
    assert trials[-1]["kills"] >= 20 and trials[-1]["full disks"] == 10 and trials[-1]["failures"] == 0
    acts = [act for trial in trials[1:-1] for act in trial["at"]]
    assert trials[0]["acts"] > 200 and all(any(stage in act for act in acts) for stage in STAGES), acts
