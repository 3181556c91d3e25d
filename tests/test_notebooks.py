"""The notebooks as a body: library in step, clean, small files, whole lessons."""

import ast
import filecmp
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PARTS = {
    "01_tutorial_setup": ("slurm", "Tutorial Setup on SCINet"),
    "02_deep_learning_overview": (
        "chips",
        "Overview of Deep Learning for Imagery and the Raster Vision Pipeline",
    ),
    "03_apptainer_image": (
        "container",
        "Constructing and Exploring the Apptainer Image",
    ),
    "04_dataset": ("scenes", "Exploring the Dataset and Problem Space"),
    "05_model_configuration": (
        "runs",
        "Overview of Raster Vision Model Configuration and Setup",
    ),
    "06_code_breakdown": ("config", "Breakdown of Raster Vision Code Version 1"),
    "07_evaluation": (
        "viz",
        "Evaluating Training Performance and Visualizing Predictions",
    ),
    "08_hyperparameter_tuning": (
        "sweep",
        "Modifying Model Configuration - Hyperparameter Tuning",
    ),
}
DIRECTIVES = {"default_exp", "export", "exporti", "exports"}
DIRECTIVES |= {"hide", "eval", "gpu", "slow"}
JOBS = sorted((NBS / "jobs").glob("*.ipynb"))
LESSONS = sorted({*NBS.rglob("*.ipynb")} - {*JOBS})


def cells(path: Path, kind: str) -> list[str]:
    nb = json.loads(path.read_text())
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == kind]


def directives(source: str) -> list[str]:
    return re.findall(r"^#\|\s*(\w+)", source, re.M)


def tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev reads, to run its commands in."
    there = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, there)
    for name in ("nbs", "rvtutorial"):
        shutil.copytree(
            ROOT / name,
            there / name,
            ignore=shutil.ignore_patterns(
                "__pycache__", ".ipynb_checkpoints", "kernel-ipc*"
            ),
        )
    return there


def test_library_is_what_the_notebooks_export(copy):
    subprocess.run([tool("nbdev_export")], cwd=copy, check=True, capture_output=True)
    names = {
        p.relative_to(d / "rvtutorial").as_posix()
        for d in (ROOT, copy)
        for p in (d / "rvtutorial").rglob("*.py")
    }
    _, differ, missing = filecmp.cmpfiles(
        ROOT / "rvtutorial", copy / "rvtutorial", sorted(names), shallow=False
    )
    assert not differ + missing, f"run `make export`: {differ + missing}"


def test_notebooks_are_clean(copy):
    subprocess.run([tool("nbdev_clean")], cwd=copy, check=True, capture_output=True)
    dirty = [
        p.name for p in LESSONS + JOBS
        if p.read_bytes() != (copy / p.relative_to(ROOT)).read_bytes()
    ]  # fmt: skip
    assert not dirty, f"run `make export`: {dirty}"


