"Nobody else gets into our folders, two do not write at once, names stay inside, and all limits are seen."

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rvtutorial import slurm
from rvtutorial.core import files
from rvtutorial.core.files import (
    Busy,
    atomic_path,
    available_memory,
    held,
    safe_name,
    writing,
)
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.hpc import local_queue as queue
from rvtutorial.runs import Run

ROOT = Path(__file__).resolve().parent.parent
SOMEBODY = 54321  # a user who is not us
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    "A temporary folder as all users share it, and a home; nothing is named."
    place, home = tmp_path / "tmp", tmp_path / "home"
    place.mkdir(), home.mkdir(mode=0o700)
    place.chmod(0o1777)
    for above in (tmp_path, *tmp_path.parents):  # so that others get there
        if above.owner() == Path.home().owner() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    for name in ("SCRATCH", "QUEUE"):
        monkeypatch.delenv(f"RVTUTORIAL_{name}", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    files.say_once.cache_clear()
    files._own_scratch.cache_clear()
    return place


def python(code: str, user: int | None = None):
    "Start another process, perhaps as another user."
    switch = f"import os; os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    code = code if user is None else f"import fcntl, time\n{switch}{code}"
    return subprocess.Popen([sys.executable, "-c", code], **how)


def first(process) -> str:
    line = process.stdout.readline().strip()
    assert line, process.stderr.read()
    return line


# ------------------------------------------------------------------ folders


def foreign(place: Path) -> None:
    place.mkdir()
    os.chown(place, SOMEBODY, SOMEBODY)


def linked(place: Path) -> None:
    target = place.parent.parent / "elsewhere"
    target.mkdir(mode=0o700)
    place.symlink_to(target)


def opened(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def readable(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)


def file(place: Path) -> None:
    place.write_text("")


TRAPS = [pytest.param(foreign, marks=as_root), linked, opened, readable, file]


@pytest.mark.parametrize("name", ["rvtutorial", "rvtutorial-queue"])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_folder_prepared_by_others_is_not_used(trap, name, temporary, capsys):
    place = temporary / f"{name}-{os.getuid()}"
    trap(place)
    ask = files.scratch_folder if name == "rvtutorial" else queue.queue_folder
    found = ask()
    assert found != place and place not in found.parents
    now = found.lstat()
    assert stat.S_ISDIR(now.st_mode) and stat.S_IMODE(now.st_mode) == 0o700
    assert now.st_uid == os.getuid()
    assert ask() == found  # all processes of the user meet there
    said = capsys.readouterr().err
    assert said.count(str(place)) == 1 and str(found) in said


def test_a_folder_of_our_own_is_made_once_and_kept(temporary, capsys):
    os.umask(before := os.umask(0))
    found = files.scratch_folder()
    assert found == temporary / f"rvtutorial-{os.getuid()}" and files.is_private(found)
    assert files.scratch_folder() == found and not capsys.readouterr().err
    assert before is not None and files.scratch_places() == [found]


def test_where_anybody_may_rename_no_folder_is_private(temporary):
    temporary.chmod(0o777)  # without the sticky bit
    assert temporary not in files.scratch_folder().parents


def test_where_a_group_may_rename_no_folder_is_private(temporary):
    temporary.chmod(0o770)
    assert temporary not in files.scratch_folder().parents
    temporary.chmod(0o1770)
    assert temporary in files.scratch_folder().parents


@as_root
def test_below_a_folder_of_somebody_else_no_folder_is_private(temporary):
    os.chown(temporary, SOMEBODY, -1)  # who may replace what lies in it
    assert temporary not in files.scratch_folder().parents


def test_without_a_private_place_there_is_no_queue(temporary):
    "Two processes with a folder each would run their jobs at one time."
    opened(temporary / f"rvtutorial-queue-{os.getuid()}")
    (temporary.parent / "home" / ".cache").write_text("no folder")
    with pytest.raises(OSError, match="set RVTUTORIAL_QUEUE"):
        queue.queue_folder()
    job = slurm.Job(temporary / "run")
    with pytest.raises(OSError, match="set RVTUTORIAL_QUEUE"):
        slurm.submit(temporary / "run", {}, notebook="hello")
    assert list(job.states().values()) == ["new"] and not (temporary / "jobs").exists()


def test_without_a_home_a_folder_is_made_for_this_process(
    temporary, monkeypatch, capsys
):
    opened(temporary / f"rvtutorial-{os.getuid()}")
    (temporary.parent / "home" / ".cache").write_text("no folder")
    found = files.scratch_folder()
    assert found.parent == temporary and files.is_private(found)
    assert (
        files.scratch_folder() == found and "for this once" in capsys.readouterr().err
    )


def test_a_named_folder_is_used_as_it_is(temporary, monkeypatch):
    opened(temporary / "mine")
    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(temporary / "mine"))
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(temporary / "mine"))
    assert files.scratch_folder() == queue.queue_folder() == temporary / "mine"


