"""A run that is killed at random moments ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_random_kills_lose_one_batch_at_most(tmp_path):
    kills = int(os.environ.get("RVTUTORIAL_KILLS", 8))
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run(
        [sys.executable, script, str(kills), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout[done.stdout.index("{\n") :])
    print(told)
    assert told["kills"] == kills and told["where"]["start"] <= kills / 5
    assert told["damaged"] == []
    assert told["most_batches_lost"] <= 1
    assert told["all_equal"] and told["runs_finished"] >= 1
