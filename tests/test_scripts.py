"""The shell scripts, with rastervision, apptainer, sbatch and module replaced by recorders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rvtutorial
from rvtutorial.container import exec_command

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["slurm/run_model1.sh", "slurm/run_model2.sh", "apptainer/build.sh"]
MODELS = SCRIPTS[:2]

RECORDER = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
stdin = sys.stdin.read() if name == "sbatch" else ""
slurm = sorted(k for k in os.environ if k.startswith(("SLURM_", "SBATCH_")))
with open({log!r}, "a") as log:
    log.write(json.dumps([name, sys.argv[1:], stdin, os.getcwd(), slurm]) + "\\n")
if name == "sbatch":
    print("4711;cluster")
if name == "apptainer" and "build" in sys.argv:
    open(sys.argv[-2], "w").write("image")
sys.exit(int(os.environ.get("RECORDER_EXIT", 0)))
"""


class Bench:
    "A folder to work in, and recorders first on the PATH."

    def __init__(self, folder, monkeypatch):
        self.folder, self.log = folder / "a place", folder / "log"
        self.folder.mkdir()
        bin_ = folder / "bin"
        bin_.mkdir()
        for name in ("rastervision", "apptainer", "sbatch"):
            path = bin_ / name
            path.write_text(RECORDER.format(python=sys.executable, log=str(self.log)))
            path.chmod(0o755)
        self.bin = bin_
        for name in list(os.environ):
            if name.startswith(("SLURM_", "SBATCH_", "RVTUTORIAL_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.setenv("RVTUTORIAL_PYTHON", sys.executable)

    def __call__(self, script, *args, cwd=None, **env):
        return subprocess.run(
            ["bash", str(script if os.path.isabs(script) else ROOT / script), *args],
            cwd=cwd or self.folder,
            env=os.environ | env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    @property
    def calls(self):
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def site(self, name, text):
        folder = self.folder.parent / "config" / "rvtutorial" / "sites"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.toml").write_text(text)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def arguments(argv):
    "The -a pairs of a rastervision command."
    at = [i for i, word in enumerate(argv) if word == "-a"]
    return {argv[i + 1]: argv[i + 2] for i in at}


@pytest.mark.parametrize("script", [*SCRIPTS, "slurm/common.sh"])
def test_shellcheck(script):
    tool = shutil.which("shellcheck") or str(
        Path(sys.executable).with_name("shellcheck")
    )
    if not os.path.exists(tool):
        pytest.skip("shellcheck is not installed (it comes with the extra dev)")
    done = subprocess.run(
        [tool, "-x", "-P", ROOT, ROOT / script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_help(bench, script):
    done = bench(script, "-h")
    assert done.returncode == 0 and done.stdout.startswith(
        f"usage: {Path(script).name}"
    )
    assert not bench.calls and not done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["-q"], "there is no option -q"),
        (["one", "two"], "one two"),
    ],
)
def test_bad_usage(bench, script, args, reason):
    done = bench(script, *args)
    assert done.returncode == 2 and not done.stdout and not bench.calls
    assert "usage:" in done.stderr and reason in done.stderr


@pytest.mark.parametrize(
    ("script", "option"),
    [("slurm/run_model1.sh", "S"), ("apptainer/build.sh", "t")]
    + [("slurm/run_model2.sh", option) for option in "csmebloS"],
)
def test_an_option_without_its_value_says_so(bench, script, option):
    done = bench(script, f"-{option}")
    assert done.returncode == 2
    assert "usage:" in done.stderr and f"option -{option} needs a value" in done.stderr


def test_every_option_arrives(bench):
    options = "-c 200 -s 190 -m 4 -e 7 -b 12 -l 5e-3".split()
    done = bench("slurm/run_model2.sh", *options, "-o", "my run")
    assert done.returncode == 0, done.stderr
    ((name, argv, _, _, _),) = bench.calls
    assert name == "rastervision"
    assert argv[:3] == ["run", "inprocess", "rvtutorial.config"]
    assert arguments(argv) == {
        "output_uri": str(bench.folder / "my run"),
        "preset": "version2",
        "chip_sz": "200",
        "stride_length": "190",
        "max_windows": "4",
        "epochs": "7",
        "batch_sz": "12",
        "lr": "5e-3",
    }
    assert (bench.folder / "my run").is_dir()


@pytest.mark.parametrize(
    ("script", "preset"), [(MODELS[0], "version1"), (MODELS[1], "version2")]
)
def test_defaults(bench, script, preset):
    assert bench(script).returncode == 0
    ((_, argv, _, _, _),) = bench.calls
    output = str(bench.folder / "output")
    assert arguments(argv) == {"output_uri": output, "preset": preset}


def test_presets_hold_what_the_usage_promises(bench):
    from rvtutorial.runs import Hyperparams

    text = bench("slurm/run_model2.sh", "-h").stdout
    two = Hyperparams.of("version2")
    for letter, value in zip(
        "csmeb",
        (two.chip_sz, two.stride_length, two.max_windows, two.epochs, two.batch_sz),
        strict=True,
    ):
        (line,) = [
            line for line in text.splitlines() if line.startswith(f"  -{letter} ")
        ]
        assert f"default: {value})" in line
    assert two.lr == 1e-4 and "default: 1e-4" in text
    one = Hyperparams.of("version1")
    assert (one.chip_sz, one.max_windows, one.epochs, one.batch_sz, one.lr) == (
        300,
        5,
        3,
        2,
        1e-4,
    )
    assert "chips of 300 pixels, 5 per" in bench("slurm/run_model1.sh", "-h").stdout


def test_output_of_version_1_is_its_argument(bench):
    bench("slurm/run_model1.sh", "first", RVTUTORIAL_DATA=str(bench.folder / "tiles"))
    ((_, argv, _, _, _),) = bench.calls
    assert arguments(argv)["output_uri"] == str(bench.folder / "first")
    assert arguments(argv)["data"] == str(bench.folder / "tiles")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-l", "fast"], "lr"),
        (["-l", "*"], "lr"),
        (["-c", "-5"], "chip_sz"),
        (["-s", "300"], "stride_length"),
        (["-o", ""], "folder '' is empty"),
        (["-o", "a:b"], "'a:b' is empty or holds one of"),
        (["-S", "atlantis"], "atlantis"),
    ],
)
def test_values_are_checked_before_anything_runs(bench, args, words):
    done = bench("slurm/run_model2.sh", *args)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr
    assert not bench.calls and not list(bench.folder.iterdir())


