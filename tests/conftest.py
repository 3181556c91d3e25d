"""Fixtures shared by the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data():
    "A function that finds a folder of real imagery, or skips and says so."
    base = Path(os.environ.get("RVTUTORIAL_REAL_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(
                f"real imagery {name} is not on this machine (looked in {base})"
            )
        return base / name

    return find


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Scenes and labels of the zoo of stock configurations (`stock_configs`)."
    import stock_configs

    return stock_configs.make_data(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def one_thread():
    "One thread of torch, so that sums are added in one order."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def predicts_without():
    "A check that plain Raster Vision predicts with a run's bundle where packages are missing."

    def check(run, image, folder, *missing):
        code = (
            "import sys\n"
            f"sys.modules.update(dict.fromkeys({missing!r}))\n"
            "from rastervision.core.predictor import Predictor\n"
            "from rastervision.core.rv_pipeline import *\n"
            f"bundle = {str(run.path / 'bundle' / 'model-bundle.zip')!r}\n"
            f"made = Predictor(bundle, {str(folder)!r})\n"
            f"made.predict([{str(image)!r}], {str(folder / 'out')!r})\n"
        )
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return check
