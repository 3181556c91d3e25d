"Runs, whoever made them, are read, compared and ordered; the test split is on record."

import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rasterio
from fake_runs import evaluation, fake_run, three_scenes, truth_of, write_raster
from pace import pace
from random_counts import NAMES, some_counts
from rasterio.transform import from_origin

from rvtutorial.core.records import write_json
from rvtutorial.metrics import calibration, intervals
from rvtutorial.metrics.calibration import ScoreCounts, _count_score_arrays
from rvtutorial.metrics.counting import Counts, _count_arrays, confusion
from rvtutorial.metrics.intervals import _bootstrap
from rvtutorial.metrics.leaderboard import (
    RECORD,
    LabelFolder,
    _counts_from,
    _neighbours,
    _openings,
    _scene_boxes,
    blocks_of,
    common_counts,
    compare,
    counts_of,
    group_seeds,
    label_folder,
    label_meaning,
    leaderboard,
    one_look,
    open_test,
    openings_in_words,
    scores_of,
)
from rvtutorial.runs import Run


def test_eval_json_is_read_per_scene(tmp_path):
    found = some_counts(null=True)
    kept = evaluation(dict(zip(found.scenes, found.matrices, strict=True)))
    path = tmp_path / "run" / "eval" / "validation_scenes" / "eval.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(kept))
    read = counts_of(tmp_path / "run")
    assert read.scenes == found.scenes and read.classes == NAMES
    assert read.split == "validation"
    assert np.array_equal(read.matrices, found.matrices)
    assert _counts_from({"overall": kept["overall"]}).scenes == ("all",)
    assert np.array_equal(_counts_from(kept["overall"]).total, found.total)


