"Figures show what they say, where it is, and refuse what they cannot show."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
from fake_runs import (
    BOXES,
    PEAK,
    VEGAS,
    fake_run,
    make_scene,
    three_scenes,
    truth_of,
    write_boxes,
    write_log,
    write_raster,
)
from matplotlib.figure import Figure
from pace import pace
from rasterio.transform import from_origin

from rvtutorial import viz
from rvtutorial.core.colours import PALETTE
from rvtutorial.figures import maps
from rvtutorial.metrics.counting import confusion
from rvtutorial.runs import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two runs on three scenes: `a` is 1 pixel off, `b` is 3 pixels off and trained longer."
    folder = tmp_path_factory.mktemp("made")
    scenes = three_scenes(folder / "val")
    fake_run(folder / "a", scenes)
    fake_run(folder / "b", scenes, shift=3, epochs=5)
    return folder


def images(fig):
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]


def texts(fig):
    out = [t.get_text() for legend in fig.legends for t in legend.get_texts()]
    for ax in fig.axes:
        out += [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
        out += [t.get_text() for t in ax.texts]
    return "\n".join(out)


# runs and names


def test_runs_are_given_in_any_form(made):
    one = made / "a"
    for runs in (one, str(one), Run(one), [one], {"a": one}, {"a": Run(one)}):
        assert list(viz.open_runs(runs)) == ["a"]
    assert list(viz.open_runs([made / "b", one])) == ["b", "a"]

    class Sweep:
        def runs(self):
            return {"lr 1e-3": Run(one)}

    assert list(viz.open_runs(Sweep())) == ["lr 1e-3"]


def test_runs_of_one_name_are_told_apart(made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "other" / "a")
    names = list(viz.open_runs([made / "a", tmp_path / "other" / "a"]))
    assert names == [f"{made.name}/a", "other/a"]
    with pytest.raises(ValueError, match="runs of one name"):
        viz.open_runs([made / "a", made / "a"])


def test_runs_that_are_not_there(made):
    with pytest.raises(FileNotFoundError, match="no run folder .*nowhere"):
        viz.open_runs(made / "nowhere")
    with pytest.raises(ValueError, match="no runs given"):
        viz.open_runs([])


def test_files_lists_what_is_there(made):
    found = viz.files(made / "a")
    assert found.files["predict/<scene>/labels.tif"] == 3
    assert found.kilobytes["train/log.csv"] > 0


# predictions


def test_a_number_counts_images_in_alphabetical_order(made):
    run = Run(made / "a")
    assert run.scene_ids() == ["9", "10", "11"]
    assert [viz.find_scene(run, i) for i in range(3)] == ["10", "11", "9"]
    assert viz.find_scene(run, np.int64(2)) == "9"
    assert viz.find_scene(run, "10") == "10"
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="has 3 validation scenes.*from 0 to 2"):
            viz.find_scene(run, wrong)
    with pytest.raises(ValueError, match="no scene 'ten'"):
        viz.find_scene(run, "ten")
    with pytest.raises(ValueError, match="an id .text. or a place"):
        viz.find_scene(run, 1.5)


def test_prediction_beside_image_in_the_same_place(made):
    fig = viz.plot_prediction(made / "a", "9")
    image, drawn = fig.axes[:2]
    assert image.images[0].get_extent() == drawn.images[0].get_extent()
    assert image.get_xlim() == drawn.get_xlim() and image.get_ylim() == drawn.get_ylim()
    left, right, bottom, top = image.images[0].get_extent()
    assert (left, bottom) == (0, 0)
    # 50 columns of 2.7e-6 degrees at 36.2 degrees north, 40 rows
    assert right == pytest.approx(
        50 * 2.7e-6 * 111_320 * np.cos(np.radians(36.2)), rel=2e-3
    )
    assert top == pytest.approx(40 * 2.7e-6 * 110_950, rel=2e-3)
    assert np.array_equal(
        images(fig)[1], truth_of([(2, 4, 8, 10), (20, 31, 10, 12)], (40, 50))
    )
    assert "east (m)" in texts(fig) and "north (m)" in texts(fig)


