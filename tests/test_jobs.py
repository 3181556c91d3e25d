"Jobs that are interrupted, killed, locked out or run out of disk; lessons."

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from signals import heeded

from rvtutorial.core import files
from rvtutorial.core.files import held
from rvtutorial.core.records import read_json, write_json
from rvtutorial.course import lessons
from rvtutorial.course.lessons import _LessonFailed, _run_lesson, _run_lessons
from rvtutorial.hpc import kernels, runner
from rvtutorial.runs import Run

PNG = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
        "awAAAABJRU5ErkJggg=="
    )
).decode()


@pytest.fixture(autouse=True)
def own_queue(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path_factory.mktemp("queue")))


def notebook(path: Path, *cells: str, params: str | None = "a = 1") -> Path:
    book = nbformat.v4.new_notebook()
    for source in ([params] if params else []) + list(cells):
        book.cells.append(nbformat.v4.new_code_cell(source))
    if params:
        book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, path)
    return path


class Trial:
    "A run folder beside a notebook, and ways to start it."

    def __init__(self, home: Path, *cells: str, **params):
        self.folder = home / "run"
        self.folder.mkdir(exist_ok=True)
        self.notebook = notebook(home / "job.ipynb", *cells)
        write_json(self.folder / "params.json", params)

    @property
    def command(self):
        where = [str(self.folder), "--notebook", str(self.notebook)]
        return [sys.executable, "-m", "rvtutorial.hpc.runner", *where]

    def run(self, before=(), **env):
        env = {**os.environ, **env}
        return subprocess.run(
            [*before, *self.command],
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
        )

    def start(self, until: str):
        "Start, and return when the log holds a text."
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while until not in self.log:
            assert time.monotonic() < end and process.poll() is None, self.log
            time.sleep(0.05)
        time.sleep(0.3)
        return process

    @property
    def log(self):
        path = self.folder / "job.log"
        return path.read_text() if path.exists() else ""

    @property
    def went(self):
        return Run(self.folder).manifest["went"]

    def cells(self, name="notebook.ipynb"):
        return read_json(self.folder / name)["cells"]


SLEEP = "import time\nprint('working', flush=True)\ntime.sleep(60)"


def kernel_of(process) -> int:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(path.read_text().split()[0])


# --- how a job ends -----------------------------------------------------------------


