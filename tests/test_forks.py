"Runs of one submission share what is imported, and nothing else."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from rvtutorial import forks
from rvtutorial.forks import Server
from rvtutorial.runs import Run, read_json
from rvtutorial.slurm import submit_many

HERE = str(Path(__file__).parent)


def book(path, *cells):
    "A job notebook: parameters, then cells."
    one = nbformat.v4.new_code_cell("number = 0")
    one.metadata["tags"] = ["parameters"]
    cells = [one, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


TELL = """
import json, os, sys
known = sorted({"pandas", "decimal"} & set(sys.modules))
import pandas, numpy, signal, random
with open(os.path.join(os.getcwd(), "told.json"), "w") as file:
    json.dump(dict(
        known=known, pid=os.getpid(), cwd=os.getcwd(), number=number,
        leader=os.getsid(0) == os.getpid(), path=sys.path, argv=sys.argv,
        chance=[numpy.random.random(), random.random()],
        left=os.environ.get("LEFT_BY_A_RUN"), marked=hasattr(pandas, "marked"),
        backend=os.environ.get("MPLBACKEND"), user=sorted(globals()),
        files=len(os.listdir("/proc/self/fd")),
        handlers=[signal.getsignal(n) == signal.SIG_DFL for n in (15, 10, 1)],
    ), file)
os.environ["LEFT_BY_A_RUN"] = pandas.marked = "yes"
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    "What three runs of one submission say of themselves."
    place = tmp_path_factory.mktemp("told")
    runs = {place / f"r{n}": {"number": n} for n in range(3)}
    job = submit_many(runs, notebook=book(place / "tell.ipynb", TELL))
    job.wait(progress=False, timeout=120)
    return [read_json(folder / "told.json") for folder in runs]


def test_what_the_first_run_imported_is_there_before_the_next_begins(told):
    assert "pandas" not in told[0]["known"]
    assert all("pandas" in one["known"] for one in told[1:])


def test_everything_else_is_its_own(told):
    assert [one["number"] for one in told] == [0, 1, 2]
    assert [Path(one["cwd"]).name for one in told] == ["r0", "r1", "r2"]
    for key in ("pid", "chance"):
        assert len({str(one[key]) for one in told}) == 3, key
    for one in told:
        assert one["leader"] and all(one["handlers"])
        assert one["left"] is None and not one["marked"]


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


@pytest.fixture
def server(tmp_path):
    "A parent whose members do what the number says."
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(forks.__file__).parent.parent)!r})
from rvtutorial import forks

def run(number):
    print("begun", number, flush=True)
    if number == 7:
        os.kill(os.getpid(), 9)
    time.sleep(30 if number >= 8 else 0)
    return number

forks.serve(sys.argv[1], run)
"""
    (tmp_path / "serve.py").write_text(code)
    line = f'echo a word from the script\nexec "{sys.executable}" "$(dirname "$0")"'
    (tmp_path / "job.sh").write_text(f'{line}/serve.py "$(dirname "$0")" <&0')
    one = Server(tmp_path, 0)
    yield one
    one.close()


def begun(server, number, seconds=20):
    path, end = server.home / f"local-{number}.out", time.monotonic() + seconds
    while not path.exists() or f"begun {number}" not in path.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_exit_codes_and_words_go_where_they_belong(server):
    assert [server.run(n).wait() for n in (0, 3, 1)] == [0, 3, 1]
    assert server.run(7).wait() == 128 + 9
    assert server.run(2).wait() == 2  # the others have not noticed
    texts = {p.name: p.read_text() for p in server.home.glob("*.out")}
    assert texts["local-3.out"] == "begun 3\n"
    assert "a word from the script" in texts["local-0.out"]


def test_signals_reach_the_member_that_is_meant(server):
    member = server.run(8)
    begun(server, 8)
    server.order("signal", 7, signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        member.wait(0.5)
    member.send_signal(signal.SIGKILL)
    assert member.wait(10) == 128 + 9
    member = server.run(9)
    begun(server, 9)
    member.send_signal(signal.SIGUSR1)  # nobody listens: as if warned too early
    assert member.wait(10) == 75


def test_a_script_that_is_gone_is_an_exit_code(server):
    member = server.run(8)
    begun(server, 8)
    os.killpg(server.script.pid, signal.SIGKILL)
    code = member.wait(40)
    assert code not in (0, None)


def test_a_script_that_cannot_start_says_why(tmp_path):
    (tmp_path / "job.sh").write_text("no_such_program serve <&0")
    server = Server(tmp_path, 4)
    assert server.run(4).wait() == 127
    assert "no_such_program" in (tmp_path / "local-4.out").read_text()
    server.close()


def test_a_lock_ends_with_its_owner_though_the_copy_lives(tmp_path):
    "A run that is killed lets go of its folder at once, its kernel a moment later."
    path = book(tmp_path / "long.ipynb", "import time\ntime.sleep(60)")
    folder = tmp_path / "run"
    job = submit_many({folder: {}}, notebook=path)
    end = time.monotonic() + 60
    while not (folder / "notebook.ipynb").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1)
    attempt = Run(folder).manifest["went"]["attempts"][-1]
    os.kill(attempt["pid"], signal.SIGKILL)
    from rvtutorial.queues import at_work

    end = time.monotonic() + 1
    while at_work(folder):
        assert time.monotonic() < end, "the copy holds the lock"
    while job.states()[folder] == "running":
        time.sleep(0.2)
    assert job.states() == {folder: "lost"} or job.states() == {folder: "failed"}


def test_a_member_does_not_wait_for_a_kernel_that_was_not_needed(tmp_path):
    "As when a job is stopped after the copy was made and before it became a kernel."
    (tmp_path / "serve.py").write_text(f"""
import sys
sys.path.insert(0, {str(Path(forks.__file__).parent.parent)!r})
from rvtutorial import forks

def run(number):
    global kept
    kept = forks.forked_kernel(), forks.Spare()
    print("pid", kept[1].pid, bool(kept[0]), flush=True)
    return 5

forks.serve(sys.argv[1], run)
""")
    line = f'exec "{sys.executable}" "{tmp_path}/serve.py" "{tmp_path}" <&0'
    (tmp_path / "job.sh").write_text(line)
    server = Server(tmp_path, 0)
    assert server.run(0).wait(20) == 5
    _, pid, shared = (tmp_path / "local-0.out").read_text().split()
    assert shared == "True" and not Path(f"/proc/{pid}").exists()
    server.close()


def test_only_a_member_shares(monkeypatch):
    assert forks.forked_kernel() == {}
    monkeypatch.setattr(forks, "_BORN", {"files": set()})
    monkeypatch.setattr(forks, "DRIVERS", ("/dev/null",))
    assert forks.forked_kernel() == {}, "CUDA would not work in a copy"


def test_names_that_cannot_be_imported_do_no_harm(tmp_path):
    names = ["no_such_module", "this.neither", "antigravity_", "colorsys"]
    (tmp_path / "modules.json").write_text(json.dumps(names))
    forks.import_noted(tmp_path / "modules.json")
    forks.import_noted(tmp_path / "missing.json")
    assert "colorsys" in sys.modules