def test_figures_of_a_run_show_the_bands_and_the_zeros_that_it_was_told_of(tmp_path):
    image, label = make_scene(tmp_path / "val", "9")
    with rasterio.open(image, "r+") as file:
        pixels = file.read()
        pixels[:, :20] = 0
        file.write(pixels)
    fake_run(tmp_path / "a", {"9": (image, label, [], (40, 50))})
    run = Run(tmp_path / "a")
    usual = maps.SceneLayers.of_run(run, "9")
    assert not usual.valid[:20].any() and usual.valid[20:].all()
    path = run.path / "pipeline-config.json"
    config = json.loads(path.read_text())
    for scene in config["dataset"]["validation_scenes"]:
        scene["raster_source"]["channel_order"] = [2, 0, 1]
    path.write_text(json.dumps(config))
    run.update("asked", labels={"zeros": "data"})
    told = maps.SceneLayers.of_run(Run(tmp_path / "a"), "9")
    assert told.valid.all()
    assert not np.array_equal(told.picture, usual.picture)
    shown = maps.read_picture(image, zeros="data")
    assert np.array_equal(told.picture, shown[..., [2, 0, 1]])


def test_outlines_lie_on_the_buildings_of_the_image(made):
    "The bright box of the image and the outline have the same place in the figure."
    fig = viz.plot_prediction(made / "a", "10")
    ax = fig.axes[0]
    left, right, bottom, top = ax.images[0].get_extent()
    bright = images(fig)[0].mean(axis=-1) > 0.6
    rows, columns = np.nonzero(bright)
    step = ((right - left) / 50, (top - bottom) / 40)
    (line,) = ax.collections[0].get_segments()
    assert line[:, 0].min() == pytest.approx(columns.min() * step[0], abs=0.01)
    assert line[:, 0].max() == pytest.approx((columns.max() + 1) * step[0], abs=0.01)
    assert line[:, 1].max() == pytest.approx(top - rows.min() * step[1], abs=0.01)
    assert ax.images[0].origin == "upper"


def test_legend_has_the_classes_of_the_run(made):
    found = texts(viz.plot_prediction(made / "a", 0))
    assert "0 building" in found and "1 background" in found and "2 null" in found
    assert "pixel F1 0.9" in found
    found = texts(viz.plot_predictions(made / "a", "11"))
    assert "pixel F1 undefined" in found  # an empty scene, drawn empty


def test_class_names_come_from_the_config(made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "a")
    path = tmp_path / "a" / "pipeline-config.json"
    config = json.loads(path.read_text())
    config["dataset"]["class_config"] = {"names": ["road", "background", "field"]}
    path.write_text(json.dumps(config))
    colours = maps.Classes(Run(tmp_path / "a")).colours
    assert list(colours) == ["road", "background", "field", "null"]
    assert len(set(colours.values())) == 4


def test_all_runs_and_scenes_in_one_figure(made):
    fig = viz.plot_predictions({"one": made / "a", "two": made / "b"}, ["9", 0, "11"])
    panels = [ax for ax in fig.axes if ax.images]
    assert len(panels) == 9
    found = texts(fig)
    assert "one\n" in found and "two\n" in found
    assert "scene 9\n" in found and "scene 10\n" in found and "scene 11\n" in found
    assert (
        len(viz.plot_predictions([made / "a"]).axes) == 6
    )  # three scenes if none named


