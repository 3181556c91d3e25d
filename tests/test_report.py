"The report: one page that is whole, true, safe, readable, and asks nobody for anything."

import io
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run, make_scene, three_scenes, write_raster
from ondemand.browser import Browser, find_browser, wait
from PIL import Image

from rvtutorial.core.records import write_json
from rvtutorial.course.examples import make_example_runs
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.figures import maps, report
from rvtutorial.figures.report import _gather, _telling_scenes, write_report
from rvtutorial.metrics import leaderboard
from rvtutorial.metrics.leaderboard import LabelFolder
from rvtutorial.runs import Run
from rvtutorial.scenes import find_scenes

TRIALS = [{"lr": lr, "epochs": 8, "seed": 0} for lr in (1e-4, 1e-3, 2e-3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sample_scenes(tmp_path_factory.mktemp("data") / "d", 0, 5, 0, size=96)


@pytest.fixture(scope="module")
def sweep(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "rates"
    return make_example_runs(folder, find_scenes(data / "val"), TRIALS)


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory):
    "A report of the sweep; its file."
    out = tmp_path_factory.mktemp("out") / "report.html"
    return write_report(sweep, out, progress=False)


class Tree(HTMLParser):
    "Elements with their attributes, and the text of the page."

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def words(path):
    tree = Tree(path.read_text())
    return re.sub(r"\s+", " ", " ".join(tree.words))


# --- one whole file


def test_everything_is_inside(whole):
    tree = Tree(whole.read_text())
    ends = [
        a.get(k) for _, a in tree.found for k in ("src", "href", "srcset", "action")
    ]
    assert {end.partition(":")[0] for end in ends if end and end[0] != "#"} == {"data"}
    assert "url(" not in whole.read_text() and "@import" not in whole.read_text()
    assert not tree.all("iframe") and len(tree.all("script")) == 1
    (rule,) = [a["content"] for a in tree.all("meta") if "http-equiv" in a]
    assert rule.startswith("default-src 'none'; img-src data:;")


def test_the_page_says_what_it_should(whole, sweep):
    text = words(whole)
    board = leaderboard.leaderboard({p.name: p for p in sweep.glob("lr=*")})
    for name, row in board.iterrows():
        assert (
            f"{row.iloc[0]:.3f}" in text and f"{row.low:.3f} to {row.high:.3f}" in text
        )
        assert row.verdict == "highest" or row.verdict in text, name
    for part in ("5 whole validation scenes", "GPU-minutes", "cuda:0", "epochs"):
        assert part in text
    assert "The test split was not opened yet" in text
    assert "rvtutorial sweep sweep.yaml" in text and "values: - 0.0001" in text


def test_every_part_is_named(whole):
    tree = Tree(whole.read_text())
    pictures = tree.all("img")
    assert len(pictures) >= 3 * 4 + 6
    assert all(len(one["alt"]) > 30 for one in pictures)
    numbers = [one["alt"] for one in pictures if re.search(r"\d\.\d\d|\d%", one["alt"])]
    assert len(numbers) == len(pictures), "every picture says its numbers"
    assert len(tree.all("caption")) == len(tree.all("table")) > 3
    assert all(one["scope"] in ("col", "row") for one in tree.all("th"))
    assert tree.all("html")[0]["lang"] == "en" and len(tree.all("h1")) == 1
    levels = [int(t[1]) for t, _ in tree.found if re.fullmatch(r"h[1-6]", t)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [a["id"] for _, a in tree.found if "id" in a]
    assert len(ids) == len({*ids})
    goals = [a["href"][1:] for a in tree.all("a")]
    assert {*goals} <= {*ids} and goals[0] == "main"
    assert all(a.get("aria-label") for t, a in tree.found if a.get("role") == "region")


def test_colours_can_be_read(whole):
    def light(code):
        code = code if len(code) == 6 else "".join(2 * c for c in code)
        parts = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        parts = np.where(
            parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
        )
        return parts @ (0.2126, 0.7152, 0.0722)

    themes = re.findall(r":root {([^}]*)}", whole.read_text())
    assert len(themes) == 2
    for theme in themes:
        known = dict(re.findall(r"--(\w+): #(\w+)", theme))
        for ink in ("ink", "soft", "link"):
            for ground in ("page", "card"):
                a, b = sorted((light(known[ink]), light(known[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground)


def test_names_cannot_become_code(sweep, tmp_path):
    bad = "<script>alert('\"1\"')</script>"
    shutil.copytree(sweep / "lr=1e-3", tmp_path / "r")
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    record["asked"]["hyperparams"] |= {"model": bad, bad: 1}
    write_json(tmp_path / "r" / "run.json", record)
    runs = {bad: tmp_path / "r", '" onload="x': sweep / "lr=1e-4"}
    out = write_report(runs, tmp_path / "a.html", title=bad, progress=False)
    tree = Tree(out.read_text())
    assert len(tree.all("script")) == 1 and bad in words(out)
    assert not [a for _, a in tree.found if {"onload", "onerror"} & {*a}]


@pytest.mark.parametrize(
    "tied, said",
    [(0, "better than all 3 others"), (1, "better than 2 of the 3 others; 1 cannot"),
     (3, "None of the 3 others can")],
)  # fmt: skip
def test_many_runs_are_counted_and_not_listed(tied, said):
    board = pd.DataFrame({"tied": [True] + tied * [True] + (3 - tied) * [False]})
    assert said in report._others(board)


@pytest.mark.parametrize("size", [245, 250, 255])
def test_a_report_may_have_a_long_name(size, sweep, tmp_path):
    out = tmp_path / ("x" * (size - 5) + ".html")
    assert write_report(sweep, out, progress=False) == out
    assert out.stat().st_size > 10_000 and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["x" * 256, "é" * 130 + ".html"])
def test_a_name_that_no_disk_takes_is_told_before_the_work(name, sweep, tmp_path):
    with (
        patch.object(report, "_gather", side_effect=AssertionError("has begun")),
        pytest.raises(OSError, match="a name may have 255 bytes here, this one has"),
    ):
        write_report(sweep, tmp_path / name, progress=False)


# --- what cannot be compared


def scores_of_another_place(folder, sweep):
    "A copy of a run, judged on scenes that no other run has."
    shutil.copytree(sweep / "lr=1e-3", folder)
    path = folder / "eval" / "validation_scenes" / "eval.json"
    found = json.loads(path.read_text())
    found["per_scene"] = {f"far{k}": v for k, v in found["per_scene"].items()}
    write_json(path, found)


def with_empty_places(folder, sweep):
    shutil.copytree(sweep / "lr=1e-3", folder)
    path = folder / "eval" / "validation_scenes" / "eval.json"
    found = json.loads(path.read_text())
    for items in found["per_scene"].values():
        items[-1]["conf_mat"][0][0] = None
    write_json(path, found)


def with_roads(folder, sweep):
    shutil.copytree(sweep / "lr=1e-3", folder)
    path = folder / "eval" / "validation_scenes" / "eval.json"
    write_json(path, json.loads(path.read_text().replace('"building"', '"road"')))


def still_training(folder, sweep):
    write_json(folder / "run.json", {"went": {"state": "running"}})


def cut_short(folder, sweep):
    shutil.copytree(sweep / "lr=1e-3", folder)
    path = folder / "eval" / "validation_scenes" / "eval.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(
    "make, why",
    [
        (still_training, "is still running"),
        (scores_of_another_place, "has none of the scenes"),
        (with_empty_places, "empty places"),
        (with_roads, "has no class building, only road"),
        (cut_short, "eval.json"),
    ],
)
def test_what_cannot_be_compared_is_named(make, why, sweep, tmp_path):
    make(tmp_path / "odd", sweep)
    found = _gather([sweep, tmp_path / "odd"])
    assert list(found.left_out) == ["odd"] and why in found.left_out["odd"]
    assert list(found.runs) == ["lr=1e-4", "lr=1e-3", "lr=2e-3"]
    with patch.object(report, "_drawn", side_effect=ValueError("not drawn here")):
        out = write_report([sweep, tmp_path / "odd"], tmp_path / "a.html", scenes=0)
    assert f"Left out: odd ({found.left_out['odd']})." in words(out)


def test_scenes_that_not_all_have_do_not_count(sweep, tmp_path):
    shutil.copytree(sweep / "lr=1e-3", tmp_path / "short")
    path = tmp_path / "short" / "eval" / "validation_scenes" / "eval.json"
    found = json.loads(path.read_text())
    del found["per_scene"]["1"]
    write_json(path, found)
    out = write_report([sweep, tmp_path / "short"], tmp_path / "a.html", progress=False)
    assert "4 of 5 scenes are common to all" in words(out)


def test_nothing_to_compare_says_what_would_help(tmp_path):
    still_training(tmp_path / "runs" / "one", None)
    out = tmp_path / "report.html"
    out.write_text("the last one")
    with pytest.raises(ValueError, match="one is still running.*another split"):
        write_report(tmp_path / "runs", out, progress=False)
    assert out.read_text() == "the last one"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a sweep"):
        write_report(tmp_path / "empty", out)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "nowhere", out)
    with pytest.raises(ValueError, match="not int"):
        write_report([3], out)
    with pytest.raises(ValueError, match="no runs given"):
        write_report([], out)


# --- other kinds of runs


def test_a_run_of_plain_raster_vision(tmp_path):
    run = fake_run(tmp_path / "plain", three_scenes(tmp_path / "data"))
    out = write_report(run, tmp_path / "a.html", progress=False)
    text = words(out)
    assert "plain reaches a pixel F1 of" in text and "3 validation scenes" in text
    assert "kept no scores" in text, "there is no reliability, and that is said"


def test_label_rasters_of_another_program(sweep, data, tmp_path):
    for scene in find_scenes(data / "val"):
        (tmp_path / "drawn").mkdir(exist_ok=True)
        where = tmp_path / "drawn" / f"{scene.id}.tif"
        shutil.copy(sweep / "lr=1e-3" / "predict" / scene.id / "labels.tif", where)
    names = ("building", "background")
    pattern = "buildings_AOI_2_Vegas_img{id}.geojson"
    other = LabelFolder(tmp_path / "drawn", data / "val", names, truth_pattern=pattern)
    alone = write_report(other, tmp_path / "a.html", progress=False)
    assert "for want of an image" in alone.read_text()
    out = write_report(
        {"ours": sweep / "lr=1e-3", "theirs": other},
        tmp_path / "b.html",
        progress=False,
    )
    assert "ours and theirs cannot be told apart: difference 0.000" in words(out)
    assert "Image of scene" in out.read_text()
    assert "Prediction of theirs on scene" in out.read_text()


def test_predictions_and_images_that_are_gone(sweep, tmp_path):
    shutil.copytree(sweep / "lr=1e-3", tmp_path / "thin")
    shutil.rmtree(tmp_path / "thin" / "predict")
    out = write_report([tmp_path / "thin"], tmp_path / "a.html", progress=False)
    assert "is not shown" in words(out) and "thin reaches" in words(out)


def test_seeds_are_taken_together(data, tmp_path):
    trials = [{"lr": lr, "seed": s} for lr in (1e-3, 1e-4) for s in (0, 1)]
    sweep = make_example_runs(tmp_path / "s", find_scenes(data / "val"), trials)
    with patch.object(report, "_drawn", side_effect=ValueError("not drawn here")):
        out = write_report(sweep, tmp_path / "a.html", scenes=0, progress=False)
    (rows,) = re.findall(r"seed alone.*?</table>", out.read_text(), re.S)
    assert sorted(
        re.findall(r">(lr=\S+?)</th><td>(\d)</td>", re.sub(r"\s", "", rows))
    ) == [("lr=1e-3", "2"), ("lr=1e-4", "2")]


def test_a_path_or_a_sweep_is_the_same(sweep):
    from rvtutorial.sweep import Sweep

    a, b = _gather(str(sweep)), _gather([Sweep(sweep)])
    assert list(a.runs) == list(b.runs) and a.sweep.folder == b.sweep.folder == sweep
    assert (
        list(_gather(list(sweep.glob("lr=*"))).runs) != []
        and not _gather(list(sweep.glob("lr=*"))).sweep
    )


def test_runs_of_one_name_are_told_apart(sweep, tmp_path):
    shutil.copytree(sweep / "lr=1e-3", tmp_path / "other" / "lr=1e-3")
    found = _gather([sweep, tmp_path / "other" / "lr=1e-3"])
    assert len(found.runs) == 4 and "other/lr=1e-3" in found.runs


def test_several_runs_may_stand_under_one_name(sweep):
    two = [sweep / "lr=1e-3", sweep / "lr=1e-4"]
    found = _gather({"a": two, "b": sweep / "lr=2e-3"})
    assert list(found.runs) == ["a/lr=1e-3", "a/lr=1e-4", "b"] and not found.sweep
    found = _gather({"y" * 99: two[0], "y" * 98: two[1]})
    assert [len(name) for name in found.runs] == [60, 61]


@pytest.mark.filterwarnings("error")
def test_scenes_without_any_building(tmp_path):
    empty = {s: (*make_scene(tmp_path / "d", s, []), [], (40, 50)) for s in "12"}
    runs = [fake_run(tmp_path / name, empty) for name in ("a", "b")]
    out = write_report(runs, tmp_path / "r.html", progress=False)
    assert "no building in them" in words(out)


def test_a_run_whose_records_are_broken_is_compared_all_the_same(tmp_path):
    three = three_scenes(tmp_path / "d")
    good, bad = fake_run(tmp_path / "good", three), fake_run(tmp_path / "bad", three, 3)
    (bad / "pipeline-config.json").write_text("{")
    (bad / "train" / "log.csv").unlink()
    out = write_report([good, bad], tmp_path / "a.html", progress=False)
    assert "good is better than bad" in words(out) or "told apart" in words(out)
    (bad / "run.json").write_text('{"went": {"state": "succeeded", "attempts": [{')
    found = _gather([good, bad])
    assert list(found.runs) == ["good"]
    assert "run.json is not whole JSON" in found.left_out["bad"]


# --- the test split


def with_test_scenes(sweep, folder):
    "A copy of a sweep whose runs have scores of test scenes."
    shutil.copytree(sweep, folder)
    for run in folder.glob("lr=*"):
        shutil.copytree(run / "eval/validation_scenes", run / "eval/test_scenes")
        config = json.loads((run / "pipeline-config.json").read_text())
        config["dataset"]["test_scenes"] = config["dataset"]["validation_scenes"]
        write_json(run / "pipeline-config.json", config)
    return folder


def test_a_report_is_one_look_at_the_test_split(sweep, tmp_path):
    ours = with_test_scenes(sweep, tmp_path / "s")
    write_report(ours, tmp_path / "a.html", progress=False)
    assert len(leaderboard._openings(ours)) == 0, "validation is no look"
    out = write_report(ours, tmp_path / "a.html", split="test", progress=False)
    assert len(leaderboard._openings(ours)) == 1
    assert "The test split was opened once" in words(out)
    assert "5 whole test scenes" in words(out)
    leaderboard.open_test({"x": ours / "lr=1e-3"}, "f1")
    assert len(leaderboard._openings(ours)) == 2, "others are recorded as before"


# --- which scenes, and what their pictures show


def test_the_scenes_are_the_worst_the_middle_and_the_best():
    scores = pd.DataFrame(
        {"a": [0.5, 0.9, 0.7, np.nan, 0.6, 0.4]}, index=list("uvwxyz")
    )
    three = {"z": "the worst", "y": "in the middle", "v": "the best"}
    assert _telling_scenes(scores) == three
    assert list(_telling_scenes(scores, 5)) == list("zuywv")
    assert _telling_scenes(scores, 50) == _telling_scenes(scores, 5)
    assert list(_telling_scenes(scores, ["x"])) == ["x"]
    assert list(_telling_scenes(scores.iloc[:1])) == ["u"]
    assert _telling_scenes(scores.iloc[3:4]) == {}
    with pytest.raises(ValueError, match="scene 'vv'; did you mean 'v'"):
        _telling_scenes(scores, "vv")


def pixels(picture):
    content = b64decode(picture["src"].partition(",")[2])
    return np.array(Image.open(io.BytesIO(content)).convert("RGBA"))


def test_a_layer_shows_what_was_found_missed_and_drawn_in_error(tmp_path):
    boxes, shape = [(2, 3, 8, 10)], (40, 50)
    image, label = make_scene(tmp_path / "d", "9", boxes, shape)
    run = Run(fake_run(tmp_path / "r", {"9": (image, label, boxes, shape)}, shift=4))
    made = _gather({"r": run}).scene_map("9")
    layer, under = pixels(made["over"]["r"]), pixels(made["under"])
    assert layer.shape == under.shape
    tall, wide = layer.shape[:2]
    assert wide / tall == pytest.approx(50 * 2.43 / (40 * 2.996), abs=0.03), "ground"

    def at(row, column):
        return layer[round((row + 0.5) * tall / 40), round((column + 0.5) * wide / 50)]

    colours = [
        tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in report._KEY.values()
    ]
    assert tuple(at(5, 10)[:3]) == colours[0] and tuple(at(5, 4)[:3]) == colours[1]
    assert tuple(at(5, 15)[:3]) == colours[2]
    assert at(30, 30)[3] == 0 and 100 < at(5, 10)[3] < 255
    assert (
        "60% of the building pixels found, 40% of what was drawn is wrong"
        in made["over"]["r"]["alt"]
    )


def test_pixels_without_a_label_are_neither_right_nor_wrong():
    truth, drawn = np.array([[2, 2, 1, 0]]), np.array([[True, False, True, True]])
    codes = maps._error_codes(drawn, truth)
    assert codes.tolist() == [[0, 0, 1, 3]]
    assert report._errors_in_words(codes, "x") == (
        "100% of the x pixels found, 50% of what was drawn is wrong"
    )
    assert report._errors_in_words(0 * codes, "x") == "nothing to find, nothing drawn"


def test_a_scene_that_is_stored_south_first_stands_north_up(tmp_path):
    from rasterio.transform import Affine

    boxes, shape = [(2, 3, 8, 10)], (40, 50)
    image, label = make_scene(tmp_path / "d", "9", boxes, shape)
    view = maps._read_layers(image, label, "9")
    turned = Affine(2.7e-06, 0, -115.2, 0, 2.7e-06, 36.2 - 40 * 2.7e-06)
    write_raster(image, np.zeros((3, *shape), np.uint16), turned)
    flipped = maps._read_layers(image, label, "9")
    south = (np.arange(40)[:, None] >= 20) * np.ones((1, 50), np.uint8)
    for layers, row in ((view, -1), (flipped, 0)):
        found = (
            pixels(report._inside(*report._scene_image(south, layers.frame, 200)))[
                ..., 3
            ]
            > 0
        )
        assert found[row].all() and not found[-1 - row].any()


# --- the job that compares the trials of a sweep


@pytest.mark.slow
def test_the_comparison_job_writes_a_report(sweep, tmp_path):
    import papermill

    from rvtutorial.core.names import packaged

    shutil.copytree(sweep, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "lr=1e-4" / "train")
    shutil.rmtree(tmp_path / "s" / "lr=1e-4" / "eval")
    Run(tmp_path / "s" / "lr=1e-4").update("went", state="failed")
    asked = dict(sweep=str(tmp_path / "s"), output_uri=str(tmp_path))
    book = packaged("jobs", "compare_runs")
    papermill.execute_notebook(str(book), None, asked, progress_bar=False)
    assert {"leaderboard.csv", "curves.png"} <= {p.name for p in tmp_path.iterdir()}
    assert "Left out: lr=1e-4" in words(tmp_path / "report.html")


# --- size


def test_pictures_stay_in_the_budget(whole, tmp_path):
    tree = Tree(whole.read_text())
    sides = [report._side_of(n, runs) for n in (3, 20, 50) for runs in (1, 8, 20)]
    assert all(120 <= side <= 800 for side in sides) and report._side_of(3, 8) == 800
    for scenes, runs in ((50, 8), (200, 20)):
        side = report._side_of(scenes, runs)
        under = [a for a in tree.all("img") if a.get("class") == "under"]
        over = [a for a in tree.all("img") if a.get("class") == "over"]
        area = sum(int(a["width"]) * int(a["height"]) for a in under)
        each = sum(len(a["src"]) for a in under) / area
        layer = sum(len(a["src"]) for a in over) / area / (len(over) / len(under))
        # tiny pictures have more headers and edges for their area than real ones
        assert scenes * side**2 * (each + runs * layer) < 3 * 7e6


def test_charts_are_small(whole):
    tree = Tree(whole.read_text())
    charts = [a for a in tree.all("img") if "chart" in a.get("class", "")]
    assert len(charts) >= 7
    assert all(len(a["src"]) * 3 / 4 <= 200_000 for a in charts)


# --- in a browser


needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium here")


class Watched(Browser):
    "A browser that remembers what the page asked for and what it complained of."

    def __init__(self, profile):
        self.events = []
        super().__init__(profile)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps(dict(id=number, method=method, params=params)))
        while (reply := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def key(self, name, code=None):
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Home": 36, "End": 35}[
            name
        ]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                      windowsVirtualKeyCode=code)  # fmt: skip

    def mouse(self, kind, x, y):
        held = dict(button="left", buttons=1, clickCount=1)
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def wide(self, width):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip

    def complaints(self):
        bad = []
        for event in self.events:
            kind, params = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown" or kind == "Log.entryAdded":
                bad.append(params)
            if kind == "Runtime.consoleAPICalled" and params["type"] in (
                "error",
                "warning",
            ):
                bad.append(params)
        return bad

    def asked(self):
        wanted = [e["params"]["request"]["url"] for e in self.events
                  if e.get("method") == "Network.requestWillBeSent"]  # fmt: skip
        return [url[:60] for url in wanted if not url.startswith("data:")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory, whole):
    if find_browser() is None:
        pytest.skip("no Chromium here")
    with Watched(tmp_path_factory.mktemp("profile")) as one:
        one.call("Network.emulateNetworkConditions", offline=True, latency=0,
                 downloadThroughput=0, uploadThroughput=0)  # fmt: skip
        one.wide(1200)
        one.open(whole.as_uri())
        wait(lambda: one.js("document.readyState") == "complete", 20)
        yield one


@needs_browser
def test_a_browser_opens_it_without_a_network(browser, whole):
    assert browser.complaints() == []
    assert browser.asked() == [whole.as_uri()[:60]]
    script = "[...document.images].filter(i => !i.hidden && !(i.complete && i.naturalWidth)).length"
    wait(lambda: browser.js(script) == 0, 10)
    assert browser.js("[...document.images].every(i => i.alt.length > 30)")


@needs_browser
def test_no_foreign_script_runs(browser):
    """A script that got in all the same would be refused."""
    browser.js("""(() => { const s = document.createElement('script');
        s.textContent = 'window.broken = 1'; document.body.append(s); s.remove() })()""")
    assert browser.js("window.broken") is None
    browser.events.clear()  # the browser complained, as it should


@needs_browser
def test_the_keyboard_moves_the_border(browser):
    at = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--at')"
    browser.js("document.querySelector('.swipe input').focus()")
    assert browser.js(at) == "50%"
    browser.key("ArrowRight")
    assert browser.js(at) == "51%"
    browser.key("Home")
    assert browser.js(at) == "0%"
    clip = "getComputedStyle(document.querySelector('.over')).clipPath"
    assert browser.js(clip) in ("inset(0px 0px 0px 0%)", "inset(0px)")
    said = browser.js("document.activeElement.getAttribute('aria-valuetext')")
    assert said == "image 0 %, prediction 100 %"


@needs_browser
def test_dragging_moves_the_border(browser):
    browser.js("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    x, y, w, h = browser.js(
        "(b => [b.x, b.y, b.width, b.height])(document.querySelector('.stage').getBoundingClientRect())"
    )
    browser.mouse("mousePressed", x + 0.5 * w, y + h / 2)
    browser.mouse("mouseMoved", x + 0.8 * w, y + h / 2)
    browser.mouse("mouseReleased", x + 0.8 * w, y + h / 2)
    value = "+document.querySelector('.swipe input').value"
    assert abs(browser.js(value) - 80) <= 1
    browser.mouse("mouseMoved", x + 0.2 * w, y + h / 2)
    assert abs(browser.js(value) - 80) <= 1, "let go is let go"


@needs_browser
def test_the_list_chooses_the_run(browser):
    shown = "[...document.querySelector('.stage').querySelectorAll('.over')].map(i => !i.hidden)"
    assert browser.js(shown) == [True, False, False]
    browser.js("""(l => { l.selectedIndex = 2; l.dispatchEvent(new Event('change')) })(
        document.querySelector('.swipe select'))""")
    assert browser.js(shown) == [False, False, True]


@needs_browser
def test_the_first_tab_is_the_way_past_the_menu(browser):
    browser.call("Page.reload")
    wait(lambda: browser.js("document.readyState") == "complete", 20)
    browser.js("document.activeElement.blur(); scrollTo(0, 0)")
    browser.key("Tab")
    assert browser.js("document.activeElement.className") == "skip"
    style = "getComputedStyle(document.activeElement)"
    assert browser.js(f"{style}.left") == "16px", "seen when it has the focus"
    assert float(browser.js(f"{style}.outlineWidth")[:-2]) >= 2


@needs_browser
@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_sticks_out(browser, width):
    browser.wide(width)
    inner = (
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    wait(lambda: browser.js(inner) == 0, 5)
    # what scrolls on its own can be reached by the keyboard
    script = """[...document.querySelectorAll('.wide')].filter(
        e => (e.scrollWidth > e.clientWidth) !== (e.tabIndex === 0)).length"""
    wait(lambda: browser.js(script) == 0, 5)


@needs_browser
def test_a_print_shows_what_is_folded(browser):
    folded = "[...document.querySelectorAll('details')].filter(d => !d.open).length"
    assert browser.js(folded) > 0
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert browser.js(folded) == 0