def test_importing_is_light():
    code = (
        "import sys, rvtutorial.hpc.runner;"
        "print({'torch', 'pandas', 'rastervision', 'papermill'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "set()"


def test_success_and_nothing_to_do_the_second_time(tmp_path):
    trial = Trial(tmp_path, "print('made of', a)\nopen('made', 'w').write(str(a))", a=7)
    done = trial.run()
    assert done.returncode == 0, done.stderr
    assert (trial.folder / "made").read_text() == "7" and "made of 7" in trial.log
    assert trial.went["state"] == "succeeded" and trial.went["peak_memory_mb"] > 10
    assert trial.went["job"]["params"] == {"a": 7}
    before = {p: p.stat().st_mtime_ns for p in trial.folder.iterdir() if p.suffix}
    again = trial.run()
    assert again.returncode == 0 and "nothing to do" in again.stdout
    after = {p: p.stat().st_mtime_ns for p in trial.folder.iterdir() if p.suffix}
    assert {k for k in before if before[k] != after[k]} <= {trial.folder / "job.lock"}
    write_json(trial.folder / "params.json", {"a": 8})
    other = trial.run()
    assert other.returncode == 1 and "a is 7 there, 8 here" in other.stderr


def test_a_notebook_of_before_says_keep_and_means_checkpoint(tmp_path):
    "It asks for the names that Hyperparams has today, and would find none."
    cell = "names = ['checkpoint']\nprint({n: globals().get(n) for n in names})"
    trial = Trial(tmp_path, cell, keep="best")
    notebook(trial.notebook, cell, params="keep: str = None")
    assert trial.run().returncode == 0
    assert "{'checkpoint': 'best'}" in trial.cells()[-1]["outputs"][0]["text"][0]


def test_a_failing_cell_and_a_second_attempt(tmp_path):
    text = "from pathlib import Path\nassert Path('../ok').exists(), 'not yet'"
    trial = Trial(tmp_path, text)
    assert trial.run().returncode == 1
    assert (
        trial.went["state"] == "failed"
        and trial.went["why"] == "AssertionError: not yet"
    )
    assert read_json(trial.folder / "notebook.ipynb")["metadata"]["rvtutorial"] == {
        "state": "failed", "why": "AssertionError: not yet", "attempt": 1,
    }  # fmt: skip
    (tmp_path / "ok").touch()
    assert trial.run().returncode == 0
    assert [a["state"] for a in trial.went["attempts"]] == ["failed", "succeeded"]
    names = sorted(p.name for p in trial.folder.glob("notebook*"))
    assert names == ["notebook.attempt1.ipynb", "notebook.ipynb"]


def test_early_warning_interrupts_the_kernel_and_asks_for_another_turn(tmp_path):
    text = SLEEP.replace(
        "time.sleep(60)",
        "try:\n    time.sleep(60)\nfinally:\n    open('checkpoint', 'w').close()",
    )
    trial = Trial(tmp_path, text, "print('never')")
    process = trial.start("working")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75
    assert (trial.went["state"], trial.went["why"]) == ("interrupted", "SIGUSR1")
    assert (trial.folder / "checkpoint").exists()
    kinds = [o["output_type"] for o in trial.cells()[-2]["outputs"]]
    assert "error" in kinds and trial.cells()[-1]["outputs"] == []


def test_being_told_to_stop(tmp_path):
    trial = Trial(tmp_path, SLEEP)
    process = trial.start("working")
    kernel = kernel_of(process)
    process.terminate()
    assert process.wait(30) == 143
    assert (trial.went["state"], trial.went["why"]) == ("interrupted", "SIGTERM")
    assert not Path(f"/proc/{kernel}").exists()
    assert list(trial.folder.glob(".reserve")) == []


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6, 0.9, 1.3])
def test_being_told_to_stop_while_it_starts(tmp_path, delay):
    "Whatever it was doing: no traceback, no state that is not true."
    trial = Trial(tmp_path, SLEEP)
    process = subprocess.Popen(trial.command, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode in (143, -15) and "Traceback" not in error
    if process.returncode == 143:
        assert Run(trial.folder).state == "interrupted"


def test_a_kernel_that_does_not_listen(tmp_path):
    "One that does nothing is left soon, with its processes."
    deaf = "import time\nprint('working', flush=True)\nend = time.time() + 60\n"
    deaf += "while time.time() < end:\n    try:\n        time.sleep(1)\n"
    deaf += "    except KeyboardInterrupt:\n        print('no')"
    trial = Trial(tmp_path, deaf)
    process = trial.start("working")
    kernel = kernel_of(process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 75
    assert trial.went["state"] == "interrupted"
    assert not Path(f"/proc/{kernel}").exists()


SPIN = "    end = time.time() + {}\n    while time.time() < end: pass\n"


@pytest.mark.slow
def test_a_checkpoint_may_take_its_time(tmp_path):
    text = "import time\nprint('working', flush=True)\ntry:\n    time.sleep(60)\n"
    text += "except KeyboardInterrupt:\n" + SPIN.format(6)
    text += "    open('checkpoint', 'w').close()\n    raise"
    trial = Trial(tmp_path, text)
    process = trial.start("working")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75
    assert (trial.folder / "checkpoint").exists()


@pytest.mark.slow
def test_the_grace_has_an_end(tmp_path):
    text = "import time\nprint('working', flush=True)\ntry:\n    time.sleep(60)\n"
    text += "except KeyboardInterrupt:\n" + SPIN.format(60)
    trial = Trial(tmp_path, text)
    process = trial.start("working")
    begun = time.monotonic()
    process.terminate()
    assert process.wait(30) == 143
    assert 8 < time.monotonic() - begun < 20


@pytest.mark.slow
def test_whenever_the_warning_comes_it_is_heeded(tmp_path):
    "Before the kernel, while it starts, between two cells, in a cell."
    book = ["import time", "pass", "time.sleep(60)"]
    for number, delay in enumerate((0.5, 0.9, 1.2, 1.5, 1.8, 2.1)):
        home = tmp_path / str(number)
        home.mkdir()
        trial = Trial(home, *book)
        process = subprocess.Popen(trial.command, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) in (75, -signal.SIGUSR1), delay


def test_a_kernel_that_is_killed(tmp_path):
    trial = Trial(tmp_path, SLEEP, "print('never')")
    process = trial.start("working")
    os.kill(kernel_of(process), signal.SIGKILL)
    assert process.wait(30) == 1
    assert trial.went["state"] == "failed"
    assert "kernel died (SIGKILL" in trial.went["why"] and "memory" in trial.went["why"]
    assert (
        read_json(trial.folder / "notebook.ipynb")["metadata"]["rvtutorial"]["state"]
        == "failed"
    )


def test_a_kernel_that_leaves_by_itself(tmp_path):
    trial = Trial(tmp_path, "import os\nos._exit(3)")
    assert trial.run().returncode == 1
    assert trial.went["why"] == "the kernel died (exit code 3)"


def test_a_runner_that_is_killed_leaves_a_lock_that_is_taken_over(tmp_path):
    text = "import time, os\nprint('working', flush=True)\n"
    text += "time.sleep(0 if os.path.exists('../ok') else 60)"
    trial = Trial(tmp_path, text)
    process = trial.start("working")
    busy = trial.run()
    assert busy.returncode == 1 and f"process {process.pid}" in busy.stderr
    assert len(trial.went["attempts"]) == 1
    process.kill()
    process.wait()
    assert trial.went["state"] == "running"  # it could not say anything else
    (tmp_path / "ok").touch()
    assert trial.run().returncode == 0
    assert [a["state"] for a in trial.went["attempts"]] == ["running", "succeeded"]


# --- what is around it --------------------------------------------------------------


def cut_off() -> list[str]:
    "A command in front that cuts off the network, loopback too; [] where that is not allowed."
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            pass
    return []


def test_it_works_without_any_network(tmp_path):
    before = cut_off()
    if not before:
        pytest.skip("this machine does not allow `unshare -n`")
    text = "import socket\ns = socket.socket()\ntry:\n    s.connect(('127.0.0.1', 9))\n"
    text += "except OSError as error:\n    print('errno', error.errno)"
    trial = Trial(tmp_path, text)
    done = trial.run(before)
    assert done.returncode == 0, trial.log
    assert "errno 101" in trial.log  # network unreachable: not even a loopback


@pytest.mark.slow
def test_long_names_other_kernels_and_startup_files_do_no_harm(tmp_path):
    long = tmp_path / ("t" * 120)
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    for folder in (long, spec, startup):
        folder.mkdir(parents=True)
    write_json(
        spec / "kernel.json",
        {"argv": ["false"], "display_name": "x", "language": "python"},
    )
    (startup / "00.py").write_text("raise SystemExit('startup file was run')")
    trial = Trial(tmp_path, "import sys\nprint(sys.executable)")
    done = trial.run(
        TMPDIR=str(long), JUPYTER_PATH=str(tmp_path / "jupyter"),
        IPYTHONDIR=str(tmp_path / "ipython"), MPLBACKEND="nonsense",
    )  # fmt: skip
    assert done.returncode == 0, trial.log
    assert sys.executable in trial.log and "startup" not in trial.log
    assert list(long.iterdir()) == []


def test_no_short_folder_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(kernels.os, "access", lambda *a: False)
    with pytest.raises(OSError, match="107 bytes: set TMPDIR"):
        kernels._socket_folder()


@pytest.fixture
def small_disk(tmp_path):
    "A file system of one megabyte."
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not allow a mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk, tmp_path):
    "The notebook stays whole, the record says why, and after making room it goes on."
    text = "import os\nif not os.path.exists('../room'):\n    with open('junk', 'wb') as f:\n"
    text += "        try:\n            f.write(os.urandom(2_000_000))\n"
    text += "        except OSError as error:\n            print(error)"
    trial = Trial(small_disk, "print('first')", text, "print('y' * 200_000)")
    done = trial.run()
    assert done.returncode == 1
    assert trial.went["state"] == "failed" and "no space is left" in trial.went["why"]
    assert trial.cells()[1]["outputs"][0]["text"] == ["first\n"]
    assert not list(trial.folder.glob(".*partial*"))
    (trial.folder / "junk").unlink()
    (small_disk / "room").touch()
    assert trial.run().returncode == 0, trial.log
    assert trial.went["state"] == "succeeded"


def test_a_notebook_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    from papermill.iorw import papermill_io

    runner._use_atomic_files(tmp_path)
    path = tmp_path / "notebook.ipynb"
    papermill_io.write("old", str(path), [".ipynb"])

    def broken(number):
        raise OSError(5, "broken disk")

    monkeypatch.setattr(runner.os, "fsync", broken)
    with pytest.raises(OSError, match="broken disk"):
        papermill_io.write("new", str(path), [".ipynb"])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kind", "limit", "told"),
    [
        (
            "RLIMIT_AS",
            2**30,
            "1.0 GB of addresses here (ulimit -v), and Raster Vision needs 5",
        ),
        (
            "RLIMIT_AS",
            3 * 2**30,
            "3.0 GB of addresses here (ulimit -v), and Raster Vision needs 5",
        ),
        (
            "RLIMIT_NOFILE",
            64,
            "64 files open here (ulimit -Hn), and a kernel needs 256",
        ),
    ],
)
def test_limits_that_are_too_low_are_told_at_once(kind, limit, told, tmp_path):
    "A kernel would spin for minutes, or die with a page of errors."
    trial = Trial(tmp_path, "import torch")
    set_limit = f"import resource as r; r.setrlimit(r.{kind}, ({limit}, {limit})); "
    code = set_limit + "import os, sys; os.execv(sys.executable, sys.argv[1:])"
    start = time.monotonic()
    done = trial.run(before=[sys.executable, "-c", code])
    assert done.returncode == 1 and time.monotonic() - start < 60
    assert trial.went["state"] == "failed" and told in trial.went["why"]
    assert len(trial.log.splitlines()) == 1 and told in trial.log
    lesson = [sys.executable, "-m", "rvtutorial.course.lessons", "--only", "01"]
    lesson += ["--parts", str(tmp_path), "--out", str(tmp_path / "out")]
    notebook(tmp_path / "01_x.ipynb", "import torch")
    done = subprocess.run(
        [sys.executable, "-c", code, *lesson],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_low_limit_of_files_is_raised_where_it_may_be(tmp_path):
    trial = Trial(tmp_path, "import resource as r\nassert r.getrlimit(7)[0] >= 1000")
    before = ["bash", "-c", 'ulimit -Sn 64; exec "$@"', "bash"]
    assert trial.run(before=before).returncode == 0, trial.log


def test_figures_of_a_lesson_with_an_odd_name_delete_no_others(tmp_path):
    (tmp_path / "other-01-0.png").write_bytes(b"x")
    lessons._save_figures(nbformat.v4.new_notebook(), tmp_path, "*")
    lessons._save_figures(nbformat.v4.new_notebook(), tmp_path, "othe[r]")
    assert (tmp_path / "other-01-0.png").exists()


def test_a_lock_of_another_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    owner = {"pid": 1, "host": "elsewhere", "slurm_job_id": None}
    path = tmp_path / "job.lock"
    write_json(path, owner)
    with (
        pytest.raises(runner.Busy, match="process 1 on elsewhere.*delete"),
        held(path, keep=True),
    ):
        pass
    write_json(path, owner | {"slurm_job_id": "221"})
    with (
        pytest.raises(runner.Busy),
        held(path, keep=True),
    ):  # nobody here to ask about job 221
        pass
    monkeypatch.setattr(files, "answer", lambda args: "221\n")
    with pytest.raises(runner.Busy), held(path, keep=True):
        pass
    monkeypatch.setattr(files, "answer", lambda args: "")
    with held(path, keep=True):  # Slurm says that it is over
        assert read_json(path)["host"] == socket.gethostname()
    write_json(path, owner | {"slurm_job_id": "221"})
    monkeypatch.setenv("SLURM_JOB_ID", "221")
    with held(path, keep=True):  # the same job, requeued to another node
        pass
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "prepare, match",
    [
        (lambda f: None, "no params.json"),
        (lambda f: (f / "params.json").write_text("{"), "params.json is not whole JSON"),
        (lambda f: write_json(f / "params.json", {}) or (f / "run.json").write_text("{"),
         "run.json is not whole JSON"),
    ],
)  # fmt: skip
def test_folders_that_are_no_runs(tmp_path, prepare, match, capsys):
    prepare(tmp_path)
    assert runner._main([str(tmp_path), "--notebook", "hello"]) == 1
    assert match in capsys.readouterr().err