def test_error_view_counts_what_eval_counts(made):
    fig = viz.plot_predictions(made / "b", "9", view="errors")
    paint = images(fig)[1]
    matrix = confusion(
        truth_of(BOXES["9"], (40, 50)),
        truth_of([(r, c + 3, h, w) for r, c, h, w in BOXES["9"]], (40, 50)),
        2,
    )
    expected = {
        "found (TP)": matrix[0, 0],
        "missed (FN)": matrix[0, 1],
        "drawn in error (FP)": matrix[1, 0],
    }
    from matplotlib.colors import to_rgb

    for name, colour in maps.ERRORS.items():
        assert (
            np.isclose(paint, to_rgb(colour)).all(axis=-1).sum() == expected[name] > 0
        )
    assert "missed (FN)" in texts(fig)


def test_moved_data_and_moved_run(made, tmp_path):
    scenes = three_scenes(tmp_path / "old" / "val")
    fake_run(tmp_path / "run", scenes)
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="data=FOLDER"):
        viz.plot_prediction(tmp_path / "run", "9")
    fig = viz.plot_prediction(tmp_path / "run", "9", data=tmp_path / "new")
    assert fig.axes[0].collections  # outlines were found too
    assert viz.plot_prediction(tmp_path / "run", 1, data=tmp_path / "new")


def test_wrong_data_folder_is_noticed(made, tmp_path):
    other = from_origin(-115.2 + 30 * 2.7e-06, 36.2 - 0 * 2.7e-06, 2.7e-06, 2.7e-06)
    for scene in BOXES:
        image, label = make_scene(tmp_path, scene)
        write_raster(image, np.ones((3, 40, 50), np.uint16), transform=other)
    with pytest.raises(ValueError, match="does not lie on the image of scene 9"):
        viz.plot_prediction(made / "a", "9", data=tmp_path)
    write_raster(tmp_path / image.name, np.ones((3, 41, 50), np.uint16))
    with pytest.raises(ValueError, match="does not lie on the image of scene 11"):
        viz.plot_prediction(made / "a", "11", data=tmp_path)


def test_raster_labels_and_their_values(tmp_path):
    boxes = [(2, 3, 8, 10)]
    image, _ = make_scene(tmp_path, "5", boxes)
    values = np.where(truth_of(boxes, (40, 50)) == 0, 255, 0).astype(np.uint8)
    label = write_raster(tmp_path / "labels_5.tif", values)
    run = fake_run(tmp_path / "run", {"5": (image, label, boxes, (40, 50))}, shift=0)
    paint = images(viz.plot_predictions(run, "5", view="errors"))[1]
    (line,) = [
        line for line in maps._outlines(label, maps.Frame.of(image)) if len(line) == 5
    ][:1]
    assert line.shape == (5, 2)
    found = np.isclose(paint, (0x56 / 255, 0xB4 / 255, 0xE9 / 255)).all(axis=-1)
    assert np.array_equal(found, values == 255)


def test_an_unknown_view_is_refused(made):
    with pytest.raises(
        ValueError, match='"labels" or "errors", got "errs"'.replace('"errs"', "'errs'")
    ):
        viz.plot_predictions(made / "a", view="errs")


@pytest.mark.parametrize(
    ("stages", "draw", "words"),
    [
        ((), lambda run: viz.plot_metrics(run), "train/log.csv.*train stage"),
        (
            ("train",),
            lambda run: viz.plot_prediction(run, "9"),
            "predict/9/labels.tif.*predict stage",
        ),
        (
            ("predict",),
            lambda run: viz.display_conf_mat(run),
            "validation_scenes/eval.json.*eval stage",
        ),
        (
            ("predict",),
            lambda run: viz.leaderboard(run),
            "validation_scenes/eval.json.*eval stage",
        ),
        (
            ("eval",),
            lambda run: viz.leaderboard(run, split="test"),
            "test_scenes/eval.json.*eval stage",
        ),
    ],
)
def test_missing_files_are_named_with_their_stage(made, tmp_path, stages, draw, words):
    scenes = {"9": (*make_scene(tmp_path, "9"), [(2, 3, 8, 10)], (40, 50))}
    run = fake_run(tmp_path / "half", scenes, stages=stages)
    with pytest.raises(FileNotFoundError, match=f"half has no .*{words}"):
        draw(run)


