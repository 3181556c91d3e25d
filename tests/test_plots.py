"Figures of several runs show their scenes, keep their order, and refuse what they lack."

import io
import json
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import rasterio
from fake_runs import (
    PEAK,
    VEGAS,
    evaluation,
    fake_run,
    make_scene,
    three_scenes,
    write_boxes,
    write_raster,
)
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from rvtutorial import viz
from rvtutorial.course.examples import make_example_runs
from rvtutorial.figures import maps, sweeps
from rvtutorial.figures import runs as plots
from rvtutorial.figures.runs import (
    _shared_scores,
    in_order,
    open_runs,
)
from rvtutorial.figures.sweeps import _pareto_front, trial_table
from rvtutorial.metrics import counting, leaderboard
from rvtutorial.runs import Run
from rvtutorial.scenes import find_splits, make_sample_scenes

TRIALS = [
    {"lr": lr, "batch_sz": batch}
    for lr, batch in [(1e-1, 4), (1e-2, 8), (1e-3, 4), (2e-3, 8), (1e-4, 4), (1e-5, 8)]
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    "Six made-up runs on four scenes of 96 pixels."
    place = tmp_path_factory.mktemp("plots")
    data = make_sample_scenes(place / "data", 1, 4, 0, 96)
    return make_example_runs(place / "sweep", find_splits(data)["val"], TRIALS)


@pytest.fixture
def copied(sweep, tmp_path):
    "Two of the runs, to be spoilt."
    for name in ("lr=1e-3+batch_sz=4", "lr=1e-2+batch_sz=8"):
        shutil.copytree(sweep / name, tmp_path / name[:7])
    return tmp_path


def folder_of(sweep, place, name="lr=1e-3+batch_sz=4"):
    "The labels of a run as some other program would have left them."
    place.mkdir()
    run = Run(sweep / name)
    for scene in run.scene_ids():
        shutil.copy(run.prediction(scene), place / f"{scene}.tif")
    return leaderboard.LabelFolder(
        place,
        sweep.parent / "data" / "val",
        ("building", "background", "null"),
        truth_pattern="buildings_AOI_2_Vegas_img{id}.geojson",
    )


FIGURES = {
    "leaderboard": viz.plot_leaderboard,
    "curves": viz.plot_metrics,
    "matrices": viz.display_conf_mat,
    "maps": lambda runs: viz.plot_predictions(runs, 0),
    "scenes": viz.plot_scene_scores,
    "errors": lambda runs: viz.plot_errors(runs, 0),
    "worst": viz.plot_worst,
    "agreement": viz.plot_agreement,
    "scores": viz.plot_score_curves,
    "reliability": viz.plot_reliability,
    "parameter": viz.plot_parameter,
    "parallel": viz.plot_parallel,
    "importance": lambda runs: viz.plot_importance(runs, repeats=1),
    "cost": viz.plot_cost,
}
SCORED = ["leaderboard", "scenes", "worst", "parameter", "parallel", "cost"]


def words(fig):
    found = [fig.get_suptitle()]
    for ax in fig.axes:
        found += [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
        found += [t.get_text() for t in ax.texts]
    return "\n".join(found)


def legend(fig):
    return [t.get_text() for one in fig.legends for t in one.get_texts()]


# names and order


def test_numbers_in_names_are_compared_as_numbers():
    names = ["lr=1e-2", "lr=1e-5", "lr=5e-3", "lr=0.1", "lr=1e-3+seed=1", "lr=1e-3"]
    found = in_order(names)
    assert found == [
        "lr=1e-5",
        "lr=1e-3",
        "lr=1e-3+seed=1",
        "lr=5e-3",
        "lr=1e-2",
        "lr=0.1",
    ]
    assert in_order(["run10", "run9"]) == ["run9", "run10"]
    assert in_order(["b", "a"]) == ["b", "a"]  # nothing to go by: as given


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8, unique=True))
def test_any_numbers_are_sorted(values):
    names = in_order([f"lr={value!r}" for value in values])
    assert names == [f"lr={value!r}" for value in sorted(values)]


