"The command line: quick, one document, exit codes that can be trusted, odd names."

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from fake_runs import fake_run, three_scenes, truth_of, write_raster
from light_job import light_job
from pace import pace
from signals import heeded

from rvtutorial.cli import (
    _Answer,
    _cli,
    _code_of,
    _Command,
    _one_line,
    _run_folders,
    _text_table,
)
from rvtutorial.core.records import read_json, write_json
from rvtutorial.runs import Run

NAMES = "samples check train predict thresholds sweep status compare report clean completion"
COMMANDS = NAMES.split()
PROGRAM = [sys.executable, "-c", "from rvtutorial.cli import main; main()"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(tmp_path))
    for name in ("PRESET", "SITE", "DATA"):
        monkeypatch.delenv(f"RVTUTORIAL_{name}", raising=False)
    return tmp_path


def sh(*words, code=0):
    "Run a command line in this process; its exit code is the one expected."
    found = CliRunner().invoke(_cli, [str(w) for w in words], prog_name="rvtutorial")
    assert found.exit_code == code, (found.output, found.exception)
    return found


def doc(*words, code=0):
    "The one JSON document that a command prints."
    return json.loads(sh(*words, "--json", code=code).stdout)


def finished(folder, f1=0.9, **went):
    Run(folder).path.mkdir(parents=True)
    Run(folder).update("went", **{"state": "succeeded", **went})
    Run(folder).update("results", validation={"class": "building", "f1": f1})
    return folder


# ------------------------------------------------------------------ the shell's side