# ------------------------------------------------------------------ files in them


def test_what_a_lock_points_to_is_not_emptied(tmp_path, monkeypatch):
    diary = tmp_path / "diary"
    diary.write_text("dear diary")
    folder = tmp_path / "queue"
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(folder))
    queue.queue_folder()
    (folder / "running.lock").symlink_to(diary)
    with pytest.raises(OSError) as err, queue._first_in_queue(1, "job"):
        pass
    assert err.value.errno == errno.ELOOP and diary.read_text() == "dear diary"
    for name in (".run.lock", ".writing.lock", "job.lock"):
        (tmp_path / name).symlink_to(diary)
    with pytest.raises(OSError):
        Run(tmp_path).update("went", state="running")
    with pytest.raises(OSError), writing(tmp_path):
        pass
    assert diary.read_text() == "dear diary"


def test_pipes_and_folders_are_no_locks(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError), files.open_plain(tmp_path / name, write=True):
            pass
        with pytest.raises(OSError), files.open_plain(tmp_path / name):
            pass


@as_root
def test_who_may_only_read_cannot_hold_our_locks(temporary):
    "Another user opens a run's lock and never lets go: the run goes on all the same."
    run = temporary / "run"
    run.mkdir(mode=0o755)
    Run(run).update("went", state="running")
    code = "f = open({!r}); fcntl.flock(f, fcntl.LOCK_EX); print('ours', flush=True)"
    thief = python(code.format(str(run / ".run.lock")), SOMEBODY)
    out, err = thief.communicate(timeout=60)
    assert "PermissionError" in err and not out
    seen = python(f"print(open({str(run / 'run.json')!r}).read())", SOMEBODY)
    assert "running" in seen.communicate(timeout=60)[0]  # the run itself can be read


def test_a_lock_that_stays_locked_is_an_error_and_no_wait_for_ever(tmp_path):
    with open(tmp_path / ".run.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(Busy, match=r"\.run\.lock has been locked"),
            files.locked(tmp_path / ".run.lock", 0.2),
        ):
            pass
    with files.locked(tmp_path / ".run.lock", 0.2):
        pass


def test_a_shared_folder_keeps_its_locks_open_to_the_group(tmp_path):
    tmp_path.chmod(0o770)
    Run(tmp_path).update("went", state="running")
    assert stat.S_IMODE((tmp_path / ".run.lock").stat().st_mode) == 0o660
    tmp_path.chmod(0o755)
    Run(tmp_path).update("went", state="running")
    assert stat.S_IMODE((tmp_path / ".run.lock").stat().st_mode) == 0o600


def test_samples_lie_beside_folders_with_odd_names(tmp_path):
    "What is left of other folders stays, whatever the name of this one matches."
    other = tmp_path / ".abc.new1" / "kept"
    other.mkdir(parents=True)
    make_sample_scenes(tmp_path / "[a]*", n_train=1, n_val=1, n_test=1, size=64)
    make_sample_scenes(tmp_path / "*", n_train=1, n_val=1, n_test=1, size=64)
    assert other.is_dir()


# ------------------------------------------------------------------ names