def test_runs_come_from_a_sweep_folder_or_a_folder_of_runs(sweep, copied):
    names = list(open_runs(sweep))
    assert names[0] == "lr=1e-5+batch_sz=8" and names[-1] == "lr=0.1+batch_sz=4"
    assert list(open_runs(copied)) == ["lr=1e-3", "lr=1e-2"]
    assert list(open_runs([copied / "lr=1e-2", copied / "lr=1e-3"])) == [
        "lr=1e-3",
        "lr=1e-2",
    ]
    with pytest.raises(FileNotFoundError, match="no run folder"):
        open_runs(sweep / "none")


@pytest.mark.parametrize(
    "name", ["curves", "scores", "reliability", "parallel", "cost"]
)
def test_legends_are_in_numeric_order(sweep, name):
    found = [text for text in legend(FIGURES[name](sweep)) if text.startswith("lr=")]
    rates = [float(text.split("+")[0].removeprefix("lr=")) for text in found]
    assert len(rates) == 6 and rates == sorted(rates)


def test_lines_of_eight_runs_differ_without_colour():
    looks = [maps.line_style(i) for i in range(8)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 8


# every figure


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_values_that_say_what_they_show(sweep, name):
    mine, before = plt.figure(), plt.get_fignums()
    fig = FIGURES[name](sweep)
    assert isinstance(fig, Figure)
    assert plt.get_fignums() == before and plt.gcf() is mine
    plt.close(mine)
    assert "validation" in words(fig)
    assert legend(fig) or name in ("matrices", "agreement")
    if name in SCORED:
        assert "4 whole validation scenes" in words(fig) and "pixel F1" in words(fig)
    data = maps.figure_bytes(fig)
    assert len(data) <= 200_000
    kind = Image.open(io.BytesIO(data)).format
    assert kind == (
        "JPEG" if name in ("maps", "errors", "worst", "agreement") else "PNG"
    )
    assert len(maps.alt_text(fig)) > 20


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_or_lies_on_something_else(sweep, name):
    "Legend, title and axes stay inside the figure and apart from each other."
    fig = FIGURES[name](sweep)
    fig.draw_without_rendering()  # lays out; the canvas of a closed figure does not
    whole = fig.bbox.padded(1)
    boxes = [ax.get_tightbbox() for ax in fig.axes]
    boxes += [one.get_window_extent() for one in fig.legends]
    if fig.get_suptitle():
        (title,) = [t for t in fig.texts if t.get_text() == fig.get_suptitle()]
        boxes.append(title.get_window_extent())
    for i, box in enumerate(boxes):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, (name, i)
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, (name, i)
    for around in boxes[len(fig.axes) :]:
        for box in boxes[: len(fig.axes)]:
            apart = around.y0 >= box.y1 - 1 or around.y1 <= box.y0 + 1
            assert apart, f"{name}: the legend or title lies on a panel"


def test_a_picture_keeps_to_its_size():
    rng = np.random.default_rng(0)
    fig, ax = plt.subplots(figsize=(11, 9))
    plt.close(fig)
    ax.imshow(rng.random((900, 1100, 3)))
    assert maps.figure_kind(fig) == "jpeg"
    assert len(maps.figure_bytes(fig)) <= 200_000
    assert len(maps.figure_bytes(fig, most=40_000)) <= 40_000
    assert len(maps.figure_bytes(fig, "png", most=200_000)) <= 400_000
    assert maps.figure_bytes(fig, "svg").startswith(b"<?xml")
    with pytest.raises(ValueError, match="got 'gif'"):
        maps.figure_bytes(fig, "gif")


# what is shown is what was counted


def test_scores_of_scenes_are_those_of_metrics(sweep):
    values = _shared_scores(sweep, "iou")[0]
    for name, run in open_runs(sweep).items():
        expected = counting.scores(leaderboard.counts_of(run), ["iou"]).pixel_iou
        assert values[name].to_numpy() == pytest.approx(expected.to_numpy())


def test_colours_of_errors_are_the_counts(sweep):
    run = Run(sweep / "lr=1e-2+batch_sz=8")
    scene = run.scene_ids()[1]
    fig = viz.plot_errors([run], scene)
    paint = np.asarray(fig.axes[1].images[0].get_array())
    counts = leaderboard.counts_of(run).table().loc[scene]
    for colour, column in zip(maps.ERRORS.values(), ("tp", "fn", "fp"), strict=True):
        seen = np.isclose(paint, to_rgb(colour)).all(axis=-1).sum()
        assert seen == counts[column] > 0
    f1 = 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)
    assert f"pixel F1 {f1:.3f}" in words(fig)