def test_the_eight_parts_are_there_with_their_titles():
    for i, (name, (module, title)) in enumerate(PARTS.items(), start=1):
        path = NBS / f"{name}.ipynb"
        first = cells(path, "markdown")[0]
        assert first.splitlines()[0] == f"# Part {i}: {title}", name
        assert f"#| default_exp {module}" in "\n".join(cells(path, "code")), name


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_has_the_form_of_one(path):
    nb = json.loads(path.read_text())
    kinds = [c["cell_type"] for c in nb["cells"]]
    sources = ["".join(c["source"]) for c in nb["cells"]]
    title = sources[0].splitlines()
    assert kinds[0] == "markdown" and title[0].startswith("# ")
    assert len([line for line in title if line.strip()]) == 2
    assert [line for line in title if line.startswith("> ")]
    for kind, source in zip(kinds, sources, strict=True):
        if kind != "code":
            assert not re.search(r"</?(br|b|i|img|span|div)\b", source), source[:80]
            assert not re.search(r"!\[[^]]*\]\(https?:", source), "a remote image"
            continue
        assert set(directives(source)) <= DIRECTIVES, source[:80]
        assert "plt.show(" not in source
        assert not re.search(r"^from \S+ import \*", source, re.M), source[:80]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_imports_stand_alone(path):
    "nbdev runs cells with imports when it makes pages: they hold nothing else."
    for source in cells(path, "code"):
        if "export" not in directives(source):
            continue
        kinds = {type(n).__name__ for n in ast.parse(source).body}
        if kinds & {"Import", "ImportFrom"}:
            assert kinds <= {"Import", "ImportFrom", "Expr"}, source[:200]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_notebook_is_named_as_its_module(path):
    found = re.findall(r"^#\| default_exp (\S+)", "\n".join(cells(path, "code")), re.M)
    if path.stem == "failures":  # makes failures of its own, and no module
        assert not found
        return
    (name,) = found
    place = path.relative_to(NBS).with_suffix("").as_posix()
    assert name == PARTS.get(place, [place.replace("/", ".")])[0]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_size_budget(path):
    assert path.stat().st_size <= 400 * 1024
    for cell in json.loads(path.read_text())["cells"]:
        for out in cell.get("outputs", []):
            for mime, data in out.get("data", {}).items():
                if mime.startswith("image/"):
                    size = len("".join(data)) * 3 / 4
                    assert size <= 120 * 1024, f"{mime} of {size / 1024:.0f} KB"
            assert out["output_type"] != "error", out.get("evalue")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_keeps_its_outputs(name):
    nb = json.loads((NBS / f"{name}.ipynb").read_text())
    assert sum(bool(c.get("outputs")) for c in nb["cells"]) >= 5


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_exercises_with_solutions(name):
    number = int(name[:2])
    text = "\n".join(cells(NBS / f"{name}.ipynb", "markdown"))
    code = "\n".join(cells(NBS / f"{name}.ipynb", "code"))
    asked = set(re.findall(rf'check\("({number}\.\d+)"', code))
    assert len(asked) >= (2 if number <= 3 else 3)
    assert "## Exercises" in text and "## Solutions" in text
    for exercise in asked:
        assert len(re.findall(rf'check\("{re.escape(exercise)}"', code)) >= 2, exercise


@pytest.mark.parametrize("name", PARTS)
def test_site_and_preset_are_chosen_in_one_cell(name):
    chosen = [s for s in cells(NBS / f"{name}.ipynb", "code") if "Workspace(" in s]
    assert len(chosen) == 1
    assert 'preset="sample"' in chosen[0] and 'site="local"' in chosen[0]


@pytest.mark.parametrize("path", LESSONS + JOBS, ids=lambda p: p.stem)
def test_nothing_of_one_machine(path):
    text = "\n".join(cells(path, "code") + cells(path, "markdown"))
    assert not re.search(r"/(home|root|Users|scratch|project)/\w+", text)
    outputs = json.dumps(
        [c.get("outputs", []) for c in json.loads(path.read_text())["cells"]]
    )
    home = re.escape(str(ROOT))
    assert not re.search(
        rf"{home}|/(home|root|Users)/\w+|site-packages/\S+:\d+:", outputs
    )


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_cells_for_the_cluster_are_marked_twice(path):
    "nbdev reads the directive, papermill and nbconvert read the tag."
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.search(r"^#\|\s*eval:\s*false", source):
            assert "skip-execution" in cell["metadata"].get("tags", []), source[:80]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_a_job_notebook_is_parameters_and_calls(path):
    nb = json.loads(path.read_text())
    tagged = [
        c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", [])
    ]  # fmt: skip
    assert len(tagged) == 1
    for node in ast.parse("".join(tagged[0]["source"])).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        assert isinstance(ast.literal_eval(node.value), str | int | float | bool | None)
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        assert not cell.get("outputs")
        assert not re.search(r"^(def |class |#\| export)", source, re.M)


@pytest.mark.parametrize("path", [*LESSONS, ROOT / "README.md"], ids=lambda p: p.stem)
def test_local_links_lead_somewhere(path):
    text = (
        path.read_text() if path.suffix == ".md" else "\n".join(cells(path, "markdown"))
    )
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http", "mailto:")):
            assert (path.parent / target).exists(), target


HEAVY = ("rvtutorial.models", "rvtutorial.engine", "rvtutorial.config")
HEAVY += ("rvtutorial.course.training",)
LIGHT = [
    module.name
    for module in pkgutil.walk_packages([str(ROOT / "rvtutorial")], "rvtutorial.")
    if not module.name.startswith(HEAVY) and "._" not in module.name
]


@pytest.mark.parametrize("module", LIGHT)
def test_a_login_node_needs_no_torch(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'rastervision', 'lightning', 'torchvision'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert out.stdout.strip() == "[]"
