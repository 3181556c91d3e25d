"Runs of several classes: means over classes, their matrix, colours, report and sweep."

import json
import re

import numpy as np
import pytest
from affine import Affine
from click.testing import CliRunner
from fake_runs import VEGAS, evaluation, write_raster
from sklearn import metrics as sk

from rvtutorial import viz
from rvtutorial.cli import _cli
from rvtutorial.core.records import write_json
from rvtutorial.figures import maps
from rvtutorial.figures.report import write_report
from rvtutorial.metrics import compare
from rvtutorial.metrics.calibration import ScoreCounts
from rvtutorial.metrics.counting import Counts, scores
from rvtutorial.metrics.intervals import Judged, jackknife
from rvtutorial.metrics.leaderboard import counts_of, label_folder, leaderboard
from rvtutorial.runs import Run
from rvtutorial.sweeps.folder import _final_score, _score_at
from rvtutorial.sweeps.sweepfile import SweepFile

NAMES = ("road", "house", "background", "null")
SCENES = ("1", "2", "3", "4", "5", "6")


def labels_of(scene, wrong, side=60, seed=0):
    "Truth and prediction of a scene; `wrong` is the share of pixels drawn at random."
    rng = np.random.default_rng([int(scene), seed])
    truth = np.full((side, side), 2, np.uint8)
    truth[5 + int(scene) : 15 + int(scene)] = 0
    for _ in range(4):
        row, column = rng.integers(0, side - 12, 2)
        truth[row : row + 10, column : column + 10] = 1
    truth[:3] = 3  # nobody knows
    drawn, lost = truth.copy(), rng.random(truth.shape) < wrong
    drawn[lost] = rng.integers(0, 3, lost.sum())
    drawn[drawn == 3] = 2
    return truth, drawn


def run_of_classes(folder, wrong, colours=None, names=NAMES, seed=0):
    "A run of plain Raster Vision with label rasters."
    scenes, matrices = [], {}
    for scene in SCENES:
        truth, drawn = labels_of(scene, wrong, seed=seed)
        image, label = (folder.parent / kind / f"{scene}.tif" for kind in "ab")
        place = VEGAS @ Affine.translation(200 * int(scene), 0)  # none are neighbours
        write_raster(image, np.stack([40 * truth + 20] * 3), place)
        write_raster(label, truth, place)
        write_raster(folder / "predict" / scene / "labels.tif", drawn, place)
        raster = {"type_hint": "rasterio_source", "uris": [str(image)]}
        source = {"raster_source": {"uris": [str(label)], "transformers": []}}
        scenes.append(dict(id=scene, raster_source=raster, label_source=source))
        pairs = 4 * truth.ravel().astype(int) + drawn.ravel()
        matrices[scene] = np.bincount(pairs, minlength=16).reshape(4, 4)
    classes = dict(names=list(names), null_class="null", colors=colours or [])
    splits = dict(train_scenes=[], validation_scenes=scenes, test_scenes=[])
    config = {"dataset": {"class_config": classes, **splits}, "backend": {}}
    write_json(folder / "pipeline-config.json", config)
    path = folder / "eval" / "validation_scenes" / "eval.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(evaluation(matrices, names)))
    (folder / "bundle").mkdir()
    (folder / "bundle" / "model-bundle.zip").write_bytes(b"PK")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    return {
        "good": run_of_classes(folder / "good", 0.1),
        "poor": run_of_classes(folder / "poor", 0.4),
    }


def pooled(scenes=SCENES, wrong=0.1):
    "Class numbers of all pixels of some scenes that have a label."
    both = [np.stack(labels_of(scene, wrong)) for scene in scenes]
    truth, drawn = np.concatenate([one.reshape(2, -1) for one in both], axis=1)
    return truth[truth != 3], drawn[truth != 3]


@pytest.mark.parametrize("name", ["macro_f1", "macro_iou", "foreground_iou"])
def test_a_mean_is_that_of_pooled_classes_as_in_scikit_learn(runs, name):
    found, kind = counts_of(runs["good"]), name.partition("_")[2]
    theirs = sk.f1_score if kind == "f1" else sk.jaccard_score
    labels = [0, 1] if name.startswith("foreground") else [0, 1, 2]
    expected = theirs(*pooled(), average="macro", labels=labels)
    ours = jackknife(found, name)
    assert ours.value == pytest.approx(expected, abs=1e-12)
    assert ours.low < ours.value < ours.high and ours.scenes == 6
    assert "acro" in repr(ours) or "foreground IoU" in repr(ours)
    one = scores(found, [name])[f"pixel_{name}"]["2"]
    assert one == pytest.approx(theirs(*pooled("2"), average="macro", labels=labels))


