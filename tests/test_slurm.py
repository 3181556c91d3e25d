"Sites, the text for Slurm, submitting, and states: with a local queue and a pretended Slurm."

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from pace import pace

from rvtutorial import slurm
from rvtutorial.core.names import packaged
from rvtutorial.core.records import read_json, write_json
from rvtutorial.hpc import batch, sites
from rvtutorial.hpc import job as jobs
from rvtutorial.hpc import local_queue as queue
from rvtutorial.hpc.job import JobNotebook, _merge
from rvtutorial.hpc.scheduler import SLURM, WORDS
from rvtutorial.runs import Run
from rvtutorial.slurm import Job, JobFailed, Site, SlurmError, submit, submit_many

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_queue(tmp_path_factory, monkeypatch):
    "A queue and a configuration folder that nobody else uses."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path_factory.mktemp("queue")))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    SLURM.forget()
    monkeypatch.setattr(batch, "WAITS", ())


def notebook(path: Path, params: str, *cells: str) -> Path:
    "A job notebook made of a parameters cell and others."
    book = nbformat.v4.new_notebook()
    for source in (params, *cells):
        book.cells.append(nbformat.v4.new_code_cell(source))
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, path)
    return path


@pytest.fixture
def quick(tmp_path):
    "A job that takes no time: it writes down what it was given."
    text = 'import json\njson.dump([a, b], open("got.json", "w"))'
    return notebook(tmp_path / "quick.ipynb", "a = 1\nb = 'x'", text)


# --- sites ------------------------------------------------------------------------


def test_importing_is_light():
    "No heavy package comes along, and it takes less than 0.3 s of a processor."
    code = (
        "import sys, time; t = time.process_time(); import rvtutorial.slurm;"
        "print(time.process_time() - t, {'torch', 'pandas', 'rastervision', 'numpy',"
        "'papermill', 'IPython'} & set(sys.modules))"
    )
    replies = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
        replies.append(out.stdout.split(maxsplit=1))
    assert min(float(seconds) for seconds, _ in replies) < 0.3 * pace()
    assert replies[0][1].strip() == "set()"


@pytest.mark.parametrize("name", ["local", "atlas", "example"])
def test_packaged_sites_are_read(name):
    site = Site.read(name)
    assert site.name == name
    assert site.queue == ("local" if name == "local" else "slurm")


def test_the_example_names_every_field():
    import tomllib

    given = tomllib.loads(packaged("sites", "example").read_text())
    assert set(given) == {*Site.model_fields} - {"name"}