def test_a_member_that_is_not_there(tmp_path, capsys):
    assert runner._main(["member", str(tmp_path / "tasks.json"), "0"]) == 1
    assert "there is no" in capsys.readouterr().err


# --- lessons ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    "A lesson with everything that matters, executed."
    home = tmp_path_factory.mktemp("lesson")
    (home / "settings.ini").write_text("[DEFAULT]\ntst_flags = gpu slow\n")
    (home / "nbs").mkdir()
    show = f"from IPython.display import display\nfor _ in range(2):\n    display({{'image/png': '{PNG}'}}, raw=True)"
    path = notebook(
        home / "nbs" / "01_first.ipynb",
        "import os\nprint(os.getcwd(), os.environ['MINE'])",
        "#| eval: false\n1 / 0",
        "# | gpu\n1 / 0",
        "#| slow\n1 / 0",
        "1 / 0",
        "#| export\n#|  eval:false\n1 / 0",
        show,
        "#| exports\nlast = 'eval: false'\nlast",
        params=None,
    )
    book = nbformat.read(path, 4)
    book.cells[4].metadata["tags"] = ["skip-execution"]
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="kept")]
    nbformat.write(book, path)
    seen = []
    out = home / "out"
    done = _run_lesson(path, out, {"MINE": "yes"}, lambda d, t: seen.append((d, t)))
    return home, done, seen