def test_an_interval_is_of_means_of_the_resampled_scenes(runs):
    "Each scene is left out, pixels are added, classes scored, then the mean is taken."
    counts = counts_of(runs["good"])
    judged = Judged.every({"a": counts}, "macro_f1")["a"]
    for i, scene in enumerate(SCENES):
        rest = [one for one in SCENES if one != scene]
        expected = sk.f1_score(*pooled(rest), average="macro", labels=[0, 1, 2])
        assert judged.moved[i] == pytest.approx(expected, abs=1e-12)
    drawn = Judged.every({"a": counts}, "macro_iou", "bootstrap", n=200)["a"]
    assert drawn.moved.std() > 0 and drawn.interval("macro_iou").low > 0
    blocks = Judged.every({"a": counts}, "macro_f1", blocks=[0, 0, 1, 2, 3, 4])["a"]
    expected = sk.f1_score(*pooled(SCENES[2:]), average="macro", labels=[0, 1, 2])
    assert blocks.moved[0] == pytest.approx(expected, abs=1e-12) and blocks.units == 5


def test_a_class_that_nobody_saw_is_left_out_of_the_mean_and_named():
    matrices = np.zeros((6, 4, 4), int)
    matrices[:, 0, 0], matrices[:, 0, 2], matrices[:, 2, 2] = 40, 10, 100
    found = Counts(matrices, tuple("abcdef"), NAMES)
    board = leaderboard({"one": found}, "macro_f1")
    assert board.pixel_macro_f1["one"] == pytest.approx(
        np.mean([80 / 90, 200 / 210]), abs=1e-12
    )
    assert np.isnan(board.pixel_f1_house["one"])
    lost = "without house (no pixel in truth and prediction)"
    assert board.attrs["of"] == f"road, house and background, {lost}"
    more = matrices.copy()
    more[0, 2, 1] = 5
    both = leaderboard(
        {"one": found, "two": Counts(more, tuple("abcdef"), NAMES)}, "macro_iou"
    )
    assert "without house of one (no pixel" in both.attrs["of"]
    nothing = Counts(np.zeros((6, 4, 4), int), tuple("abcdef"), NAMES)
    assert np.isnan(jackknife(nothing, "macro_f1").value)


def test_leaderboards_order_by_means_and_show_every_class(runs):
    board = leaderboard(runs, "pixel_macro_f1")
    assert list(board.index) == ["good", "poor"] and not board.tied["poor"]
    shown = [
        f"pixel_{k}" for k in ("macro_iou", "f1_road", "f1_house", "f1_background")
    ]
    assert list(board.columns[-4:]) == shown
    line = board.loc["good"]
    assert line.pixel_macro_f1 == pytest.approx(line[shown[1:]].mean(), abs=1e-12)
    assert line.low < line.pixel_macro_f1 < line.high
    text = repr(board)
    assert "pixel macro F1" in text and "pixel F1 of road" in text
    foreground = leaderboard(runs, "foreground_f1")
    mean = line[["pixel_f1_road", "pixel_f1_house"]].mean()
    assert foreground.pixel_foreground_f1["good"] == pytest.approx(mean, abs=1e-12)
    listed = leaderboard(runs, "macro_f1", class_name=["road", "house"])
    assert listed.pixel_macro_f1["good"] == pytest.approx(mean, abs=1e-12)
    assert listed.attrs["of"] == "road and house"
    seeds = leaderboard({"two": list(runs.values())}, "macro_f1")
    assert seeds.seeds["two"] == 2
    assert seeds.pixel_f1_road["two"] == pytest.approx(board.pixel_f1_road.mean())
    pair = compare(*runs.values(), metric="macro_iou")
    assert pair.winner == "good" and "macro_iou" in pair.verdict