def test_votes_are_counted(sweep):
    scene = Run(sweep / "lr=1e-2+batch_sz=8").scene_ids()[0]
    votes = np.asarray(viz.plot_agreement(sweep, scene).axes[1].images[0].get_array())
    expected = 0
    for run in open_runs(sweep).values():
        with rasterio.open(run.prediction(scene)) as source:
            expected = expected + (source.read(1) == 0)
    assert (votes == expected).all() and votes.max() == 6
    with pytest.raises(ValueError, match="two runs at least"):
        viz.plot_agreement(sweep / "lr=1e-2+batch_sz=8")


def test_the_worst_scenes_are_the_worst(sweep):
    fig = viz.plot_worst(sweep, n=2)
    means = _shared_scores(sweep)[0].mean(axis=1).sort_values()
    titles = [ax.get_title() for ax in fig.axes]
    assert (
        titles[0] == f"scene {means.index[0]}"
        and titles[2] == f"scene {means.index[1]}"
    )
    assert titles[1] == f"mean F1 {means.iloc[0]:.3f}"


def test_scores_are_counted_once_until_they_change(copied):
    viz.plot_score_curves(copied)
    before = plots._scored.cache_info()
    viz.plot_reliability(copied)
    assert plots._scored.cache_info().misses == before.misses
    path = next((copied / "lr=1e-3" / "predict").glob("*/scores.tif"))
    with rasterio.open(path, "r+") as file:
        file.write(255 - file.read())
    old = plots.scored(copied)[0]["lr=1e-2"]
    new = plots.scored(copied)[0]["lr=1e-3"].areas.roc_auc
    assert plots._scored.cache_info().misses > before.misses
    assert new < old.areas.roc_auc  # it was the better of the two


def test_the_curve_at_a_half_is_the_score_of_the_labels(sweep):
    found, _ = plots.scored(sweep)
    for name, run in open_runs(sweep).items():
        curve = found[name].curve
        f1 = np.interp(0.5, curve.threshold[::-1], curve.f1[::-1])
        expected = counting.score(leaderboard.counts_of(run).table().sum(), "f1")
        assert f1 == pytest.approx(expected, abs=2e-3)


def test_the_board_of_scores_is_drawn_too(sweep):
    board = viz.leaderboard(sweep, "brier")
    assert "the lowest" in repr(board) and "pixel Brier score" in repr(board)
    assert list(board.pixel_brier) == sorted(board.pixel_brier)
    fig = viz.plot_leaderboard(sweep, "brier")
    assert legend(fig)[0] == "lowest, or cannot be told from it"
    assert "pixel Brier score of building, 4 whole validation scenes" in words(fig)


def test_neighbouring_scenes_are_blocks_in_every_figure_with_intervals(tmp_path):
    "Scenes of fake_run lie on one spot: three of them are two blocks."
    for shift in (1, 2):
        run = fake_run(tmp_path / f"shift={shift}", three_scenes(tmp_path / "d"), shift)
        rng = np.random.default_rng(shift)
        for path in run.rglob("labels.tif"):
            said = rng.integers(0, 256, (3, 40, 50)).astype(np.uint8)
            write_raster(path.with_name("scores.tif"), said)
    runs = [tmp_path / "shift=1", tmp_path / "shift=2"]
    for draw in (viz.plot_leaderboard, viz.plot_reliability, viz.plot_score_curves):
        assert "3 whole validation scenes in 2 blocks" in words(draw(runs))
    areas = plots.scored(runs)[0]["shift=1"].areas
    found = leaderboard.scores_of(runs[0])
    blocks = leaderboard.blocks_of([Run(runs[0])], found.scenes)
    expected = found.summary(blocks=blocks).loc["building"]
    assert areas.roc_auc_low == pytest.approx(expected.roc_auc_low, nan_ok=True)


# other people's runs