def test_a_prediction_without_evaluation_is_drawn(made, tmp_path):
    scenes = {"9": (*make_scene(tmp_path, "9"), [(2, 3, 8, 10)], (40, 50))}
    run = fake_run(tmp_path / "half", scenes, stages=("predict",))
    assert "pixel F1" not in texts(viz.plot_prediction(run, "9"))


# the frame


def test_frames_of_other_maps(tmp_path):
    utm = from_origin(660_000, 4_000_000, 0.5, 0.5)
    pixels = np.ones((3, 20, 30), np.uint8)
    frame = maps.Frame.of(write_raster(tmp_path / "utm.tif", pixels, utm, "EPSG:32611"))
    assert frame.extent == pytest.approx((0, 15, 0, 10), rel=5e-4) and frame.unit == "m"
    city = from_origin(980_000, 200_000, 0.5, 0.5)
    feet = maps.Frame.of(write_raster(tmp_path / "ft.tif", pixels, city, "EPSG:2263"))
    assert feet.extent[1] == pytest.approx(15 * 0.3048, rel=5e-4)
    plain = maps.Frame.of(write_raster(tmp_path / "plain.tif", pixels, crs=None))
    assert plain.unit == "pixels" and plain.extent == (0, 30, 20, 0)
    assert plain.place([[3, 4]]).tolist() == [[3, 4]]
    assert np.allclose(frame.place([[0, 0], [30, 20]]), [[0, 10], [15, 0]], rtol=5e-4)


def test_rasters_with_the_south_first_are_drawn_north_up(tmp_path):
    from affine import Affine

    upside = Affine(0.5, 0, 660_000, 0, 0.5, 4_000_000)
    path = write_raster(
        tmp_path / "s.tif", np.ones((3, 20, 30), np.uint8), upside, "EPSG:32611"
    )
    frame = maps.Frame.of(path)
    assert frame.origin == "lower"
    assert np.allclose(frame.place([[0, 0], [30, 20]]), [[0, 0], [15, 10]], rtol=5e-4)


def test_labels_in_another_projection_land_on_the_image(tmp_path):
    import geopandas as gpd

    image, label = make_scene(tmp_path, "3", [(5, 6, 10, 12)])
    moved = tmp_path / "moved.gpkg"
    gpd.read_file(label).to_crs("EPSG:32611").to_file(moved)
    frame = maps.Frame.of(image)
    (a,), (b,) = maps._outlines(label, frame), maps._outlines(moved, frame)
    assert np.allclose(a, b, atol=1e-3)


def test_outlines_of_raster_labels_are_those_of_the_polygons(tmp_path):
    image, label = make_scene(tmp_path, "3", [(5, 6, 10, 12)])
    frame = maps.Frame.of(image)
    raster = write_raster(tmp_path / "l.tif", truth_of([(5, 6, 10, 12)], (40, 50)))
    (line,) = maps._outlines(label, frame)
    corners = {tuple(corner) for corner in line.round(2)}
    rings = maps._outlines(raster, frame)
    assert any({tuple(corner) for corner in ring.round(2)} == corners for ring in rings)


def test_real_polygons_of_vegas(shared_data):
    folder = shared_data("spacenet2_vegas")
    (image,), (label,) = folder.glob("images/*.tif"), folder.glob("labels/*.geojson")
    frame = maps.Frame.of(image)
    assert frame.step == pytest.approx((0.243, 0.3), abs=0.002)
    assert len(maps._outlines(label, frame)) >= 50  # 49 buildings, one in two parts
    truth = frame.read_truth(label)
    assert (truth == 0).mean() == pytest.approx(0.285, abs=0.004)
    picture = maps._read_layers(image, label).picture
    assert (np.abs(picture.mean(axis=(0, 1)) - 0.5) < 0.2).all()


