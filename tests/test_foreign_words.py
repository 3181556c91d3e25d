"""Users' words that are a small language to somebody: dollars to matplotlib, `!` and `;` to
the readers of vector files, `null` and aliases to YAML, tags to a browser."""

import json
import shutil
import warnings

import geopandas
import matplotlib.pyplot as plt
import numpy as np
import pytest
import shapely
from fake_runs import fake_run, three_scenes, write_raster
from pace import pace

from rvtutorial import scenes, viz
from rvtutorial.chips import plot_windows
from rvtutorial.core.files import gdal_name
from rvtutorial.course.examples import make_example_runs
from rvtutorial.data.pairing import Scene
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.engine.prediction import find_images
from rvtutorial.figures import maps, sweeps
from rvtutorial.figures import runs as plots
from rvtutorial.metrics import leaderboard
from rvtutorial.metrics.counting import count_rasters
from rvtutorial.metrics.leaderboard import Board
from rvtutorial.scenes import find_scenes
from rvtutorial.sweeps.sweepfile import SweepFile

# --- formulas

DOLLARS = ("cost $5", "$x_1$ and $\\frac", "$$", "_hidden", "a_$b^c$")


def renamed(folder, names, kind):
    "Runs under other names, and a class called otherwise in all of them."
    for path in folder.glob("lr=*"):
        for file in ("pipeline-config.json", "eval/validation_scenes/eval.json"):
            text = (path / file).read_text().replace('"building"', json.dumps(kind))
            (path / file).write_text(text)
        log = path / "train" / "log.csv"
        log.write_text(log.read_text().replace("building_f1", f"{kind}_f1"))
    return dict(zip(names, sorted(folder.glob("lr=*")), strict=True))


@pytest.fixture(scope="module")
def dollars(tmp_path_factory):
    "Five runs whose names and class hold dollars."
    data = make_sample_scenes(tmp_path_factory.mktemp("data") / "d", 0, 5, 0, size=64)
    trials = [{"lr": lr, "epochs": e, "seed": 0} for lr, e in
              ((1e-4, 4), (1e-3, 8), (2e-3, 8), (1e-2, 4), (3e-2, 8))]  # fmt: skip
    folder = tmp_path_factory.mktemp("sweeps") / "rates"
    make_example_runs(folder, find_scenes(data / "val"), trials)
    return renamed(folder, DOLLARS, "roof $a_b$")


