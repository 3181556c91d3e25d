"""Fixtures shared by the tests."""

import os
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