def test_an_unknown_field_lists_the_known_ones(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('partitoin = "gpu"\n')
    with pytest.raises(
        ValueError, match="partitoin.*did you mean 'partition'"
    ) as error:
        Site.read(path)
    assert all(name in str(error.value) for name in Site.model_fields)


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("mem = 16G\n")
    with pytest.raises(ValueError, match="mine.toml is not TOML"):
        Site.read(path)


def test_a_site_is_found_as_path_then_own_then_packaged(tmp_path, monkeypatch):
    assert Site.files()["atlas"] == packaged("sites", "atlas")
    own = tmp_path / "config" / "rvtutorial" / "sites"
    own.mkdir(parents=True)
    (own / "atlas.toml").write_text('account = "mine"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert Site.read("atlas").account == "mine"
    assert Site.read(packaged("sites", "atlas")).account == "geospatialworkshop"
    with pytest.raises(
        FileNotFoundError, match="no site 'atlsa'.*did you mean 'atlas'"
    ):
        Site.read("atlsa")


@pytest.mark.parametrize(
    "field, value",
    [
        ("mem", "16"), ("mem", "lots"), ("mem", 16), ("time", "1:30"), ("time", "soon"),
        ("time", True), ("cpus", 0), ("cpus", "2"), ("cpus", True), ("nodes", 1.5),
        ("account", "a b"), ("account", "-x"), ("account", "x\n#SBATCH --mem=1"),
        ("partition", "$(id)"), ("gres", ""), ("queue", "pbs"), ("warn", -1),
        ("extra", ["nice"]), ("extra", ["--mem=1T"]), ("extra", ["--wrap=x"]),
        ("modules", ["a\nb"]), ("scratch", "a\nb"), ("image", 3),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"site field {field}"):
        Site(**{"name": "x", field: value})


@pytest.mark.parametrize(
    "value", [90, "90", "02:30:00", "1-0", "1-12:30", "1-12:30:00"]
)
def test_times_that_slurm_reads(value):
    assert f"--time={value}" in slurm.sbatch_args(Site(name="x", time=value), "/j")


def test_a_toml_time_of_day_is_a_duration(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("time = 02:30:00\n")
    assert Site.read(path).time == "02:30:00"


def test_an_unset_variable_in_a_path_is_an_error(monkeypatch):
    monkeypatch.setenv("RVT_TEST", "/here")
    assert Site.expand("data", "$RVT_TEST/x") == "/here/x"
    with pytest.raises(ValueError, match="data names a variable that is not set"):
        Site.expand("data", "$RVT_TEST_UNSET/x")


# --- text -------------------------------------------------------------------------

ATLAS_ARGS = """sbatch
--parsable
--job-name=first
--requeue
--account=geospatialworkshop
--partition=gpu-a100-mig7
--gres=gpu:a100_1g.10gb:1
--mem=16G
--time=02:30:00
--cpus-per-task=2
--nodes=1
--ntasks=1
--array=0-3%2
--signal=B:USR1@120
--open-mode=append
--export=NONE
--chdir=/p/jobs/first
--output=/p/jobs/first/slurm-%A_%a.out
/p/jobs/first/job.sh"""


def test_sbatch_arguments_to_the_letter():
    args = slurm.sbatch_args(Site.read("atlas"), "/p/jobs/first", 4, "first")
    assert "\n".join(args) == ATLAS_ARGS


def test_a_bare_site_asks_for_nothing_in_particular():
    args = slurm.sbatch_args(Site(name="bare", warn=0), "/j")
    names = {a.split("=")[0] for a in args if a.startswith("--")}
    assert not names & {
        "--account",
        "--partition",
        "--mem",
        "--time",
        "--gres",
        "--signal",
    }
    assert "--array=0-0%2" in args


JOB_SCRIPT = r"""#!/bin/bash -l
# Written by rvtutorial. Slurm runs one copy for each member of the job and gives its
# number in SLURM_ARRAY_TASK_ID; the local queue says "serve" and writes to it.
module load apptainer || { echo no module apptainer >&2; exit 1; }
set -u
tasks='/p/my jobs/tasks.json'
member=${1:-${SLURM_ARRAY_TASK_ID:-0}}
child='' pending=''
# a signal to this script goes on to the runner, which interrupts the notebook's kernel
forward() { if [ -n "$child" ]; then kill -"$1" "$child" 2>/dev/null; else pending=$1; fi; }
trap 'forward USR1' USR1
trap 'forward TERM' TERM INT HUP
scratch=$(mktemp -d /scratch/me/rvt.XXXXXX) || exit 1
trap 'rm -rf "$scratch"' EXIT
export OMP_NUM_THREADS=2
mkdir -p "$scratch/home"
for v in SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT \
  CUDA_VISIBLE_DEVICES OMP_NUM_THREADS RVTUTORIAL_HOME; do
  [ -z "${!v-}" ] || export "APPTAINERENV_$v=${!v}"
done
apptainer exec --no-eval --cleanenv --contain --workdir "$scratch" --home "$scratch"/home --pwd '/p/my jobs' --bind /in:/opt/data/input:ro --bind '/p/my jobs' --nv /i/rv.sif python -m rvtutorial.hpc.runner member "$tasks" "$member" <&0 &
child=$!
[ -z "$pending" ] || kill -"$pending" "$child"
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || break
done
[ "$code" != 138 ] || code=75  # warned before the runner could listen
# 75: interrupted by the warning before the end of its time; ask for another turn
if [ "$code" = 75 ] && [ -n "${SLURM_JOB_ID-}" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
  trap '' TERM USR1
  # the last member's own id is the whole array's, so a member is named ARRAY_TASK
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && sleep 60
fi
exit "$code"
"""


def container_site():
    return Site(
        name="x", cpus=2, image="/i/rv.sif", binds=("/in:/opt/data/input:ro",),
        modules=("apptainer",), scratch="/scratch/me",
    )  # fmt: skip


def test_the_job_script_to_the_letter():
    text = slurm.batch_script(container_site(), "/p/my jobs/tasks.json")
    text = text.replace("--bind '/p/my jobs:/p/my jobs'", "--bind '/p/my jobs'")
    assert text == JOB_SCRIPT


@pytest.mark.parametrize("site", [Site(), Site.read("atlas"), container_site()])
def test_the_job_script_is_clean_bash(site, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(slurm.batch_script(site, "/a b/$(touch x)/tasks.json", home="/h'h"))
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck:
        subprocess.run([shellcheck, "-S", "warning", path], check=True)


@pytest.mark.parametrize("name", ["run_notebook.sh"])
def test_scripts_are_clean_and_answer(name):
    path = ROOT / "slurm" / name
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck:
        subprocess.run([shellcheck, path], check=True)
    for args, code in ([["-h"], 0], [["-n"], 2], [["-z"], 2], [[], 2]):
        done = subprocess.run([path, *args], capture_output=True, text=True)
        assert done.returncode == code
        assert "Usage" in (done.stdout if code == 0 else done.stderr)


# --- what is refused before queueing ------------------------------------------------


def test_unknown_and_bad_parameters_are_refused(tmp_path, quick):
    for params, match in [
        ({"c": 1}, "'c' is no parameter of quick"),
        ({"a": [1, 2]}, "parameter a must be a text, a number"),
        ({"a": float("inf")}, "parameter a must be a finite number"),
        ({"b": "\ud800"}, "parameter b holds half a character"),
    ]:
        with pytest.raises(ValueError, match=match):
            submit(tmp_path / "run", params, notebook=quick)
    assert not (tmp_path / "run").exists() and not (tmp_path / "jobs").exists()


def test_hyperparameters_are_checked_before_queueing(tmp_path):
    book = notebook(tmp_path / "t.ipynb", "preset = 'sample'\nlr = None\nepochs = None")
    with pytest.raises(ValueError, match="lr"):
        submit(tmp_path / "run", {"lr": 100}, notebook=book)
    with pytest.raises(ValueError, match="'epoch' is no parameter.*'epochs'"):
        submit(tmp_path / "run", {"epoch": 1}, notebook=book)
    with pytest.raises(ValueError, match="no preset 'simple'"):
        submit(tmp_path / "run", {"preset": "simple"}, notebook=book)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_and_paths_travel(quick, tmp_path):
    import numpy as np

    checked = JobNotebook(quick).check({"a": np.float64(0.1), "b": tmp_path})
    assert checked == {"a": 0.1, "b": str(tmp_path)} and type(checked["a"]) is float


def test_a_notebook_needs_one_parameters_cell(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a = 1")])
    nbformat.write(book, tmp_path / "none.ipynb")
    with pytest.raises(ValueError, match="0 cells tagged parameters"):
        _ = JobNotebook(tmp_path / "none.ipynb").parameters


def test_folders_that_cannot_be_runs(tmp_path, quick):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        submit(tmp_path / "file", {}, notebook=quick)
    with pytest.raises(ValueError, match="cannot be printed"):
        submit(f"{tmp_path}/a\nb", {}, notebook=quick)
    with pytest.raises(ValueError, match="twice"):
        submit_many({tmp_path / "a": {}, f"{tmp_path}/./a": {}}, notebook=quick)
    with pytest.raises(ValueError, match="1 run at least"):
        submit_many({}, notebook=quick)
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "pipeline-config.json").write_text("{}")
    with pytest.raises(ValueError, match="plain Raster Vision"):
        submit(tmp_path / "stock", {}, notebook=quick)


def test_the_same_values_written_differently_are_the_same_run(tmp_path):
    book = notebook(tmp_path / "t.ipynb", "preset = 'sample'\nlr = None\nseed = None")
    folder = tmp_path / "run"
    folder.mkdir()
    job = {"notebook": str(book), "params": {"lr": "1e-3"}}
    Run(folder).update("went", state="succeeded", job=job)
    book = JobNotebook(book)
    same = book.differences(folder, {"lr": 0.001, "seed": 0, "preset": "sample"})
    assert same == []
    other = book.differences(folder, {"lr": 0.002})
    assert other == ["lr is 0.001 there, 0.002 here"]


# --- the local queue ----------------------------------------------------------------


def test_values_arrive_whole_and_nothing_is_executed(tmp_path):
    "Quotes, substitutions, newlines, braces, unicode, 4 KB: through job.sh to the kernel."
    marker = tmp_path / "executed"
    values = [
        f"$(touch {marker})", f"`touch {marker}`", f"; touch {marker} #", "a b", "a,b=c",
        "it's", '"double"', "'''\"\"\"", "\\", "\\n", "a\nb", f"a\n!touch {marker}",
        f"\n%%bash\ntouch {marker}\n", "{a}", "{{0}}", "%j %A", "*", "~root", "--help",
        "-x", "", " ", "\t", "\x00\x01\x1b[0m", "\u2028", "\u00e9\u6f22\U0001f600",
        "!!", "#", "&", "x" * 4096, "None", "1e-3", "\r\n", "\x7f", "\u202e",
    ]  # fmt: skip
    names = [f"v{i}" for i in range(len(values))]
    text = "\n".join(f"{n} = None" for n in names)
    save = f'import json\njson.dump([{", ".join(names)}], open("got.json", "w"))'
    book = notebook(tmp_path / "odd.ipynb", text, save)
    folder = tmp_path / "run $(touch executed); 'q' \"d\" {a} %j \u00e9"
    params = dict(zip(names, values, strict=True))
    submit(folder, params, notebook=book).wait(progress=False)
    assert read_json(folder / "got.json") == values
    assert Run(folder).manifest["went"]["job"]["params"] == params
    assert not marker.exists() and not list(tmp_path.rglob("executed"))


def test_numbers_keep_their_type(tmp_path, quick):
    params = {"a": 1e-17, "b": True}
    submit(tmp_path / "run", params, notebook=quick).wait(progress=False)
    assert read_json(tmp_path / "run" / "got.json") == [1e-17, True]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "Two runs of one submission, one of which fails."
    home = tmp_path_factory.mktemp("finished")
    os.environ["RVTUTORIAL_QUEUE"] = str(home / "queue")
    text = 'print("working", a)\nassert a < 2, "too large"\nopen("done", "w").close()'
    book = notebook(home / "check.ipynb", "a = 1", text)
    job = submit_many({home / "good": {"a": 1}, home / "bad": {"a": 2}}, notebook=book)
    with pytest.raises(JobFailed) as error:
        job.wait(progress=False)
    return home, book, job, str(error.value)


def test_states_and_what_a_failure_says(finished):
    home, _, job, message = finished
    assert job.states() == {home / "good": "succeeded", home / "bad": "failed"}
    assert "AssertionError: too large" in message and "working 2" in message
    assert str(home / "bad" / "notebook.ipynb") in message and "good" not in message
    assert (home / "good" / "done").exists()
    assert "working 1" in job.log(home / "good")


def test_a_finished_run_is_not_run_again(finished):
    home, book, _, _ = finished
    before = (home / "good" / "run.json").read_text()
    submissions = len(list((home / "jobs").iterdir()))
    job = submit(home / "good", {"a": 1}, notebook=book)
    assert job.done and job.wait() is job
    assert (home / "good" / "run.json").read_text() == before
    assert len(list((home / "jobs").iterdir())) == submissions


def test_other_values_for_a_finished_run_are_refused(finished):
    home, book, _, _ = finished
    with pytest.raises(ValueError, match="a is 1 there, 3 here.*folder of its own"):
        submit(home / "good", {"a": 3}, notebook=book)


def test_a_failed_run_may_be_asked_again_with_other_values(finished):
    home, book, _, _ = finished
    job = submit_many({home / "good": {"a": 1}, home / "bad": {"a": 0}}, notebook=book)
    job.wait(progress=False)
    attempts = Run(home / "bad").manifest["went"]["attempts"]
    assert [a["state"] for a in attempts] == ["failed", "succeeded"]
    assert (home / "bad" / "notebook.attempt1.ipynb").exists()
    assert len(Run(home / "good").manifest["went"]["attempts"]) == 1


def test_queue_takes_turns_and_cancels(tmp_path):
    "A second submission waits, is not doubled, is cancelled; then the first is."
    book = notebook(tmp_path / "long.ipynb", "a = 1", "import time\ntime.sleep(60)")
    first = submit(tmp_path / "x" / "first", {}, notebook=book)
    wait_for(lambda: first.states()[first.folders[0]] == "running")
    second = submit(tmp_path / "y" / "second", {}, notebook=book)
    wait_for(lambda: "queued  (behind first)" in repr(second))
    submit(tmp_path / "y" / "second", {}, notebook=book)
    assert len(list((tmp_path / "y" / "jobs").iterdir())) == 1
    with pytest.raises(ValueError, match="holds another run"):
        submit(tmp_path / "y" / "second", {"a": 2}, notebook=book)
    with pytest.raises(TimeoutError, match="still at work"):
        second.wait(progress=False, timeout=0.1)
    second.cancel()
    first.cancel()
    for job in (first, second):
        with pytest.raises(JobFailed, match="cancelled"):
            job.wait(progress=False)
    assert Run(tmp_path / "x" / "first").state == "interrupted"
    assert not (tmp_path / "y" / "second" / "notebook.ipynb").exists()


HOOK = """
def ask(folder, params):
    return "not promoted" if params["a"] == 2 else params | {"b": folder.name}
"""


def test_a_run_is_asked_when_it_begins(tmp_path, quick, monkeypatch):
    "Its parameters may change then, or it is not needed after all."
    (tmp_path / "choose.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    runs = {tmp_path / f"r{i}": {"a": i} for i in (1, 2)}
    job = submit_many(runs, notebook=quick, before="choose:ask").wait(progress=False)
    assert list(job.states().values()) == ["succeeded", "skipped"]
    assert read_json(tmp_path / "r1" / "got.json") == [1, "r1"]
    assert "r2  skipped  (not promoted)" in repr(job)
    assert not (tmp_path / "r2" / "notebook.ipynb").exists()


def test_what_a_job_waits_for_is_checked(tmp_path, quick):
    book = notebook(tmp_path / "bad.ipynb", "a = 1", "assert False, 'no'")
    job = submit(tmp_path / "bad", {}, notebook=book)
    second = submit(tmp_path / "second", {}, notebook=quick, after=job, needs=True)
    third = submit(tmp_path / "third", {}, notebook=quick, after=[job, second])
    third.wait(progress=False)
    with pytest.raises(JobFailed, match="a run that it needs did not succeed"):
        second.wait(progress=False)
    with pytest.raises(ValueError, match="bad has failed, and it is needed"):
        submit(tmp_path / "fourth", {}, notebook=quick, after=job, needs=True)
    assert not (tmp_path / "fourth").exists()


def test_two_turns_of_one_run(tmp_path):
    "A run may be queued behind its own earlier turn, once."
    text = "import time\ntime.sleep(1)\nopen(f'turn{pause}', 'w').close()"
    book = notebook(tmp_path / "turns.ipynb", "a = 1\npause = None", text)

    def both():
        first = submit(tmp_path / "r", {"pause": 1}, notebook=book)
        return submit(tmp_path / "r", {"pause": 2}, notebook=book, after=first)

    job = both()
    wait_for(lambda: job.states()[tmp_path / "r"] == "running")
    assert both().states()[tmp_path / "r"] in ("queued", "running")
    assert len(list((tmp_path / "jobs").iterdir())) == 2
    other = submit(tmp_path / "r", {"pause": 3}, notebook=book, after=job)
    other.cancel()
    wait_for(lambda: other.done)
    assert not (tmp_path / "r" / "turn3").exists()


@pytest.mark.parametrize(
    "script, ends",
    [
        ("sleep 30", (-signal.SIGUSR1, False)),
        ("trap '' USR1; exec sleep 30", (-signal.SIGTERM, True)),
        ("trap '' USR1 TERM; sleep 30", (-signal.SIGKILL, True)),
        ("trap 'exit 75' USR1; sleep 30 & wait", (75, False)),
        ("exit 3", (3, False)),
    ],
)
def test_the_local_queue_ends_what_takes_too_long(script, ends, monkeypatch):
    monkeypatch.setattr(queue, "KILL_WAIT", 0.3)
    child = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    assert queue._end_in_time(child, 0.9, 0.5) == ends


def test_a_lost_number_is_found_by_the_name(cluster, tmp_path, quick, monkeypatch):
    "Killed between sbatch and the note of its number: found again, not queued twice."
    job = submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    home = Path(Run(tmp_path / "r").manifest["went"]["job"]["submission"])
    write_json(home / "job.json", {"queue": "slurm"})
    assert job.states() == {tmp_path / "r": "queued"}  # just sent, perhaps
    os.utime(home / "job.json", (1, 1))
    queue._SOUGHT.clear()
    assert job.states() == {tmp_path / "r": "lost"}
    cluster.answers(squeue={"out": "221|0|RUNNING|None\n"})
    monkeypatch.setattr(queue, "find_job", lambda *named: "221")
    queue._SOUGHT.clear()
    assert job.states() == {tmp_path / "r": "running"}
    assert read_json(home / "job.json")["id"] == "221"


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_a_queue_that_is_killed_is_seen(tmp_path):
    book = notebook(tmp_path / "long.ipynb", "a = 1", "import time\ntime.sleep(60)")
    job = submit(tmp_path / "run", {}, notebook=book)
    wait_for(lambda: (tmp_path / "run" / "notebook.ipynb").exists())
    home = Path(Run(tmp_path / "run").manifest["went"]["job"]["submission"])
    noted = read_json(home / "queue.json")
    runner = Run(tmp_path / "run").manifest["went"]["attempts"][-1]["pid"]
    chain = [runner]  # the runner, the script
    while chain[-1] != noted["pid"]:
        stat = Path(f"/proc/{chain[-1]}/stat").read_text()
        chain.append(int(stat.rpartition(")")[2].split()[1]))
    for pid in reversed(chain):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: job.states() == {tmp_path / "run": "lost"})
    done = subprocess.run(
        ["bash", "-c", "exit 0"]
    )  # the next submission is not blocked
    assert done.returncode == 0
    with queue._first_in_queue(time.time_ns()):
        pass


def test_jobs_outlive_the_notebook_that_submitted_them(tmp_path):
    "Restarting a kernel kills its process group; the queue is not in it."
    text = "import time\ntime.sleep(2)\nopen('done', 'w').close()"
    book = notebook(tmp_path / "job.ipynb", "a = 1", text)
    code = "import sys, time; from rvtutorial.slurm import submit\n"
    code += "submit(sys.argv[1], {}, notebook=sys.argv[2]); time.sleep(60)"
    args = [sys.executable, "-c", code, str(tmp_path / "run"), str(book)]
    kernel = subprocess.Popen(args, start_new_session=True)
    wait_for(lambda: (tmp_path / "run" / "notebook.ipynb").exists())
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()
    Job(tmp_path / "run").wait(progress=False, timeout=60)
    assert (tmp_path / "run" / "done").exists()


def test_a_member_that_is_killed_leaves_nothing_behind(tmp_path):
    "It lets go of its folder at once, its kernel ends, and the next run has its turn."
    text = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\n"
    book = notebook(
        tmp_path / "long.ipynb", "a = 0", text + "time.sleep(60 * (a == 1))"
    )
    runs = {tmp_path / f"r{n}": {"a": n} for n in range(3)}
    job = submit_many(runs, notebook=book)
    _, second, _ = runs
    pid = second / "pid"
    wait_for(lambda: pid.exists() and pid.read_text(), 60)
    kernel = Path(f"/proc/{pid.read_text()}")
    assert kernel.exists() and jobs._at_work(second)
    os.kill(Run(second).manifest["went"]["attempts"][-1]["pid"], signal.SIGKILL)
    wait_for(lambda: not jobs._at_work(second), 1)
    with pytest.raises(JobFailed):
        job.wait(progress=False, timeout=40)
    assert [*job.states().values()] == ["succeeded", "failed", "succeeded"]
    wait_for(lambda: not kernel.exists(), 5)  # a kernel looks once a second


def test_processes_that_are_no_queue(tmp_path):
    "Over and not asked about, one of the kernel's own, none at all, another program."
    over = subprocess.Popen(["true"])
    time.sleep(0.2)
    for pid in (over.pid, 2, 2**22 + 1, 2**70, None, "x", os.getpid()):
        assert not queue._is_queue(pid) and not queue._is_script(pid, tmp_path), pid
    over.wait()
    sleep = "import time; time.sleep(60)"
    args = [sys.executable, "-c", sleep, "rvtutorial.hpc.local_queue", str(tmp_path)]
    one = subprocess.Popen(args)
    # one that is just being started shows no command yet, and may be any
    wait_for(lambda: not queue._is_queue(one.pid, tmp_path / "other"), 5)
    assert queue._is_queue(one.pid) and queue._is_queue(one.pid, tmp_path)
    one.kill(), one.wait()


def test_names_of_the_version_before_are_found_and_said_once(capsys):
    assert slurm.prepare is batch._write_submission and slurm.prepare
    said = capsys.readouterr().err
    assert said.count("rvtutorial.slurm.prepare is now rvtutorial.hpc.batch") == 1
    hello = slurm.job_notebook("hello")
    assert slurm.check_params(hello, {"name": "a"}) == {"name": "a"}
    assert "name" in slurm.parameters(hello)
    slurm.refuse_other_run(hello.parent, {}, hello)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        slurm.nothing  # noqa: B018


def test_a_script_that_cannot_start_says_why(tmp_path):
    write_json(tmp_path / "tasks.json", {"folders": [str(tmp_path / "r")]})
    (tmp_path / "job.sh").write_text("no_such_program <&0")
    one = queue._LocalQueue(tmp_path)
    assert one.start(0).wait() == 127
    assert "no_such_program" in (tmp_path / "local-0.out").read_text()
    one.run_member(0)
    assert (one.members[0]["state"], one.members[0]["code"]) == ("FAILED", 127)


def test_the_earlier_ticket_goes_first(tmp_path):
    "Three processes, started in the wrong order, are served by their numbers."
    code = (
        "import sys, time; from rvtutorial.hpc.local_queue import _first_in_queue\n"
        "with _first_in_queue(int(sys.argv[1])):\n"
        "    open(sys.argv[2], 'a').write(sys.argv[1]); time.sleep(0.3)"
    )
    with queue._first_in_queue(1):
        others = []
        for number in (4, 3, 2):
            args = [sys.executable, "-c", code, str(number), str(tmp_path / "order")]
            others.append(subprocess.Popen(args))
        wait_for(lambda: len(list(queue.queue_folder().glob("*.ticket"))) == 4)
    for process in others:
        assert process.wait() == 0
    assert (tmp_path / "order").read_text() == "234"


# --- states from record and queue ------------------------------------------------------------------

OURS = {"submission": "s", "index": 0}


@pytest.mark.parametrize(
    "state, attempt, word, reason, expected",
    [
        ("new", None, None, "", "new"),
        ("queued", None, "queued", "Resources", "queued"),
        (
            "queued",
            None,
            "failed",
            "",
            "failed",
        ),  # its script failed before the notebook
        ("queued", None, None, "", "lost"),
        ("queued", None, "cancelled", "", "cancelled"),
        ("queued", "failed", "queued", "", "queued"),
        ("running", "running", "running", "", "running"),
        ("running", "running", "timed out", "", "timed out"),
        ("running", "running", "out of memory", "", "out of memory"),
        ("running", "running", "node lost", "", "node lost"),
        ("running", "running", "failed", "", "failed"),
        ("running", "running", "succeeded", "", "lost"),
        ("running", "running", None, "", "lost"),
        ("running", "running", "unknown", "Slurm does not answer", "running"),
        ("succeeded", "succeeded", "running", "", "succeeded"),  # still tidying up
        ("succeeded", "succeeded", None, "", "succeeded"),
        ("succeeded", "succeeded", "failed", "", "succeeded"),
        ("failed", "failed", "failed", "", "failed"),
        ("interrupted", "interrupted", "running", "", "running"),  # about to requeue
        ("interrupted", "interrupted", "queued", "BeginTime", "queued"),  # requeued
        ("failed", "failed", "running", "", "failed"),
        ("interrupted", "interrupted", "cancelled", "", "cancelled"),
        ("interrupted", "interrupted", "timed out", "", "timed out"),
        ("interrupted", "interrupted", None, "", "interrupted"),
        ("interrupted", "interrupted", "unknown", "", "queued"),
        ("interrupted", "interrupted", "running", jobs.CANCELLING, "cancelled"),
    ],
)
def test_states_from_record_and_queue(state, attempt, word, reason, expected):
    went = {"state": state, "job": dict(OURS) if state != "new" else None}
    went["attempts"] = [{**OURS, "state": attempt}] if attempt else []
    if attempt == "failed" and state == "queued":  # an earlier submission's attempt
        went["attempts"][0]["submission"] = "earlier"
    assert _merge(went, word, reason)[0] == expected


def test_every_word_of_slurm_has_one_of_ours():
    assert len(WORDS) == len(set(WORDS)) > 20
    ours = {"queued", "running", "succeeded", "failed", "interrupted", "cancelled"}
    assert set(WORDS.values()) == ours | {
        "timed out",
        "out of memory",
        "node lost",
    }


def test_the_tail_of_a_log_draws_out_bars(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"a\n" * 100_000 + b" 10%\r 50%\r100%\r\nlast \xff\n")
    assert jobs._tail(path, 2) == "100%\nlast \ufffd"


# --- a pretended Slurm --------------------------------------------------------------

PRETEND = """#!{python}
import json, os, sys, time
home, name = {home!r}, os.path.basename(sys.argv[0])
with open(home + "/calls", "a") as log:
    log.write(json.dumps([name, sys.argv[1:], dict(os.environ)]) + "\\n")
reply = json.load(open(home + "/" + name + ".json"))
asked = sys.argv[sys.argv.index("-n") + 1] if "-n" in sys.argv else ""
reply["out"] = reply.get("out", "").replace("@name@", asked)
sys.stdout.write(reply.get("out", "")); sys.stderr.write(reply.get("err", ""))
time.sleep(reply.get("sleep", 0)); sys.exit(reply.get("code", 0))
"""


class Pretended:
    "Programs called sbatch, squeue and so on that note their calls and answer as told."

    def __init__(self, home: Path):
        self.home, self.bin = home, home / "bin"
        self.bin.mkdir(parents=True)

    def answers(self, **replies):
        for name, reply in replies.items():
            write_json(self.home / f"{name}.json", reply)
            path = self.bin / name
            path.write_text(PRETEND.format(python=sys.executable, home=str(self.home)))
            path.chmod(0o755)

    @property
    def calls(self):
        path = self.home / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def called(self, name):
        return [call for call in self.calls if call[0] == name]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    made = Pretended(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    made.answers(sbatch={"out": "221\n"}, squeue={"out": ""}, sacct={"code": 1})
    made.answers(**dict.fromkeys(("sinfo", "sacctmgr", "scontrol"), {"code": 1}))
    return made


FARM = Site(name="farm", partition="gpu", account="crops")


def test_a_submission_to_slurm(cluster, tmp_path, quick, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    monkeypatch.setenv("SLURM_CONF", "/etc/my.conf")
    cluster.answers(sbatch={"out": "221;farm\n", "err": "a notice of the site\n"})
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(3)}
    job = submit_many(runs, site=FARM, notebook=quick)
    name, args, env = cluster.called("sbatch")[0]
    assert name == "sbatch" and "--array=0-2%2" in args and "--account=crops" in args
    assert not [
        k for k in env if k.startswith(("SLURM_", "SBATCH_")) and k != "SLURM_CONF"
    ]
    assert env["SLURM_CONF"] == "/etc/my.conf"
    home = Path(args[-1]).parent
    assert read_json(home / "job.json")["id"] == "221;farm"
    assert read_json(home / "tasks.json")["folders"] == [str(f) for f in job.folders]
    assert read_json(tmp_path / "r2" / "params.json") == {"a": 2}
    assert JobNotebook(home / "quick.ipynb").parameters == {
        "a": 1,
        "b": "x",
    }  # a copy of its own


def test_states_come_from_squeue_then_sacct(cluster, tmp_path, quick, monkeypatch):
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(3)}
    job = submit_many(runs, site=FARM, notebook=quick)
    lines = "221|0|RUNNING|None\n221|1|PENDING|Resources\n221|2|CANCELLED|None\n"
    cluster.answers(squeue={"out": lines})
    SLURM.forget()
    assert list(job.states().values()) == ["running", "queued", "cancelled"]
    assert "r1  queued  (Resources)" in repr(job)
    cluster.answers(
        squeue={"code": 1, "err": "slurm_load_jobs error: Invalid job id specified"}
    )
    lines = "221_0|TIMEOUT\n221_1|OUT_OF_MEMORY\n221_2|CANCELLED by 1000\n"
    cluster.answers(sacct={"out": lines})
    SLURM.forget()
    assert list(job.states().values()) == ["timed out", "out of memory", "cancelled"]


def test_a_silent_slurm_loses_nothing(cluster, tmp_path, quick):
    job = submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    cluster.answers(squeue={"code": 1, "err": "Unable to contact slurm controller"})
    SLURM.forget()
    assert repr(job) == "r  queued  (Slurm does not answer)"
    cluster.answers(squeue={"code": 1, "err": "Invalid job id specified"})
    SLURM.forget()
    assert job.states() == {tmp_path / "r": "lost"}


def test_slurm_is_asked_seldom(cluster, tmp_path, quick):
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(100)}
    job = submit_many(runs, site=FARM, notebook=quick)
    lines = "".join(f"221|{i}|PENDING|Priority\n" for i in range(100))
    cluster.answers(squeue={"out": lines})
    SLURM.forget()
    for _ in range(5):
        assert set(job.states().values()) == {"queued"}
    assert [call[0] for call in cluster.calls].count("squeue") == 1


def test_a_run_in_the_queue_is_not_queued_twice(cluster, tmp_path, quick):
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    cluster.answers(squeue={"out": "221|0|PENDING|Priority\n"})
    SLURM.forget()
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    assert [call[0] for call in cluster.calls].count("sbatch") == 1


def test_cancelling_on_slurm(cluster, tmp_path, quick):
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(3)}
    job = submit_many(runs, site=FARM, notebook=quick)
    cluster.answers(
        squeue={"out": "221|0|RUNNING|None\n221|2|PENDING|None\n"}, scancel={}
    )
    Run(tmp_path / "r1").update("went", state="succeeded")
    SLURM.forget()
    job.cancel()
    assert cluster.calls[-1][:2] == ["scancel", ["221_0", "221_2"]]


@pytest.mark.parametrize(
    "reply, match",
    [
        ({"code": 1, "err": "sbatch: error: Invalid account"}, "Invalid account"),
        ({"code": 0, "out": "Submitted batch job"}, "Submitted batch job"),
        ({"code": 255}, "exit 255"),
    ],
)
def test_a_refusal_is_told_in_slurms_words(cluster, tmp_path, quick, reply, match):
    cluster.answers(sbatch=reply)
    with pytest.raises(SlurmError, match=match) as error:
        submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    assert "--account=crops" in str(error.value)
    assert Run(tmp_path / "r").state == "failed"
    cluster.answers(sbatch={"out": "222\n"})  # and it can be tried again
    submit(tmp_path / "r", {"a": 2}, site=FARM, notebook=quick)
    assert Run(tmp_path / "r").state == "queued"


def test_without_sbatch_the_error_says_what_helps(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match='no sbatch on this machine.*site="local"'):
        submit(tmp_path / "r", {}, site=FARM, notebook=quick)


def test_folders_that_slurm_would_read_as_patterns_are_refused(
    cluster, tmp_path, quick
):
    with pytest.raises(ValueError, match="reads as a pattern"):
        submit(tmp_path / "100%" / "r", {}, site=FARM, notebook=quick)
    assert cluster.calls == [] and not (tmp_path / "100%").exists()


def run_script(home: Path, **env) -> subprocess.Popen:
    "Run a submission's job script as a node would."
    given = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | env
    return subprocess.Popen(["bash", str(home / "job.sh")], env=given, cwd=home)


def test_the_warning_ends_in_a_requeue_of_this_member_only(cluster, tmp_path):
    book = notebook(tmp_path / "long.ipynb", "a = 1", "import time\ntime.sleep(60)")
    runs = {tmp_path / f"r{i}": {} for i in range(2)}
    submit_many(runs, site=FARM, notebook=book)
    home = Path(cluster.called("sbatch")[0][1][-1]).parent
    cluster.answers(scontrol={"code": 1})  # 1: refused, so the script does not wait
    ids = {
        "SLURM_JOB_ID": "221",
        "SLURM_ARRAY_JOB_ID": "221",
        "SLURM_ARRAY_TASK_ID": "1",
    }
    job = run_script(home, **ids)
    wait_for(lambda: (tmp_path / "r1" / "notebook.ipynb").exists())
    time.sleep(0.5)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 75
    assert cluster.calls[-1][:2] == ["scontrol", ["requeue", "221_1"]]
    went = Run(tmp_path / "r1").manifest["went"]
    assert (went["state"], went["why"]) == ("interrupted", "SIGUSR1")
    assert went["attempts"][0]["slurm"]["array_task_id"] == "1"
    cluster.answers(squeue={"out": "221|0|PENDING|None\n221|1|PENDING|BeginTime\n"})
    SLURM.forget()
    assert repr(Job(tmp_path / "r1")) == "r1  queued  (BeginTime)"


def test_a_module_that_is_missing_is_found_in_the_log(cluster, tmp_path, quick):
    site = FARM.replace(modules=("nosuch",))
    job = submit(tmp_path / "r", {}, site=site, notebook=quick)
    home = Path(cluster.called("sbatch")[0][1][-1]).parent
    done = subprocess.run(["bash", home / "job.sh"], capture_output=True, text=True)
    assert done.returncode == 1 and "no module nosuch" in done.stderr
    (home / "slurm-221_0.out").write_text(done.stderr)
    cluster.answers(squeue={"out": "221|0|FAILED|NonZeroExitCode\n"})
    SLURM.forget()
    with pytest.raises(JobFailed, match="no module nosuch"):
        job.wait(progress=False)


def test_secrets_of_the_environment_reach_no_file(
    tmp_path, quick, cluster, monkeypatch
):
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    for path in [*(tmp_path / "r").rglob("*"), *(tmp_path / "jobs").rglob("*")]:
        assert not path.is_file() or b"s3cret-value" not in path.read_bytes()


def test_accounts_and_the_check_of_a_site(cluster, tmp_path):
    cluster.answers(sacctmgr={"out": "crops\nsandbox\n\n"}, sinfo={"out": "gpu\ncpu\n"})
    assert sites.accounts() == ["crops", "sandbox"]
    site = FARM.replace(account="corps", partition="gpu", data=str(tmp_path / "none"))
    table = sites.check_site(site).set_index("what")
    assert not table.ok["account"] and "crops, sandbox" in table.remedy["account"]
    assert table.ok["partition"] and table.ok["sbatch"] and not table.ok["data"]


def test_committed_outputs_hold_no_path_of_the_machine():
    for name in ("01_tutorial_setup", "hpc/ondemand"):
        text = (ROOT / "nbs" / f"{name}.ipynb").read_text()
        assert not re.search(
            r"/(work|home|root|tmp)/[\w-]+/", text.replace("/tmp/rvt", "")
        )


def test_an_image_that_is_not_there_is_said_before_queueing(cluster, tmp_path, quick):
    site = FARM.replace(image=str(tmp_path / "rv.sif"))
    with pytest.raises(FileNotFoundError, match="no image at .*rv.sif; build it once"):
        submit(tmp_path / "r", {}, site=site, notebook=quick)
    (tmp_path / "box/.singularity.d").mkdir(parents=True)
    site = FARM.replace(image=str(tmp_path / "box"), binds=("/no/such:/in:ro",))
    with pytest.raises(FileNotFoundError, match="nothing at /no/such"):
        submit(tmp_path / "r", {}, site=site, notebook=quick)
    assert not cluster.called("sbatch") and not (tmp_path / "r").exists()


# --- what belongs to whom ------------------------------------------------------------


def copied(folder: Path, name: str) -> Path:
    "A copy of a run folder, as `cp -r` makes it."
    return Path(shutil.copytree(folder, folder.with_name(name), symlinks=True))


def test_cancelling_goes_on_behind_a_submission_that_stays(cluster, tmp_path, quick):
    for i in (1, 2):
        cluster.answers(sbatch={"out": f"22{i}\n"})
        submit(tmp_path / f"r{i}", {}, site=FARM, notebook=quick)
    cluster.answers(squeue={"out": "221|0|PENDING|None\n222|0|PENDING|None\n"})
    scancel, log = cluster.bin / "scancel", tmp_path / "cancelled"
    scancel.write_text(f"#!/bin/sh\ncase $1 in 221*) exit 1;; esac\necho $1 >> {log}\n")
    scancel.chmod(0o755)
    SLURM.forget()
    with pytest.raises(SlurmError, match="scancel 221_0 failed"):
        Job([tmp_path / "r1", tmp_path / "r2"]).cancel()
    assert log.read_text() == "222_0\n"
    assert Run(tmp_path / "r1").state == "queued"
    assert Run(tmp_path / "r2").state == "interrupted"


def test_runs_behind_a_silent_slurm_are_counted(cluster, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(batch, "WAITS", ())
    cluster.answers(scontrol={"out": "MaxArraySize = 2\n"})
    silent = {"code": 1, "err": "Socket timed out"}
    cluster.answers(sbatch=silent, squeue=silent)
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(5)}
    with pytest.raises(batch._Unheard, match="\n3 runs .* were not handed over"):
        submit_many(runs, site=FARM, notebook=quick)
    assert [Run(folder).state == "queued" for folder in runs] == [True] * 2 + [
        False
    ] * 3


def test_what_cannot_be_read_is_said_once(tmp_path, capsys):
    write_json(tmp_path / "tasks.json", {"folders": ["/x/r"]})
    (tmp_path / "cancelled.json").write_text("{")
    waiting = queue._LocalQueue(tmp_path)
    assert not any(waiting.cancelled(0) for _ in range(5))
    assert capsys.readouterr().err.count("cancelled.json") == 1


def test_a_copy_of_a_run_at_work_does_not_steer_the_original(tmp_path):
    book = notebook(tmp_path / "long.ipynb", "a = 1", "import time\ntime.sleep(60)")
    job = submit(tmp_path / "run", {}, notebook=book)
    wait_for(lambda: (tmp_path / "run" / "notebook.ipynb").exists())
    copy = Job(copied(tmp_path / "run", "copy"))
    [seen] = copy.details()
    assert seen["state"] == "interrupted" and seen["epochs"] is None
    assert seen["why"].startswith(f"copied or moved from {tmp_path / 'run'}")
    copy.cancel()
    time.sleep(1)
    assert job.states() == {tmp_path / "run": "running"}
    home = Path(Run(tmp_path / "run").manifest["went"]["job"]["submission"])
    assert not (home / "cancelled.json").exists()
    both = Job([tmp_path / "copy", tmp_path / "run"])
    (tmp_path / "link").symlink_to(tmp_path / "run")  # the same folder, not a copy
    assert Job(tmp_path / "link").states() == {tmp_path / "link": "running"}
    again = submit(tmp_path / "copy", {}, notebook=book)  # a run of its own
    assert again.states()[tmp_path / "copy"] in ("queued", "running")
    both.cancel()
    wait_for(lambda: both.done)
    assert set(both.states().values()) == {"cancelled"}


def test_a_copy_of_a_run_on_slurm_cancels_nothing(cluster, tmp_path, quick):
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(2)}
    submit_many(runs, site=FARM, notebook=quick)
    cluster.answers(
        squeue={"out": "221|0|RUNNING|None\n221|1|PENDING|None\n"}, scancel={}
    )
    write_json(
        tmp_path / "r0" / "job.lock", {"host": "node7", "folder": str(tmp_path / "r0")}
    )
    SLURM.forget()
    copy = Job([copied(tmp_path / "r0", "c0"), copied(tmp_path / "r1", "c1")])
    assert set(copy.states().values()) == {"interrupted"}
    copy.cancel()
    assert not cluster.called("scancel")
    Job([*copy.folders, tmp_path / "r1"]).cancel()
    assert cluster.called("scancel")[0][1] == ["221_1"]


def test_a_queue_that_is_killed_alone_leaves_its_run_at_work(tmp_path):
    "The run is at work and says so, the next one is lost; both can be dealt with."
    book = notebook(tmp_path / "long.ipynb", "a = 1", "import time\ntime.sleep(a)")
    runs = {tmp_path / "first": {"a": 60}, tmp_path / "next": {"a": 1}}
    job = submit_many(runs, notebook=book)
    wait_for(lambda: job.states()[tmp_path / "first"] == "running")
    home = Path(Run(tmp_path / "first").manifest["went"]["job"]["submission"])
    noted = read_json(home / "queue.json")
    os.kill(noted["pid"], signal.SIGKILL)
    wait_for(lambda: job.states()[tmp_path / "next"] == "lost")
    for _ in range(20):  # at no moment, as long as it begins
        assert job.states()[tmp_path / "first"] == "running"
        time.sleep(0.1)
    wait_for(lambda: (tmp_path / "first" / "notebook.ipynb").exists())
    assert job.states()[tmp_path / "first"] == "running" and not job.done
    submit(tmp_path / "first", {"a": 60}, notebook=book)
    assert len(list((tmp_path / "jobs").iterdir())) == 1  # not queued twice
    job.cancel()
    wait_for(lambda: job.done)
    assert job.states()[tmp_path / "first"] == "cancelled"
    assert Run(tmp_path / "first").manifest["went"]["why"] == "SIGTERM"
    wait_for(lambda: not psutil.pid_exists(noted["script"]))  # with all it has started


# --- more runs than an array holds ----------------------------------------------------


@pytest.mark.parametrize(
    "said, sizes", [("", [1001, 1]), ("MaxArraySize = 400", [400, 400, 202])]
)
def test_more_runs_than_an_array_holds(cluster, tmp_path, quick, said, sizes):
    "They become several arrays, each behind the one before."
    cluster.answers(
        scontrol={"out": f"Configuration data\n{said:>40}\nMaxJobCount = 10000\n"}
    )
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(1002)}
    submit_many(runs, site=FARM, notebook=quick)
    calls = [args for _, args, _ in cluster.called("sbatch")]
    arrays = [next(a for a in args if a.startswith("--array=")) for args in calls]
    assert arrays == [f"--array=0-{size - 1}%2" for size in sizes]
    behind = [[a for a in args if a.startswith("--dep")] for args in calls]
    assert behind == [[]] + [["--dependency=afterany:221"]] * (len(sizes) - 1)
    last = read_json(tmp_path / "r1001" / "run.json")["went"]["job"]
    assert last["index"] == sizes[-1] - 1 and last["params"] == {"a": 1001}


def test_the_local_queue_takes_any_number(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(queue.Submission, "start_local", lambda home: "0")
    submit_many({tmp_path / f"r{i}": {"a": i} for i in range(1002)}, notebook=quick)
    [home] = (tmp_path / "jobs").iterdir()
    waiting = queue._LocalQueue(home)
    assert len(waiting.members) == 1002
    begun = time.monotonic()
    waiting.wait_behind("another")  # one record of all, not one of each
    assert time.monotonic() - begun < 2 * pace()
    members = read_json(home / "queue.json")["members"]
    assert {member["reason"] for member in members} == {"behind another"}


# --- what a site prints around Slurm's words -------------------------------------------

NOTICE = "*** NOTICE: maintenance on 2026-12-01 | 08:00 | all nodes | see wiki ***\n\n"
NAMED = "221|@name@\n"  # where squeue is asked for a job by its name
LINES = NAMED + "221|0|RUNNING|None\n221|1|PENDING|Resources\n"


@pytest.mark.parametrize(
    "printed", [NOTICE + "221\n", "221\n" + NOTICE, NOTICE + "Submitted batch job 221\n" + NOTICE]
)  # fmt: skip
def test_notices_around_every_answer(cluster, tmp_path, quick, printed):
    cluster.answers(sbatch={"out": printed}, squeue={"out": NOTICE + LINES + NOTICE})
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(2)}
    job = submit_many(runs, site=FARM, notebook=quick)
    SLURM.forget()
    assert list(job.states().values()) == ["running", "queued"]
    assert len(cluster.called("sbatch")) == 1
    cluster.answers(
        squeue={"out": NOTICE},
        sacct={"out": NOTICE + "221_0|COMPLETED\n221_1|TIMEOUT\n"},
    )
    Run(tmp_path / "r0").update("went", state="succeeded")
    SLURM.forget()
    assert list(job.states().values()) == ["succeeded", "timed out"]
    shown = "JobId=222 ArrayJobId=221 ArrayTaskId=1 JobState=NODE_FAIL Reason=None\n"
    cluster.answers(sacct={"code": 1}, scontrol={"out": NOTICE + shown})
    SLURM.forget()
    assert job.states()[tmp_path / "r1"] == "node lost"


ODD = {
    "latin-1": "Wartung f\xfcr alle\n".encode("latin-1"),
    "gbk": "\u96c6\u7fa4\u7ef4\u62a4\n".encode("gbk"),
    "utf-8": "\u96c6\u7fa4\u7ef4\u62a4\n".encode(),
    "colours": b"\x1b[1;33mNOTICE\n\x1b[0m",
    "dos": b"NOTICE\r\n",
    "a number": b"17\n",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("where", ["before", "after", "around"])
def test_notices_in_any_bytes(cluster, tmp_path, quick, name, where):
    "Other languages and encodings, colours, lines that are a number."

    def printed(text):
        before, after = (ODD[name] if where != w else b"" for w in ("after", "before"))
        return (before + text.encode() + after).decode("latin-1")

    told = LINES if name == "a number" else printed(LINES)
    replies = {"sbatch": {"out": printed("221\n")}, "squeue": {"out": told}}
    cluster.answers(**replies)
    for program in replies:  # bytes, as they are
        path = cluster.bin / program
        text = path.read_text().replace(
            'sys.stdout.write(reply.get("out", ""))',
            'sys.stdout.buffer.write(reply.get("out", "").encode("latin-1"))',
        )
        path.write_text(text)
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(2)}
    job = submit_many(runs, site=FARM, notebook=quick)
    SLURM.forget()
    assert list(job.states().values()) == ["running", "queued"]
    home = Path(cluster.called("sbatch")[0][1][-1]).parent
    assert read_json(home / "job.json")["id"] == "221"


@pytest.mark.parametrize(
    "notice", ["3 nodes are down", "2026 maintenance", "01.12.2026: maintenance"]
)
def test_a_notice_that_begins_with_a_number_is_no_job(cluster, tmp_path, quick, notice):
    cluster.answers(sbatch={"out": NOTICE}, squeue={"out": f"{notice}\n{LINES}"})
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    home = Path(cluster.called("sbatch")[0][1][-1]).parent
    assert read_json(home / "job.json")["id"] == "221"


@pytest.mark.parametrize(
    "told, states",
    [
        ("", ["queued", "queued"]),
        ("221_[0-1%2]|PENDING\n", ["queued", "queued"]),
        ("221_0|RUNNING\n221_[1]|PENDING\n", ["running", "queued"]),
        ("221_0|TIMEOUT\n", ["timed out", "queued"]),
    ],
)
def test_a_silent_controller_loses_nothing_where_accounts_are_kept(
    cluster, tmp_path, quick, told, states
):
    "squeue does not answer, sacct does, and knows nothing yet of what waits."
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(2)}
    job = submit_many(runs, site=FARM, notebook=quick)
    cluster.answers(
        squeue={"code": 1, "err": "Unable to contact slurm controller"},
        sacct={"out": told},
    )
    SLURM.forget()
    assert list(job.states().values()) == states
    submit(tmp_path / "r1", {"a": 1}, site=FARM, notebook=quick)
    assert len(cluster.called("sbatch")) == 1