def test_a_lesson_is_run_as_marked(lesson):
    home, done, seen = lesson
    cells = read_json(done)["cells"]
    assert cells[0]["outputs"][0]["text"] == [f"{home / 'out'} yes\n"]
    assert cells[1]["outputs"][0]["text"] == ["kept"]
    assert all(cells[i]["outputs"] == [] for i in (2, 3, 4, 5))
    assert cells[7]["outputs"][0]["data"]["text/plain"] == ["'eval: false'"]
    assert seen == [(i + 1, 8) for i in range(8)]


def test_figures_of_a_lesson_are_files(lesson):
    home, _, _ = lesson
    figures = sorted(p.name for p in (home / "out" / "figures").iterdir())
    assert figures == ["01_first-06-0.png", "01_first-06-1.png"]
    data = (home / "out" / "figures" / figures[0]).read_bytes()
    assert data == base64.b64decode(PNG)


def test_a_lesson_that_stops_says_where(tmp_path):
    path = notebook(
        tmp_path / "02_bad.ipynb", "x = 5", "print('before')\nx / 0", params=None
    )
    with pytest.raises(_LessonFailed) as error:
        _run_lesson(path, tmp_path / "out")
    text = str(error.value)
    assert text.startswith("02_bad.ipynb, cell 1: ZeroDivisionError: division by zero")
    assert "x / 0" in text and "\x1b" not in text and str(tmp_path / "out") in text
    cells = read_json(tmp_path / "out" / "02_bad.ipynb")["cells"]
    assert cells[1]["outputs"][0]["text"] == ["before\n"]


