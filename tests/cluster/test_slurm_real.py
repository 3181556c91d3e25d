"""Slurm for real: the same cell here and there, hostile values, and all that goes wrong."""

import json
import os
import random
import shutil
import signal
import stat
import string
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from rvtutorial.core.records import read_json, write_json
from rvtutorial.hpc import batch
from rvtutorial.hpc.job import Job, JobFailed
from rvtutorial.hpc.scheduler import FINE, SLURM, SlurmError, _accounted, _controlled
from rvtutorial.runs import Run
from rvtutorial.slurm import Site, submit, submit_many

ROOT = Path(__file__).resolve().parent.parent.parent
GPU = "gpu:a100_1g.10gb:1"


@pytest.fixture(autouse=True)
def own_queue(workplace, monkeypatch, tmp_path_factory):
    "Each test has a local queue of its own; data that lessons make is shared."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path_factory.mktemp("queue")))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(workplace / "home"))
    SLURM.forget()


@pytest.fixture(scope="module", autouse=True)
def long_jobs(slurm, partition, workplace):
    "What needs minutes of waiting begins first, and is looked at near the end."
    site = Site(
        name="one", partition=partition, account=slurm.account, mem="3G", cpus=1,
        time=60, python=sys.executable,
    )  # fmt: skip
    place = workplace / "long"
    place.mkdir()
    deaf = book(place / "deaf.ipynb", "a = 0", "print('begun', flush=True)",
                "import time\ntime.sleep(600)")  # fmt: skip
    params = {"preset": "sample", "epochs": 30, "max_windows": 12}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RVTUTORIAL_HOME", str(workplace / "home"))
        # Slurm looks every 30 s whether a warning falls due before it looks again
        limits = dict(time=1, warn=15, restarts=100)  # many where it is slow
        return {
            "cut": submit(place / "cut", params, site=site.replace(**limits)),
            "whole": submit(place / "whole", params, site=site),
            "deaf": submit(
                place / "deaf", {}, site=site.replace(time=1, warn=0), notebook=deaf
            ),
        }


@pytest.fixture
def place(workplace, request):
    "A folder that jobs see too."
    folder = workplace / request.node.name.partition("[")[0]
    folder.mkdir()
    return folder


@pytest.fixture
def site(slurm, partition):
    "The cluster of these tests, without a container."
    return Site(
        name="one", partition=partition, account=slurm.account, gres=GPU, mem="1G",
        cpus=1, time=30, parallel=2, python=sys.executable,
    )  # fmt: skip


def book(path: Path, params: str, *cells: str) -> Path:
    "A job notebook of a parameters cell and others."
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source) for source in (params, *cells)]
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


def until(true, seconds: float = 120, what: str = ""):
    "Wait for something that is to come."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what or "it did not happen in time"
        time.sleep(0.3)


def said(*words: str) -> str:
    "What a command prints."
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def state(job: Job) -> str:
    SLURM.forget()
    return job.details()[0]["state"]


def went(folder: Path) -> dict:
    return Run(folder).manifest["went"]


# --- the same cell ------------------------------------------------------------------


def cell(folder: Path, site: Site, **params) -> Job:
    "What a reader's cell does; only the site differs."
    return submit(folder, {"preset": "sample", **params}, site=site).wait(
        progress=False
    )


def test_one_cell_three_places(place, site, image):
    "Local queue, Slurm, Slurm and Apptainer: the same weights, maps and scores."
    site = site.replace(mem="4G")
    inside = site.replace(
        image=str(image.path), binds=image.binds, python=None, nv=False
    )
    here = Site(cpus=1, python=sys.executable)
    for name, where in {"here": here, "slurm": site, "inside": inside}.items():
        job = cell(place / name, where)
        assert job.states() == {place / name: "succeeded"}
    files = [
        "eval/validation_scenes/eval.json",
        "train/last-model.pth",
        "train/log.csv",
    ]
    files += [
        f.relative_to(place / "here") for f in (place / "here/predict").rglob("*.tif")
    ]
    assert len(files) > 10
    for name in ("slurm", "inside"):
        run = Run(place / name)
        assert run.manifest["made_with"]["threads"] == 1
        assert went(run.path)["attempts"][0]["slurm"]["array_task_id"] == "0"
        for file in files[:2] + files[3:]:
            same = (run.path / file).read_bytes() == (
                place / "here" / file
            ).read_bytes()
            assert same, f"{file} of {name} is not the local queue's"
    assert Run(place / "inside").manifest["made_with"]["container"] == str(image.path)


