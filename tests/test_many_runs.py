"Two thousand runs are compared, and reported, in seconds and in little memory."

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_runs import PEAK, evaluation
from pace import pace
from worlds import World

from rvtutorial.figures import report
from rvtutorial.metrics import counting, leaderboard
from rvtutorial.metrics.intervals import board_of
from rvtutorial.runs import Run

RUNS, SCENES = 2000, 12


def write_runs(folder, many=RUNS, scenes=SCENES):
    "Run folders that differ in lr and seed, with nothing but records and scores."
    rates = 10 ** np.linspace(-4, -1, many // 2).repeat(2)
    rows = World().draw(scenes, -0.3 * (np.log10(rates) + 2.5) ** 2, 3).astype(int)
    ids = [str(i) for i in range(scenes)]
    classes = {"names": ["building", "background"], "null_class": None}
    dataset = {"class_config": classes, "validation_scenes": [{"id": i} for i in ids]}
    for i, (rate, scores) in enumerate(zip(rates, rows, strict=True)):
        run = folder / f"lr={rate:.4g}+seed={i % 2}"
        (run / "eval" / "validation_scenes").mkdir(parents=True)
        matrices = {k: [[tp, fn], [fp, tn]] for k, (tp, fp, fn, tn, _) in
                    zip(ids, scores.tolist(), strict=True)}  # fmt: skip
        content = evaluation(matrices, ("building", "background"))
        asked = {"hyperparams": {"lr": rate, "epochs": 8, "seed": i % 2}}
        went = {"state": "succeeded", "attempts": []}
        record = {"schema": 1, "asked": asked, "went": went}
        for name, what in (("eval/validation_scenes/eval.json", content), ("run.json", record),
                           ("pipeline-config.json", {"dataset": dataset})):  # fmt: skip
            (run / name).write_text(json.dumps(what))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("many"))


def spent(*command, cwd):
    "Run a command of ours; its output, CPU seconds and peak memory in MB."
    code = f"import sys, atexit; {PEAK}; atexit.register(lambda: print('PEAK', peak(), file=sys.stderr)); "
    code += f"sys.argv = {['rvtutorial', *map(str, command)]!r}; from rvtutorial.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    how = dict(
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=900, **how)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(
        getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime")
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, seconds, int(done.stderr.split("PEAK")[-1])


def test_two_thousand_runs_are_compared_in_seconds(many, tmp_path):
    out, seconds, peak = spent("compare", many, cwd=tmp_path)
    assert seconds < 30 * pace(), (
        f"{seconds:.1f} s; the aim is 10 s on a machine of its own"
    )
    assert peak < 500, f"{peak} MB"
    assert out.count("lr=") > 2 * (RUNS - 1) and "1999000 comparisons considered" in out


def test_a_report_draws_the_highest_and_says_so(many, tmp_path):
    _, seconds, peak = spent("report", many, "-o", tmp_path / "all.html", cwd=tmp_path)
    assert seconds < 90 * pace(), (
        f"{seconds:.1f} s; the aim is 30 s on a machine of its own"
    )
    assert peak < 700, f"{peak} MB"
    text = (tmp_path / "all.html").read_text()
    assert f"show the {report._DRAWN} highest of {RUNS} runs" in text
    assert f"The other {RUNS - report._DRAWN} runs of the leaderboard" in text
    assert f"{report._VARIED} of {RUNS} runs, evenly" in text
    assert len(text) < 8e6
    runs = {path.name: path for path in many.iterdir()}
    assert all(name in text for name in runs), "every run is in the leaderboard"


def test_a_board_of_runs_scores_as_single_runs_do(tmp_path):
    names = [run.name for run in write_runs(tmp_path, 8, 6).iterdir()]
    board = leaderboard.leaderboard({name: tmp_path / name for name in names})
    for name in names:
        rows = leaderboard.counts_of(Run(tmp_path / name)).table()
        one = counting.scores(rows.sum().to_frame().T).iloc[0]
        for column in ("f1", "iou", "precision", "recall", "accuracy"):
            assert board.loc[name, f"pixel_{column}"] == one[f"pixel_{column}"]
    pair = {name: leaderboard.counts_of(tmp_path / name).table() for name in names}
    pd.testing.assert_frame_equal(
        board[["p", "behind"]], board_of(pair)[["p", "behind"]]
    )


def test_a_report_of_a_few_runs_leaves_none_out(tmp_path):
    found = report._gather(write_runs(tmp_path, 4, 6))
    board = leaderboard.leaderboard(found.runs)
    shown, varied = report._selected(found, board)
    assert shown is found and varied is found and not found.picked