def test_the_program_loads_nothing_heavy():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom rvtutorial.cli import _cli\n"
        f"for name in {COMMANDS}:\n"
        "    assert CliRunner().invoke(_cli, [name, '--help']).exit_code == 0, name\n"
        "heavy = {'torch', 'rastervision', 'pandas', 'numpy', 'rasterio', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_help_comes_at_once():
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([*PROGRAM, "sweep", "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.4 * pace()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    text = sh(name, "--help").stdout
    assert "Exit codes:" in text and "--json" in text and "--debug" in text
    assert name in sh("--help").stdout


def test_near_matches():
    assert "Did you mean 'train'?" in sh("trian", code=2).stderr
    assert "--site" in sh("train", "a", "--stie", "x", code=2).stderr
    found = sh("train", "a", "--site", "atlsa", code=1).stderr
    assert "did you mean 'atlas'?" in found


def test_an_error_is_one_line_and_no_traceback(tmp_path):
    found = sh("status", tmp_path / "nope", code=1)
    assert found.stdout == ""
    assert found.stderr == f"Error: there is no folder {tmp_path / 'nope'}\n"
    args = [*PROGRAM, "status", str(tmp_path / "nope"), "--debug"]
    out = subprocess.run(args, capture_output=True, text=True)
    assert out.returncode == 1 and "Traceback" in out.stderr


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a: b"), "a: b"),
        (ValueError("first:\n  second"), "first (more with --debug)"),
        (PermissionError(13, "Permission denied", "x"), "Permission denied: x"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_in_one_line(error, line):
    assert _one_line(error) == line


def test_what_a_library_prints_does_not_spoil_the_document():
    odd = {"a": np.float32(0.5), "b": np.arange(2), "c": {3, 1}, "d": [np.nan, -np.inf]}
    odd |= {"e": {"f": (1, np.bool_(True))}, "g": np.array([np.nan]), "h": Path("/a")}

    @click.command(cls=_Command)
    def noisy():
        print("a library says something")
        return _Answer("fine", odd, 75)

    found = CliRunner().invoke(noisy, ["--json"])
    assert json.loads(found.stdout) == {
        "a": 0.5, "b": [0, 1], "c": [1, 3], "d": [None, None], "e": {"f": [1, True]},
        "g": [None], "h": "/a",
    }  # fmt: skip
    assert found.stderr == "a library says something\n" and found.exit_code == 75
    assert CliRunner().invoke(noisy, []).stdout == "fine\n"


def test_a_reader_that_goes_away(tmp_path):
    finished(tmp_path / "runs" / "a")
    line = f"{sys.executable} -c '{PROGRAM[2]}' status | true; echo ${{PIPESTATUS[0]}}"
    out = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert out.stdout.strip() in ("0", "1") and "Traceback" not in out.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("bash is not on this machine")
    assert "_RVTUTORIAL_COMPLETE" in sh("completion", shell).stdout


@pytest.mark.parametrize(
    "words, expected",
    [
        ("rvtutorial st", "plain,status"),
        ("rvtutorial train runs/a epo", "plain,epochs="),
        ("rvtutorial train --site at", "plain,atlas"),
    ],
)
def test_a_word_is_completed(words, expected):
    env = {**os.environ, "COMP_WORDS": words, "_RVTUTORIAL_COMPLETE": "bash_complete"}
    env["COMP_CWORD"] = str(len(words.split()) - 1)
    out = subprocess.run(PROGRAM, env=env, capture_output=True, text=True)
    assert expected in out.stdout.splitlines()


def test_tables():
    rows = [{"run": "a", "n": 1, "x": 0.12345}, {"run": "long", "n": 20, "x": None}]
    assert _text_table(rows) == "run    n      x\na      1  0.123\nlong  20      -"
    assert _text_table([]) == ""


# ------------------------------------------------------------------ samples and check


def small(folder):
    return sh("samples", folder, "--size=64", "--train=2", "--val=1", "--test=1")


def test_samples_and_check(tmp_path):
    folder = tmp_path / "my scènes [1]"
    assert "2 train, 1 val, 1 test" in small(folder).stdout
    found = doc("check", folder, "--only", "data")
    assert found["ok"] and [row["scenes"] for row in found["data"]] == [2, 1, 1]
    assert "holds other sample scenes" in sh("samples", folder, code=1).stderr
    sh("samples", "--size=64", code=2)
    sh("samples", "--preset", "version2", code=2)


def test_check_finds_what_is_wrong(tmp_path):
    folder = tmp_path / "data"
    small(folder)
    for path in (folder / "train").glob("*img1*"):  # one place, in two splits
        shutil.copy(path, folder / "val" / path.name.replace("img1", "img99"))
    found = doc("check", folder, "--only", "data", code=1)
    (problem,) = found["problems"]
    assert problem.startswith("train 1 and val 99 share 100% of their ground")
    next((folder / "val").glob("*.geojson")).unlink()
    found = sh("check", folder, "--only", "data", code=1)
    assert "images without labels" in found.stdout and found.stderr == ""


def test_check_a_folder_that_is_not_split_yet(tmp_path):
    made, folder = tmp_path / "made", tmp_path / "mine"
    small(made)
    folder.mkdir()
    for path in [*made.rglob("*.tif"), *made.rglob("*.geojson")]:
        path.rename(folder / path.name)
    found = doc("check", folder, "--only", "data")
    assert [(row["split"], row["scenes"]) for row in found["data"]] == [("all", 4)]


def test_check_of_raster_labels(tmp_path):
    "What they mean is asked for, and told by an option."
    import numpy as np
    import rasterio

    for split, i in (("train", 1), ("val", 2)):
        (tmp_path / split).mkdir()
        for name, bands in ((f"i_{i}.tif", 3), (f"m_{i}.tif", 1)):
            pixels = np.full((bands, 32, 32), 9, np.uint8)
            if bands == 1:
                pixels = np.eye(32, dtype=np.uint8)[None] * 255
            about = dict(
                driver="GTiff", dtype="uint8", count=bands, width=32, height=32
            )
            about |= dict(crs="EPSG:32611", nodata=None if bands == 3 else 255)
            place = rasterio.transform.from_origin(6e5 + 100 * i, 4e6, 1, 1)
            with rasterio.open(
                tmp_path / split / name, "w", transform=place, **about
            ) as file:
                file.write(pixels)
    asked = ["check", tmp_path, "--only", "data"]
    asked += ["--image-pattern", "i_{id}.tif", "--label-pattern", "m_{id}.tif"]
    (problem,) = doc(*asked, code=1)["problems"]
    assert 'label_values="255:building,0:background"' in problem
    found = doc(*asked, "--label-values", "255:building,0:background")
    assert found["ok"] and "building: 3.1%" in found["data"][0]["notes"]
    (problem,) = doc(*asked, "--label-values", "255:house", code=1)["problems"]
    assert "house" in problem


def test_check_of_several_layers(tmp_path):
    import geopandas

    folder = tmp_path / "data"
    small(folder)
    for path in folder.glob("*/*.geojson"):
        frame = geopandas.read_file(path)
        for layer in ("parcels", "buildings"):
            frame.to_file(path.with_suffix(".gpkg"), layer=layer)
        path.unlink()
    label = "buildings_AOI_2_Vegas_img{id}.gpkg"
    asked = ["check", folder, "--only", "data", "--label-pattern", label]
    problems = doc(*asked, code=1)["problems"]
    assert len(problems) == 4 and "2 layers: parcels, buildings" in problems[0]
    assert doc(*asked, "--layer", "buildings")["ok"]


def test_check_of_a_site(tmp_path):
    site = tmp_path / "here.toml"
    site.write_text('queue = "local"\nscratch = "/nowhere at all"\n')
    found = doc("check", "--only", "site", "--site", site, code=1)
    assert ["scratch" in problem for problem in found["problems"]] == [True]
    assert {"what", "ok", "found", "remedy"} == set(found["site"][0])


def test_what_is_said_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RVTUTORIAL_PRESET", "sample")
    found = doc("check", "--only", "data", "--preset", "smoke", code=1)
    assert "data/smoke" in found["problems"][0] and "samples" in found["problems"][0]
    assert os.environ["RVTUTORIAL_PRESET"] == "sample"


# ------------------------------------------------------------------ train


def test_what_is_refused_before_anything_is_made(tmp_path):
    run = tmp_path / "runs" / "a"
    assert "did you mean 'epochs'?" in sh("train", run, "epoch=3", code=2).stderr
    assert "lr must be" in sh("train", run, "lr=7", code=2).stderr
    assert "not NAME=VALUE" in sh("train", run, "lr", code=2).stderr
    assert "given twice" in sh("train", run, "lr=1e-3", "lr=1e-2", code=2).stderr
    assert "RUN_FOLDER comes before" in sh("train", "lr=1e-3", code=2).stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_scenes_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "rvtutorial.hpc.local_queue.Submission.start_local", lambda home: "0"
        )  # dies at once
        words = ["train", "./lr=1e-3", "preset=smoke", "data=some data"]
        assert doc(*words, code=75)["state"] == "lost"
    params = read_json(tmp_path / "lr=1e-3" / "params.json")
    assert params == {"preset": "smoke", "data": str(tmp_path / "some data")}


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_and_not_the_job(tmp_path):
    folder = tmp_path / "runs" / "lr=1e-3 [é]"
    words = ["train", str(folder), "--notebook=hello", "seconds=1", "name=a=b"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [*PROGRAM, *words, "--wait"]
    waiting = subprocess.Popen(command, preexec_fn=heeded, **pipes)
    for _ in range(200):
        time.sleep(0.05)
        if Run(folder).state == "running":
            break
    assert doc("status")["runs"][0]["state"] == "running"
    assert sh("status", "--exit-code", code=75)
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=10)
    assert waiting.returncode == 130 and out == ""
    assert "the jobs go on" in err and "Traceback" not in err
    assert "still at work" in sh(*words, "--timeout=0.1", code=75).stderr
    found = doc(*words, "--wait")
    assert found["state"] == "succeeded" and found["folder"] == str(folder)
    assert (folder / "hello.txt").read_text() == "hello a=b\n"
    assert doc(*words, "--wait") == found  # and nothing is done twice
    assert len(Run(folder).manifest["went"]["attempts"]) == 1
    assert "holds another run" in sh(*words[:-1], "name=c", code=1).stderr


# ------------------------------------------------------------------ predict


def test_predict_says_what_is_missing(tmp_path):
    out = ["-o", tmp_path / "maps"]
    assert (
        "no run folder or bundle" in sh("predict", "nope", "x.tif", *out, code=1).stderr
    )
    sh("predict", tmp_path, *out, code=2)  # no image
    begin = time.monotonic()
    found = sh("predict", tmp_path, tmp_path / "*.tif", *out, code=1)
    assert "there is no image" in found.stderr and time.monotonic() - begin < 10
    for bands in ("0,1", "red"):
        found = sh("predict", tmp_path, "x.tif", *out, "--bands", bands, code=2)
        assert "counted from 1" in found.stderr


@pytest.mark.parametrize("bands", [[], ["--bands", "3,2,1"]], ids=["", "bands"])
def test_predict_hands_on_thresholds_and_bands(tmp_path, monkeypatch, bands):
    from rvtutorial import engine

    image, file = write_raster(tmp_path / "a.tif", np.ones((2, 2), np.uint8)), "t.yaml"
    asked = []

    def predict(model, images, out, **how):
        asked.append(how)
        return pd.DataFrame({"folder": [str(out)], "image": [str(image)]}, index=["a"])

    monkeypatch.setattr(engine, "predict", predict, raising=False)
    for words, thresholds in (
        ([], None),
        (["--threshold", "0.3"], (None, 0.3)),
        (["--threshold", "0"], (None, 0.0)),
        (["--threshold", "a=0.3", "--threshold", "b=1"], (None, {"a": 0.3, "b": 1})),
        (["--thresholds", file], (Path(file), None)),
        (["--thresholds", file, "--threshold", "a=0.3"], (Path(file), {"a": 0.3})),
    ):
        sh("predict", tmp_path, image, "-o", tmp_path / "maps", *words, *bands)
        assert asked[-1].get("thresholds") == thresholds
        assert asked[-1]["bands"] == ([2, 1, 0] if bands else None)
    for words in (["38.9"], ["a=1.1"], ["nan"], ["0.3", "--threshold", "a=0.3"],
                  ["a=0.3", "--threshold", "a=0.4"]):  # fmt: skip
        out = ["-o", tmp_path / "maps", "--threshold", *words, *bands]
        found = sh("predict", tmp_path, image, *out, code=2)
        assert "a share from 0 to 1" in found.stderr


# ------------------------------------------------------------------ sweep and status


@pytest.fixture
def plan(tmp_path):
    job = light_job(tmp_path / "light job.ipynb", Path(__file__).parent)
    text = f"program: {job.name}\nparameters:\n  epochs: {{value: 2}}\n"
    path = tmp_path / "rates.yaml"
    path.write_text(text + "  lr: {values: [3e-3, 0.8]}\n")
    return path


def test_a_dry_run_makes_nothing(tmp_path, plan):
    before = sorted(tmp_path.rglob("*"))
    found = doc("sweep", plan, "preset=smoke", "--dry-run")
    assert [row["trial"] for row in found["trials"]] == ["lr=3e-3", "lr=0.8"]
    assert found["trials"][1]["values"] == {"lr": 0.8} and found["disk"]["runs"] == 2
    assert 2e6 < found["disk"]["bytes"] < found["disk"]["free"]
    assert sorted(tmp_path.rglob("*")) == before
    text = sh("sweep", plan, "--dry-run").stdout
    assert "2 runs of" in text and "are free" in text


@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_dry_run_of_five_thousand_trials(tmp_path, method, monkeypatch):
    "In five seconds, whatever else the machine does, and the start is as sure of itself."
    room = type(shutil.disk_usage(tmp_path))(10**15, 0, 10**15)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    how = (
        "{min: 1.0e-5, max: 1.0e-1}"
        if method == "random"
        else f"{{values: {[*RATES]}}}"
    )
    seeds = "{values: [0, 1]}"
    text = f"method: {method}\nparameters:\n  preset: {{value: smoke}}\n  scores: {{value: none}}\n"
    text += f"  lr: {how}\n  seed: {seeds}\n" + "run_cap: 5000\n" * (method == "random")
    (tmp_path / "s.yaml").write_text(text)
    begun = time.process_time()
    found = doc("sweep", tmp_path / "s.yaml", "-o", tmp_path / "out", "--dry-run")
    assert time.process_time() - begun < 5 * pace()
    names = {trial["trial"] for trial in found["trials"]}
    assert len(found["trials"]) == len(names) == 5000
    assert not (tmp_path / "out").exists()


RATES = [round(1e-5 * n, 8) for n in range(1, 2501)]


@pytest.mark.slow
def test_a_sweep_from_beginning_to_end(tmp_path, plan):
    folder = tmp_path / "runs/a sweep"
    first = sh("sweep", plan, "-o", folder, "--wait", "--json", code=1)
    assert "the loss is not a number" in first.stderr
    found = json.loads(first.stdout)
    states = {row["run"]: row["state"] for row in found["trials"]}
    assert states == {"lr=3e-3": "succeeded", "lr=0.8": "failed"}
    assert found["best"].startswith("lr=3e-3") and found["folder"] == str(folder)
    assert doc("sweep", folder, "--dry-run")["trials"][0]["there"]
    sh("sweep", folder, "--retry", "--wait", code=1)
    tried = [len(r.manifest["went"]["attempts"])
             for r in map(Run, _run_folders([folder]).values())]  # fmt: skip
    assert tried == [1, 2]
    plan.write_text(plan.read_text().replace("[3e-3, 0.8]", "[3e-3, 1e-3]"))
    assert "use Sweep.extend" in sh("sweep", plan, "-o", folder, code=1).stderr
    sh("sweep", folder, "--extend", plan, "--timeout=0", code=75)
    assert len(doc("sweep", folder, "--stop")["trials"]) == 3
    sh("sweep", folder, "lr=3", code=2), sh("sweep", plan, "--stop", code=2)
    shown = doc("status")
    assert len(shown["runs"]) == 3 and shown["sweeps"][0]["best"].startswith("lr=3e-3")


def test_a_slip_in_a_sweep_file_is_named(tmp_path):
    path = tmp_path / "slip.yaml"
    path.write_text("parameters:\n  epoch: {values: [1, 2]}\n")
    found = sh("sweep", path, "--dry-run", code=1)
    assert "slip.yaml, line 2" in found.stderr and "'epochs'" in found.stderr
    assert "neither a sweep file" in sh("sweep", tmp_path / "no.yaml", code=2).stderr


@pytest.mark.parametrize(
    "states, code",
    [
        ([], 0), (["succeeded", "paused", "skipped"], 0), (["succeeded", "failed"], 1),
        (["running", "failed"], 1), (["succeeded", "queued"], 75), (["interrupted"], 75),
        (["lost"], 75), (["new", "unfinished"], 75), (["cancelled"], 1), (["timed out"], 1),
    ],
)  # fmt: skip
def test_exit_codes_of_states(states, code):
    assert _code_of(states) == code


def test_status_of_odd_names_and_of_trials_that_have_not_begun(tmp_path):
    from rvtutorial.sweeps.sweepfile import SweepFile, Trial

    finished(tmp_path / "runs/ü|*[x]", 0.5)
    sweep = tmp_path / "runs/b"
    finished(sweep / "lr=1e-2")
    trials = [Trial("lr=1e-2", "lr=1e-2", {"lr": 1e-2})]
    trials += [Trial("lr=1e-3", "lr=1e-3", {"lr": 1e-3})]
    SweepFile({"preset": "smoke"}, {}).write(sweep, trials)
    rows = {row["run"]: row for row in doc("status")["runs"]}
    assert set(rows) == {"ü|*[x]", "b/lr=1e-2", "b/lr=1e-3"}
    assert rows["b/lr=1e-3"]["state"] == "new" and rows["ü|*[x]"]["F1"] == 0.5
    assert list(_run_folders([sweep])) == ["lr=1e-2", "lr=1e-3"]
    assert len(_run_folders([tmp_path / "runs", sweep])) == 3  # none is named twice
    sh("status", "--watch", "--exit-code", code=75)


def test_status_of_nothing(tmp_path):
    assert "`rvtutorial train` makes one" in sh("status", code=1).stderr
    (tmp_path / "empty").mkdir()
    assert "holds none" in sh("status", tmp_path / "empty", code=1).stderr


# ------------------------------------------------------------------ compare and report


@pytest.fixture
def judged(tmp_path):
    "Three runs that were evaluated and one that is at work."
    scenes = three_scenes(tmp_path / "data")
    for shift in (1, 2, 3):
        fake_run(tmp_path / "runs" / f"shift|{shift}", scenes, shift)
    Run(tmp_path / "runs" / "late").path.mkdir()
    Run(tmp_path / "runs" / "late").update("went", state="running")
    return tmp_path / "runs"


def test_compare_orders_and_says_what_is_left_out(judged):
    found = sh("compare", "--json")
    assert "left out: late (running)" in found.stderr
    board = json.loads(found.stdout)
    assert [r["run"] for r in board["runs"]] == ["shift|1", "shift|2", "shift|3"]
    said = "no interval: 3 scenes in 2 blocks are too few, 5 are needed"
    assert all(said in row["verdict"] for row in board["runs"][1:])
    assert all(row["low"] is None for row in board["runs"])
    text = sh("compare").stdout
    assert text.count(said) == 2 and "pixel_f1" in text and "nan" not in text


def test_forms_of_a_leaderboard(judged):
    csv = pd.read_csv(io.StringIO(sh("compare", "--format", "csv").stdout))
    assert list(csv["run"]) == ["shift|1", "shift|2", "shift|3"] and "verdict" in csv
    lines = sh("compare", "--format", "markdown").stdout.splitlines()
    assert len(lines) == 5 and set(lines[1]) == set("| -")
    assert {line.replace("\\|", "").count("|") for line in lines} == {9}
    assert "\\toprule" in sh("compare", "--format", "latex").stdout
    iou = sh("compare", "--metric", "iou").stdout.splitlines()[0]
    assert "pixel_iou" in iou and "pixel_f1" not in iou


def test_compare_refuses(judged):
    assert "no metric 'f2'" in sh("compare", "--metric", "f2", code=1).stderr
    late = sh("compare", judged / "late", code=1).stderr
    assert "nothing to compare" in late and "late (running)" in late
    assert "test scenes" in sh("compare", "--split", "test", code=1).stderr


def test_compare_takes_label_rasters_and_their_truth(judged, tmp_path):
    for scene, (_, _, boxes, shape) in three_scenes(tmp_path / "data").items():
        write_raster(tmp_path / f"maps/{scene}_x.tif", truth_of(boxes, shape))
        coded = np.where(truth_of(boxes, shape) == 0, 255, 0).astype(np.uint8)
        write_raster(tmp_path / f"masks/{scene}.tif", coded)
    shapes = ["--truth", tmp_path / "data/buildings_AOI_2_Vegas_img{id}.geojson"]
    maps = tmp_path / "maps/{id}_x.tif"
    found = doc("compare", judged / "shift|1", maps, *shapes)["runs"]
    assert [row["run"] for row in found] == ["maps", "shift|1"]
    assert found[0]["pixel_f1"] == 1 and found[0]["scenes"] == 3
    alone = doc("compare", maps, "--truth", tmp_path / "masks", "--values", "255=0,0=1")
    assert [row["pixel_f1"] for row in alone["runs"]] == [1]
    other = sh("compare", maps, "--truth", tmp_path / "masks", code=1).stderr
    assert "no class: [255]" in other
    assert (
        "--values is like" in sh("compare", maps, *shapes, "--values=a", code=2).stderr
    )
    assert "no folder" in sh("compare", tmp_path / "no", *shapes, code=1).stderr
    assert "no run and holds none" in sh("compare", tmp_path / "maps", code=1).stderr
    assert doc("compare", *shapes)["runs"][0]["run"] == "shift|1"  # all runs, as ever


def test_compare_by_scores(judged):
    error = sh("compare", "--metric", "brier", code=1).stderr
    assert "run shift|1 kept no scores of scene 9" in error and "scores=uint8" in error
    rng = np.random.default_rng(0)
    for path in judged.rglob("labels.tif"):
        said = rng.integers(0, 256, (3, 40, 50)).astype(np.uint8)
        write_raster(path.with_name("scores.tif"), said)
    found = doc("compare", "--metric", "brier")["runs"]
    values = [row["pixel_brier"] for row in found]
    assert values == sorted(values) and found[0]["verdict"] == "lowest"
    assert "pixel_average_precision" in sh("compare", "--metric", "brier").stdout


def test_a_look_at_the_test_split_is_recorded(judged):
    for run in judged.glob("shift*"):
        shutil.copytree(run / "eval/validation_scenes", run / "eval/test_scenes")
    note = doc("compare", "--report", "test")["note"]
    assert "opened once" in note
    assert "opened 2 times" in sh("compare", "--split", "test").stdout


def test_report(judged):
    pytest.importorskip("rvtutorial.figures.report")
    out = judged / "a report.html"
    found = doc("report", judged / "shift|1", judged / "shift|2", "-o", out)
    assert found == {"file": str(out), "bytes": out.stat().st_size}


# ------------------------------------------------------------------ clean


def test_clean_shows_first(tmp_path):
    run = finished(tmp_path / "runs/a")
    (run / "checkpoint.pt").write_bytes(bytes(5000))
    (run / "predict/1").mkdir(parents=True)
    (run / "predict/1/scores.tif").write_bytes(bytes(7000))
    found = doc("clean")
    assert (found["deleted"], found["bytes"]) == (False, 5000)
    assert (run / "checkpoint.pt").exists()
    assert "nothing was deleted" in sh("clean").stdout
    assert doc("clean", "--scores", "--files")["bytes"] == 12000
    assert doc("clean", "--yes")["files"][0]["path"] == str(run / "checkpoint.pt")
    assert (
        not (run / "checkpoint.pt").exists() and (run / "predict/1/scores.tif").exists()
    )
    assert doc("clean", "--rule", "scores", "--yes")["bytes"] == 7000
    assert "did you mean 'scores'?" in sh("clean", "--rule", "score", code=1).stderr


def test_clean_leaves_what_is_at_work(tmp_path):
    run = finished(tmp_path / "runs/a", state="running")
    (run / "checkpoint.pt").write_bytes(bytes(5000))
    found = doc("clean", "--yes")
    assert found["left"] == {str(run): "running"} and (run / "checkpoint.pt").exists()
    write_json(run / "run.json", {"went": {"state": "succeeded"}})
    assert doc("clean", "--yes")["bytes"] == 5000