def test_notices_in_the_check_of_a_site(cluster):
    cluster.answers(
        sacctmgr={"out": NOTICE + "crops\n"}, sinfo={"out": NOTICE + "gpu\n"}
    )
    assert sites.accounts() == ["crops"]
    table = sites.check_site(FARM).set_index("what")
    assert table.ok["account"] and table.ok["partition"]
    wrong = sites.check_site(FARM.replace(partition="gpus")).set_index("what")
    assert wrong.remedy["partition"] == "yours: gpu"


def test_an_accepted_job_without_a_number_is_found_and_not_repeated(
    cluster, tmp_path, quick
):
    cluster.answers(
        sbatch={"out": NOTICE}, squeue={"out": NOTICE + NAMED + "221|0|RUNNING|None\n"}
    )
    job = submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    home = Path(cluster.called("sbatch")[0][1][-1]).parent
    assert read_json(home / "job.json")["id"] == "221"
    named = [args for _, args, _ in cluster.called("squeue") if "-n" in args]
    assert named[0][named[0].index("-n") + 1] == home.name
    assert len(cluster.called("sbatch")) == 1 and job.states() == {
        tmp_path / "r": "running"
    }


@pytest.mark.parametrize(
    "reply",
    [{"out": NOTICE}, {"code": 1, "err": "sbatch: error: Batch job submission failed: "
                                         "Socket timed out on send/recv operation"}],
)  # fmt: skip
def test_a_job_that_may_be_queued_is_not_queued_again(
    cluster, tmp_path, quick, reply, monkeypatch
):
    "Slurm is silent after sbatch: the run waits until Slurm says what has become of it."
    monkeypatch.setattr(batch, "WAITS", (0.01, 0.01))
    cluster.answers(sbatch=reply, squeue={"code": 1, "err": "Socket timed out"})
    with (
        pytest.warns(UserWarning),
        pytest.raises(batch._Unheard, match="may well be queued"),
    ):
        submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    assert len(cluster.called("sbatch")) == 1
    SLURM.forget()
    queue._SOUGHT.clear()
    job = Job(tmp_path / "r")
    assert job.states() == {tmp_path / "r": "queued"}
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    assert len(cluster.called("sbatch")) == 1
    cluster.answers(squeue={"out": NOTICE + NAMED + "221|0|PENDING|Priority\n"})
    SLURM.forget()
    queue._SOUGHT.clear()
    assert repr(job) == "r  queued  (Priority)"
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    assert len(cluster.called("sbatch")) == 1