def test_a_folder_of_labels_is_a_run(sweep, tmp_path):
    theirs = folder_of(sweep, tmp_path / "theirs")
    ours = sweep / "lr=1e-3+batch_sz=4"
    found = leaderboard.common_counts({"theirs": theirs, "ours": ours}).tables
    assert (found["theirs"][0] == found["ours"][0]).all(axis=None)
    for draw in (
        viz.plot_scene_scores,
        viz.plot_worst,
        viz.plot_agreement,
        viz.plot_leaderboard,
    ):
        assert (
            "4 whole" in words(draw({"theirs": theirs, "ours": ours}))
            or draw is viz.plot_agreement
        )
    fig = viz.plot_errors(theirs, theirs.scene_ids()[0])
    paint = np.asarray(fig.axes[1].images[0].get_array())
    assert np.isclose(paint, to_rgb(maps.ERRORS["found (TP)"])).all(axis=-1).any()
    seen = maps.SceneLayers.of_run(theirs, theirs.scene_ids()[0], sweep.parent / "data")
    assert seen.picture.std() > 0.05  # the image was found by its id
    with pytest.raises(FileNotFoundError, match="theirs has no scores"):
        viz.plot_reliability(theirs)
    with pytest.raises(ValueError, match="theirs is a folder of labels"):
        viz.plot_metrics(theirs)


def test_a_plain_folder_of_raster_vision_with_nulls(tmp_path):
    scenes = three_scenes(tmp_path / "val")  # the last one has no building
    fake_run(tmp_path / "a", scenes)
    fake_run(tmp_path / "b", scenes, shift=3)
    both = [tmp_path / "a", tmp_path / "b"]
    assert '"f1": null' in (tmp_path / "a/eval/validation_scenes/eval.json").read_text()
    assert "1 without building" in words(viz.plot_scene_scores(both))
    assert "2 of 3" in words(viz.plot_worst(both)) or "2 lowest" in words(
        viz.plot_worst(both)
    )
    with pytest.raises(ValueError, match="no cost is on record for a, b"):
        viz.plot_cost(both)
    path = tmp_path / "a/eval/validation_scenes/eval.json"
    found = json.loads(path.read_text())
    found["per_scene"]["9"][-1]["conf_mat"][0][0] = None
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="run a: scene 9: .* empty places"):
        viz.plot_scene_scores(both)


# what does not fit


def test_other_scenes_are_left_out_and_said(copied):
    path = copied / "lr=1e-2/eval/validation_scenes/eval.json"
    found = json.loads(path.read_text())
    lost = list(found["per_scene"])[0]
    kept = {k: v for k, v in found["per_scene"].items() if k != lost}
    path.write_text(json.dumps(found | {"per_scene": kept}))
    for draw in (viz.plot_scene_scores, viz.plot_worst):
        assert "3 whole validation scenes; 1 scene left out" in words(
            draw(copied)
        ).replace("\n", " ")
    other = {f"9{k}": v for k, v in found["per_scene"].items()}
    path.write_text(json.dumps(found | {"per_scene": other}))
    for draw in (viz.plot_scene_scores, viz.plot_leaderboard, viz.plot_parameter):
        with pytest.raises(ValueError, match="no scene in common"):
            draw(copied)


def test_other_classes(copied, capsys):
    path = copied / "lr=1e-2/eval/validation_scenes/eval.json"
    matrices = {
        scene: np.diag([5.0, 3, 0])
        for scene in json.loads(path.read_text())["per_scene"]
    }
    path.write_text(json.dumps(evaluation(matrices, ("road", "building", "null"))))
    assert "classes differ" in words(viz.plot_scene_scores(copied)).replace("\n", " ")
    path.write_text(json.dumps(evaluation(matrices, ("road", "water", "null"))))
    with pytest.raises(ValueError, match="no class .*lr=1e-2: road, water"):
        viz.plot_scene_scores(copied)
    with pytest.raises(ValueError, match="no class 'car'"):
        viz.plot_scene_scores(copied / "lr=1e-3", class_name="car")
    with pytest.raises(ValueError, match="no class 'car'"):  # the name of version 0.1.0
        viz.plot_scene_scores(copied / "lr=1e-3", of="car")
    assert "plot_scene_scores(of=) is now class_name=" in capsys.readouterr().err