def test_a_lesson_whose_kernel_dies_says_so(tmp_path):
    path = notebook(tmp_path / "02_bad.ipynb", "import os\nos._exit(1)", params=None)
    with pytest.raises(_LessonFailed, match="02_bad.ipynb: DeadKernelError"):
        _run_lesson(path, tmp_path / "out")


@pytest.fixture
def course(tmp_path):
    "Three parts and a run."
    nbs = tmp_path / "nbs"
    (nbs / "images").mkdir(parents=True)
    (nbs / "images" / "a.png").write_bytes(b"")
    for number in (1, 2, 3):
        text = "import os\nopen(os.environ['RVTUTORIAL_HOME'] + '/order', 'a').write"
        notebook(nbs / f"0{number}_part.ipynb", f"{text}('{number}')", params=None)
    notebook(nbs / "A1_more.ipynb", "1 / 0", params=None)
    scores = {"validation": {"f1": 0.875, "iou": 0.7777}, "test": {"f1": None}}
    attempt = {
        "started": "2026-11-20T08:00:00+00:00",
        "ended": "2026-11-20T08:01:30+00:00",
    }
    went = {"state": "succeeded", "attempts": [attempt]}
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    write_json(run / "run.json", {"schema": 1, "went": went, "results": scores})
    return tmp_path