@pytest.mark.parametrize(
    "word, said",
    [("SOME_NEW_STATE", "'SOME_NEW_STATE'"), ("REVOKED", "another cluster")],
)
def test_states_that_are_not_known_are_named(cluster, tmp_path, quick, word, said):
    job = submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    cluster.answers(squeue={"out": f"221|0|{word}|None\n"})
    SLURM.forget()
    [seen] = job.details()
    assert seen["state"] == "queued" and said in seen["why"]
    submit(tmp_path / "r", {}, site=FARM, notebook=quick)
    assert len(cluster.called("sbatch")) == 1
    Run(tmp_path / "r").update("went", state="succeeded")
    assert job.states() == {tmp_path / "r": "succeeded"}


# --- several clusters ---------------------------------------------------------------


def test_the_cluster_goes_into_every_question(cluster, tmp_path, quick, monkeypatch):
    for name in ("SLURM_CLUSTERS", "SQUEUE_FORMAT", "SQUEUE_STATES", "SINFO_FORMAT",
                 "SACCT_FORMAT", "SBATCH_CLUSTERS", "SCANCEL_STATE", "SQUEUE_CLUSTERS"):  # fmt: skip
        monkeypatch.setenv(name, "other")
    shown = "ArrayJobId=123 ArrayTaskId=1 JobState=FAILED"
    cluster.answers(
        sbatch={"out": "123;gpu\n"}, scancel={}, scontrol={"out": shown},
        squeue={"out": "CLUSTER: gpu\n123|0|RUNNING|None\n"},
    )  # fmt: skip
    site = FARM.replace(extra=("--clusters=gpu",))
    runs = {tmp_path / f"r{i}": {"a": i} for i in range(2)}
    job = submit_many(runs, site=site, notebook=quick)
    SLURM.forget()
    assert job.states() == {tmp_path / "r0": "running", tmp_path / "r1": "lost"}
    cluster.answers(squeue={"out": "CLUSTER: gpu\n"})
    SLURM.forget()
    assert job.states()[tmp_path / "r1"] == "failed"
    cluster.answers(squeue={"out": "123|0|RUNNING|None\n123|1|PENDING|None\n"})
    SLURM.forget()
    later = submit(tmp_path / "later", {}, site=site, notebook=quick, after=job)
    assert "--dependency=afterany:123" in cluster.called("sbatch")[1][1]
    assert later.folders == [tmp_path / "later"]
    with pytest.raises(ValueError, match="another cluster"):
        other = FARM.replace(extra=("--clusters=cpu",))
        submit(tmp_path / "x", {}, site=other, notebook=quick, after=job)
    job.cancel()
    assert cluster.called("scancel")[0][1] == ["-M", "gpu", "123_0", "123_1"]
    asked = [
        call
        for call in cluster.calls
        if call[0] in ("squeue", "sacct", "sinfo", "scancel")
    ]
    assert {call[0] for call in asked} == {"squeue", "sacct", "sinfo", "scancel"}
    assert all(args[:2] == ["-M", "gpu"] for _, args, _ in asked)
    assert all(args[:2] == ["-M", "gpu"] for _, args, _ in cluster.called("scontrol"))
    for _, _, env in cluster.calls:
        assert "other" not in env.values()


