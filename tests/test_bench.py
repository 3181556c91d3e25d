"""The benchmark runs, prints its table, and its ratios point the right way."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parent / "bench" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_say_how_many_times_better(bench):
    pairs = [({"s": 8, "rate": 2}, {"s": 2, "rate": 3}), ({"s": 6}, {"s": 3})]
    seconds, rate = bench.rows("x", pairs, ["s", "rate", "unknown"], ["rate"])
    assert (seconds["ratio"], seconds["min"], seconds["max"]) == (3, 2, 4)
    assert (seconds["stock"], seconds["ours"], seconds["n"]) == (7, 2.5, 2)
    assert (rate["ratio"], rate["n"]) == (1.5, 1)


def test_rows_know_their_bars(bench):
    pairs = [({"wall s": 6, "open files": 9}, {"wall s": 2, "open files": 3})]
    wall, files = bench.rows("pipeline", pairs, ["wall s", "open files"])
    assert (wall["bar"], math.isnan(files["bar"])) == (3, True)
    assert bench.bar_of("data, 1060 scenes", "build wall s") == 8


def test_turns_alternate(bench, tmp_path):
    order = []
    calls = [lambda: order.append("a") or {}, lambda: order.append("b") or {}]
    assert len(bench.Bench(tmp_path, 1, 3).turns(*calls)) == 3
    assert "".join(order) == "ababab"


def test_a_measured_process_is_charged_for_its_children(bench, tmp_path, monkeypatch):
    script = tmp_path / "job.py"
    script.write_text(
        "import json, subprocess, sys\n"
        "loop = 'import time\\nwhile time.process_time() < 0.6: pass'\n"
        "subprocess.run([sys.executable, '-c', loop])\n"
        "json.dump({'x': 1}, open(sys.argv[4], 'w'))\n"
    )
    monkeypatch.setattr(bench, "HERE", script)
    found = bench.Bench(tmp_path, 1, 1, out=str).measure("any")
    assert found["x"] == 1
    assert 0.6 <= found["CPU s"] <= found["wall s"] * 1.5 + 0.1


def test_a_failed_process_is_an_error_with_its_log(bench, tmp_path, monkeypatch):
    script = tmp_path / "job.py"
    script.write_text("raise SystemExit('no such scene')")
    monkeypatch.setattr(bench, "HERE", script)
    with pytest.raises(RuntimeError, match="no such scene"):
        bench.Bench(tmp_path, 1, 1, out=str).measure("any")


def test_another_checkout_stands_where_stock_stood(bench, tmp_path, monkeypatch):
    script = "import json, os, sys\nwhat = [sys.argv[2], os.environ['PYTHONPATH']]\n"
    for name in ("old", "new"):
        path = tmp_path / name / "tests/bench/bench.py"
        path.parent.mkdir(parents=True)
        path.write_text(script + "json.dump({'what': what}, open(sys.argv[4], 'w'))\n")
    monkeypatch.setattr(bench, "HERE", path)
    turns = bench.Bench(tmp_path, 1, 1, out=str, against=tmp_path / "old")
    found = [turns.measure(n)["what"] for n in ("stock_stages", "our_stages")]
    assert found == [["our_stages", str(tmp_path / n)] for n in ("old", "new")]


def test_sizes_are_those_of_the_bars(bench):
    plan = bench.plans(quick=False)
    assert plan["plain"]["copies"] == plan["packed"]["copies"] == 1060
    assert plan["predict"]["large"] == 2000
    asked = plan["pipeline"]["config"]
    assert (asked["preset"], asked["model"], asked["epochs"]) == (
        "version2",
        "deeplabv3",
        2,
    )
    assert plan["pipeline"]["scenes"] == dict(n_train=16, n_val=4, n_test=2)


@pytest.mark.slow
def test_quick_run_prints_every_section(tmp_path):
    table = tmp_path / "table.csv"
    cmd = [sys.executable, SCRIPT, "--quick", "--threads", "1", "--csv", table]
    done = subprocess.run(cmd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *_ = done.stdout.splitlines()
    assert json.loads(first)["threads"] == 1
    found = pd.read_csv(table)
    assert (
        list(found.columns) == "section measure stock ours ratio min max n bar".split()
    )
    named = {section.split(",")[0] for section in found.section}
    assert {"pipeline", "data", "sweep", "predict"} <= named
    assert (found[["stock", "ours", "ratio"]] > 0).all(axis=None)
    assert (
        found["min"].le(found["ratio"]).all() and found["max"].ge(found["ratio"]).all()
    )
    assert "gpu" in named or "no accelerator on this machine" in done.stdout
    assert "ratio: how many times better" in done.stdout
