"""A real Slurm and a real Apptainer for the tests in this folder; see `make hpc-test`.

Without root or apt-get the tests are skipped. Where both are there and the services do
not come up, the run fails: that would be a fault of ours, not of the machine.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rvtutorial.container import exec_command

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# An Apptainer that runs in a root of its own sees this folder of the machine as it is.
WORK = Path(os.environ.get("RVTUTORIAL_CLUSTER_WORK", "/var/tmp"))


def why_not() -> str | None:
    "Why no services can be set up on this machine; None when they can."
    if os.geteuid() != 0:
        return "needs root, to install and to start Slurm"
    if not shutil.which("apt-get"):
        return "needs apt-get, to install Slurm"
    return None


def stand_up(script: str) -> dict[str, str]:
    "Run one of this folder's scripts; the variables that it prints."
    if reason := why_not():
        pytest.skip(reason)
    done = subprocess.run([HERE / script, "up"], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stderr[-3000:]}", pytrace=False)
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in lines}


@dataclass(frozen=True)
class Cluster:
    "A Slurm that answers."

    environ: dict  # What a process needs to find it
    partition: str
    account: str | None  # None: it keeps no accounts

    def run(self, *words, user: str = "root", **options) -> subprocess.CompletedProcess:
        "A command beside this Slurm, as root or as the ordinary user student."
        if user != "root":
            words = ("runuser", "-u", user, "--", *words)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SBATCH_")}
        environ |= self.environ
        options = {"timeout": 120, "cwd": WORK, "env": environ} | options
        words = [str(word) for word in words]
        return subprocess.run(words, capture_output=True, text=True, **options)


@pytest.fixture(scope="session")
def slurm():
    "A Slurm of one node and four emulated GPUs; its variables are in os.environ too."
    told = stand_up("standup.sh")
    environ = {"SLURM_CONF": told["SLURM_CONF"]}
    patch = pytest.MonkeyPatch()
    for name, value in environ.items():
        patch.setenv(name, value)
    yield Cluster(
        environ,
        told["RVTUTORIAL_TEST_PARTITION"],
        told.get("RVTUTORIAL_TEST_ACCOUNT"),
    )
    patch.undo()


@pytest.fixture(scope="session")
def partition(slurm):
    "The partition for tests; it lets others preempt its jobs."
    return slurm.partition


@pytest.fixture(scope="session")
def apptainer():
    "Path of a base image (Debian with Python); `apptainer` is on the PATH."
    told = stand_up("apptainer.sh")
    return Path(told["RVTUTORIAL_TEST_BASE"])


@pytest.fixture(scope="session")
def workplace():
    "A folder for a session's files that an image and a batch job see too."
    folder = WORK / f"rvtutorial-tests-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Image:
    "An image, and what must be bound when it runs."

    path: Path
    binds: tuple[str, ...]  # As a site file has them

    def command(self, words, *binds, nv=False, **options) -> list[str]:
        return exec_command(self.path, words, [*self.binds, *binds], nv=nv, **options)

    def run(self, words, *binds, **options) -> subprocess.CompletedProcess:
        command = self.command(words, *binds, **options)
        return subprocess.run(command, capture_output=True, text=True, timeout=300)


def packages() -> Path:
    "The folder of this Python's packages."
    import torch

    return Path(torch.__file__).parent.parent


@pytest.fixture(scope="session")
def small_build(apptainer):
    """Arguments of build.sh for rastervision.def without its packages, and its binds.

    Such an image borrows this Python's packages, so it must have the same Python.
    """
    ask = ["python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
    there = subprocess.run(
        exec_command(apptainer, ask, nv=False), capture_output=True, text=True
    )
    here = "{}.{}".format(*sys.version_info[:2])
    if there.stdout.strip() != here:
        pytest.skip(
            f"the base image has Python {there.stdout.strip()}, and this {here}"
        )
    bind = f"{packages()}:{packages()}:ro"
    words = ["-b", bind, "-a", f"PACKAGES={packages()}", "-w", "no"]
    words += ["-a", "BOOTSTRAP=localimage", "-a", f"FROM={apptainer}"]
    return words, (bind,)


@pytest.fixture(scope="session")
def image(request, workplace):
    """The image to test: a small one, built by build.sh as a reader would.

    RVTUTORIAL_TEST_IMAGE names another one, complete and built from this checkout.
    """
    if whole := os.environ.get("RVTUTORIAL_TEST_IMAGE"):
        request.getfixturevalue("apptainer")
        return Image(Path(whole), ())
    words, binds = request.getfixturevalue("small_build")
    path = workplace / "small.sif"
    done = subprocess.run(
        [ROOT / "apptainer/build.sh", *words, "-t", workplace, path],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"build.sh failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return Image(path, binds)