ODD = [
    "../../x", "/etc/x", "a/b", "..", ".", "", " ", "...", "a\\b", "a\0b", "a\nb",
    "x" * 300, "ü" * 150, "\udcff", "a/" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_any_text_becomes_one_name(name, tmp_path):
    safe = safe_name(name)
    assert len(os.fsencode(safe)) <= 200 and safe != name
    place = tmp_path / safe
    place.mkdir()
    assert place.resolve().parent == tmp_path and [place] == list(tmp_path.iterdir())


def test_names_that_are_fine_stay_and_two_remain_two():
    for name in ("a", "trial-003", "Rio 2", "é.1", ".hidden", "x" * 200):
        assert safe_name(name) == name
    assert len({safe_name(n) for n in ODD}) == len(ODD)
    assert len({safe_name(n) for n in ("a/b", "a\\b", "a_b")}) == 3


@pytest.mark.parametrize("size", [240, 245, 246, 250, 255])
def test_a_name_may_be_as_long_as_the_disk_allows(size, tmp_path):
    for name in ("x" * (size - 5) + ".html", "é" * ((size - 5) // 2) + ".html"):
        with atomic_path(tmp_path / name) as part:
            assert part.suffix == ".html" and len(os.fsencode(part.name)) <= 255
            part.write_text(name)
        assert (tmp_path / name).read_text() == name
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_that_is_too_long_is_told_by_its_length(tmp_path):
    path = tmp_path / "deep" / ("x" * 251 + ".html")
    with pytest.raises(OSError, match="255 bytes.*256") as err, atomic_path(path):
        pass
    assert err.value.errno == errno.ENAMETOOLONG
    assert not (tmp_path / "deep").exists()


# ------------------------------------------------------------------ locks


HOLD = """
import sys, time
from rvtutorial.core.files import writing
with writing(sys.argv[1] if sys.argv[1:] else {folder!r}):
    print('held', flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_writes(tmp_path):
    holder = python(HOLD.format(folder=str(tmp_path)))
    try:
        assert first(holder) == "held"
        with pytest.raises(Busy) as err, writing(tmp_path):
            pass
        text, today = str(err.value), time.strftime("%Y-%m-%d", time.gmtime())
        assert f"process {holder.pid} on {socket.gethostname()} since {today}" in text
        assert str(tmp_path) in text and "delete" in text
    finally:
        holder.kill(), holder.wait()
    with writing(tmp_path):  # the lock of a killed process is free at once
        pass
    assert not list(tmp_path.iterdir())


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    with writing(tmp_path):
        with pytest.raises(Busy, match=f"process {os.getpid()} "), writing(tmp_path):
            pass
        assert [p.name for p in tmp_path.iterdir()] == [".writing.lock"]
    with writing(tmp_path), writing(tmp_path / "another"):
        pass
    assert not list(tmp_path.iterdir())  # a folder made for nothing is gone too


def test_children_do_not_hold_on(tmp_path):
    "A process that was forked outlives its parent; the folder is free all the same."
    code = f"""
import os, time
from rvtutorial.core.files import writing
with writing({str(tmp_path)!r}):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
    holder = python(code)
    child = int(first(holder))
    try:
        with pytest.raises(Busy), writing(tmp_path):
            pass
        holder.kill(), holder.wait()
        with writing(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_many_at_once_take_turns_and_none_is_inside_with_another(tmp_path):
    code = f"""
import os, time
from rvtutorial.core.files import Busy, writing
done = 0
while done < 40:
    try:
        with writing({str(tmp_path / "x")!r}):
            os.close(os.open({str(tmp_path / "inside")!r}, os.O_CREAT | os.O_EXCL))
            os.unlink({str(tmp_path / "inside")!r})
            done += 1
    except Busy:
        time.sleep(0.001)
"""
    some = [python(code) for _ in range(3)]
    for process in some:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


def test_a_lock_that_was_replaced_meanwhile_stays(tmp_path):
    "It is the one of whoever deleted ours and took its place."
    lock = tmp_path / "job.lock"
    for keep in (False, True):
        with held(lock, keep=keep):
            lock.unlink()
            lock.write_text("of another")
        assert lock.read_text() == "of another"


def test_a_job_of_an_array_is_found_by_its_own_number(monkeypatch):
    "Slurm calls member 2 of array 36 both job 38 and 36_2."

    def squeue(words, *cluster):
        form = words[words.index("-o") + 1]
        return form.replace("%i", "36_2").replace("%A", "38") + "\n"

    monkeypatch.setattr(files, "answer", squeue)
    owner = {"host": "other", "slurm_job_id": "38"}
    assert files._alive(owner)
    assert not files._alive(owner | {"slurm_job_id": "3"})


@pytest.fixture
def without_locks(monkeypatch):
    "As on a file system that knows no locks, such as some NFS."

    def broken(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", broken)


def test_without_locks_the_record_decides(tmp_path, without_locks):
    with writing(tmp_path):
        with pytest.raises(Busy, match=str(os.getpid())), writing(tmp_path):
            pass
    gone = subprocess.Popen(["true"])
    gone.wait()
    mine = dict(pid=gone.pid, host=socket.gethostname(), begun="1")
    (tmp_path / ".writing.lock").write_text(json.dumps(mine))
    with writing(tmp_path):  # killed
        pass
    mine["pid"] = os.getpid()  # its number has been given again since
    (tmp_path / ".writing.lock").write_text(json.dumps(mine))
    with writing(tmp_path):
        pass
    del mine["begun"]  # as earlier versions wrote it
    (tmp_path / ".writing.lock").write_text(json.dumps(mine))
    with pytest.raises(Busy), writing(tmp_path):
        pass
    Run(tmp_path).update("went", state="running")
    assert Run(tmp_path).state == "running"


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", '{"pid": "x"}', '"a"'])
def test_a_lock_with_nonsense_in_it_is_free(text, tmp_path):
    (tmp_path / "job.lock").write_bytes(text.encode("latin-1"))
    if "pid" in text:
        text = json.dumps({"pid": "x", "host": socket.gethostname()})
        (tmp_path / "job.lock").write_text(text)
    with held(tmp_path / "job.lock", keep=True):
        assert json.loads((tmp_path / "job.lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "job.lock").read_bytes() == b""


def test_of_two_that_begin_a_run_at_once_one_is_refused(tmp_path, monkeypatch):
    "Both have found the folder empty; the first to write it down has it."
    from rvtutorial.core import record as runs

    real = runs._refuse
    calls = []

    def slow(run, asked, differ):
        real(run, asked, differ)
        calls.append(asked)
        if len(calls) == 1:  # the other one is faster
            Run.open_for(tmp_path / "a", {"config": "two"})

    monkeypatch.setattr(runs, "_refuse", slow)
    with pytest.raises(ValueError, match="other settings"):
        Run.open_for(tmp_path / "a", {"config": "one"})
    assert Run(tmp_path / "a").manifest["asked"] == {"config": "two"}


# ------------------------------------------------------------------ limits

GB = 2**30


def machine(root: Path, groups: str, **values) -> Path:
    "Control groups of this process; a value by its path, __ for /."
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in values.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text) + "\n")
    return root


V2 = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
JOB = "system.slice__slurmstepd.scope__job_7"
V1 = "11:cpu,cpuacct:/\n4:memory:/slurm/uid_1/job_7/step_0\n0::/init\n"
UNLIMITED = 9223372036854771712


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    "A machine with 16 GB free, on which this process takes nothing."
    nothing = SimpleNamespace(rss=0, vms=0, data=0)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: nothing)
    free = SimpleNamespace(available=16 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_memory_of_a_machine_without_limits(tmp_path):
    assert available_memory(machine(tmp_path, "")) == 16 * GB


@pytest.mark.parametrize("level", ["", "__step_0", "__step_0__user__task_0"])
def test_limits_of_nested_groups(level, tmp_path):
    group = JOB + level
    values = {f"{group}__memory.max": 2 * GB, f"{group}__memory.current": GB // 2}
    values |= {"system.slice__memory.max": "max", "memory.max": "max"}
    assert available_memory(machine(tmp_path, V2, **values)) == 3 * GB // 2


def test_the_smallest_of_all_groups_holds_and_high_counts(tmp_path):
    values = {f"{JOB}__memory.max": 8 * GB, f"{JOB}__memory.high": 3 * GB}
    values |= {f"{JOB}__step_0__memory.max": 5 * GB}
    assert available_memory(machine(tmp_path, V2, **values)) == 3 * GB
    values[f"{JOB}__step_0__user__memory.max"] = GB
    assert available_memory(machine(tmp_path, V2, **values)) == GB


@pytest.mark.parametrize("level", ["slurm__uid_1", "slurm__uid_1__job_7__step_0"])
def test_limits_of_the_first_version(level, tmp_path):
    values = {f"memory__{level}__memory.limit_in_bytes": 2 * GB}
    values |= {f"memory__{level}__memory.usage_in_bytes": GB}
    values |= {"memory__memory.limit_in_bytes": UNLIMITED}
    assert available_memory(machine(tmp_path, V1, **values)) == GB


def test_cached_files_can_be_given_up(tmp_path):
    values = {f"{JOB}__memory.max": 4 * GB, f"{JOB}__memory.current": 4 * GB}
    values |= {f"{JOB}__memory.stat": f"anon 1\ninactive_file {3 * GB}\nfile 5"}
    assert available_memory(machine(tmp_path, V2, **values)) == 3 * GB


@pytest.mark.parametrize("groups", ["0::/\n", "0::/../../elsewhere\n", V2, "", V1])
def test_a_container_shows_its_own_group_only(groups, tmp_path):
    values = {"memory.max": 2 * GB, "memory.current": 0}
    assert available_memory(machine(tmp_path, groups, **values)) == 2 * GB


@pytest.mark.parametrize(
    ("granted", "gb"),
    [
        ({"MEM_PER_NODE": "2048"}, 2),
        ({"MEM_PER_NODE": "3G"}, 3),
        ({"MEM_PER_NODE": "0"}, 16),  # all memory of the node
        ({"MEM_PER_CPU": "1024", "CPUS_ON_NODE": "4"}, 4),
        ({"MEM_PER_CPU": "1024", "JOB_CPUS_PER_NODE": "3(x2)"}, 3),
        ({"MEM_PER_CPU": "1024", "CPUS_PER_TASK": "2"}, 2),
        ({"MEM_PER_CPU": "1024"}, 1),
        ({"MEM_PER_GPU": "2048", "GPUS_ON_NODE": "2"}, 4),
        ({"MEM_PER_GPU": "2048", "JOB_GPUS": "0,3"}, 4),
        ({"MEM_PER_NODE": "8192", "MEM_PER_CPU": "1024", "CPUS_ON_NODE": "2"}, 2),
        ({"MEM_PER_NODE": "nonsense"}, 16),
        ({"MEM_PER_NODE": "UNLIMITED"}, 16),
        ({"MEM_PER_NODE": "2097152K"}, 2),
        ({"MEM_PER_NODE": "2048MB"}, 2),
        ({"MEM_PER_NODE": "2.5Gn"}, 2.5),
        ({"MEM_PER_CPU": "1Gc", "CPUS_ON_NODE": "2"}, 2),
        ({"MEM_PER_GPU": "1G", "JOB_GPUS": "0-2,5"}, 4),
    ],
)
def test_what_slurm_has_granted(granted, gb, tmp_path, monkeypatch):
    for name, value in granted.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert available_memory(machine(tmp_path, "")) == gb * GB


@pytest.mark.parametrize(
    "name, text",
    [
        ("proc/self/cgroup", b"\nrubbish\n0::/job_7\n"),
        ("proc/self/cgroup", b"0::/job_7\n1:name=\xff:/x\n"),
        ("sys/fs/cgroup/job_7/memory.stat", b"inactive_file\nanon 1\n"),
        ("sys/fs/cgroup/job_7/memory.stat", b"inactive_file much\n"),
        ("sys/fs/cgroup/job_7/memory.current", b""),
        ("sys/fs/cgroup/memory.max", b"\n"),
    ],
)
def test_odd_files_of_a_kernel_do_not_hide_the_others(name, text, tmp_path):
    root = machine(tmp_path, "0::/job_7\n", **{"job_7__memory.max": 2 * GB})
    (root / name).write_bytes(text)
    assert available_memory(root) == 2 * GB


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process(kind):
    code = f"""
import resource
resource.setrlimit(resource.{kind}, (2**30, 2**30))
from rvtutorial.core.files import available_memory
print(available_memory())
"""
    assert 0 < int(first(python(code))) < GB


@pytest.mark.parametrize("module", ["engine.pipeline", "config"])
@pytest.mark.parametrize("gb", [1, 3.5])
def test_too_few_addresses_are_told_before_torch_is_imported(gb, module):
    "With 3.5 GB the import would go on for many minutes."
    limit = int(gb * GB)
    code = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
    )
    done = python(code + f"import rvtutorial.{module}").communicate(timeout=60)
    assert (
        done[1]
        .splitlines()[-1]
        .startswith(
            f"rvtutorial.core.files.TooLittle: a process may have {gb:.1f} GB of addresses here"
        )
    )


def test_the_budget_of_trainings_is_a_quarter_of_it(monkeypatch):
    from rvtutorial.engine.reading import SceneStore

    monkeypatch.delenv("RVTUTORIAL_CACHE_MB", raising=False)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(10**5))
    free = SceneStore(scratch="x").budget
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    assert SceneStore(scratch="x").budget <= 2 * GB / 4 < free


def test_the_module_is_light():
    code = "import sys, rvtutorial.core.files; print(sorted(m for m in sys.modules if m in "
    code += "('torch', 'numpy', 'pandas', 'rastervision')))"
    assert first(python(code)) == "[]"


# ------------------------------------------------------------------ scripts


@pytest.mark.parametrize("trap", TRAPS)
def test_a_build_trusts_no_cache_of_others(trap, temporary):
    "What lies in a cache goes into the image."
    trap(cache := temporary / "apptainer-cache")
    programs = temporary.parent / "bin"
    programs.mkdir()
    (programs / "apptainer").write_text("#!/bin/sh\n")
    (programs / "apptainer").chmod(0o755)
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    image = temporary.parent / "rv.sif"
    build = ["bash", ROOT / "apptainer/build.sh", "-t", str(temporary), str(image)]
    done = subprocess.run(build, env=env, capture_output=True, text=True)
    told = f"{cache} is not a folder that is yours alone" in done.stderr
    assert told == (trap is not readable) and done.returncode
    assert not list(temporary.glob("apptainer-tmp*"))
