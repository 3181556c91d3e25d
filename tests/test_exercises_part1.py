"Part 1's checks: right answers pass, each typical mistake gets a sentence of its own."

import json
from pathlib import Path

import pytest

from rvtutorial.exercises import check
from rvtutorial.sites import Site

NB = Path(__file__).resolve().parent.parent / "nbs" / "01_tutorial_setup.ipynb"


def farm(**changes):
    given = dict(
        name="farm", account="crops", partition="gpu", gres="gpu:1", cpus=2, mem="8G"
    )
    return Site(**(given | changes))


RIGHT = {
    "1.1": ["01:04:00", "01:03:12", "64", 64, "0-01:05:00"],
    "1.2": [farm(), farm(mem="8192M")],
    "1.3": [["d"], "d", ("d",)],
}
WRONG = {
    "1.1": [
        ("soon", "cannot read"), (3792, "counts minutes"), ("1:04", "minutes and seconds"),
        ("00:53:00", "add a fifth"), ("00:30:00", "ends? the job early"), ("1-0", "longer the wait"),
    ],
    "1.2": [
        ({"account": "crops"}, "hand them to Site"), ("farm", "this is a str"),
        (farm(name="local"), "run on this machine"), (farm(account=None), "account is None"),
        (farm(gres=None), "gives no GPU"), (farm(cpus=None), "Slurm gives one"),
        (farm(mem="8M"), "mem is '8M'"), (farm(mem=None), "mem is None"),
        (farm(time="01:00:00"), "nobody has said so"), (farm(partition="cpu"), "no GPU"),
    ],
    "1.3": [
        (["e"], "one or more of the letters"), (["a", "d"], "that run is done"),
        (["b", "d"], "same number"), (["c", "d"], "refused, not mixed"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("number, answer", [(n, a) for n in RIGHT for a in RIGHT[n]])
def test_right_answers_pass(number, answer):
    assert check(number, answer)


@pytest.mark.parametrize("number", WRONG)
def test_each_mistake_has_its_own_message(number):
    messages = []
    for answer, fragment in WRONG[number]:
        verdict = check(number, answer)
        assert verdict.right is False, answer
        assert fragment.replace("?", "") in verdict.message.replace(
            "end the", "ends the"
        ), verdict
        messages.append(verdict.message)
    assert len({m for m in messages}) == len(messages) >= 3


@pytest.mark.parametrize("number", RIGHT)
def test_open_and_solved_in_the_part(number):
    assert check(number).right is None
    cells = ["".join(c["source"]) for c in json.loads(NB.read_text())["cells"]]
    solutions = cells[cells.index("## Solutions") :]
    assert any(f'assert check("{number}"' in cell for cell in solutions)
    assert any(f'check("{number}", answer' in cell for cell in cells)