def test_real_masks_of_rio(shared_data):
    "The files call background no data; the values that are asked for come first."
    folder = shared_data("spacenet1_rio")
    masks = sorted((folder / "masks").glob("*.tif"))
    names, values = ("building", "background", "null"), {255: 0, 0: 1}
    shares = {}
    for mask in masks:
        found = count_rasters_of_itself(mask, names, values)
        shares[mask.name] = found.total[0, 0] / found.total.sum()
    assert max(shares.values()) == pytest.approx(0.28, abs=0.001)
    assert sum(share == 0 for share in shares.values()) == 4


def count_rasters_of_itself(mask, names, values):
    from rvtutorial.metrics.counting import _count_arrays, as_classes

    labels = as_classes(maps._read_labels(mask), values, nodata=0, null_id=2)
    return _count_arrays(labels, labels, names)


def test_truth_is_cut_to_whole_pixels_as_raster_vision_does(tmp_path):
    image, _ = make_scene(tmp_path, "3")
    shifted = from_origin(
        -115.2 + 0.9 * 2.7e-06, 36.2 - 0.9 * 2.7e-06, 2.7e-06, 2.7e-06
    )
    label = write_boxes(tmp_path / "l.geojson", [(5, 6, 10, 12)], shifted)
    frame = maps.Frame.of(image)
    assert np.array_equal(frame.read_truth(label), truth_of([(5, 6, 10, 12)], (40, 50)))
    write_boxes(label, [])
    assert (frame.read_truth(label, rest=1) == 1).all()
    assert maps._outlines(label, frame) == []


def test_pictures_are_stretched_band_by_band(tmp_path):
    rng = np.random.default_rng(0)
    image = np.stack(
        [rng.integers(low, low + 200, (50, 60)) for low in (100, 900, 1700)]
    )
    image[:, :, :10] = 0
    picture = maps.read_picture(
        write_raster(tmp_path / "i.tif", image.astype(np.uint16))
    )
    assert (np.abs(picture[:, 10:].mean(axis=(0, 1)) - 0.5) < 0.03).all()
    one = maps.read_picture(
        write_raster(tmp_path / "1.tif", image[:1].astype(np.uint16))
    )
    assert one.shape == (50, 60, 3)


def test_labels_are_thinned_out_and_never_mixed(tmp_path):
    labels = np.zeros((900, 1200), np.uint8)
    labels[:, 600:] = 2
    found = maps._read_labels(write_raster(tmp_path / "l.tif", labels), max_size=100)
    assert found.shape == (75, 100) and set(np.unique(found)) == {0, 2}


# matrix, curves, tables


def test_confusion_matrix_has_totals_in_shares_and_pixels(made):
    fig = viz.display_conf_mat(made / "a")
    found = [t.get_text() for t in fig.axes[0].texts]
    tp, fn, fp = 344 - 30, 30, 30  # one column of each box is missed, one too many
    shares = [
        tp,
        fn,
        tp + fn,
        fp,
        6000 - tp - fn - fp,
        6000 - tp - fn,
        tp + fp,
        6000 - tp - fp,
        6000,
    ]
    expected = []
    for pixels in shares:
        expected += [f"{pixels / 6000:.3f}", f"{pixels:,} px"]
    assert found == expected
    assert "3 whole validation scenes" in texts(fig)
    assert len(viz.display_conf_mat([made / "a", made / "b"]).axes) == 2
    with pytest.raises(ValueError, match="no class 'road'"):
        viz.display_conf_mat(made / "a", class_name="road")


def test_curves_keep_every_epoch_of_every_run(made):
    fig = viz.plot_metrics([made / "a", made / "b"])
    assert [len(line.get_xdata()) for line in fig.axes[2].get_lines()] == [3, 5]
    assert list(fig.axes[0].get_lines()[1].get_xdata()) == [0, 1, 2, 3, 4]
    assert fig.axes[2].get_lines()[1].get_ydata()[-1] == pytest.approx(0.8)
    found = texts(fig)
    assert "a\nb" in found and "0: after the first" in found
    looks = {
        (line.get_linestyle(), line.get_marker()) for line in fig.axes[0].get_lines()
    }
    assert len(looks) == 2  # not by colour alone