def test_jobs_of_two_clusters_with_one_number(cluster, tmp_path, quick):
    "The same number on two clusters is two jobs; one that is silent is not lost."
    for name in ("cpu", "gpu"):
        cluster.answers(sbatch={"out": f"5;{name}\n"})
        submit(tmp_path / name, {}, site=FARM, notebook=quick)
    script = "#!/bin/sh\ncase \"$2\" in gpu) echo '5|0|RUNNING|None';; *) {}; esac\n"
    (cluster.bin / "squeue").write_text(script.format("echo '5|0|TIMEOUT|None'"))
    job = Job([tmp_path / "cpu", tmp_path / "gpu"])
    SLURM.forget()
    assert list(job.states().values()) == ["timed out", "running"]
    (cluster.bin / "squeue").write_text(script.format("exit 1"))
    SLURM.forget()
    rows = job.details()
    assert [row["state"] for row in rows] == ["queued", "running"]
    assert rows[0]["why"] == "Slurm does not answer"


# --- lines of IPython in a parameters cell ----------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline\na = 1\nb = 'x'",
        "a = 1\n!ls /\nb = 'x'",
        "%load_ext autoreload\n%autoreload 2\n\na = 1\nb = 'x'\n%time",
        "a = 1\nb = 'x'\n?print",
        "a = 1; b = 'x'  # 100 %\n",
    ],
)
def test_lines_of_ipython_are_no_parameters(tmp_path, source):
    text = 'import json\njson.dump([a, b], open("got.json", "w"))'
    book = notebook(tmp_path / "magic.ipynb", source, text)
    assert {k: v for k, v in JobNotebook(book).parameters.items() if k in "ab"} == {
        "a": 1,
        "b": "x",
    }
    with pytest.raises(ValueError, match="'c' is no parameter"):
        submit(tmp_path / "r", {"c": 1}, notebook=book)


@pytest.mark.parametrize(
    "source, place",
    [
        ("a = 1\nb = = 2", "line 2 .*'b = = 2'"),
        ("%matplotlib inline\na = (1", "line 2 .*'a = \\(1'"),
        ("a = 1\n  b = 2", "line 2"),
        ("a = '\x00'", "no Python"),
        ("a = " + "(" * 5000 + ")" * 5000, "no Python"),
    ],
)
def test_what_is_no_python_is_said_with_its_line(tmp_path, source, place):
    book = notebook(tmp_path / "bad.ipynb", source)
    with pytest.raises(ValueError, match=f"bad.ipynb.*{place}"):
        submit(tmp_path / "r", {}, notebook=book)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"cells": 3}', '{"cells": ["x"]}', "\udcff"]
)
def test_a_file_that_is_no_notebook(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="x.ipynb"):
        _ = JobNotebook(path).parameters