def test_missing_evaluation_names_file_and_stage(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(
        FileNotFoundError, match="eval/test_scenes/eval.json.*eval stage"
    ):
        counts_of(tmp_path / "run", "test")
    with pytest.raises(ValueError, match="no confusion matrix"):
        _counts_from({"per_scene": {"1": [{"class_id": 0, "class_name": "building"}]}})


def test_compare_takes_common_scenes_and_says_which_it_left():
    found = some_counts(scenes=4)
    pair = compare(found.only(["0", "1", "2"]), found.only(["1", "2", "3"]))
    assert pair.scenes == 2 and pair.left_out == ("0", "3")
    assert "scenes that not all have: 0, 3" in pair.verdict
    with pytest.raises(ValueError, match="no scene in common"):
        compare(found.only(["0"]), found.only(["1"]))
    assert "cannot tell" in compare(found.only(["0"]), found.only(["0"])).verdict


def test_leaderboard_orders_and_compares_with_the_first():
    rng = np.random.default_rng(2)
    tp = rng.uniform(500, 900, 20)
    base = pd.DataFrame(dict(tp=tp, fn=1000 - tp, fp=60.0, tn=9e3, right=tp + 9e3))
    noise = rng.normal(0, 20, 20)
    runs = {
        "low": base.assign(tp=base.tp - 100, fn=base.fn + 100),
        "near": base.assign(
            tp=base.tp + noise - noise.mean() - 1, fn=base.fn - noise + noise.mean() + 1
        ),
        "high": base,
    }
    board = leaderboard(runs)
    assert list(board.index) == ["high", "near", "low"]
    assert list(board.tied) == [True, True, False]
    assert board.verdict["high"] == "highest" and board.behind["high"] == 0
    assert board.columns[0] == "pixel_f1" and set(board.split) == {"validation"}
    with pytest.raises(ValueError, match="no runs"):
        leaderboard({})


def test_null_scores_of_raster_vision_are_not_read(tmp_path):
    "A class that never occurs has null for F1; a matrix with holes is refused."
    kept = evaluation({"1": [[5, 1, 0], [2, 9, 0], [0, 0, 0]]})
    items = kept["per_scene"]["1"]
    assert items[2]["metrics"]["f1"] is None
    for item in items[:3]:
        item["metrics"] = {"f1": None, "precision": None, "recall": None}
    found = _counts_from(json.loads(json.dumps(kept)))
    assert found.total.tolist() == [[5, 1, 0], [2, 9, 0], [0, 0, 0]]
    assert found.overall().pixel_f1["building"] == pytest.approx(10 / 13)
    items[3]["conf_mat"][0][1] = None
    with pytest.raises(ValueError, match="scene 1: .*empty places"):
        _counts_from(kept)


@pytest.mark.parametrize("state", ["running", "queued", "failed"])
def test_a_run_that_is_not_done_says_so(tmp_path, state):
    run = tmp_path / "r1"
    run.mkdir()
    write_json(run / "run.json", {"schema": 1, "went": {"state": state}})
    with pytest.raises(
        FileNotFoundError, match=f"run r1 is .*{state} and has no scores"
    ):
        leaderboard({"r1": run, "other": some_counts()})
    with pytest.raises(FileNotFoundError, match=f"run r1 is .*{state}"):
        compare(run, some_counts())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "A folder as plain Raster Vision leaves it: labels, eval.json, no run.json."
    folder = tmp_path_factory.mktemp("plain")
    return fake_run(folder / "run", three_scenes(folder / "data"))


def test_a_plain_run_and_a_folder_of_labels_give_the_same(plain, tmp_path):
    run = Run(plain)
    for scene in run.scene_ids():
        _, _, boxes, shape = three_scenes(tmp_path / "data")[scene]
        write_raster(tmp_path / "truth" / f"a{scene}.tif", truth_of(boxes, shape))
    how = dict(pattern="{id}/labels.tif", truth_pattern="a{id}.tif")
    ours = LabelFolder(plain / "predict", tmp_path / "truth", NAMES, **how)
    assert ours.scene_ids() == ["9", "10", "11"] == list(counts_of(plain).scenes)
    assert np.array_equal(counts_of(ours).matrices, counts_of(plain).matrices)
    shapes = LabelFolder(
        plain / "predict",
        plain.parent / "data",
        NAMES,
        pattern="{id}/labels.tif",
        truth_pattern="buildings_*img{id}.geojson",
    )
    assert np.array_equal(counts_of(shapes).matrices, counts_of(plain).matrices)
    pair = compare(plain, ours)
    assert pair.difference == 0 and pair.winner is None and pair.notes == ()
    board = leaderboard({"run": plain, "folder": ours})
    assert board.tied.all() and set(board.scenes) == {3}


def test_a_folder_of_labels_says_what_is_missing(tmp_path):
    write_raster(tmp_path / "p" / "a1.tif", np.zeros((2, 2), np.uint8))
    write_raster(tmp_path / "t" / "b2.tif", np.zeros((2, 2), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"no x\{id\}.tif in .*holds a1.tif"):
        counts_of(LabelFolder(tmp_path / "p", tmp_path / "t", NAMES, "x{id}.tif"))
    with pytest.raises(ValueError, match=r"no scene in common: \['a1'\] in"):
        counts_of(LabelFolder(tmp_path / "p", tmp_path / "t", NAMES))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        counts_of(LabelFolder(tmp_path / "q", tmp_path / "t", NAMES))
    with pytest.raises(ValueError, match="exactly once"):
        counts_of(LabelFolder(tmp_path / "p", tmp_path / "t", NAMES, "all.tif"))
    write_raster(tmp_path / "t" / "a1.tif", np.full((2, 2), 7, np.uint8))
    with pytest.raises(ValueError, match=r"a1.tif: truth holds values .* \[7\]"):
        counts_of(LabelFolder(tmp_path / "p", tmp_path / "t", NAMES))


def test_scores_of_a_run_are_read_with_its_own_labels(plain):
    with pytest.raises(FileNotFoundError, match="kept no scores.*scores=uint8"):
        scores_of(plain)
    with pytest.raises(FileNotFoundError, match="kept no scores.*scores=uint8"):
        scores_of(plain).reliability()
    rng = np.random.default_rng(0)
    for scene in Run(plain).scene_ids():
        said = rng.integers(0, 256, (3, 40, 50)).astype(np.uint8)
        write_raster(plain / "predict" / scene / "scores.tif", said)
    hits = np.ones((40, 50), np.uint8)
    hits[:2] = 0
    np.save(plain / "predict" / "11" / "pixel_hits.npy", hits)
    found = scores_of(plain)
    assert found.classes == ("building", "background") and found.kind == "uint8"
    assert found.unscored.tolist() == [0, 0, 100] and found.split == "validation"
    pixels = found.histograms[:, 0, 1].sum(axis=-1)
    rows = counts_of(plain).table()
    assert pixels.tolist() == (rows.tp + rows.fn).tolist()
    assert len(found.reliability(bins=10)) == 10
    with pytest.raises(ValueError, match="no test scenes"):
        scores_of(plain, "test")


def test_neighbours_are_found_on_the_map(tmp_path):
    classes, parts = ("building", "background"), []
    for i, west in enumerate((0, 40, 400, 800)):
        place = dict(transform=from_origin(west, 9, 1, 1), crs="EPSG:32611")
        rng = np.random.default_rng(i)
        truth = rng.integers(0, 2, (40, 40), dtype=np.uint8)
        drawn = np.where(rng.random(truth.shape) < 0.1 * (i + 1), 1 - truth, truth)
        write_raster(tmp_path / "t" / f"{i}.tif", truth, **place)
        write_raster(tmp_path / "p" / f"{i}.tif", drawn.astype(np.uint8), **place)
        parts.append(_count_arrays(truth, drawn, classes, str(i)))
    folder = LabelFolder(tmp_path / "p", tmp_path / "t", classes)
    found = _scene_boxes(folder, folder.scene_ids())
    assert _neighbours(found).tolist() == [0, 0, 1, 2]
    board = leaderboard({"a": folder, "b": Counts.joined(parts)})
    assert (
        board.blocks.tolist() == [3, 3]
        and "4 scenes in 3 blocks" in board.verdict.iloc[1]
    )
    alone = leaderboard({"a": folder}, blocks=None)
    assert alone.blocks.isna().all()
    given = leaderboard(
        {"b": Counts.joined(parts)}, blocks={"0": 1, "1": 1, "2": 1, "3": 2}
    )
    assert given.blocks.tolist() == [2]
    with pytest.raises(ValueError, match="no block is given for scenes"):
        leaderboard({"b": Counts.joined(parts)}, blocks={"0": 1})
    with pytest.raises(ValueError, match='"auto", None or'):
        leaderboard({"b": Counts.joined(parts)}, blocks="scene")


def test_scenes_without_a_place_stand_alone(plain):
    found = _scene_boxes(Run(plain), ["9", "nothing"])
    assert found.loc["9"].notna().all() and found.loc["nothing"].isna().all()


def with_classes(names, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (3, 30, 30))
    drawn = np.where(rng.random(truth.shape) < 0.2, 1 - truth, truth)
    order = [names.index("building"), names.index("background")]
    look = np.array(order)
    parts = [
        _count_arrays(look[t], look[d], names, str(i))
        for i, (t, d) in enumerate(zip(truth, drawn, strict=True))
    ]
    return Counts.joined(parts)


def test_runs_with_other_classes_are_compared_on_the_common_one_and_it_is_said():
    two, three = (
        with_classes(("building", "background")),
        with_classes(("road", "background", "building")),
    )
    pair = compare(two, three)
    assert (
        pair.difference == 0 and "classes differ, compared on building" in pair.verdict
    )
    board = leaderboard({"a": two, "b": three})
    assert "compared on building" in board.verdict.iloc[1]
    with pytest.raises(ValueError, match="accuracy of runs with different classes"):
        compare(two, three, "accuracy")
    with pytest.raises(ValueError, match="no class 'road' in all of these runs"):
        compare(two, three, class_name="road")
    lone = Counts(two.matrices, two.scenes, ("water", "land"))
    with pytest.raises(
        ValueError, match="in all of these runs: building, background and"
    ):
        compare(two, lone)


def test_other_labels_are_noticed():
    one, other = (
        with_classes(("building", "background")),
        with_classes(("building", "background"), 7),
    )
    assert "not all were judged by the same labels" in compare(one, other).verdict
    assert compare(one, one).notes == ()


def test_a_leaderboard_keeps_to_the_scenes_that_all_have():
    found = some_counts(scenes=5)
    board = leaderboard({"a": found, "b": found.only(["1", "2", "3"])})
    assert set(board.scenes) == {3} and board.pixel_f1.nunique() == 1
    assert "scenes that not all have: 0, 4" in board.verdict.iloc[1]
    with pytest.raises(ValueError, match="no scene in common"):
        leaderboard({"a": found.only(["0"]), "b": found.only(["1"])})


def test_seeds_of_one_setting_are_one_line(tmp_path):
    runs = {}
    for lr in (1e-3, 2e-3):
        for seed in (0, 1, 2):
            name = f"lr={lr:g}+seed={seed}"
            run = tmp_path / name / "run.json"
            asked = {"hyperparams": {"lr": lr, "seed": seed, "epochs": 8}}
            write_json(run, {"schema": 1, "asked": asked})
            scenes = some_counts(int(1e4 * lr) + seed, scenes=9)
            place = run.parent / "eval" / "validation_scenes" / "eval.json"
            matrices = dict(zip(scenes.scenes, scenes.matrices, strict=True))
            write_json(place, evaluation(matrices))
            runs[name] = run.parent
    groups = group_seeds(runs)
    assert {k: len(v) for k, v in groups.items()} == {"lr=0.001": 3, "lr=0.002": 3}
    board = leaderboard(groups)
    assert (
        board.seeds.tolist() == [3, 3] and "9 scenes, 3 seeds" in board.verdict.iloc[1]
    )
    alone = leaderboard(runs)
    values = alone.pixel_f1[[n for n in alone.index if n.startswith("lr=0.001")]]
    assert board.pixel_f1["lr=0.001"] == pytest.approx(values.mean())


@pytest.fixture
def sweep(tmp_path):
    "Two runs of a sweep, evaluated on two splits."
    folder = tmp_path / "sweep"
    for name, seed in (("lr=1e-3", 0), ("lr=2e-3", 1)):
        for split in ("validation", "test"):
            found = some_counts(seed + 10 * (split == "test"), scenes=7)
            matrices = dict(zip(found.scenes, found.matrices, strict=True))
            path = folder / "trials" / name / "eval" / f"{split}_scenes" / "eval.json"
            write_json(path, evaluation(matrices))
    (folder / "trials.csv").write_text("trial,name,folder\n")
    return folder


def test_choice_and_report_are_of_different_splits_and_looks_are_counted(sweep):
    runs = {p.name: p for p in sorted((sweep / "trials").iterdir())}
    assert openings_in_words(sweep) == "the test split was not opened yet"
    chosen = leaderboard(runs)
    assert not len(_openings(sweep)) and "openings" not in chosen
    board = leaderboard(runs, report="test")
    assert list(board.index) == list(chosen.index)
    assert board.pixel_f1.equals(chosen.pixel_f1)
    test = leaderboard(runs, split="test")
    assert board.test_pixel_f1[test.index].equals(test.pixel_f1.rename("test_pixel_f1"))
    assert set(board.openings) == {1} and set(test.openings) == {2}
    assert test.attrs["note"].startswith(
        "the test split was opened 2 times, last on 20"
    )
    compare(*runs.values(), metric="iou", split="test")
    found = _openings(runs)
    assert found.what.tolist() == ["leaderboard", "leaderboard", "compare"]
    assert found.metric.tolist() == ["f1", "f1", "iou"]
    assert found.runs[0] == ["lr=1e-3", "lr=2e-3"]
    assert (sweep / RECORD).is_file()  # of the sweep, not of its trials
    assert len(_openings(sweep)) == len(_openings(runs["lr=1e-3"])) == 3


def test_the_record_is_only_ever_added_to(sweep):
    runs = {p.name: p for p in (sweep / "trials").iterdir()}
    open_test(runs, "f1")
    before = (sweep / RECORD).read_text()
    looks = [threading.Thread(target=open_test, args=(runs, "iou")) for _ in range(20)]
    for look in looks:
        look.start()
    for look in looks:
        look.join()
    after = (sweep / RECORD).read_text()
    assert after.startswith(before) and len(_openings(sweep)) == 21
    with open(sweep / RECORD, "a") as file:
        file.write('{"id": "cut sh')
    assert openings_in_words(runs).startswith("the test split was opened 22 times")


def test_the_record_has_a_place_or_the_split_stays_closed(sweep, tmp_path):
    runs = {p.name: p for p in (sweep / "trials").iterdir()}
    leaderboard(runs, split="test", record=tmp_path / "notes")
    assert len(_openings(tmp_path / "notes")) == 1 and not len(_openings(sweep))
    (sweep / RECORD).mkdir()  # cannot be written
    with pytest.raises(OSError):
        leaderboard(runs, split="test")


def test_runs_of_two_folders_are_on_record_in_both(sweep, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "r"
    (sweep / "trials" / "lr=2e-3").rename(moved)
    runs = {"a": sweep / "trials" / "lr=1e-3", "b": moved}
    board = leaderboard(runs, split="test")
    assert set(board.openings) == {1}
    assert len(_openings(sweep)) == len(_openings(tmp_path / "elsewhere")) == 1


def test_many_runs_are_scored_quickly():
    "20 runs x 50 scenes x 10,000 resamples in under 2 s on one core."
    rng = np.random.default_rng(0)
    found = {str(i): some_counts(i, 50).table() for i in range(3)}
    runs = {str(i): found[str(i % 3)] + rng.integers(0, 9) for i in range(20)}
    start = time.process_time()
    leaderboard(runs, method="bootstrap", n=10_000)
    for rows in runs.values():
        _bootstrap(rows, n=10_000)
    assert time.process_time() - start < 2 * pace()


def test_import_is_light():
    code = "import sys, rvtutorial.metrics.leaderboard; print([m for m in ('torch', 'rastervision', 'sklearn', 'rasterio') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_runs_are_compared_by_their_scores_too():
    rng, sets = np.random.default_rng(0), []
    truths = [rng.integers(0, 2, (50, 50)) for _ in range(10)]
    for noise in (0.3, 0.6):
        parts = []
        for i, truth in enumerate(truths):
            said = np.clip(
                0.5 - 0.3 * (truth - 0.5) + rng.normal(0, noise / 2, truth.shape), 0, 1
            )
            parts.append(
                _count_score_arrays(
                    truth, np.stack([said, 1 - said]), NAMES[:2], str(i)
                )
            )
        sets.append(ScoreCounts.joined(parts))
    better, worse = sets
    for name in calibration.SCORES[:3]:
        pair = compare(better, worse, name, names=("sharp", "blurred"))
        assert pair.winner == "sharp" and "sharp is better than blurred" in pair.verdict
        assert pair.scenes == 10 and pair.p < 0.01
    brier = compare(better, worse, "brier")
    assert brier.difference < 0 and brier.high < 0
    assert brier.verdict.endswith("10 scenes (brier, lower is better)")
    some = compare(better.only(["1", "2"]), worse, "roc_auc")
    assert some.scenes == 2 and "0, 3" in some.verdict
    with pytest.raises(ValueError, match="no scene in common"):
        compare(better.only(["1"]), worse.only(["2"]), "ece")


def test_scores_of_a_run_that_has_no_folder_left_for_its_scenes(plain, tmp_path):
    "Where the predictions were deleted, the images say where a scene is."
    import shutil

    moved = shutil.copytree(plain, tmp_path / "run")
    shutil.rmtree(moved / "predict")
    found = _scene_boxes(Run(moved), ["9", "10"])
    assert found.notna().all().all()
    with pytest.raises(FileNotFoundError, match="has not predicted scene 9 yet"):
        scores_of(moved)


def test_counts_without_a_folder_say_that_they_leave_no_record(sweep):
    class Sweep:
        folder = sweep

    board = leaderboard({"a": some_counts()}, split="test")
    assert board.attrs["note"].startswith("not on record") and board.openings["a"] == 0
    kept = leaderboard({"a": some_counts()}, split="test", record=sweep)
    assert kept.openings["a"] == 1 == len(_openings(Sweep()))


@pytest.fixture(scope="module")
def scored():
    "Scores of ten scenes by four runs that see less and less; two see the same."
    rng, sets = np.random.default_rng(0), {}
    truths = [rng.integers(0, 2, (40, 40)) for _ in range(10)]
    for name, noise in dict(worst=0.9, sharp=0.2, same=0.2, blurred=0.4).items():
        parts = []
        for i, truth in enumerate(truths):
            hard = 0.1 * i * rng.normal(size=truth.shape)
            said = 0.5 - 0.3 * (truth - 0.5) + noise * rng.normal(size=truth.shape)
            said = np.clip(said + 0.2 * hard, 0, 1)
            both = np.stack([said, 1 - said])
            parts.append(_count_score_arrays(truth, both, NAMES[:2], str(i)))
        sets[name] = ScoreCounts.joined(parts)
    return sets


@pytest.mark.parametrize("metric", calibration.SCORES)
def test_runs_are_ordered_by_their_scores(scored, metric):
    board = leaderboard(scored, metric)
    lower = metric in ("brier", "ece")
    values = {k: v.summary().loc["building"] for k, v in scored.items()}
    rank = sorted(values, key=lambda k: values[k][metric], reverse=not lower)
    assert list(board.index) == rank and board.columns[0] == f"pixel_{metric}"
    for name, line in board.iterrows():
        one = values[name]
        expected = [one[metric], one[f"{metric}_low"], one[f"{metric}_high"]]
        assert line.iloc[[0, 2, 3]].tolist() == pytest.approx(expected, abs=1e-12)
        for other in {*calibration.SCORES} - {metric}:
            assert line[f"pixel_{other}"] == pytest.approx(one[other], abs=1e-12)
    assert set(board.scenes) == {10} and board.attrs["of"] == "building"
    assert (board.behind >= 0).all() and board.behind.is_monotonic_increasing
    assert board.verdict.iloc[0] == ("lowest" if lower else "highest")
    assert board.tied[["sharp", "same"]].all() and not board.tied["worst"]
    assert f"{rank[0]} is better than worst" in board.verdict["worst"]
    assert ("lower is better" in board.verdict["worst"]) == lower


def test_comparisons_by_scores_are_corrected_like_those_by_labels(scored):
    "Six pairs: the corrected p is that of Holm, as in the leaderboard by F1."
    names = list(scored)
    pairs = {(a, b): compare(scored[a], scored[b], "roc_auc").p
             for i, a in enumerate(names) for b in names[i + 1:]}  # fmt: skip
    fixed = dict(zip(pairs, intervals._holm(list(pairs.values())), strict=True))
    board = leaderboard(scored, "roc_auc")
    best = board.index[0]
    for name in board.index[1:]:
        pair = (best, name) if (best, name) in fixed else (name, best)
        assert board.p[name] == pytest.approx(fixed[pair])


def test_neighbouring_scenes_are_one_for_scores_too(scored):
    blocks = {str(i): i // 2 for i in range(10)}
    board = leaderboard(scored, "average_precision", blocks=blocks)
    assert set(board.blocks) == {5} and "10 scenes in 5 blocks" in board.verdict.iloc[1]
    pair = compare(scored["sharp"], scored["worst"], "ece", blocks=blocks)
    assert pair.blocks == 5 and pair.scenes == 10
    joined = scored["sharp"].summary(blocks=list(blocks.values()))
    line = board.loc["sharp"]
    assert line.low == pytest.approx(joined.average_precision_low["building"])


def test_what_cannot_be_ordered_by_scores_is_refused_by_name(scored, plain, tmp_path):
    import shutil

    bare = shutil.copytree(plain, tmp_path / "bare")
    for path in bare.rglob("scores.tif"):
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match="run bare kept no scores of scene 9.*scores=uint8"
    ):
        leaderboard({"a": scored["sharp"], "b": bare}, "roc_auc")
    with pytest.raises(ValueError, match="Counts holds labels .* and no scores"):
        leaderboard({"a": some_counts()}, "brier")
    with pytest.raises(
        ValueError, match="roc_auc are the jackknife's, not bootstrap's"
    ):
        leaderboard(scored, "roc_auc", method="bootstrap")
    with pytest.raises(ValueError, match="no metric 'auc'; .* kept scores roc_auc"):
        leaderboard(scored, "auc")
    few = {"a": scored["sharp"].only(["0"]), "b": scored["same"].only(["1"])}
    with pytest.raises(ValueError, match="no scene in common: a: .* b: "):
        leaderboard(few, "brier")


def test_a_score_board_says_what_it_left_out_and_records_the_test_split(
    scored, tmp_path
):
    some = {"a": scored["sharp"], "b": scored["blurred"].only(["1", "2", "3"])}
    how = dict(split="test", record=tmp_path)
    board = leaderboard(some, "brier", **how)
    assert set(board.scenes) == {3} and "0, 4, 5" in board.verdict.iloc[1]
    assert _openings(tmp_path).metric.tolist() == ["brier"]
    again = leaderboard(
        {k: v.only(["1", "2"]) for k, v in some.items()}, "brier", **how
    )
    assert set(again.openings) == {2} and "opened 2 times" in again.attrs["note"]


def test_one_look_is_one_line_for_runs_that_were_seen_already(sweep):
    runs = {p.name: p for p in (sweep / "trials").iterdir()}
    with one_look():
        first = open_test(runs, "f1", what="leaderboard")
        assert open_test(runs, "iou", what="figure") == first
        open_test(list(runs.values())[:1], "f1")
    assert len(_openings(sweep)) == 1
    with one_look():
        open_test(list(runs.values())[:1], "f1")
        with one_look():  # part of the same look
            open_test(list(runs.values())[:1], "iou")
        open_test(runs, "f1")  # one of them was not seen yet
    assert len(_openings(sweep)) == 3
    open_test(runs, "f1")
    open_test(runs, "f1")
    assert len(_openings(sweep)) == 5


def test_common_counts_hold_what_figures_need(plain, tmp_path):
    import shutil

    other = shutil.copytree(plain, tmp_path / "other")
    path = other / "eval" / "validation_scenes" / "eval.json"
    kept = json.loads(path.read_text())
    del kept["per_scene"]["10"]
    path.write_text(json.dumps(kept))
    found = common_counts({"a": plain, "b": [other, plain]})
    assert found.scenes == ["9", "11"] and found.left_out == ["10"]
    assert [len(group) for group in found.tables.values()] == [1, 2]
    assert (found.of, found.split, found.notes) == ("building", "validation", [])
    assert blocks_of([Run(plain)], found.scenes, {"9": 4, "11": 4}).tolist() == [4, 4]
    assert blocks_of([some_counts()], ["1"]) is None
    path.write_text(json.dumps({"per_scene": {"9": []}}))
    with pytest.raises(ValueError, match="run b: scene 9: .* no confusion matrix"):
        common_counts({"a": plain, "b": other})


def test_null_is_no_class_to_compare_on():
    one = Counts(np.ones((1, 2, 2), int), ("1",), ("road", "null"))
    other = Counts(np.ones((1, 2, 2), int), ("1",), ("water", "null"))
    with pytest.raises(ValueError, match="a: road, null and b: water, null"):
        common_counts({"a": one, "b": other})
    more = Counts(np.ones((1, 1, 1), int), ("1",), ("road",))
    assert common_counts({"a": one, "b": more}).notes == []


def test_a_folder_of_labels_is_named_by_a_pattern(tmp_path):
    for folder, name in (("maps/1", "labels"), ("maps/2", "labels")):
        write_raster(tmp_path / folder / f"{name}.tif", np.eye(4, dtype=np.uint8))
    for scene in "12":
        write_raster(tmp_path / "t" / f"t_{scene}.tif", np.eye(4, dtype=np.uint8))
    where = (tmp_path / "maps/{id}/labels.tif", tmp_path / "t/t_{id}.tif")
    found = label_folder(*where, NAMES[:2])
    assert found.name == "maps" and counts_of(found).scenes == ("1", "2")
    assert counts_of(found).total.tolist() == [[24, 0], [0, 8]]
    plain = label_folder(tmp_path / "t", tmp_path / "t", NAMES[:2])
    assert (plain.pattern, plain.path) == ("{id}.tif", tmp_path / "t")


def test_seeds_are_one_line_of_a_leaderboard_by_scores(scored):
    "The mean of the seeds, with an interval that their spread makes wider."
    runs = {"two": [scored["sharp"], scored["blurred"]], "one": scored["same"]}
    board = leaderboard(runs, "brier")
    each = leaderboard(scored, "brier").pixel_brier
    row = board.loc["two"]
    assert row.pixel_brier == pytest.approx(
        each[["sharp", "blurred"]].mean(), abs=1e-12
    )
    assert board.seeds.to_dict() == {"two": 2, "one": 1}
    alone = leaderboard(
        {"sharp": scored["sharp"], "blurred": scored["blurred"]}, "brier"
    )
    assert (row.high - row.low) > (alone.high - alone.low).max()
    pair = compare(*runs.values(), metric="brier")
    assert pair.values == pytest.approx((row.pixel_brier, each["same"]))


def test_old_names_work_and_say_so_once(capfd):
    from rvtutorial import metrics
    from rvtutorial.core.renamed import renamed_arguments, say_once

    say_once.cache_clear()
    found = some_counts()
    for _ in range(2):
        assert metrics.confusion is confusion
        old, new = found.table(of="background"), found.table(class_name="background")
        assert old.equals(new)
    told = capfd.readouterr().err.splitlines()
    assert told == [
        "rvtutorial.metrics.confusion is now in rvtutorial.metrics.counting",
        "table(of=) is now class_name=; the old name goes soon",
    ]
    with pytest.raises(TypeError, match="got new and old, its old name"):
        renamed_arguments(old="new")(lambda new: new)(new=1, old=2)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = metrics.nothing


def test_nodata_of_labels_that_were_moved(tmp_path):
    "It is read from the file that was found, not where the configuration has it."
    path, square = tmp_path / "here.tif", np.ones((8, 8), "uint8")
    write_raster(path, square)
    with rasterio.open(path, "r+") as file:
        file.nodata = 9
    source = {"uris": ["/gone/here.tif"], "transformers": []}
    scene = {"id": "1", "label_source": {"raster_source": source}}
    run = SimpleNamespace(config={"dataset": {"validation_scenes": [scene]}})
    assert label_meaning(run, "1")["values"] is None
    assert label_meaning(run, "1", path)["values"] == {9: 0}