def test_curves_of_other_columns_and_a_file_being_written(made, tmp_path):
    assert len(viz.plot_metrics(made / "a", ["avg_f1"]).axes) == 1
    with pytest.raises(ValueError, match="no 'val_f1'; it has epoch, train_loss"):
        viz.plot_metrics(made / "a", ["val_f1"])
    write_log(tmp_path / "run" / "train" / "log.csv", 4)
    with open(tmp_path / "run" / "train" / "log.csv", "a") as file:
        file.write("4,0.2,0:00")
    assert (
        len(viz.plot_metrics(tmp_path / "run").axes[0].get_lines()[0].get_xdata()) == 4
    )


@pytest.mark.parametrize("text", ["", "epoch,train", "epoch,train_loss,val_loss\n"])
def test_curves_of_a_run_that_has_only_begun(made, tmp_path, text):
    log = tmp_path / "new" / "train" / "log.csv"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    with pytest.raises(ValueError, match="no epoch has ended yet in new"):
        viz.plot_metrics(tmp_path / "new")
    fig = viz.plot_metrics([tmp_path / "new", made / "a"])
    lines = fig.axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [0, 3]
    assert "new (no epoch yet)\na" in texts(fig)


def test_leaderboard_is_sorted_with_its_split(made):
    board = viz.leaderboard({"far": made / "b", "near": made / "a"})
    assert list(board.index) == ["near", "far"]
    assert list(board.split) == ["validation"] * 2 and list(board.scenes) == [3, 3]
    assert board[["low", "high"]].isna().all(axis=None), "three scenes are too few"
    assert "3 scenes in 2 blocks are too few, 5 are needed" in repr(board)
    assert "nan" not in repr(board) + board._repr_html_()
    iou = board.pixel_f1 / (2 - board.pixel_f1)
    assert board.pixel_iou.to_numpy() == pytest.approx(iou.to_numpy())
    assert board.tied["far"]


def test_coverage_figure_says_how_much_is_covered():
    found = texts(viz.plot_coverage((650, 650), 300, 300, pad=False))
    assert "85.2%" in found.replace(" %", "%") and "4 chips" in found
    assert "100" in texts(viz.plot_coverage(np.zeros((65, 65, 3)), 30, 30))


# figures as values


@pytest.mark.parametrize(
    "draw",
    [
        lambda run: viz.plot_prediction(run, 0),
        lambda run: viz.plot_predictions(run, view="errors"),
        lambda run: viz.display_conf_mat(run),
        lambda run: viz.plot_metrics(run),
        lambda run: viz.plot_coverage((65, 65), 30, 30),
    ],
)
def test_figures_are_returned_and_leave_pyplot_alone(made, draw, tmp_path):
    mine = plt.figure()
    before = plt.get_fignums()
    fig = draw(made / "a")
    assert isinstance(fig, Figure)
    assert plt.get_fignums() == before and plt.gcf() is mine
    fig.savefig(tmp_path / "fig.png")
    assert (tmp_path / "fig.png").stat().st_size > 1000
    plt.close(mine)


def test_nothing_shows_figures_by_itself():
    for module in (viz, maps):
        assert "plt.show" not in Path(module.__file__).read_text()


def test_classes_can_be_told_apart_without_colour():
    from matplotlib.colors import to_rgb

    for colours in (PALETTE.values(), maps.ERRORS.values()):
        grey = sorted(np.dot(to_rgb(c), (0.299, 0.587, 0.114)) for c in colours)
        assert min(np.diff(grey)) > 0.12


