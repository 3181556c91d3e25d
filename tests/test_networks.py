"""Receptive fields, learning curves over the number of training scenes, and where they meet."""

import json

import pytest
from fake_runs import evaluation
from torch import nn

from rvtutorial.data.pairing import Scene
from rvtutorial.models.networks import receptive_field
from rvtutorial.models.transfer import fewer_scenes, learning_curve, meeting_point


def test_the_field_of_a_stack_of_filters_is_that_on_paper():
    net = nn.Sequential(
        nn.Conv2d(4, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2),
    )
    assert receptive_field(net, size=33, bands=4)[0] == 1 + 2 + 4
    assert net.training  # as it was
    wide = nn.Conv2d(3, 1, 31, padding=15)
    whole, most = receptive_field(wide, size=16)
    assert whole == 16 and most <= 16  # at least so much
    assert receptive_field(nn.Conv2d(3, 1, 1), size=16) == (1, 1)


def test_most_of_the_gradient_is_nearer_than_all_of_it():
    net = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(8)])
    for layer in net:
        nn.init.constant_(layer.weight, 1 / 9)
    whole, most = receptive_field(net, size=65, bands=1)
    assert whole == 17 and most < 17


def scenes(n):
    return [Scene(str(i), f"{i}.tif", f"{i}.geojson") for i in range(n)]


def test_fewer_scenes_are_among_more():
    splits = {"train": scenes(9), "val": scenes(2)}
    for seed in range(5):
        before = []
        for n in range(1, 10):
            drawn = fewer_scenes(splits, n, seed)
            assert drawn["val"] == splits["val"] and len(drawn["train"]) == n
            assert all(scene in drawn["train"] for scene in before)
            before = drawn["train"]
    firsts = {fewer_scenes(splits, 1, seed)["train"][0].id for seed in range(20)}
    assert len(firsts) > 3
    assert len(splits["train"]) == 9
    for n in (0, 10):
        with pytest.raises(ValueError, match=f"from 1 to 9, got {n}"):
            fewer_scenes(splits, n)


def run(folder, missed, seed, scenes=8):
    "A run folder with an evaluation of some scenes; so many of 1,000 pixels are missed."
    path = folder / f"{missed}-{seed}" / "eval" / "validation_scenes" / "eval.json"
    path.parent.mkdir(parents=True)
    matrices = {}
    for i in range(scenes):
        lost = missed + 2 * (i % 3) + seed
        matrices[str(i)] = [[1000 - lost, lost, 0], [lost, 9000 - lost, 0], [0, 0, 0]]
    path.write_text(json.dumps(evaluation(matrices)))
    return folder / f"{missed}-{seed}"


@pytest.fixture
def runs(tmp_path):
    "One start is ahead with 2 and 4 scenes, level with 8 and behind with 16."
    missed = {2: (100, 400), 4: (90, 200), 8: (80, 80), 16: (70, 40)}
    return {
        n: {
            name: [run(tmp_path / f"{n}-{name}", lost, seed) for seed in range(3)]
            for name, lost in zip(("pre-trained", "small"), pair, strict=True)
        }
        for n, pair in missed.items()
    }


def test_a_learning_curve_has_a_score_and_an_interval_for_each_number(runs):
    curve = learning_curve(runs)
    assert curve.index.names == ["training scenes", "start"]
    assert [*curve.index.unique(0)] == [2, 4, 8, 16] and len(curve) == 8
    assert curve.score[2, "pre-trained"] == pytest.approx(1 - 0.10275, abs=1e-6)
    assert (curve.low < curve.score).all() and (curve.score < curve.high).all()
    assert (curve.seeds == 3).all() and (curve.scenes == 8).all()
    assert not curve.tied[2, "small"] and curve.tied[8, "small"]


def test_starts_meet_where_one_is_no_longer_better(runs):
    assert meeting_point(runs, "pre-trained", "small") == 8
    assert meeting_point(runs, "small", "pre-trained") is None
    del runs[8], runs[16]
    assert meeting_point(runs, "pre-trained", "small") is None


def test_too_few_scenes_tell_nothing(tmp_path):
    two = {name: [run(tmp_path / name, 100, 0, scenes=2)] for name in "ab"}
    with pytest.raises(
        ValueError, match="nothing is known of a and b: 2 scenes are too"
    ):
        meeting_point({4: two}, "a", "b")
