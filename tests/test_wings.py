"""The wings: who may import whom, what the wheel carries, and the module names of before."""

import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from rvtutorial._old_names import MOVED
from rvtutorial.core.records import write_json
from rvtutorial.runs import Run

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(ROOT / "rvtutorial")], "rvtutorial.")
    if not module.ispkg
]


def python(*words, **more):
    "Run Python; what it printed."
    cmd = [sys.executable, *map(str, words)]
    done = subprocess.run(cmd, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def lint(folder):
    "What import-linter says of the package in a folder."
    cmd = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    return subprocess.run(cmd, cwd=folder, capture_output=True, text=True)


def test_a_module_imports_from_its_own_wing_and_those_to_the_left(tmp_path):
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    for name in ("rvtutorial", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with open(tmp_path / "rvtutorial/data/labels.py", "a") as file:
        file.write("\nimport rvtutorial.engine.scoring\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "rvtutorial.data is not allowed to import rvtutorial.engine" in done.stdout


def test_every_module_belongs_to_a_wing():
    text = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2]
    layers = text.partition("]")[0]
    for module in MODULES:
        if not module.split(".")[-1].startswith("_"):
            assert ".".join(module.split(".")[:2]) in layers, module


@pytest.mark.slow
def test_the_wheel_carries_every_module(tmp_path):
    pytest.importorskip("setuptools")
    tracked = "settings.ini setup.py pyproject.toml README.md LICENSE".split()
    for name in [*tracked, "rvtutorial", "nbs", "slurm", "apptainer"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    pip = "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target"
    python(*pip, tmp_path / "there", tmp_path)
    code = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(tmp_path / 'there')!r})\n"
        "found = [importlib.import_module(n).__file__ for n in json.loads(sys.argv[1])]\n"
        "print(json.dumps(found))"
    )
    done = python("-c", code, json.dumps(MODULES), cwd=tmp_path.parent)
    for path in json.loads(done.stdout.splitlines()[-1]):
        assert Path(path).is_relative_to(tmp_path / "there")
    packed = tmp_path / "there" / "rvtutorial"
    for name in ("_jobs/hello.ipynb", "_sites/local.toml", "_ondemand/form.yml",
                 "figures/report.html"):  # fmt: skip
        assert (packed / name).is_file()
    assert len(list((packed / "_lessons").glob("0*.ipynb"))) == 8
    assert (packed / "_lessons/metrics/intervals.ipynb").is_file()


# --- names of before ------------------------------------------------------------------


def test_old_names_are_the_same_modules():
    code = (
        "import importlib, json, sys\n"
        "for old, new in json.loads(sys.argv[1]).items():\n"
        "    old = importlib.import_module(f'rvtutorial.{old}')\n"
        "    assert old is importlib.import_module(f'rvtutorial.{new}'), new\n"
        "    assert old.__spec__.name == old.__name__ == f'rvtutorial.{new}'\n"
    )
    done = python("-c", code, json.dumps(MOVED))
    said = [line for line in done.stderr.splitlines() if "is now" in line]
    assert len(said) == len(MOVED)
    assert "rvtutorial.jobs is now rvtutorial.hpc.runner" in done.stderr


def test_a_job_that_was_queued_before_the_move_runs(tmp_path):
    "Its script calls `python -m rvtutorial.jobs`, its notebook imports old names."
    new, book = nbformat.v4.new_code_cell, nbformat.v4.new_notebook()
    body = (
        "from rvtutorial.labels import RESTS\nfrom rvtutorial import engine\nprint(a)"
    )
    book.cells = [new("a = 1", metadata={"tags": ["parameters"]}), new(body)]
    nbformat.write(book, tmp_path / "job.ipynb")
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "params.json", {"a": 7})
    where = tmp_path / "run", "--notebook", tmp_path / "job.ipynb"
    python("-m", "rvtutorial.jobs", *where)
    assert Run(tmp_path / "run").state == "succeeded"