FIRST_FIGURES = {  # of a fresh kernel
    "viz": "from rvtutorial import viz\nviz.display_conf_mat('{made}/a')",
    "scenes": "from rvtutorial import scenes\nfrom rvtutorial.runs import Run\n"
    "scenes.plot_scene(scenes.Scene('a', Run('{made}/a').image('10')))",
    "chips": "from rvtutorial.chips import grid_windows, plot_windows\n"
    "plot_windows((60, 60), grid_windows((60, 60), 20, 20))",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_FIGURES)
def test_jupyter_draws_a_figure_once(made, name):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    from traitlets.config import Config

    cells = [nbformat.v4.new_code_cell(FIRST_FIGURES[name].format(made=made))]
    nb = nbformat.v4.new_notebook(cells=cells)
    config = Config({"KernelManager": {"transport": "ipc"}})
    nbclient.NotebookClient(nb, kernel_name="python3", config=config).execute()
    pictures = [
        out for out in nb.cells[0].outputs if "image/png" in out.get("data", {})
    ]
    assert len(pictures) == 1 and pictures[0].output_type == "execute_result"


def test_import_is_quick_and_light():
    code = (
        "import resource, sys; import rvtutorial.viz;"
        "print([m for m in ('torch', 'rastervision', 'torchvision') if m in sys.modules]);"
        "u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules, seconds = out.stdout.splitlines()
    assert modules == "[]"
    assert float(seconds) < 1.5 * pace()


@pytest.mark.slow
def test_a_huge_raster_is_drawn_from_its_overviews(tmp_path):
    "20,000 x 20,000 pixels, image and prediction, in under 2 s and 500 MB."
    import rasterio

    layout = dict(
        driver="GTiff", width=20_000, height=20_000, transform=VEGAS, crs="EPSG:4326"
    )
    layout |= dict(
        tiled=True, blockxsize=512, blockysize=512, sparse_ok=True, compress="deflate"
    )
    image, drawn = (
        tmp_path / "img1.tif",
        tmp_path / "run" / "predict" / "1" / "labels.tif",
    )
    drawn.parent.mkdir(parents=True)
    corner = ((0, 2000), (0, 2000))
    for path, count, dtype in ((image, 3, "uint16"), (drawn, 1, "uint8")):
        with rasterio.open(path, "w", count=count, dtype=dtype, **layout) as out:
            rng = np.random.default_rng(0)
            out.write(
                rng.integers(0, 2, (count, 2000, 2000), np.uint8).astype(dtype),
                window=corner,
            )
            out.build_overviews([2, 4, 8, 16, 32], rasterio.enums.Resampling.nearest)
    label = write_boxes(tmp_path / "l.geojson", [(100, 100, 1500, 1500)])
    scenes = {"1": (image, label, [], (1, 1))}
    fake_run(tmp_path / "run", scenes, stages=())
    code = (
        f"{PEAK}; import sys, time; from rvtutorial import viz; t = time.process_time();"
        "viz.plot_prediction(sys.argv[1], '1').savefig(sys.argv[2]);"
        "print(time.process_time() - t, peak())"
    )
    args = [sys.executable, "-c", code, tmp_path / "run", tmp_path / "fig.png"]
    out = subprocess.run(
        args, capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(out[0]) < 2 * pace() and int(out[1]) < 500, out


def test_a_loss_that_ran_away_does_not_hide_the_others(tmp_path):
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for folder, losses in ((calm, (0.6, 0.3, 0.2)), (wild, (0.6, 40.0, 0.3))):
        (folder / "train").mkdir(parents=True)
        rows = [f"{i},0.5,{loss},0.8" for i, loss in enumerate(losses)]
        text = "\n".join(["epoch,train_loss,val_loss,building_f1", *rows]) + "\n"
        (folder / "train" / "log.csv").write_text(text)
    scales = [ax.get_yscale() for ax in viz.plot_metrics([calm, wild]).axes]
    assert scales == ["linear", "log", "linear"]
    assert viz.plot_metrics([calm]).axes[1].get_yscale() == "linear"