def test_the_exit_status_is_rastervisions(bench):
    assert bench("slurm/run_model2.sh", RECORDER_EXIT="3").returncode == 3


def test_a_folder_with_another_run_is_refused(bench):
    from rvtutorial.runs import Hyperparams

    (bench.folder / "output").mkdir()
    asked = {"hyperparams": Hyperparams.of("version2", lr=0.01).asdict()}
    manifest = {"schema": 1, "asked": asked}
    (bench.folder / "output/run.json").write_text(json.dumps(manifest))
    done = bench("slurm/run_model2.sh", "-l", "1e-3")
    assert done.returncode == 2 and not bench.calls
    assert "output holds another run: lr is 0.01 there, 0.001 here" in done.stderr
    assert bench("slurm/run_model2.sh", "-l", "1e-2").returncode == 0


SITE = """
account = "soil"
partition = "gpu"
gres = "gpu:1"
cpus = 3
mem = "16G"
time = "01:00:00"
extra = ["--nice=10", "--comment=a b"]
"""


def test_a_cluster_without_image(bench):
    bench.site("here", SITE)
    done = bench(
        "slurm/run_model2.sh", "-S", "here", "-l", "1e-3",
        SLURM_MEM_PER_CPU="9", SBATCH_ACCOUNT="x", SLURM_CONF="/c",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "job 4711 for" in done.stdout
    ((name, argv, job, _, slurm),) = bench.calls
    output = bench.folder / "output"
    assert name == "sbatch" and slurm == ["SLURM_CONF"]
    assert set(argv) == {
        "--parsable", "--job-name=output", "--nodes=1", "--ntasks=1", "--export=NONE",
        f"--chdir={output}", f"--output={output}/slurm-%j.out", "--account=soil",
        "--partition=gpu", "--gres=gpu:1", "--mem=16G", "--time=01:00:00",
        "--cpus-per-task=3", "--nice=10", "--comment=a b",
    }  # fmt: skip
    bench.log.unlink()
    assert subprocess.run(["bash", "-c", job], cwd=output).returncode == 0
    ((name, argv, *_),) = bench.calls
    assert name == "rastervision" and arguments(argv)["lr"] == "1e-3"


def container_site(bench, more=""):
    scratch = bench.folder.parent / "scratch of mine"
    scratch.mkdir()
    bench.site(
        "box",
        f'image = "/i/rv.sif"\nbinds = ["/d/in:/opt/data/input:ro"]\ndata = "/d/tiles"\n'
        f'scratch = "{scratch}"\n{more}',
    )
    return scratch


def test_the_container_command_is_the_librarys(bench):
    scratch = container_site(bench)
    done = bench("slurm/run_model2.sh", "-S", "box", "-n")
    assert done.returncode == 0 and not bench.calls and not list(bench.folder.iterdir())
    job = done.stdout.split("\n", 1)[1]
    subprocess.run(["bash", "-c", job], cwd="/", check=True)
    ((name, argv, *_),) = bench.calls
    work = argv[argv.index("--workdir") + 1]
    assert name == "apptainer" and work.startswith(f"{scratch}/rvtutorial.")
    assert not os.path.exists(work)  # removed at the end
    output = str(bench.folder / "output")
    rastervision = ["rastervision", "run", "inprocess", "rvtutorial.config"]
    rastervision += [
        "-a",
        "output_uri",
        output,
        "-a",
        "preset",
        "version2",
        "-a",
        "data",
        "/d/tiles",
    ]
    binds = [output, "/d/tiles:/d/tiles:ro", "/d/in:/opt/data/input:ro"]
    expected = exec_command(
        "/i/rv.sif",
        rastervision,
        binds,
        nv=True,
        workdir=work,
        home=f"{work}/home",
        pwd=output,
    )[1:]

    def flags(words):
        words = [w.removesuffix(f":{output}") for w in words]
        at = words.index("/i/rv.sif")
        return sorted(words[:at]), words[at:]

    assert flags(argv) == flags(expected)


def test_no_gpu_where_the_site_says_so(bench):
    container_site(bench, 'nv = false\nqueue = "local"')
    assert bench("slurm/run_model1.sh", "-S", "box").returncode == 0
    ((name, argv, *_),) = bench.calls
    assert name == "apptainer" and "--nv" not in argv


def test_a_module_that_does_not_load_stops_the_job(bench):
    bench.site("m", SITE + 'modules = ["apptainer/1 x"]\n')
    job = bench("slurm/run_model1.sh", "-S", "m", "-n").stdout.split("\n", 1)[1]
    call = 'module() { echo loading "$2"; return 1; }\n'
    done = subprocess.run(["bash", "-c", call + job], capture_output=True, text=True)
    assert (
        done.returncode == 1
        and done.stdout == "loading apptainer/1 x\n"
        and not bench.calls
    )


def test_handed_to_sbatch_the_script_finds_itself(bench, tmp_path):
    "Slurm runs a copy called slurm_script; the run then starts in that very job."
    spool = tmp_path / "job00042" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(ROOT / "slurm/run_model2.sh", spool)
    fake = bench.bin / "scontrol"
    fake.write_text(
        f'#!/bin/bash\necho "JobId=$4 Command={ROOT}/slurm/run_model2.sh WorkDir=/"\n'
    )
    fake.chmod(0o755)
    bench.site("here", SITE)
    done = bench(spool, "-S", "here", "-e", "2", SLURM_JOB_ID="42")
    assert done.returncode == 0, done.stderr
    ((name, argv, *_),) = bench.calls
    assert name == "rastervision" and arguments(argv)["epochs"] == "2"


def test_an_old_python_is_not_used(bench):
    for name in ("python3", "python"):
        old = bench.bin / name
        old.write_text("#!/bin/bash\nexit 1\n")
        old.chmod(0o755)
    done = bench("slurm/run_model2.sh", RVTUTORIAL_PYTHON="")
    if (ROOT / ".venv/bin/python").exists():
        assert done.returncode == 0
    else:
        assert done.returncode == 2 and "no Python 3.11" in done.stderr


# --- building the image


def test_build_command(bench):
    done = bench(
        "apptainer/build.sh",
        "-n",
        "-t",
        "/scratch/a b",
        "-a",
        "FROM=x",
        "-m",
        "a b",
        "rv.sif",
    )
    assert done.returncode == 0 and not bench.calls
    load, first, second = done.stdout.splitlines()
    assert load == "module load a\\ b"
    assert first == f"cd {ROOT}"
    assert "APPTAINER_CACHEDIR=/scratch/a\\ b/apptainer-cache" in second
    assert "APPTAINER_TMPDIR=/scratch/a\\ b/apptainer-tmp" in second
    assert "--build-arg FROM=x" in second and "apptainer/rastervision.def" in second


def test_build_makes_tests_and_renames(bench):
    done = bench("apptainer/build.sh", "-w", "no", "rv.sif")
    assert done.returncode == 0, done.stderr
    build, test = bench.calls
    part = str(bench.folder / "rv.sif.part")
    assert build[1][-2:] == [part, "apptainer/rastervision.def"] and build[3] == str(
        ROOT
    )
    assert "WEIGHTS=no" in build[1] and f"VERSION={rvtutorial.__version__}" in build[1]
    assert test[1] == ["test", part]
    assert (bench.folder / "rv.sif").read_text() == "image"
    assert "rv.sif" in (bench.folder / "rv.sif.sha256").read_text()
    assert not (bench.folder / "rv.sif.part").exists()
    again = bench("apptainer/build.sh", "rv.sif")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_a_failed_build_leaves_no_image(bench):
    done = bench("apptainer/build.sh", "rv.sif", RECORDER_EXIT="7")
    assert done.returncode == 7 and not list(bench.folder.glob("rv.sif*"))


def test_build_as_a_job_finds_the_checkout(bench, tmp_path):
    spool = tmp_path / "job00042" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(ROOT / "apptainer/build.sh", spool)
    done = bench(spool, "-n", SLURM_SUBMIT_DIR=str(ROOT))
    assert done.stdout.startswith(f"cd {ROOT}\n")
    done = bench(spool, "-n", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2


@pytest.mark.slow
def test_a_real_run_with_plain_raster_vision(bench):
    "No recorder: rastervision of this environment, smoke preset, one epoch."
    (bench.bin / "rastervision").unlink()
    done = bench(
        "slurm/run_model2.sh", "-e", "1",
        RVTUTORIAL_PRESET="smoke", RVTUTORIAL_HOME=str(bench.folder), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    output = bench.folder / "output"
    assert (output / "eval/validation_scenes/eval.json").exists()
    assert len((output / "train/log.csv").read_text().splitlines()) == 2