def test_a_run_still_training_has_curves_and_no_scores(copied):
    shutil.rmtree(copied / "lr=1e-2" / "eval")
    Run(copied / "lr=1e-2").update("went", state="running")
    assert legend(viz.plot_metrics(copied)) == ["lr=1e-3", "lr=1e-2"]
    for draw in (
        viz.plot_scene_scores,
        viz.plot_leaderboard,
        viz.plot_worst,
        viz.display_conf_mat,
    ):
        with pytest.raises(FileNotFoundError, match="lr=1e-2 is still running"):
            draw(copied)
    table = trial_table(copied)  # a sweep under way is looked at all the same
    assert list(table.index) == ["lr=1e-3"]
    assert table.attrs["left_out"] == {"lr=1e-2": "running"}
    assert "1 without scores left out: lr=1e-2 (running)" in words(
        viz.plot_parameter(copied)
    ).replace("\n", " ")
    shutil.rmtree(copied / "lr=1e-3" / "eval")
    with pytest.raises(FileNotFoundError, match="lr=1e-2 is running"):
        viz.plot_parameter(copied)


def test_a_run_without_scores_is_named_with_the_setting(copied):
    for path in (copied / "lr=1e-2" / "predict").glob("*/scores.tif"):
        path.unlink()
    for draw in (viz.plot_reliability, viz.plot_score_curves):
        with pytest.raises(
            FileNotFoundError, match="lr=1e-2 kept no scores.*scores=uint8"
        ):
            draw(copied)


def test_asking_for_what_there_is_not(sweep):
    with pytest.raises(ValueError, match="show must name some of pr, roc, threshold"):
        viz.plot_score_curves(sweep, "lift")
    with pytest.raises(ValueError, match="did you mean 'batch_sz'"):
        viz.plot_parameter(sweep, "batchsz")
    with pytest.raises(ValueError, match="cost must be one of minutes"):
        viz.plot_cost(sweep, "money")
    with pytest.raises(ValueError, match="6 finished trials at least, got 2"):
        viz.plot_importance(
            [sweep / "lr=1e-2+batch_sz=8", sweep / "lr=1e-3+batch_sz=4"]
        )
    with pytest.raises(ValueError, match="nothing differs between these 1 runs"):
        viz.plot_parallel(sweep / "lr=1e-2+batch_sz=8")


def test_the_test_split_is_recorded_and_shown(copied):
    for folder in copied.glob("lr*"):
        shutil.copytree(folder / "eval/validation_scenes", folder / "eval/test_scenes")
    assert len(leaderboard._openings(copied)) == 0
    for i, draw in enumerate(
        (
            viz.plot_scene_scores,
            viz.plot_leaderboard,
            viz.display_conf_mat,
            viz.plot_parameter,
        )
    ):
        assert "the test split was opened" in words(draw(copied, split="test"))
        assert len(leaderboard._openings(copied)) == i + 1


# tables


def test_the_board_is_a_table_for_readers_and_for_programs(sweep, tmp_path):
    board = viz.leaderboard(sweep)
    assert isinstance(board, pd.DataFrame) and type(board.round(3)) is pd.DataFrame
    text = repr(board)
    assert "4 whole validation scenes" in text and max(map(len, text.split("\n"))) < 150
    html = board._repr_html_()
    assert "font-weight: bold" in html and html.count("lr=") == 6
    made = {
        s: board.write(tmp_path / f"b.{s}").read_text()
        for s in ("csv", "md", "tex", "html")
    }
    again = pd.read_csv(tmp_path / "b.csv", index_col="run")
    assert again.pixel_f1.to_numpy() == pytest.approx(board.pixel_f1.to_numpy())
    lines = made["md"].splitlines()
    assert len(lines) == 8 and {line.count("|") for line in lines} == {
        lines[0].count("|")
    }
    assert (
        f"{board.pixel_f1.iloc[0]:.3f}" in made["tex"] and r"batch\_sz" in made["tex"]
    )
    with pytest.raises(ValueError, match="got b.xlsx"):
        board.write(tmp_path / "b.xlsx")


def test_seeds_are_taken_together(sweep, tmp_path):
    scenes = find_splits(sweep.parent / "data")["val"]
    trials = [{"lr": lr, "seed": seed} for lr in (1e-2, 1e-4) for seed in (0, 1)]
    seeds = make_example_runs(tmp_path / "seeds", scenes, trials)
    assert list(viz.leaderboard(seeds, seeds=True).seeds) == [2, 2]
    fig = viz.plot_parameter(seeds, "lr")
    assert "all runs, mean of up to 2 seeds" in legend(fig)
    assert fig.axes[0].get_xscale() == "log"
    heights = fig.axes[0].containers[0].lines[0].get_ydata()
    table = trial_table(seeds)
    means = table.groupby(table["lr"].astype(float)).score.mean()
    assert list(heights) == pytest.approx(list(means))