def write_site(place: Path, slurm, *lines: str) -> dict[str, str]:
    "A site file `one` of this user's own; the environment in which it is found."
    sites = place / "config/rvtutorial/sites"
    sites.mkdir(parents=True)
    known = [f'partition = "{slurm.partition}"', f'gres = "{GPU}"', "cpus = 1"]
    known += [f'account = "{slurm.account}"'] if slurm.account else []
    (sites / "one.toml").write_text("\n".join([*known, *lines]) + "\n")
    return {"XDG_CONFIG_HOME": str(place / "config")}


def test_the_lessons_run_on_the_cluster_as_they_stand(place, slurm):
    "Parts 1, 3 and 6 with another site in the environment, and not one cell changed."
    environ = os.environ | write_site(place, slurm, 'mem = "3G"')
    environ |= {"RVTUTORIAL_SITE": "one", "RVTUTORIAL_PRESET": "smoke"}
    environ |= {"RVTUTORIAL_HOME": str(place / "home")}
    (place / "home").mkdir()
    words = ["-m", "rvtutorial.course.lessons", "--parts", ROOT / "nbs"]
    words += ["--out", place / "executed", "--only", "01", "03", "06"]
    done = subprocess.run(
        [sys.executable, *words], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    runs = [path.parent for path in (place / "home/runs").rglob("params.json")]
    assert len(runs) >= 3
    for folder in runs:
        assert went(folder)["state"] == "succeeded"
        assert went(folder)["job"]["site"] == "one"
        assert went(folder)["attempts"][-1]["slurm"]["array_task_id"].isdigit()


# --- arrays and dependencies --------------------------------------------------------


def test_an_array_with_a_failing_member_and_what_waits_for_it(place, site, slurm):
    text = "import time\ntime.sleep(1)\nassert a != 2, 'two is too much'"
    notebook = book(place / "some.ipynb", "a = 0", text)
    runs = {place / f"r{i}": {"a": i} for i in range(4)}
    job = submit_many(runs, site=site, notebook=notebook)
    report = submit(place / "report", {}, site=site, notebook=notebook, after=job)
    strict = submit(
        place / "strict", {}, site=site, notebook=notebook, after=job, needs=True
    )
    assert report.states()[place / "report"] == "queued"
    with pytest.raises(JobFailed, match="r2: failed.*two is too much") as error:
        job.wait(progress=False)
    assert "r2/notebook.ipynb" in str(error.value) and "r1" not in str(error.value)
    assert list(job.states().values()) == ["succeeded"] * 2 + ["failed", "succeeded"]
    number = number_of(place / "r2")
    if slurm.account:  # what squeue forgets after some minutes; sacct lags behind it
        until(lambda: _accounted([number], "").get((number, 2), ("",))[0] == "failed")
    assert _controlled(number, "")[number, 2][0] == "failed"
    report.wait(progress=False)
    begun = went(place / "report")["attempts"][0]["started"]
    assert begun >= max(went(f)["attempts"][-1]["ended"] for f in runs)
    until(lambda: state(strict) == "cancelled")
    assert "a run that it needs did not succeed" in repr(strict)
    with pytest.raises(ValueError, match="r2 has failed, and it is needed"):
        submit(place / "late", {}, site=site, notebook=notebook, after=job, needs=True)
    starts = sorted(went(f)["attempts"][0]["started"] for f in runs)
    ends = sorted(went(f)["attempts"][0]["ended"] for f in runs)
    assert starts[2] >= ends[0]  # two at a time


def test_the_local_queue_waits_in_the_same_way(place):
    notebook = book(place / "some.ipynb", "a = 0", "assert a != 2, 'too much'")
    runs = {place / f"r{i}": {"a": i} for i in (1, 2)}
    job = submit_many(runs, notebook=notebook)
    report = submit(place / "report", {}, notebook=notebook, after=job)
    strict = submit(place / "strict", {}, notebook=notebook, after=job, needs=True)
    report.wait(progress=False)
    with pytest.raises(JobFailed, match="a run that it needs did not succeed"):
        strict.wait(progress=False)


# --- hostile values -----------------------------------------------------------------

ODD = [
    "a b", "a,b=c", "$(touch MARK)", "`touch MARK`", "; touch MARK", "'", '"', "a\nb",
    "\n#SBATCH --partition=urgent\n", "%j_%A_%a", "\\", "{}{a}{{b}}", "*", "--help",
    "-rf /", "", "#", "& touch MARK &", "~root", "!!", "a\tb\rc", "x" * 4096, "%%bash",
    "é漢字🌍", "\u2028\u2029", "$HOME ${PATH}", "'''\"\"\"", "\x01\x7f", "\\n", "None",
    "1e-3", "../../etc", "|cat", ">MARK", "<(id)", "[[:alpha:]]", "a\\", "\u202egpj",
]  # fmt: skip


def hostile(n: int) -> list[str]:
    "Values that some interpreter on the way would love to read."
    chance, values = random.Random(0), list(ODD)
    pieces = [
        *ODD[:23],
        *"'\"`$();&|<>\\ \n\t*?{}[]~#!%-=",
        "ü",
        "𝛑",
        *string.ascii_letters,
    ]
    while len(values) < n:
        size = chance.choice([2, 5, 12, 40])
        values.append("".join(chance.choice(pieces) for _ in range(size))[:4096])
    return values[:n]


def test_two_hundred_hostile_values_arrive_or_are_refused(place, site):
    "Ten values a job: each arrives byte for byte, and nothing is executed."
    names = [f"v{i}" for i in range(10)]
    lines = "\n".join(f"{name} = ''" for name in names)
    got = f"import json\njson.dump([{', '.join(names)}], open('got.json', 'w'))"
    notebook = book(place / "values.ipynb", lines, got)
    values = hostile(200)
    runs = {
        place / f"r{i}": dict(zip(names, values[10 * i : 10 * i + 10], strict=True))
        for i in range(20)
    }
    before = {
        p.name for p in [*place.iterdir(), *Path.home().iterdir(), *ROOT.iterdir()]
    }
    submit_many(runs, site=site, notebook=notebook).wait(progress=False)
    for folder, params in runs.items():
        assert went(folder)["job"]["params"] == params
        assert read_json(folder / "got.json") == list(params.values())
    after = {
        p.name for p in [*place.iterdir(), *Path.home().iterdir(), *ROOT.iterdir()]
    }
    new = {n for n in after - before if n not in {"jobs", ".submitting"}}
    assert new == {folder.name for folder in runs}
    assert not [p for p in place.rglob("*MARK*")]
    with pytest.raises(ValueError, match="v0 holds half a character"):
        submit(place / "half", {"v0": "\ud800"}, site=site, notebook=notebook)


@pytest.mark.parametrize("name", ["a b", "it's", "$(touch MARK)", "sémantique", "-n"])
def test_hostile_folder_names(workplace, site, name):
    notebook = book(workplace / "one.ipynb", "a = 0", "open('here', 'w').write('x')")
    folder = workplace / "names" / name
    submit(folder, {}, site=site, notebook=notebook).wait(progress=False)
    assert (folder / "here").read_text() == "x"
    assert not [p for p in (workplace / "names").rglob("MARK*")]


# --- requeued ------------------------------------------------------------------------


def test_only_the_member_that_asked_is_requeued(place, site):
    "The last member's own id is the array's: naming it would start all of them again."
    text = (
        "import os, time, pathlib\n"
        "again = os.environ.get('SLURM_RESTART_COUNT')\n"
        "time.sleep(0 if quick or again else 300)"
    )
    notebook = book(place / "some.ipynb", "quick = True", text)
    runs = {place / "r0": {}, place / "r1": {"quick": False}}
    job = submit_many(runs, site=site, notebook=notebook)
    until(lambda: went(place / "r0")["state"] == "succeeded")
    until(begun(place / "r1"))
    member = f"{number_of(place / 'r1')}_1"
    subprocess.run(["scancel", "--batch", "-s", "USR1", member], check=True)
    job.wait(progress=False)
    assert len(went(place / "r0")["attempts"]) == 1
    assert len(went(place / "r1")["attempts"]) == 2


# --- cancelling, and what kills -----------------------------------------------------


def sleeper(place: Path) -> Path:
    return book(place / "long.ipynb", "a = 0", "import time\ntime.sleep(600)")


def begun(folder: Path):
    return lambda: (folder / "notebook.ipynb").exists()


def number_of(folder: Path) -> str:
    return read_json(Path(went(folder)["job"]["submission"]) / "job.json")["id"]


def test_scancel_by_hand_is_noticed(place, site):
    job = submit(place / "r", {}, site=site, notebook=sleeper(place))
    until(begun(place / "r"))
    subprocess.run(["scancel", number_of(place / "r")], check=True)
    until(lambda: state(job) == "cancelled")
    assert went(place / "r")["why"] == "SIGTERM"


def test_cancelling_what_runs_and_what_waits(place, site):
    runs = {place / f"r{i}": {} for i in range(3)}
    job = submit_many(runs, site=site, notebook=sleeper(place))
    until(begun(place / "r1"))
    job.cancel()
    until(lambda: set(job.states().values()) == {"cancelled"})


def test_a_runner_that_is_killed(place, site):
    job = submit(place / "r", {}, site=site, notebook=sleeper(place))
    until(begun(place / "r"))
    os.kill(went(place / "r")["attempts"][-1]["pid"], signal.SIGKILL)
    until(lambda: state(job) == "failed")
    assert "it ended before it could say why" in repr(job)


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"partition": "gppu"}, "partition 'gppu' is not one of.*Change partition"),
        (
            {"account": "nobodys"},
            "account 'nobodys' is not one of yours.*Change account",
        ),
        ({"gres": "gpu:v100:1"}, "gres gpu:v100:1.*a100_1g.10gb:4.*Change gres"),
        ({"gres": "gpu:9"}, "gres gpu:9 is more"),
        ({"time": "300-00:00:00"}, "time 300-00:00:00 is more.*Change time"),
        ({"mem": "900T"}, "mem 900T is more.*MB.*Change mem"),
        ({"cpus": 4000}, "cpus 4000 is more.*Change cpus"),
        ({"qos": "gold"}, "qos 'gold' is not one of yours.*Change qos"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(
    place, site, change, words, slurm
):
    if {"account", "qos"} & set(change) and not slurm.account:
        pytest.skip("this Slurm keeps no accounts")
    with pytest.raises(SlurmError, match=words):
        submit(place / "r", {}, site=site.replace(**change), notebook="hello")
    assert not (place / "r").exists() and not (place / "jobs").exists()
    shutil.rmtree(place)


@pytest.mark.parametrize(
    "change, field",
    [
        ({"partition": "gppu"}, "partition"),
        ({"account": "nobodys"}, "account"),
        ({"gres": "gpu:v100:1"}, "gres"),
        ({"mem": "900T"}, "mem"),
        ({"extra": ("--no-such-option=1",)}, "extra"),
    ],
)
def test_slurms_own_words_come_with_the_field(
    place, site, change, field, slurm, monkeypatch
):
    "As on a cluster whose sinfo and sacctmgr are silent."
    if field == "account" and not slurm.account:
        pytest.skip("this Slurm keeps no accounts")
    monkeypatch.setattr("rvtutorial.hpc.batch._refuse_request", lambda site: None)
    with pytest.raises(
        SlurmError, match=f"(?s)sbatch refused: .*Change.*{field}.*in the"
    ):
        submit(place / "r", {}, site=site.replace(**change), notebook="hello")
    assert state(Job(place / "r")) == "failed"
    shutil.rmtree(place)


def test_too_many_jobs_for_an_account(place, site, slurm):
    if not slurm.account:
        pytest.skip("this Slurm keeps no accounts")
    limit = ["sacctmgr", "-i", "modify", "user", "where", "name=root", "set"]
    subprocess.run([*limit, "MaxSubmitJobs=3"], check=True, capture_output=True)
    try:
        time.sleep(1)
        runs = {place / f"r{i}": {} for i in range(6)}
        with pytest.raises(SlurmError, match="So many jobs at one time"):
            submit_many(runs, site=site, notebook="hello")
    finally:
        subprocess.run([*limit, "MaxSubmitJobs=-1"], check=True, capture_output=True)


# --- once and not twice --------------------------------------------------------------


def test_a_lost_answer_is_found_again_and_not_doubled(place, site):
    "Killed between sbatch and the note of its number."
    job = submit(place / "r", {}, site=site, notebook=sleeper(place))
    path = Path(went(place / "r")["job"]["submission"]) / "job.json"
    doc = read_json(path)
    number = doc.pop("id")
    write_json(path, doc)
    again = submit(place / "r", {}, site=site, notebook=sleeper(place))
    assert again.states()[place / "r"] in ("queued", "running")
    assert read_json(path)["id"] == number
    assert len(list((place / "jobs").iterdir())) == 1
    job.cancel()


def test_two_people_at_the_same_moment(place, site):
    "Four processes submit the same three runs at once: one job comes of it."
    notebook = sleeper(place)
    code = (
        "import sys; from rvtutorial.slurm import *; from rvtutorial.hpc.sites import Site;"
        f"site = Site(**{dict(name='one', partition=site.partition, account=site.account, mem='200M', cpus=1)!r});"
        f"submit_many({{f'{place}/r{{i}}': {{}} for i in range(3)}}, site, '{notebook}')"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [p.wait() for p in crowd] == [0] * 4
    assert len(list((place / "jobs").iterdir())) == 1
    Job([place / f"r{i}" for i in range(3)]).cancel()


# --- what it costs ------------------------------------------------------------------


def test_a_hundred_jobs_cost_one_question_in_five_seconds(place, site, monkeypatch):
    "A hundred submissions, each watched by a Job of its own."
    notebook = sleeper(place)
    jobs = [
        submit(place / f"r{i}", {}, site=site.replace(mem="100M"), notebook=notebook)
        for i in range(100)
    ]
    calls, real = (
        place / "calls",
        {n: shutil.which(n) for n in ("squeue", "sacct", "scontrol")},
    )
    tools = place / "bin"
    tools.mkdir()
    for name, path in real.items():
        (tools / name).write_text(
            f'#!/bin/sh\necho {name} >> {calls}\nexec {path} "$@"\n'
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    SLURM.forget()
    start, looks = time.monotonic(), 0
    while time.monotonic() - start < 16:
        states = [list(job.states().values())[0] for job in jobs]
        assert set(states) <= {"queued", "running"} and len(states) == 100
        looks += 1
    asked = len(calls.read_text().splitlines())
    print(f"{looks} looks at 100 jobs: {asked} questions in 16 s")
    assert looks >= 3 and asked <= 4
    subprocess.run(["scancel", *[number_of(place / f"r{i}") for i in range(100)]])


def test_submitting_and_looking_is_quick(place, site):
    "Beside the time that Slurm's own commands take."
    notebook = book(place / "one.ipynb", "a = 0", "a")
    slurms = []
    real = subprocess.run

    def timed(*args, **options):
        begun = time.perf_counter()
        try:
            return real(*args, **options)
        finally:
            slurms.append(time.perf_counter() - begun)

    patch = pytest.MonkeyPatch()
    patch.setattr("subprocess.run", timed)
    start = time.perf_counter()
    runs = {place / f"r{i}": {"preset": "smoke"} for i in range(8)}
    job = submit_many(runs, site=site)
    job.states()
    ours = time.perf_counter() - start - sum(slurms)
    patch.undo()
    job.cancel()
    print(
        f"8 runs: {ours:.2f} s of ours, {sum(slurms):.2f} s in {len(slurms)} calls of Slurm"
    )
    assert ours < 1
    del notebook


# --- scripts ------------------------------------------------------------------------


def test_run_model2_with_every_option(place, slurm, image, workplace):
    "Handed to a real sbatch; the seven values are in Raster Vision's own file."
    binds = f"binds = {json.dumps(list(image.binds))}"
    lines = ['mem = "3G"', f'image = "{image.path}"', "nv = false", binds]
    environ = os.environ | write_site(place, slurm, *lines)
    environ |= {"RVTUTORIAL_PRESET": "smoke", "RVTUTORIAL_PYTHON": sys.executable}
    out = place / "out"
    words = "-c 64 -s 60 -m 2 -e 1 -b 2 -l 2e-3 -S one".split()
    script = [ROOT / "slurm/run_model2.sh", *words, "-o", out]
    done = subprocess.run(
        script, env=environ, capture_output=True, text=True, cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[1]
    until(lambda: not said("squeue", "-h", "-j", number, "-t", "PD,R,CG"), 240)
    log = (out / f"slurm-{number}.out").read_text()
    assert (out / "eval/validation_scenes/eval.json").exists(), log[-2000:]
    config = read_json(out / "pipeline-config.json")
    backend, windows = config["backend"], config["backend"]["data"]["sampling"]
    windows = windows if "size" in windows else next(iter(windows.values()))
    solver = backend["solver"]
    assert windows["size"] == 64 and 45 < config["predict_options"]["stride"] <= 60
    assert (windows["max_windows"], solver["num_epochs"]) == (2, 1)
    assert (solver["batch_sz"], solver["lr"]) == (2, 2e-3)
    assert config["root_uri"] == str(out)


def test_run_notebook_waits_on_the_cluster(place, slurm):
    environ = os.environ | write_site(place, slurm, 'mem = "2G"')
    words = ["-s", "one", "-n", "hello", "-p", sys.executable, "-w", str(place / "r")]
    done = subprocess.run(
        [ROOT / "slurm/run_notebook.sh", *words, "name=it's $(id)", "seconds=1"],
        env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert went(place / "r")["job"]["params"]["name"] == "it's $(id)"
    assert state(Job(place / "r")) in FINE


# --- secrets ------------------------------------------------------------------------


def test_secrets_reach_neither_script_nor_log_nor_job(place, site, monkeypatch):
    "What stands in the submitting shell's environment stays there."
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-value")
    text = "import os\nprint(sorted(os.environ))\nassert 'AWS_SECRET_ACCESS_KEY' not in os.environ"
    notebook = book(place / "one.ipynb", "a = 0", text)
    submit(place / "r", {}, site=site, notebook=notebook).wait(progress=False)
    for path in place.rglob("*"):
        if path.is_file() and not stat.S_ISSOCK(path.stat().st_mode):
            assert b"s3cr3t-value" not in path.read_bytes(), path


# --- time limits --------------------------------------------------------------------


def test_a_job_that_does_not_listen_is_timed_out(long_jobs):
    "No warning asked for: Slurm says what happened, the notebook is kept."
    with pytest.raises(JobFailed, match="deaf: timed out") as error:
        long_jobs["deaf"].wait(progress=False, timeout=200)
    assert "begun" in str(error.value) and "notebook up to there" in str(error.value)


@pytest.mark.timeout(1200)
def test_three_time_limits_in_one_training(long_jobs):
    "Warned, saved, requeued by Slurm alone, three times; the same weights in the end."
    cut, whole = long_jobs["cut"].folders[0], long_jobs["whole"].folders[0]
    long_jobs["cut"].wait(progress=False)
    long_jobs["whole"].wait(progress=False)
    attempts = went(cut)["attempts"]
    assert [a["why"] for a in attempts[:-1]] == ["SIGUSR1"] * (len(attempts) - 1)
    assert len(attempts) >= 4, "it was too quick to be interrupted three times"
    counts = [a["slurm"].get("restart_count", "0") for a in attempts]
    assert counts == [str(i) for i in range(len(attempts))]
    print(f"interrupted {len(attempts) - 1} times")
    for file in ("train/last-model.pth", "eval/validation_scenes/eval.json"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    for folder in (cut, whole):
        assert len((folder / "train/log.csv").read_text().splitlines()) == 31


def test_a_node_that_is_lost(place, site):
    "An operator says that the node is down: Slurm requeues the job, and we say so."
    job = submit(place / "r", {}, site=site, notebook=sleeper(place))
    until(begun(place / "r"))
    node = subprocess.run(["sinfo", "-hN", "-o", "%N"], capture_output=True, text=True)
    node = node.stdout.split()[0]
    try:
        subprocess.run(
            ["scontrol", "update", f"nodename={node}", "state=down", "reason=test"]
        )
        until(lambda: state(job) in ("queued", "node lost"))
    finally:
        job.cancel()
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"])
    ready = ["sinfo", "-h", "-o", "%t"]
    until(
        lambda: (
            "idle"
            in subprocess.run(ready, capture_output=True, text=True).stdout.split()
        )
    )


# --- a Slurm that does not answer ---------------------------------------------------


def controller_pid() -> str:
    conf = Path(os.environ["SLURM_CONF"]).read_text()
    name = next(
        line for line in conf.splitlines() if line.startswith("SlurmctldPidFile")
    )
    return Path(name.partition("=")[2]).read_text()


def test_a_controller_that_is_down_loses_nothing(place, site, slurm, monkeypatch):
    "Refused in clear words; the same call works when it is back."
    monkeypatch.setattr(batch, "WAITS", (1,))
    notebook = book(place / "one.ipynb", "a = 0", "a")
    held = submit(place / "held", {}, site=site, notebook=sleeper(place))
    until(begun(place / "held"))
    pid = int(controller_pid())
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists())
    try:
        with pytest.warns(
            UserWarning, match="Slurm does not answer; asked again in 1 s"
        ):
            with pytest.raises(
                SlurmError, match="Nothing is lost: submit the same again"
            ):
                submit(place / "r", {}, site=site, notebook=notebook)
        assert went(place / "r")["state"] == "failed"
        SLURM.forget()
        assert held.states() == {place / "held": "running"}
    finally:
        subprocess.run(["slurmctld"], check=True)
    until(lambda: "UP" in said("scontrol", "ping"))
    until(lambda: state(held) == "running")
    held.cancel()
    submit(place / "r", {}, site=site, notebook=notebook).wait(progress=False)


def test_a_controller_that_comes_back_in_time(place, site, slurm, monkeypatch):
    monkeypatch.setattr(batch, "WAITS", (2, 4, 8))
    notebook = book(place / "one.ipynb", "a = 0", "a")
    pid = int(controller_pid())
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists())
    environ = os.environ | {"WAIT": "22"}
    subprocess.Popen(["bash", "-c", "sleep $WAIT; slurmctld"], env=environ)
    with pytest.warns(UserWarning, match="Slurm does not answer"):
        job = submit(place / "r", {}, site=site, notebook=notebook)
    job.wait(progress=False)
    assert job.states() == {place / "r": "succeeded"}
