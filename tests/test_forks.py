"Runs of one submission share what is imported, and nothing else."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from rvtutorial.hpc import forks
from rvtutorial.hpc.forks import Server
from rvtutorial.hpc.queue import JobFailed, at_work
from rvtutorial.runs import Run, read_json, write_json
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
import asyncio, atexit, multiprocessing, random, signal, tempfile
import numpy, pandas
from tqdm.auto import tqdm
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
        family=[multiprocessing.current_process().name,
                multiprocessing.parent_process()],
        sums=sums, temporary=temporary.name,
    ), file)
os.environ["LEFT_BY_A_RUN"] = pandas.marked = "yes"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Folders of four runs of one submission, of which the last kills its own kernel."
    place = tmp_path_factory.mktemp("told")
    runs = {place / f"r{n}": {"number": n} for n in range(4)}
    job = submit_many(runs, notebook=book(place / "tell.ipynb", TELL))
    with pytest.raises(JobFailed, match="r3"):
        job.wait(progress=False, timeout=120)
    return list(runs)


@pytest.fixture
def told(runs):
    "What the first three say of themselves."
    return [read_json(folder / "told.json") for folder in runs[:3]]


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
        assert one["family"] == alone["family"], "nobody's child"
        names = {Path(name).name for name in one["files"]}
        assert not {n for n in names if n == "job.lock" or n.startswith("local-")}


def test_a_copy_can_have_workers(told):
    assert told[1]["sums"] == [3, 3]


def test_what_a_notebook_leaves_to_the_end_is_done(told, runs):
    for one, folder in ((told[0], runs[0]), (told[2], runs[2])):
        assert (folder / "ended").exists() and not Path(one["temporary"]).exists()
        assert "IProgress" not in (folder / "notebook.ipynb").read_text()


def test_a_copy_that_is_killed_for_its_memory_says_so(runs):
    assert "SIGKILL; out of memory" in Run(runs[3]).manifest["went"]["why"]


@pytest.fixture
def server(tmp_path):
    "A parent whose members do what the number says."
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(forks.__file__).parent.parent)!r})
from rvtutorial.hpc import forks

def run(number):
    print("begun", number, flush=True)
    if number == 7:
        os.kill(os.getpid(), 9)
    time.sleep(30 if number >= 8 else number == 6)
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


def test_a_signal_that_comes_at_once_is_not_lost(server):
    "As when a run is cancelled while the parent still imports: both orders are there."
    for number, code in 3 * [(signal.SIGUSR1, 75), (signal.SIGKILL, 128 + 9)]:
        member = server.run(8)
        member.send_signal(number)
        assert member.wait(10) == code
    text = (server.home / "local-0.out").read_text()
    assert "Traceback" not in text, text


def test_a_parent_does_not_grow(server):
    def state():
        pid = server.script.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return len(os.listdir(f"/proc/{pid}/fd")), children

    codes, states = [], []
    for _ in range(20):
        codes.append(server.run(1).wait(20))
        states.append(state())
    assert codes == 20 * [1]
    assert states[1] == states[-1] and states[-1][1] == []


def test_a_member_ends_in_peace_when_the_queue_is_killed(server):
    server.run(6)
    begun(server, 6)
    server.script.stdin.close()
    server.script.stdout.close()
    assert server.script.wait(20) == 0
    assert "Traceback" not in (server.home / "local-0.out").read_text()


def test_a_script_that_is_gone_is_an_exit_code(server):
    member = server.run(6)
    begun(server, 6)
    os.killpg(server.script.pid, signal.SIGKILL)
    assert member.wait(20) not in (0, None)


def test_a_script_that_cannot_start_says_why(tmp_path):
    (tmp_path / "job.sh").write_text("no_such_program serve <&0")
    server = Server(tmp_path, 4)
    assert server.run(4).wait() == 127
    assert "no_such_program" in (tmp_path / "local-4.out").read_text()
    server.close()