def test_all_parts_in_order_and_what_was_made(course, capsys):
    assert _run_lessons(course / "nbs", course / "runs" / "lessons") == 0
    assert (course / "order").read_text() == "123"
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("part 1 of 3  01_part") and "about" in lines[0]
    row = next(line.split() for line in lines if line.strip().startswith("first"))
    assert row == [
        "first",
        "succeeded",
        "0.875",
        "0.778",
        "1.500",
        str(course / "runs" / "first"),
    ]
    assert str(course / "runs" / "lessons" / "figures") in out
    assert set(read_json(course / "runs" / "lessons" / "durations.json")) == {
        "01_part", "02_part", "03_part",
    }  # fmt: skip
    assert (course / "runs" / "lessons" / "images" / "a.png").exists()


def test_the_first_part_that_fails_stops_the_rest(course, capsys):
    notebook(course / "nbs" / "02_part.ipynb", "1 / 0", params=None)
    assert _run_lessons(course / "nbs", course / "out") == 1
    assert (course / "order").read_text() == "1"
    assert "02_part.ipynb, cell 0: ZeroDivisionError" in capsys.readouterr().err


def test_no_parts_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parts named 01_"):
        _run_lessons(tmp_path, tmp_path / "out")


def test_remaining_time_comes_from_the_last_time():
    parts = [Path("01_a.ipynb"), Path("02_b.ipynb")]
    line = lessons._Progress(parts, {"01_a": 100.0, "02_b": 50.0})
    assert line.remaining(0) == 150 and line.remaining(40) == 110


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_the_line_is_drawn_again_while_a_cell_works(monkeypatch):
    line = lessons._Progress([Path("01_a.ipynb")], {}, Screen())
    with line.ticking():
        line.show(0, 1, 3)
        time.sleep(2.2)
    drawn = line.out.getvalue().split("\r")[1:]
    assert len(drawn) == 3 and all("cell  1 of 3" in text for text in drawn)
    assert "elapsed 00:02" in drawn[-1]


