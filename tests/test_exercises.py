"""The exercises: right answers pass, and each typical mistake hears a sentence of its own."""

import json
import shutil
from collections import defaultdict
from decimal import Decimal
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rvtutorial import slurm
from rvtutorial.course.exercises import CHECKS, broken_scenes, check, four_runs
from rvtutorial.metrics.intervals import board_of, difference
from rvtutorial.runs import Run, Workspace

NBS = Path(__file__).resolve().parent.parent / "nbs"
RIGHT, WRONG = defaultdict(list), defaultdict(list)
for part in range(1, 9):
    answers = import_module(f"answers.part{part}")
    for number, right in answers.RIGHT.items():
        RIGHT[number] += right
    for number, mistakes in answers.WRONG.items():
        WRONG[number] += mistakes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def small_scenes(request, home, monkeypatch):
    "Exercise 4.4 is about the scenes of the workspace: small ones, made once."
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if params.get("number") == "4.4":
        monkeypatch.setenv("RVTUTORIAL_HOME", str(home))
        monkeypatch.setenv("RVTUTORIAL_PRESET", "smoke")


def pairs(table):
    return [(number, case) for number in table for case in table[number]]


@pytest.mark.parametrize("number, answer", pairs(RIGHT))
def test_right_answers_pass(number, answer):
    verdict = check(number, answer)
    assert verdict, verdict


@pytest.mark.parametrize("number, mistake", pairs(WRONG))
def test_a_mistake_is_told_what_is_wrong(number, mistake):
    answer, words = mistake
    verdict = check(number, answer)
    assert verdict.right is False and words in verdict.message, verdict


@pytest.mark.parametrize("number", CHECKS)
def test_at_least_three_mistakes_have_messages_of_their_own(number):
    told = {words: check(number, answer).message for answer, words in WRONG[number]}
    assert len(set(told.values())) == len(told) >= 3
    assert RIGHT[number]


@pytest.mark.parametrize("number", CHECKS)
@pytest.mark.parametrize("answer", [None, object(), -1e9, "?", (), {}, [None, None]])
def test_nonsense_is_a_wrong_answer_and_no_crash(number, answer):
    assert check(number, answer).right is False


class Broken:
    "Nothing can be done with it."

    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __iter__ = __len__ = __float__ = __eq__ = __repr__
    __hash__ = None


