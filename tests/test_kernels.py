"Runs of one submission share what is imported, and nothing else; the job script that serves them."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from rvtutorial.core.records import read_json
from rvtutorial.hpc.job import JobFailed, JobNotebook
from rvtutorial.hpc.local_queue import _JobScript, _LocalQueue
from rvtutorial.runs import Run
from rvtutorial.slurm import submit_many

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True, scope="module")
def own_queue(tmp_path_factory):
    "A queue that nobody else uses."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RVTUTORIAL_QUEUE", str(tmp_path_factory.mktemp("queue")))
        yield


def book(path, *cells):
    "A job notebook: parameters, then cells."
    one = nbformat.v4.new_code_cell("number = 0")
    one.metadata["tags"] = ["parameters"]
    cells = [one, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


TELL = """
import json, os, sys
known = sorted({"pandas", "rvtutorial.metrics.counting"} & set(sys.modules))
import asyncio, atexit, multiprocessing, random, signal, tempfile
import numpy, pandas
from rvtutorial.metrics import counting
from tqdm.auto import tqdm
os.system(f"echo a program of {number}")
if number == 3:
    os.kill(os.getpid(), signal.SIGKILL)
sums, how, pool = [], None, None
for how in ("fork", "spawn") * (number == 1):
    with multiprocessing.get_context(how).Pool(1) as pool:
        sums.append(pool.apply(sum, ([1, 2],)))
await asyncio.sleep(0)
temporary = tempfile.TemporaryDirectory()
atexit.register(open, os.path.join(os.getcwd(), "ended"), "w")
with open(os.path.join(os.getcwd(), "told.json"), "w") as file:
    json.dump(dict(
        known=known, pid=os.getpid(), cwd=os.getcwd(), number=number,
        leader=os.getsid(0) == os.getpid(), path=sys.path, argv=sys.argv,
        chance=[numpy.random.random(), random.random()],
        left=os.environ.get("LEFT_BY_A_RUN"), marked=hasattr(pandas, "marked"),
        backend=os.environ.get("MPLBACKEND"), user=sorted(globals()),
        files=[os.readlink(f"/proc/self/fd/{n}") for n in range(100)
               if os.path.exists(f"/proc/self/fd/{n}")],
        handlers=[signal.getsignal(n) == signal.SIG_DFL for n in (15, 10, 1)],
        sums=sums, temporary=temporary.name,
    ), file)
os.environ["LEFT_BY_A_RUN"] = pandas.marked = "yes"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Folders of four runs of one submission, of which the last kills its own kernel."
    place = tmp_path_factory.mktemp("told")
    runs = {place / f"r{n}": {"number": n} for n in range(4)}
    with pytest.MonkeyPatch.context() as patch:  # as on a machine without GPU
        patch.setattr("rvtutorial.hpc.local_queue.DRIVERS", ())
        job = submit_many(runs, notebook=book(place / "tell.ipynb", TELL))
        with pytest.raises(JobFailed, match="r3"):
            job.wait(progress=False, timeout=120)
    return list(runs)


@pytest.fixture
def told(runs):
    "What the first three say of themselves."
    return [read_json(folder / "told.json") for folder in runs[:3]]


def test_what_of_this_package_a_notebook_imports(tmp_path):
    text = "import json, rvtutorial.viz\nfrom rvtutorial import config\nimport torch"
    path = book(tmp_path / "a.ipynb", text, "%matplotlib inline\nfrom .x import y")
    assert JobNotebook(path).imports == ["rvtutorial.viz", "rvtutorial.config"]
    assert (
        JobNotebook(book(tmp_path / "b.ipynb", "(", "import rvtutorial.viz")).imports
        == []
    )


def test_what_a_run_imports_is_there_before_it_begins(told):
    for one in told:
        assert one["known"] == ["pandas", "rvtutorial.metrics.counting"]


def test_everything_else_is_its_own(told, runs):
    assert [one["number"] for one in told] == [0, 1, 2]
    assert [Path(one["cwd"]).name for one in told] == ["r0", "r1", "r2"]
    for key in ("pid", "chance"):
        assert len({str(one[key]) for one in told}) == 3, key
    for one, folder in zip(told, runs, strict=False):
        assert one["leader"] and all(one["handlers"])
        assert one["left"] is None and not one["marked"]
        assert f"a program of {one['number']}" in (folder / "job.log").read_text()
        assert 30 < Run(folder).manifest["went"]["peak_memory_mb"] < 2000


def test_a_copy_is_like_a_kernel_that_started_from_nothing(told, tmp_path):
    "The same search path, arguments, variables and names as papermill's own kernel."
    import papermill

    out, cwd = tmp_path / "out.ipynb", tmp_path / "alone"
    cwd.mkdir()
    path = book(tmp_path / "tell.ipynb", TELL)
    kernel = dict(kernel_name="python3", language="python", progress_bar=False)
    papermill.execute_notebook(path, out, {"number": 1}, cwd=str(cwd), **kernel)
    alone = read_json(cwd / "told.json")
    for one in told:
        assert one["user"] == alone["user"]
        assert one["path"] == [p for p in alone["path"] if p != HERE]
        assert one["backend"] == alone["backend"]
        assert one["argv"][1] == alone["argv"][1] == "-f"
        names = {Path(name).name for name in one["files"]}
        assert not {n for n in names if n == "job.lock" or n.startswith("local-")}


def test_a_copy_can_have_workers(told):
    assert told[1]["sums"] == [3, 3]


def test_what_a_notebook_leaves_to_the_end_is_done(told, runs):
    for one, folder in zip(told, runs, strict=False):
        assert (folder / "ended").exists() and not Path(one["temporary"]).exists()
        assert "IProgress" not in (folder / "notebook.ipynb").read_text()


def test_a_copy_that_is_killed_for_its_memory_says_so(runs):
    went = Run(runs[3]).manifest["went"]
    assert "SIGKILL; out of memory" in went["why"] and went["peak_memory_mb"] > 30


def test_drivers_that_do_not_bear_a_fork_and_single_runs_start_anew(
    tmp_path, monkeypatch
):
    def shares(count):
        tasks = {"folders": [str(tmp_path / f"r{n}") for n in range(count)]}
        (tmp_path / "tasks.json").write_text(str(tasks).replace("'", '"'))
        return _LocalQueue(tmp_path).shares

    monkeypatch.setattr("rvtutorial.hpc.local_queue.DRIVERS", ())
    monkeypatch.setenv("RVTUTORIAL_FRESH", "0")
    assert shares(2) and not shares(1)
    monkeypatch.setenv("RVTUTORIAL_FRESH", "1")
    assert not shares(2)
    monkeypatch.delenv("RVTUTORIAL_FRESH")
    monkeypatch.setattr("rvtutorial.hpc.local_queue.DRIVERS", ("/dev/null",))
    assert not shares(2), "CUDA would not work in a copy"


# --- the job script that serves all members ----------------------------------------------


@pytest.fixture
def script(tmp_path):
    "A script whose members do what the number says."
    (tmp_path / "serve.py").write_text("""
import os, sys, time
for line in sys.stdin:
    number = int(line)
    print("begun", number, file=sys.stderr, flush=True)
    if number == 7:
        os.kill(os.getpid(), 9)
    time.sleep(30 if number >= 8 else number == 6)
    print(f"a word from the site\\nended {number} {number}", flush=True)
""")
    (tmp_path / "job.sh").write_text(f'exec "{sys.executable}" {tmp_path}/serve.py')
    one = _JobScript(tmp_path, 0, shares=True)
    yield one
    one.process.kill()
    one.close()
    one.process.stdout.close()


def begun(script, number, seconds=20):
    path, end = script.home / "local-0.out", time.monotonic() + seconds
    while not path.exists() or f"begun {number}" not in path.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(script, number):
    script.run(number)
    return script.wait()


def test_exit_codes_and_words_go_where_they_belong(script):
    assert [ended(script, n) for n in (0, 3, 1)] == [0, 3, 1]
    assert script.process.poll() is None
    assert (script.home / "local-3.out").read_text() == "a word from the site\n"
    assert ended(script, 7) == -9
    assert script.process.poll() is not None
    script.run(1)  # nobody reads it any more


def test_a_member_may_take_only_so_long(script):
    script.run(6)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(0.2)
    assert script.wait(10) == 6
    script.run(8)
    begun(script, 8)
    script.send_signal(signal.SIGTERM)
    assert script.wait(10) == -signal.SIGTERM


def test_a_script_ends_when_no_more_members_come(script):
    assert ended(script, 2) == 2
    script.close()
    assert script.process.returncode == 0


def test_a_queue_that_is_killed_lets_its_member_end(tmp_path):
    "The runner reads to the end of its orders, and needs nobody who reads its answers."
    text = "import time\ntime.sleep(2)\nopen('done', 'w').close()"
    runs = {tmp_path / f"r{n}": {"number": n} for n in range(2)}
    submit_many(runs, notebook=book(tmp_path / "long.ipynb", text))
    first, second = runs
    end = time.monotonic() + 60
    while not (first / "notebook.ipynb").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    [home] = (tmp_path / "jobs").iterdir()
    noted = read_json(home / "queue.json")
    os.kill(noted["pid"], signal.SIGKILL)
    while Path(f"/proc/{noted['script']}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (first / "done").exists() and Run(first).state == "succeeded"
    assert not (second / "done").exists()
    assert "Traceback" not in (home / "local-0.out").read_text()