def test_any_class_is_found_by_its_name_and_a_near_one_is_offered(runs):
    houses = leaderboard(runs, "iou", class_name="house")
    expected = sk.jaccard_score(*pooled(), average=None, labels=[1])[0]
    assert houses.pixel_iou["good"] == pytest.approx(expected, abs=1e-12)
    calls = [
        lambda: leaderboard(runs, class_name="rood"),
        lambda: leaderboard(runs, "macro_f1", class_name=["house", "rood"]),
        lambda: counts_of(runs["good"]).table("rood"),
        lambda: viz.plot_worst(runs, class_name="rood"),
        lambda: viz.plot_errors(runs, "1", class_name="rood"),
        lambda: viz.display_conf_mat(runs, class_name="rood"),
        lambda: ScoreCounts(np.zeros((1, 1, 2, 256)), ("1",), ("road",)).curve("rood"),
        lambda: viz.plot_agreement(runs, "1", class_name="rood"),
        lambda: write_report(runs, "no.html", class_name="rood", progress=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="did you mean 'road'"):
            call()
    with pytest.raises(
        ValueError, match="macro_f1 is a mean over classes: give a list"
    ):
        leaderboard(runs, "macro_f1", class_name="road")
    with pytest.raises(ValueError, match="f1 is about one class"):
        leaderboard(runs, "f1", class_name=["road", "house"])
    with pytest.raises(ValueError, match="needs the counts of all classes"):
        jackknife(counts_of(runs["good"]).table(), "macro_f1")
    with pytest.raises(ValueError, match="curves are of one class"):
        viz.plot_score_curves(runs, metric="macro_f1")
    empty = Counts(np.zeros((1, 2, 2)), ("a",), ("background", "null"))
    with pytest.raises(ValueError, match="foreground_f1 needs a class that is meant"):
        jackknife(empty, "foreground_f1")


def test_means_of_runs_with_other_classes_are_refused(runs, tmp_path):
    names = ("road", "water", "background", "null")
    other = run_of_classes(tmp_path / "other", 0.2, names=names)
    with pytest.raises(ValueError, match="with different classes cannot be compared"):
        leaderboard(runs | {"other": other}, "macro_f1")
    board = leaderboard(
        runs | {"other": other}, "macro_f1", class_name=["road", "background"]
    )
    assert len(board) == 3 and board.attrs["of"] == "road and background"


def test_order_of_classes_does_not_matter(runs, tmp_path):
    "A folder of labels may number the same classes in another way."
    place = runs["good"].parent / "b"
    folder = label_folder(place, place, NAMES)
    assert jackknife(folder.counts, "macro_f1").value == 1
    turned = Counts(
        counts_of(runs["good"]).matrices[:, [1, 0, 2, 3]][:, :, [1, 0, 2, 3]],
        SCENES, ("house", "road", "background", "null"),
    )  # fmt: skip
    board = leaderboard({"a": runs["good"], "b": turned}, "macro_f1")
    assert board.behind.max() == 0 and board.tied.all()


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_the_matrix_of_all_classes_has_their_names(runs):
    figure = viz.display_conf_mat(runs)
    assert len(figure.axes) == 2
    ax = figure.axes[0]
    drawn = [label.get_text() for label in ax.get_xticklabels()]
    assert drawn == [f"drawn as\n{n}" for n in NAMES[:3]] + ["all"]
    truth, said = pooled()
    pixels = sk.confusion_matrix(truth, said, labels=[0, 1, 2])
    amounts = [t for t in texts(figure) if t.endswith(" px")][:16]
    whole = np.array([int(t[:-3].replace(",", "")) for t in amounts]).reshape(4, 4)
    assert (whole[:3, :3] == pixels).all() and whole[3, 3] == pixels.sum()
    one = viz.display_conf_mat(runs["good"], class_name="house").axes[0]
    assert [label.get_text() for label in one.get_yticklabels()][0] == "truly\nhouse"
    assert len(one.get_xticklabels()) == 3
    with pytest.raises(ValueError, match="3 classes need a matrix of 3 x 3, got 2 x 2"):
        maps.draw_matrix(one, np.zeros((2, 2)), NAMES[:3])


def test_maps_have_the_colours_of_the_configuration(runs, tmp_path):
    "And the truth beside the predictions, because outlines do not say which class it is."
    own = ["#101010", [60, 16, 152], "blue", "white"]
    path = run_of_classes(tmp_path / "own", 0.2, own)
    found = maps.Classes(Run(path)).colours
    assert [*found.values()] == ["#101010", "#3c1098", "blue", "#FFFFFF"]
    figure = viz.plot_predictions(path, ["1"])
    assert [ax.get_title().partition("\n")[0] for ax in figure.axes] == [
        "image", "truth", "own"
    ]  # fmt: skip
    shown = figure.axes[1].images[0]
    colour = shown.cmap(shown.norm(1))
    assert np.allclose(colour[:3], np.array([60, 16, 152]) / 255, atol=1e-6)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["0 road", "1 house", "2 background", "3 null"]
    faces = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    assert np.allclose(faces[1][:3], colour[:3])
    said = "#3C1098:house,#000000:null,#FEDD3A:road,#112233:road"
    write_json(path / "run.json", {"asked": {"labels": {"label_values": said}}})
    found = maps.Classes(Run(path)).colours  # the labels' own come first
    assert [*found.values()] == ["#FEDD3A", "#3C1098", "blue", "#FFFFFF"]
    usual = maps.Classes(Run(runs["good"])).colours
    assert len(set(usual.values())) == 4 and usual["null"] == "#FFFFFF"
    many = label_folder(
        tmp_path, tmp_path, [f"class {i}" for i in range(12)], null=None
    )
    assert len(set(maps.Classes(many).colours.values())) == 12
    errors = viz.plot_predictions(runs, ["1"], "errors", class_name="house")
    assert len(errors.axes) == 3


@pytest.mark.parametrize("name", [dict(class_name="house"), dict(metric="macro_f1")])
def test_the_worst_scenes_of_a_class_and_of_all(runs, name):
    kind = name.get("metric", "f1")
    counts = {k: counts_of(run) for k, run in runs.items()}
    each = [
        scores(c, [kind]) if "metric" in name else scores(c.table("house"), ["f1"])
        for c in counts.values()
    ]
    worst = sum(one.iloc[:, 0] for one in each).idxmin()
    figure = viz.plot_worst(runs, 2, **name)
    assert figure.axes[0].get_title() == f"scene {worst}"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("another class than the true one" in legend) == ("metric" in name)
    title = figure.get_suptitle()
    assert ("macro F1 of road, house and background" in title) == ("metric" in name)
    boxes = viz.plot_scene_scores(runs, **name)
    assert "house" in boxes.get_suptitle()
    assert len(viz.plot_leaderboard(runs, **name).axes[0].lines) == 4
    layers = maps.SceneLayers.of_run(Run(runs["good"]), "1")
    truth, drawn = labels_of("1", 0.1)
    assert (
        (layers.wrong(Run(runs["good"])) == 3) == ((truth != drawn) & (truth != 3))
    ).all()


def test_a_report_of_several_classes(runs, tmp_path):
    page = write_report(runs, tmp_path / "a.html", progress=False, metric="macro_f1")
    text = page.read_text()
    value = jackknife(counts_of(runs["good"]), "macro_f1").value
    assert f"{value:.3f}" in text and "pixel macro F1" in text
    assert "Scores of the classes road, house and background on 6 whole" in text
    assert "Confusion matrix of good" in text and 'id="classes"' in text
    assert "Maps show one of the classes, road." in text
    assert not re.search("Not shown|is not shown", text)
    page = write_report(runs, tmp_path / "b.html", progress=False, class_name="house")
    text = page.read_text()
    assert "Scores of the class house on 6 whole" in text
    assert "of the house pixels found" in text and 'id="classes"' in text
    assert not re.search("Not shown|is not shown", text)


def test_a_report_leaves_out_runs_of_other_classes(runs, tmp_path):
    names = ("road", "water", "background", "null")
    other = run_of_classes(tmp_path / "other", 0.2, names=names)
    page = write_report(
        runs | {"other": other}, tmp_path / "a.html", progress=False, metric="macro_iou"
    )
    assert (
        "has the classes road, water, background, not road, house" in page.read_text()
    )


def test_the_command_line_knows_the_means(runs):
    folders = [str(path) for path in runs.values()]
    done = CliRunner().invoke(_cli, ["compare", *folders, "--metric", "macro_iou"])
    assert done.exit_code == 0, done.output
    assert "pixel_macro_iou" in done.output and "pixel_iou_house" in done.output
    listed = ["--metric", "macro_f1", "--class", "road,house"]
    done = CliRunner().invoke(_cli, ["compare", *folders, *listed])
    assert done.exit_code == 0 and "pixel_f1_background" not in done.output


def test_a_sweep_is_decided_by_a_mean(runs, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "method: grid\nmetric: {name: macro_iou, goal: maximize, target: 0.9}\n"
        "parameters: {lr: {values: [1e-3, 1e-4]}}\n"
    )
    assert SweepFile.read(path).metric == "macro_iou"
    path.write_text(path.read_text().replace("macro_iou", "macro_io"))
    with pytest.raises(ValueError, match="macro_iou"):
        SweepFile.read(path)
    run = Run(runs["good"])
    (run.path / "train").mkdir(exist_ok=True)
    lines = "epoch,avg_f1,road_f1,house_f1,background_f1,null_f1\n0,0,0.5,0.3,1,0\n"
    (run.path / "train" / "log.csv").write_text(lines)
    assert _score_at(run, 1, "macro_f1") == pytest.approx(0.6)
    assert _score_at(run, 1, "foreground_f1") == pytest.approx(0.4)
    assert _score_at(run, 1, "foreground_iou") == pytest.approx(
        np.mean([0.5 / 1.5, 0.3 / 1.7])
    )
    (run.path / "train" / "log.csv").unlink()
    expected = jackknife(counts_of(run), "foreground_f1").value
    assert run.state == "succeeded"
    assert _final_score(run, "foreground_f1") == expected
    table = viz.trial_table(runs, "macro_iou")
    assert table.score["good"] == jackknife(counts_of(run), "macro_iou").value
    words = "pixel macro IoU of road, house and background, 6 whole validation scenes"
    assert table.attrs["title"] == words