FIGURES = {
    "leaderboard": viz.plot_leaderboard,
    "scene scores": viz.plot_scene_scores,
    "matrix": viz.display_conf_mat,
    "predictions": lambda runs: viz.plot_predictions(runs, [0]),
    "views": lambda runs: viz.plot_predictions(runs, [0], view="errors"),
    "errors": lambda runs: viz.plot_errors(runs, 0),
    "worst": lambda runs: viz.plot_worst(runs, 2),
    "agreement": viz.plot_agreement,
    "curves": viz.plot_metrics,
    "scores": viz.plot_score_curves,
    "reliability": viz.plot_reliability,
    "parameter": viz.plot_parameter,
    "parallel": viz.plot_parallel,
    "cost": viz.plot_cost,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_dollar_is_a_dollar_in_every_figure(name, dollars):
    figure = FIGURES[name](dollars)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        maps.figure_bytes(figure, "png")
    texts = [t for t in figure.findobj(plt.Text) if "$" in t.get_text()]
    shown = [t for t in texts if "mathdefault" not in t.get_text()]
    assert not any(t.get_parse_math() for t in shown)
    if name not in ("worst", "agreement", "parameter", "cost"):
        words = " ".join(t.get_text().replace("\n", "") for t in shown)
        assert any(dollar in words for dollar in DOLLARS) or "roof $a_b$" in words


def test_every_run_is_in_the_legend_whatever_it_begins_with(dollars):
    figure = viz.plot_metrics(dollars)
    (legend,) = figure.legends
    said = [t.get_text().lstrip("\N{ZERO WIDTH SPACE}") for t in legend.get_texts()]
    assert sorted(said) == sorted(DOLLARS)


def test_a_logarithmic_axis_keeps_its_powers(dollars):
    figure = viz.plot_reliability(dollars)
    figure.canvas.draw()
    below = figure.axes[1]
    labels = [t for t in below.get_yticklabels() if "mathdefault" in t.get_text()]
    assert labels and all(t.get_parse_math() for t in labels)


def test_every_figure_function_is_covered():
    "A figure that is added later has to say how it writes names."
    made = {f for m in (viz, plots, sweeps) for f in vars(m)
            if f.startswith(("plot_", "display_"))}  # fmt: skip
    plain = {"plot_prediction", "plot_coverage", "plot_windows", "plot_scene"}
    for name in made - plain:
        draw = next(vars(m)[name] for m in (viz, plots, sweeps) if name in vars(m))
        assert hasattr(draw, "__wrapped__"), name


def test_a_scene_and_chips_with_dollars(tmp_path):
    image = write_raster(tmp_path / "img$1_$.tif", np.ones((3, 40, 50), np.uint8))
    plot = scenes.plot_scene(Scene("$1_$", image))
    maps.figure_bytes(plot, "png")
    maps.figure_bytes(plot_windows((40, 50), [(0, 0, 20, 20)], "$a_$"), "png")


def test_a_table_of_runs_runs_nothing(dollars, tmp_path):
    runs = {f"<script>{i}</script>|$": path for i, path in enumerate(dollars.values())}
    board = viz.leaderboard(runs)
    assert isinstance(board, Board) and "<script>" not in board._repr_html_()
    for ending in ("md", "tex", "html", "csv"):
        text = board.write(tmp_path / f"t.{ending}").read_text()
        if ending == "html":
            assert "<script>" not in text
        if ending == "md":
            bars = [line.replace("\\|", "").count("|") for line in text.splitlines()]
            assert len(set(bars)) == 1
        if ending == "tex":
            assert "\\$" in text and "|$" not in text


# --- names of files

FOLDERS = (
    "a!b;c $d",
    "zip!x.zip",
    "q?x#1%20",
    "st*r[1]",
    "-dash",
    "new\nline",
    "ünï 日本",
    "co:lon,'\"&",
)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_any_name_is_read_and_drawn(name, tmp_path):
    base = tmp_path / name
    runs, plain = fake_run(base / "run", three_scenes(base)), tmp_path / "plain"
    fake_run(plain / "run", three_scenes(plain))
    found = find_scenes(base)
    table = scenes.check_scenes(found)
    assert table.reset_index(drop=True).equals(
        scenes.check_scenes(find_scenes(plain)).reset_index(drop=True)
    )
    classes = ("building", "background", "null")
    for scene in found:
        drawn = runs / "predict" / scene.id / "labels.tif"
        counts = count_rasters(scene.label, drawn, classes)
        same = count_rasters(plain / scene.label.name, drawn, classes)
        assert np.array_equal(counts.matrices, same.matrices)
        scenes.plot_scene(scene)
    viz.plot_predictions(runs, [0], view="errors")
    assert len(leaderboard._scene_boxes(viz.Run(runs), ["9"]).dropna()) == 1


@pytest.mark.parametrize("name", ["a!b", "s;emi", "q?x", "#h%41", "p!q;r?s", "x.zip"])
@pytest.mark.parametrize("kind", ["gpkg", "shp", "fgb", "geojson"])
def test_a_vector_file_of_any_name_is_read(name, kind, tmp_path):
    box = shapely.box(-115.2 + 1e-5, 36.2 - 5e-5, -115.2 + 5e-5, 36.2 - 1e-5)
    frame = geopandas.GeoDataFrame({"class_id": [0]}, geometry=[box], crs=4326)
    frame.to_file(tmp_path / f"plain.{kind}")
    for path in tmp_path.glob("plain.*"):
        shutil.copy(path, tmp_path / f"{name}{path.suffix}")
    grid = write_raster(tmp_path / f"{name}-map.tif", np.ones((40, 50), np.uint8))
    classes = ("building", "background")
    odd, even = (count_rasters(tmp_path / f"{stem}.{kind}", grid, classes)
                 for stem in (name, "plain"))  # fmt: skip
    assert np.array_equal(odd.matrices, even.matrices) and odd.matrices[0, 0, 1] > 0


def test_a_written_file_of_any_name_lies_where_it_was_asked_for(tmp_path):
    path = tmp_path / "a!b;c" / "out!x.gpkg"
    path.parent.mkdir()
    frame = geopandas.GeoDataFrame(
        {"n": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32611
    )
    frame.to_file(gdal_name(path))
    assert path.is_file() and len(geopandas.read_file(gdal_name(path))) == 1


def test_usual_names_are_left_as_they_are(tmp_path):
    usual = tmp_path / "labels #1 (50%).gpkg"
    assert gdal_name(usual) == str(usual)
    assert gdal_name("https://x.org/a?b=c;d") == "https://x.org/a?b=c;d"
    assert gdal_name("labels/../a.gpkg") == "labels/../a.gpkg"


@pytest.mark.parametrize("name", ["l.gpkg", "l;1.gpkg"])
def test_a_step_up_behind_a_link_is_one_from_where_the_link_leads(tmp_path, name):
    (tmp_path / "far" / "in;side").mkdir(parents=True)
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=32611)
    frame.to_file(gdal_name(tmp_path / "far" / name))
    for place in ("link", "li;nk"):
        (tmp_path / place).symlink_to(tmp_path / "far" / "in;side")
        path = tmp_path / place / ".." / name
        assert path.is_file() and len(geopandas.read_file(gdal_name(path))) == 1


@pytest.mark.parametrize("name", ["a!b;c $d", "q?x#1", "[1]*"])
def test_masks_and_images_of_any_name(name, tmp_path):
    image = write_raster(
        tmp_path / name / f"{name}.tif", np.ones((3, 40, 50), np.uint8)
    )
    write_raster(tmp_path / name / f"{name}_mask.tif", np.eye(40, 50, dtype=np.uint8))
    assert scenes.read_image(image).shape == (3, 40, 50)
    mask = image.with_name(f"{name}_mask.tif")
    same = count_rasters(mask, mask, ("building", "background"))
    assert same.total[1, 1] == 40 and maps.Frame.of(image).shape == (40, 50)


def test_a_pattern_in_a_folder_of_any_name(tmp_path):
    for name in ("[1]*", "a!b?"):
        for number in range(2):
            write_raster(
                tmp_path / name / f"map{number}.tif", np.ones((8, 8), np.uint8)
            )
        found = find_images(str(tmp_path / name / "map?.tif"))
        assert list(found) == ["map0", "map1"]


# --- sweep files


def bomb(open_, close, item):
    "Ten aliases in each of nine lines: a billion values when written out."
    lines = [f"a: &a {open_}{','.join(item.format(i) + 'x' for i in range(10))}{close}"]
    for i in range(9):
        inside = ",".join(item.format(k) + f"*{chr(97 + i)}" for k in range(10))
        lines.append(f"{chr(98 + i)}: &{chr(98 + i)} {open_}{inside}{close}")
    return "\n".join(lines) + "\nparameters: {lr: {values: *j}}\n"


YAML = {
    "null key": ("parameters:\n  null: {values: [1]}\n", "line 2: null is no text but null"),
    "tilde key": ("~: 1\n", "line 1: ~ is no text"),
    "number key": ("parameters:\n\n  1: {value: 2}\n", "line 3: 1 is no text but int"),
    "list key": ("? [a, b]\n: 1\n", "line 1: this is no text but seq"),
    "bomb of lists": (bomb("[", "]", ""), "too much: more than 100,000 values"),
    "bomb of keys": (bomb("{", "}", "k{}: "), "too much: more than 100,000 values"),
    "holds itself": ("method: grid\nparameters: &a\n  lr: *a\n", "line 3: this holds itself"),
    "list in itself": ("parameters:\n  lr: {values: &a [*a]}\n", "line 2: this holds itself"),
    "deep lists": ("[" * 5000, "nested too deeply"),
    "deep": ("a: " + "[" * 60 + "]" * 60, "50 levels"),
    "tag of time": ("parameters: {lr: {value: !!timestamp x}}", "no YAML that can be read"),
    "tag of truth": ("parameters: {lr: {value: !!bool x}}", "no YAML that can be read"),
    "tag of code": ("parameters: !!python/object:os.system x", "line 1: could not determine"),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_a_sweep_file_that_cannot_be_is_refused_with_its_place(name, tmp_path):
    import time

    text, words = YAML[name]
    if name == "holds itself":
        words = "this holds itself"
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match="^sweep.yaml") as err:
        SweepFile.read(path)
    assert words in str(err.value) and len(str(err.value)) < 400
    assert time.process_time() - start < 20 * pace()


def test_a_dictionary_that_holds_itself_is_refused():
    ring: dict = {"method": "grid"}
    ring["parameters"] = ring
    with pytest.raises(ValueError, match="sweep, parameters: this holds itself"):
        SweepFile.read(ring)
    with pytest.raises(ValueError, match="sweep, parameters: the key None is no text"):
        SweepFile.read({"parameters": {None: {"value": 1}}})


def test_aliases_that_are_no_bomb_are_read(tmp_path):
    text = "method: grid\nparameters:\n  lr: &r {values: [1e-3, 1e-4]}\n  seed: {values: [0, 1]}\n"
    (tmp_path / "s.yaml").write_text(text)
    assert len(SweepFile.read(tmp_path / "s.yaml").trials()) == 4