def test_a_member_that_is_killed_leaves_nothing_behind(tmp_path):
    "It lets go of its folder at once, its kernel ends, and the next run has its turn."
    cells = """import os, time
with open("pid", "w") as file: file.write(str(os.getpid()))
time.sleep(60 * (number == 1))"""
    runs = {tmp_path / f"r{n}": {"number": n} for n in range(3)}
    job = submit_many(runs, notebook=book(tmp_path / "long.ipynb", cells))
    first, second, third = runs
    pid, end = second / "pid", time.monotonic() + 60
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert Path(f"/proc/{pid.read_text()}").exists()
    attempt = Run(second).manifest["went"]["attempts"][-1]
    os.kill(attempt["pid"], signal.SIGKILL)
    end = time.monotonic() + 1
    while at_work(second):
        assert time.monotonic() < end, "the copy holds the lock"
    with pytest.raises(JobFailed):
        job.wait(progress=False, timeout=40)
    assert [*job.states().values()] == ["succeeded", "failed", "succeeded"]
    end = time.monotonic() + 5  # a kernel looks once a second
    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < end, "the kernel lives"
        time.sleep(0.1)


def test_a_member_does_not_wait_for_a_kernel_that_was_not_needed(tmp_path):
    "As when a job is stopped after the copy was made and before it became a kernel."
    (tmp_path / "serve.py").write_text(f"""
import sys
sys.path.insert(0, {str(Path(forks.__file__).parent.parent)!r})
from rvtutorial.hpc import forks

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


@pytest.fixture
def module(tmp_path, monkeypatch):
    "Make a module of some code, as it would stand in the list of what was imported."
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, code, folder=tmp_path):
        path = folder / f"{name}.py"
        path.write_text(code)
        return {name: str(path)}

    yield make
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_what_cannot_be_imported_does_no_harm(module, monkeypatch, capsys):
    monkeypatch.setattr(forks, "PATIENCE", 0.2)
    noted = {"no_such_module": None, "this.neither": None, "os.x": None}
    noted |= module("hanging_one", "import time\ntime.sleep(9)")
    noted |= module("failing_one", "raise SystemExit('no')")
    noted |= module("talking_one", "print('hello')")
    start, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    forks.import_noted(noted)
    assert [n for n in noted if n in sys.modules] == ["talking_one"]
    assert time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert capsys.readouterr().out == "hello\n"


def test_a_module_of_the_same_name_is_not_the_same(module, tmp_path):
    noted = module("twin_one", "here = 1")
    forks.import_noted({"twin_one": "/elsewhere/twin_one.py"})
    assert "twin_one" not in sys.modules
    forks.import_noted(noted)
    assert sys.modules["twin_one"].here == 1


def test_later_runs_add_what_they_imported(module, tmp_path):
    "As when the first run failed before it imported much."
    path = tmp_path / "modules.json"
    forks.note_modules(path)
    first, stamp = read_json(path), path.stat().st_mtime_ns
    assert first["pytest"] == pytest.__file__ and "__main__" not in first
    forks.note_modules(path)
    assert path.stat().st_mtime_ns == stamp
    forks.import_noted(module("added_one", ""))
    forks.note_modules(path)
    assert set(read_json(path)) - set(first) == {"added_one"}


def test_a_parent_with_threads_starts_kernels_anew(tmp_path):
    "A module may start one when it is imported; a copy would not see that it was there."
    (tmp_path / "threads_one.py").write_text("""
import threading, time
threading.Thread(target=time.sleep, args=[60], daemon=True).start()
""")
    write_json(
        tmp_path / "modules.json", {"threads_one": str(tmp_path / "threads_one.py")}
    )
    (tmp_path / "serve.py").write_text(f"""
import sys
sys.path.insert(0, {str(Path(forks.__file__).parent.parent)!r})
from rvtutorial.hpc import forks
forks.serve(sys.argv[1], lambda number: 5 if forks.forked_kernel() == {{}} else 6)
""")
    line = f'exec "{sys.executable}" "{tmp_path}/serve.py" "{tmp_path}" <&0'
    (tmp_path / "job.sh").write_text(line)
    server = Server(tmp_path, 0)
    assert server.run(0).wait(20) == 5
    server.close()


def test_words_without_a_place_go_nowhere(tmp_path):
    with forks._log(tmp_path / "no_such_folder", 3) as log:
        log.write(b"a full disk")
    with forks._log(tmp_path, 3) as log:
        log.write(b"some words")
    assert (tmp_path / "local-3.out").read_text() == "some words"


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', "\x00"])
def test_a_broken_list_of_modules_shares_nothing(tmp_path, text):
    from rvtutorial.hpc.forks import note_modules, noted_modules

    path = tmp_path / "modules.json"
    path.write_text(text)
    assert noted_modules(path) == {}
    note_modules(path)  # and is written anew
    assert "pytest" in noted_modules(path)
