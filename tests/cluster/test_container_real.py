"""The image and the commands of `container`, with a real Apptainer."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rvtutorial.core.records import read_json
from rvtutorial.hpc.image import (
    Bind,
    _image_versions,
    check_versions,
    own_versions,
)
from rvtutorial.hpc.sites import Site
from rvtutorial.slurm import Job, JobFailed, submit_many

ROOT = Path(__file__).resolve().parents[2]


def apptainer_says(*words, **options):
    words = ["apptainer", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, **options)


# --- the image


def test_the_image_of_this_checkout_fits(image):
    assert check_versions(image.path)["torch"] == _image_versions(image.path)["torch"]


def bind_flags(image):
    return [word for bind in image.binds for word in ("--bind", bind)]


@pytest.fixture
def weights(workplace):
    "A folder of weights, as where the build had no network; and the one file in it."
    folder = workplace / "torch"
    name = hashlib.sha256(b"weights").hexdigest()[:8]
    file = folder / f"hub/checkpoints/resnet50-{name}.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    yield ["--bind", f"{folder}:/opt/torch:ro"], file
    file.unlink()
    file.parent.rmdir()


def test_its_own_test_passes(image, weights):
    bind, file = weights
    done = apptainer_says("test", *bind_flags(image), *bind, image.path)
    assert done.returncode == 0, done.stderr
    assert "No broken requirements found." in done.stdout
    assert "image ok: Python 3." in done.stdout
    assert f"weights ['{file.stem}']" in done.stdout


def test_its_own_test_finds_damaged_weights(image, weights):
    bind, file = weights
    file.write_bytes(b"weigh")
    done = apptainer_says("test", *bind_flags(image), *bind, image.path)
    assert done.returncode == 1 and f"{file.name} is damaged" in done.stderr


def test_labels_and_help_say_what_is_inside(image):
    labels = apptainer_says("inspect", "--json", "--labels", image.path)
    labels = json.loads(labels.stdout)["data"]["attributes"]["labels"]
    here = own_versions()
    assert labels["org.opencontainers.image.title"] == "rvtutorial"
    assert labels["org.opencontainers.image.version"] == here["rvtutorial"]
    for name in ("rvtutorial", "rastervision", "torch", "torchvision", "numpy"):
        assert labels[f"rvtutorial.version.{name}"] == here[name]
    text = apptainer_says("run-help", image.path).stdout
    assert "apptainer exec --nv" in text and "/opt/torch" in text


def test_run_is_python(image):
    code = "import rvtutorial; print(rvtutorial.__file__)"
    done = apptainer_says(
        "run", "--cleanenv", *bind_flags(image), image.path, "-c", code, cwd="/"
    )
    assert done.stdout.startswith("/opt/venv/lib/python3."), done.stderr


def test_raster_vision_is_there(image):
    done = image.run(["rastervision", "--help"])
    assert done.returncode == 0 and "run" in done.stdout
    assert not done.stderr.count("WARNING"), done.stderr


# --- what a program inside sees

LOOKS = (
    "head -1 /etc/os-release",
    "python --version",
    "python -c 'import torch; print(torch.cuda.is_available())'",
    "ls /opt",
    "touch /opt/x",
    "ls -A ~ | wc -l",
    "df -h --output=fstype,size /tmp",
)


def test_what_part_3_shows(image):
    "Its file is made again; what differs on another machine is left out of the comparison."
    said = ""
    for command in LOOKS:
        done = image.run(["sh", "-c", command])
        lines = f"{done.stdout}{done.stderr}".splitlines()
        lines = [line for line in lines if not line.startswith("INFO:")]
        said += "\n".join([f"$ {command}", *lines, ""])
    made, kept = (ROOT / place / "container.txt" for place in ("build", "nbs/images"))
    made.parent.mkdir(exist_ok=True)
    made.write_text(said)
    for text in ("Debian GNU/Linux 12", "Read-only file system", *LOOKS):
        assert text in said and text in kept.read_text(), f"see {made}"


def test_everything_arrives_whole(image, tmp_path, monkeypatch):
    odd = ["in,put", "col:on", 'quo"te', "back\\slash", "a space", "\u00fc \u6f22"]
    for name in (*odd, "scratch", "home", "run dir"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    binds = [Bind(tmp_path / name, f"/data/{i}", True) for i, name in enumerate(odd)]
    code = (
        "import json, os, sys; open('out', 'w').write('x'); open('/tmp/t', 'w');"
        f"files = [open(f'/data/{{i}}/f').read() for i in range({len(odd)})];"
        "print(json.dumps([sys.argv[1:], files, os.getcwd(), os.environ.get('LEAK'),"
        "os.environ['HOME'], os.environ['A']]))"
    )
    monkeypatch.setenv("LEAK", "secret")
    words = [
        "$(touch bad)",
        "`touch bad`",
        "a b",
        "'",
        '"',
        "*",
        "\n",
        "--nv",
        "",
        "-n",
    ]
    words += ["; touch bad", "\u00fc \u6f22", "x" * 4096, "\\", "!$", "%s", "a=b"]
    done = image.run(
        ["python", "-c", code, *words],
        *binds,
        Bind(tmp_path / "run dir"),
        workdir=tmp_path / "scratch",
        home=tmp_path / "home",
        pwd=tmp_path / "run dir",
        env={"A": "$(touch bad)"},
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    where = [str(tmp_path / "run dir"), None, str(tmp_path / "home"), "$(touch bad)"]
    assert got == [words, odd, *where]
    assert (tmp_path / "run dir/out").exists() and not list(tmp_path.rglob("bad"))
    assert (tmp_path / "scratch/tmp/t").exists()


def test_a_missing_source_is_refused_before(image, tmp_path):
    bind = Bind(tmp_path / "not there", "/data")
    with pytest.raises(FileNotFoundError, match="nothing at .*not there.* to /data"):
        Bind.all_of([bind])
    # ... because this is what a job would end with, after its time in the queue
    assert image.run(["true"], bind).returncode == 255


def test_what_the_lesson_says_is_refused(image, tmp_path):
    assert "Read-only" in image.run(["touch", "/opt/x"]).stderr
    bind = Bind(tmp_path, "/data", True)
    assert "Read-only" in image.run(["touch", "/data/x"], bind).stderr
    assert image.run(["true"], pwd="/nowhere").returncode == 255
    code = "from rvtutorial.hpc.image import in_container; print(in_container())"
    assert image.run(["python", "-c", code]).stdout == "True\n"


def test_nv_changes_nothing_without_a_gpu(image):
    code = "import torch; print(torch.cuda.is_available())"
    with_nv = image.run(["python", "-c", code], nv=True)
    without = image.run(["python", "-c", code], nv=False)
    assert with_nv.returncode == without.returncode == 0, with_nv.stderr
    assert without.stdout == "False\n"
    if not os.path.exists("/dev/nvidiactl"):
        assert with_nv.stdout == "False\n"


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_signals_go_in_and_exit_75_comes_out(image, tmp_path, name):
    code = (
        "import signal, sys, time;"
        f"signal.signal(signal.SIG{name}, lambda *_: sys.exit(75));"
        "print('ready', flush=True); [time.sleep(0.1) for _ in range(600)]"
    )
    command = image.command(["python", "-c", code])
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "ready\n"
    started = time.monotonic()
    job.send_signal(signal.Signals[f"SIG{name}"])
    assert job.wait(30) == 75
    assert time.monotonic() - started < 10
    job.stdout.close()


# --- versions


def test_an_image_with_another_torch_is_told(image, workplace):
    other = workplace / "other.sif"
    definition = workplace / "other.def"
    definition.write_text(
        f"Bootstrap: localimage\nFrom: {image.path}\n\n%post\n"
        "    sed -i 's/^torch==.*/torch==1.0.0/' /opt/rvtutorial/freeze.txt\n"
    )
    done = apptainer_says("build", "--notest", other, definition)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ValueError, match=r"torch is 1\.0\.0 in the image and \d"):
        check_versions(other)


# --- the build script


def test_build_as_a_batch_job(slurm, small_build, weights, workplace):
    """Cache and temporary files on scratch, nothing in the home folder, a whole image.

    The weights come from a folder, as where the build has no network.
    """
    file = weights[1]
    scratch, built = workplace / "scratch", workplace / "job.sif"
    (workplace / "empty home").mkdir()
    words = ["-t", scratch, *small_build[0], "-w", file.parent, built]
    done = slurm.run(
        "sbatch",
        "--wait",
        "--export=ALL,HOME=" + str(workplace / "empty home"),
        f"--output={workplace}/build.out",
        "apptainer/build.sh",
        *words,
        cwd=ROOT,
        timeout=600,
    )
    log = (workplace / "build.out").read_text()
    assert done.returncode == 0, log[-3000:]
    assert f"weights ['{file.stem}']" in log
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    assert (workplace / "job.sif.sha256").read_text().split()[0] == digest
    assert (scratch / "apptainer-cache").is_dir()
    assert not (scratch / "apptainer-tmp").exists()
    assert not list((workplace / "empty home").rglob("*.sif"))
    assert not list(workplace.glob("job.sif.*[!6]"))
    again = slurm.run("bash", "apptainer/build.sh", built, cwd=ROOT)
    assert again.returncode == 2 and "is there already" in again.stderr


# --- a training


def test_a_training_inside_equals_one_outside(image, workplace, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(workplace / "queue"))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(workplace / "home"))
    host = Site(name="host", queue="local", cpus=1)
    sites = {"outside": host, "inside": host.replace(image=str(image.path))}
    sites["inside"] = sites["inside"].replace(binds=image.binds)
    found = {}
    for name, site in sites.items():
        # the second and third of a submission begin as copies of a warm process
        folders = [workplace / "runs" / f"{name}{i}" for i in range(3)]
        job = submit_many(dict.fromkeys(folders, {"preset": "smoke"}), site=site)
        job.wait(progress=False)
        for folder in folders:
            went = read_json(folder / "run.json")["went"]
            assert went["state"] == "succeeded", went
            container = went["attempts"][-1]["container"]
            assert bool(container) == (name == "inside")
            state = torch.load(folder / "train/last-model.pth", weights_only=False)
            scores = folder / "eval/validation_scenes/eval.json"
            found[folder.name] = state, scores.read_text()
    (one, scores), *others = found.values()
    for other, text in others:
        assert one.keys() == other.keys() and text == scores
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_inside_is_cancelled_and_the_next_one_goes_on(
    image, workplace, monkeypatch
):
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(workplace / "queue"))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(workplace / "home"))
    site = Site(name="inside", queue="local", image=str(image.path), binds=image.binds)
    folders = [workplace / "stopped" / name for name in ("first", "second")]
    job = submit_many(dict.fromkeys(folders, {"preset": "smoke"}), site=site)
    end = time.monotonic() + 120
    while not (folders[0] / "notebook.ipynb").exists():
        assert time.monotonic() < end
        time.sleep(0.2)
    Job(folders[0]).cancel()
    with pytest.raises(JobFailed, match="cancelled"):
        job.wait(progress=False)
    assert list(job.states().values()) == ["cancelled", "succeeded"]