# sweeps


def test_costs_are_read_from_the_record(sweep, copied):
    table = trial_table(sweep)
    assert table.minutes.to_numpy() == pytest.approx(3.2)
    assert table.gpu_minutes.to_numpy() == pytest.approx(3.2)
    assert table.operations.isna().all()
    went = dict(flops={"train": 1000}, speed={"train": {"chips": 7}})
    Run(copied / "lr=1e-2").update("went", **went)
    assert sweeps.cost_of(Run(copied / "lr=1e-2"), "operations") == 14_000
    assert "cost of 1 not known" in words(viz.plot_cost(copied, "operations"))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)
)
def test_the_front_is_what_nobody_beats(points):
    cost, score = np.array(points, float).T
    found = _pareto_front(cost, score)
    for i, (c, s) in enumerate(points):
        beaten = any((a <= c and b >= s) and (a, b) != (c, s) for a, b in points)
        assert found[i] != beaten


def test_importance_finds_what_counts_and_nothing_else():
    rng = np.random.default_rng(3)
    rows = rng.random((24, 2))
    found, explained = sweeps._shuffled(rows, np.sin(3 * rows[:, 0]), 0, 2)
    assert found[:, 0].min() > found[:, 2].max() and found[:, 1].max() < 0.1
    assert explained > 0.5
    noise, explained = sweeps._shuffled(rows, rng.random(24), 0, 2)
    assert explained < 0.1 and not (noise.min(axis=0)[:2] > noise[:, 2].max()).any()


# size


@pytest.mark.slow
def test_huge_rasters_are_drawn_from_their_overviews(tmp_path):
    "Two runs on 20,000 x 20,000 pixels, in under 500 MB."
    layout = dict(driver="GTiff", width=20_000, height=20_000, transform=VEGAS)
    layout |= dict(crs="EPSG:4326", tiled=True, blockxsize=512, blockysize=512)
    layout |= dict(sparse_ok=True, compress="deflate")
    label = write_boxes(tmp_path / "l.geojson", [(100, 100, 1500, 1500)])
    for run in "ab":
        image, drawn = (
            tmp_path / "img1.tif",
            tmp_path / run / "predict" / "1" / "labels.tif",
        )
        drawn.parent.mkdir(parents=True)
        for path, count, dtype in ((image, 3, "uint16"), (drawn, 1, "uint8")):
            with rasterio.open(path, "w", count=count, dtype=dtype, **layout) as out:
                block = np.random.default_rng(0).integers(0, 2, (count, 1000, 1000))
                out.write(block.astype(dtype), window=((0, 1000), (0, 1000)))
                out.build_overviews(
                    [2, 4, 8, 16, 32], rasterio.enums.Resampling.nearest
                )
        fake_run(
            tmp_path / run,
            {"1": (image, label, [(2, 2, 9, 9)], (40, 50))},
            stages=("eval",),
        )
    code = (
        f"{PEAK}; import sys; from rvtutorial import viz; runs = sys.argv[1:];"
        "figs = [viz.plot_errors(runs, '1'), viz.plot_worst(runs), viz.plot_agreement(runs)];"
        "[viz.figure_bytes(fig) for fig in figs]; print(peak())"
    )
    args = [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"]
    out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    assert int(out) < 500, out


def test_images_of_unequal_kinds(tmp_path):
    "One run on two scenes of different sizes, one of them not on a map."
    scenes = {"3": (*make_scene(tmp_path, "3"), [(2, 3, 8, 10)], (40, 50))}
    image = write_raster(
        tmp_path / "img4.tif", np.ones((3, 60, 30), np.uint8), crs=None
    )
    values = np.zeros((60, 30), np.uint8)
    values[5:20, 5:20] = 255
    label = write_raster(tmp_path / "l4.tif", values, crs=None)
    scenes["4"] = (image, label, [(5, 5, 15, 15)], (60, 30))
    run = fake_run(tmp_path / "run", scenes)
    other = fake_run(tmp_path / "other", scenes, shift=2)
    for fig in (
        viz.plot_worst([run, other]),
        viz.plot_agreement([run, other], ["3", "4"]),
    ):
        assert maps.figure_bytes(fig)