def test_ctrl_c_cancels_the_jobs_of_the_lessons(course):
    """A part that waits for a job; the interrupt takes both along."""
    notebook(course / "job.ipynb", SLEEP)
    text = f"from rvtutorial.slurm import submit\nsubmit({str(course / 'runs' / 'long')!r}, {{}},"
    notebook(
        course / "nbs" / "02_part.ipynb",
        f"{text} notebook={str(course / 'job.ipynb')!r}).wait()",
        params=None,
    )
    command = [
        sys.executable,
        "-m",
        "rvtutorial.course.lessons",
        "--parts",
        str(course / "nbs"),
    ]
    env = {**os.environ, "RVTUTORIAL_HOME": str(course)}
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    process = subprocess.Popen(command, env=env, preexec_fn=heeded, **pipes)
    log = course / "runs" / "long" / "job.log"
    end = time.monotonic() + 60
    while not (log.exists() and "working" in log.read_text()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "1 jobs were cancelled" in error
    end = time.monotonic() + 30
    while Run(log.parent).state != "interrupted":
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_command_line_submits_and_waits(tmp_path):
    book = notebook(tmp_path / "job.ipynb", "open('made', 'w').write(repr(a))")
    script = Path(__file__).parents[1] / "slurm" / "run_notebook.sh"

    def run(*words):
        base = [script, "-p", sys.executable, "-n", book, *words]
        return subprocess.run(base, capture_output=True, text=True)

    done = run("-w", tmp_path / "r", "a=x=y")
    assert done.returncode == 0 and "r    succeeded" in done.stdout
    assert (tmp_path / "r" / "made").read_text() == "'x=y'"
    bad = run(tmp_path / "q", "a")
    assert bad.returncode == 2 and "not NAME=VALUE" in bad.stderr
    bad = run(tmp_path / "q", "b=1")
    assert bad.returncode == 2 and bad.stderr.strip().endswith("known are a")


def test_hello_is_a_job_notebook_without_outputs():
    from rvtutorial.hpc.job import JobNotebook

    book = JobNotebook("hello")
    assert set(book.parameters) == {"name", "seconds", "need", "output_uri"}
    book = json.loads(book.path.read_text())
    assert all(not c.get("outputs") for c in book["cells"])


# --- how much is left ------------------------------------------------------------------


def test_a_part_that_takes_longer_has_its_cells_left():
    "On a busy machine nothing is left only when nothing is left to do."
    parts = [Path("01_a.ipynb"), Path("02_b.ipynb")]
    line = lessons._Progress(parts, {"01_a": 100.0, "02_b": 50.0}, io.StringIO())
    line.show(0, 2, 10)
    assert line.remaining(20) == 130 and line.remaining(100) == 80 + 50
    assert line.remaining(1e6) == 130  # eight of ten cells, and the other part
    line.show(0, 9, 10)
    assert line.remaining(1e6) == 60
    line.begun -= 200  # twice as long as usual
    line.show(0, 10, 10)
    assert line.remaining(200) == pytest.approx(100, abs=1)
    line.show(1, 0, 10)
    assert line.remaining(0) == pytest.approx(100, abs=1)
    line.show(1, 10, 10)
    assert line.remaining(0) == 0


def test_the_line_shows_the_trainings_of_a_cell():
    looks = iter([("2 queued", None), ("1 running (a: epoch 3 of 8)", 75.0)])
    line = lessons._Progress(
        [Path("08_a.ipynb")], {"08_a": 1.0}, Screen(), lambda since: next(looks)
    )
    line.show(0, 0, 4)
    line.begun -= 60  # long over its time
    line.draw()
    assert line.out.getvalue().endswith("about 00:01 left  [2 queued]")
    line.looked -= 10
    line.draw()
    assert line.out.getvalue().endswith(
        "about 01:15 left  [1 running (a: epoch 3 of 8)]"
    )
    line.show(0, 4, 4)
    assert line.out.getvalue().endswith("about 00:00 left\n")


def test_trainings_that_were_submitted_after_a_time(tmp_path, monkeypatch):
    from rvtutorial.slurm import submit_many

    monkeypatch.setattr(
        "rvtutorial.hpc.local_queue.Submission.start_local",
        lambda home: str(os.getpid()),
    )
    monkeypatch.setattr(
        "rvtutorial.hpc.local_queue._is_queue", lambda pid, home="": True
    )
    monkeypatch.setattr(
        "rvtutorial.hpc.local_queue._is_script", lambda pid, home: False
    )
    before = time.time() - 1
    assert lessons._trainings(tmp_path, before) == ("", None)
    asked = {
        tmp_path / f"r{i}": {"preset": "smoke", "epochs": 4, "seed": i} for i in (1, 2)
    }
    submit_many(asked)
    assert lessons._trainings(tmp_path, before) == ("2 queued (starting)", None)
    (tmp_path / "r1" / "train").mkdir()
    (tmp_path / "r1" / "train" / "log.csv").write_text("epoch,x\n0,1\n1,1\n")
    [home] = (tmp_path / "jobs").iterdir()
    os.utime(home / "tasks.json", (time.time() - 20,) * 2)
    words, left = lessons._trainings(tmp_path, before - 60)
    assert words.startswith("2 queued") and left == pytest.approx(20 / 2 * 8, rel=0.1)
    assert lessons._trainings(tmp_path, time.time() + 5) == ("", None)
    for i in (1, 2):
        Run(tmp_path / f"r{i}").update("went", state="succeeded")
    monkeypatch.setattr(
        "rvtutorial.hpc.local_queue._is_queue", lambda pid, home="": False
    )
    assert lessons._trainings(tmp_path, before - 60) == ("", None)


def test_a_broken_list_of_a_submission_hides_no_others(tmp_path, capsys):
    for name, text in (("a", "{"), ("b", '{"folders": ["/x/r"]}')):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        (tmp_path / "jobs" / name / "tasks.json").write_text(text)
    found = lessons._submitted_since(tmp_path, 0)
    assert list(found.values()) == [["/x/r"]]
    assert str(tmp_path / "jobs" / "a") in capsys.readouterr().err


def test_hello_has_what_a_training_needs(tmp_path):
    "Both packages, a device and a scene, at a place that has no data yet."
    from rvtutorial.slurm import submit

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RVTUTORIAL_HOME", str(tmp_path / "home"))
        job = submit(tmp_path / "r", {"seconds": 0}, notebook="hello").wait(
            progress=False
        )
    said = job.log()
    for words in (
        "rastervision 0.",
        "torch 2.",
        "device c",
        "1 + 1 = 2",
        "scene 64 x 64 pixels, 3 bands",
    ):
        assert words in said
    assert not (tmp_path / "home").exists()