LOOP: list = []
LOOP.append(LOOP)
HOSTILE = {
    "none": None, "nan": float("nan"), "numpy nan": np.float64("nan"), "inf": float("inf"),
    "two nan": (float("nan"),) * 2, "huge": 10**400, "decimal nan": Decimal("nan"), "true": True,
    "numpy true": np.bool_(True), "complex": 1 + 2j, "no number": "215", "bytes": b"215",
    "open quote": "rastervision run 'inprocess", "backslash": "\\", "nul": "a\0b", "lines": "\n\n",
    "braces": "{id}", "pattern": ("*{id}", "*{id}"), "absolute": ("/{id}.jpg", "/{id}.png"),
    "list of none": [None, None], "empty": [], "array": np.arange(3.0), "matrix": np.eye(2),
    "text array": np.array(["a", "z"]), "nested": [[1], [2]], "itself": LOOP, "type": int,
    "function": print, "broken": Broken(), "broken pair": [Broken(), Broken()],
    "frame": pd.DataFrame({"a": [1]}), "dict of lists": {"padding": [1], "cars": None},
    "keys of numbers": {1: 2}, "unknown yaml": "a: [", "tag": "!!python/object:os.system x",
    "recursive yaml": "parameters: &a {lr: *a}", "null key": "parameters: {null: {values: [1]}}",
    "generator": (i for i in range(2)), "path": Path("/"), "long": "x" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("number", CHECKS)
@pytest.mark.parametrize("name", HOSTILE)
def test_every_answer_gets_a_sentence(number, name):
    verdict = check(number, HOSTILE[name])
    assert verdict.right is False, verdict
    assert 10 < len(verdict.message) < 500
    assert repr(verdict).startswith("Not yet (")


@pytest.mark.parametrize("number", ["4.4"])
def test_a_folder_is_broken_once_and_the_whole_files_are_told(number, home, tmp_path):
    whole, broken = home / "data" / "smoke" / "train", tmp_path / "a" / "broken"
    assert broken_scenes(str(broken)) == whole
    assert not check(number, broken)
    for path in broken.iterdir():
        path.unlink()
    assert broken_scenes(broken) == whole and not any(broken.iterdir())
    for folder in (whole, whole.parent, str(home), broken):
        assert check(number, folder).right is False
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert broken_scenes(tmp_path / "b") == whole
    assert before == {path.name: path.read_bytes() for path in whole.iterdir()}


@pytest.mark.parametrize("number", ["1.4", "4.4", "8.4"])
def test_a_folder_may_be_a_text_and_relative(number, home, monkeypatch):
    folder = Path(RIGHT[number][0])
    assert check(number, str(folder))
    monkeypatch.chdir(folder.parent)
    assert check(number, folder.name)
    assert str(folder.parent) in check(number, "away").message


def test_the_answer_to_8_3_is_what_the_leaderboard_says():
    board = board_of(four_runs())
    assert list(board.index) == ["a", "b", "c", "d"]
    assert board.tied.tolist() == [True, True, True, False]
    lone = difference(four_runs()["a"], four_runs()["c"])
    assert lone.low > 0, "on its own the comparison would name a winner"
    assert check("8.3", set(board.index[board.tied]))


@pytest.mark.slow
def test_the_solution_of_1_4_is_two_real_jobs(tmp_path, capsys):
    (path,) = NBS.glob("01_*.ipynb")
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    (solution,) = [s for s in sources if 'assert check("1.4", ' in s]
    here = Workspace(home=tmp_path)
    names = {"here": here, "shutil": shutil, "check": check}
    exec(solution, names | {"submit": slurm.submit, "JobFailed": slurm.JobFailed})
    assert "failed (ValueError: invalid literal for int()" in capsys.readouterr().out
    folder = here.runs / "mine-solved"
    assert check("1.4", Run(folder)) and check("1.4", slurm.Job(folder))
    assert (folder / "hello.txt").read_text() == "hello Ada\n"


@pytest.mark.slow
def test_the_solution_of_8_4_is_a_real_sweep(tmp_path, capsys):
    from rvtutorial.data.synthetic import make_sample_scenes
    from rvtutorial.metrics.leaderboard import group_seeds, leaderboard
    from rvtutorial.sweep import run_sweep
    from rvtutorial.sweeps.sweepfile import SweepFile

    (path,) = NBS.glob("08_*.ipynb")
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    (given,) = [
        s for s in sources if s.startswith('folder = here.home / "data" / "small"')
    ]
    (solution,) = [s for s in sources if 'assert check("8.4", ' in s]
    here = Workspace(home=tmp_path)
    names = dict(here=here, check=check, sheet=tmp_path / "sweep.yaml")
    names |= dict(SweepFile=SweepFile, run_sweep=run_sweep, leaderboard=leaderboard)
    names |= dict(group_seeds=group_seeds, make_sample_scenes=make_sample_scenes)
    exec(given, names)
    exec(solution, names)
    assert "4 trials" in capsys.readouterr().out


@pytest.mark.parametrize("number", CHECKS)
def test_no_answer_is_no_mistake(number):
    verdict = check(number)
    assert verdict.right is None and "not answered" in verdict.message


@pytest.mark.parametrize("number", CHECKS)
def test_the_part_asks_and_solves_it(number):
    (path,) = NBS.glob(f"0{number[0]}_*.ipynb")
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    solutions = next(i for i, s in enumerate(sources) if "## Solutions" in s)
    call = f'check("{number}", '
    asked = [s for s in sources[:solutions] if call in s]
    assert len(asked) == 1 and " = ..." in asked[0]
    assert sum(f"assert {call}" in s for s in sources[solutions:]) == 1


def test_there_is_no_such_exercise():
    with pytest.raises(KeyError, match="no exercise '9.9'"):
        check("9.9", 1)
