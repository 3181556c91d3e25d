"""One HTML page about runs or a sweep: verdicts, leaderboard, figures, maps, costs, origins.

The template `report.html` beside this module says what stands on the page, in its words;
here is what it asks for. The page holds all it shows and forbids itself the network.
"""

import base64
import hashlib
import io
import math
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from PIL import Image
from tqdm import tqdm

from rvtutorial import __version__, viz
from rvtutorial.core.files import atomic_path, refuse_name
from rvtutorial.core.finding import is_sweep
from rvtutorial.core.names import natural_key, near_match
from rvtutorial.figures import maps, sweeps
from rvtutorial.figures import runs as plots
from rvtutorial.metrics import counting, leaderboard
from rvtutorial.runs import Run
from rvtutorial.sweep import Sweep
from rvtutorial.sweeps.sweepfile import short

_DRAWN = 20  # Runs, the highest, that figures, maps and lists of single runs show
_VARIED = 200  # Runs, evenly from the highest to the lowest, in figures of parameters
_KEY = dict(zip(("found", "missed", "drawn in error"), maps.ERRORS.values(), strict=True))  # fmt: skip


@dataclass(eq=False)
class _Material:
    "The runs that a report compares, and why it leaves out others."

    runs: dict  # Name -> Run or LabelFolder
    scores: pd.DataFrame  # Of the common scenes (rows) and runs; NaN: without a value
    scenes: int  # That any run has
    left_out: dict[str, str]  # Name -> reason
    of: str  # The class that is scored; of a mean over classes, the one that maps show
    classes: list[str]  # All that are meant, by their names
    split: str
    metric: str
    sweep: Sweep | None
    data: str | Path | None  # Where the images are now
    picked: str = ""  # Which runs these are, where they are some of many

    @property
    def asked(self) -> str | list[str]:  # As `class_name` of a leaderboard
        "The class that is scored, or the classes of a mean."
        return self.classes if self.metric in counting.MEANS else self.of

    @property
    def scored(self) -> str:
        "The same in words."
        return self.of if isinstance(self.asked, str) else ", ".join(self.asked)

    def by_class(self) -> tuple[pd.DataFrame, pd.DataFrame]:  # Index: run; index: class
        "The F1 of each class and run over all scenes, and the lowest scene of each class."
        counts = {k: leaderboard.counts_of(r, self.split) for k, r in self.runs.items()}
        counts = {k: one.only(list(self.scores.index)) for k, one in counts.items()}
        table = {k: one.overall().pixel_f1[self.classes] for k, one in counts.items()}
        lowest = {}
        for kind in self.classes:
            each = [counting.scores(one.table(kind), ["f1"]) for one in counts.values()]
            mean = pd.concat(each, axis=1).mean(axis=1).dropna()
            if len(mean):
                lowest[kind] = {"scene": mean.idxmin(), "mean F1": mean.min()}
        lowest = pd.DataFrame.from_dict(lowest, orient="index").rename_axis("class")
        return pd.DataFrame.from_dict(table, orient="index").rename_axis("run"), lowest

    def only(self, names: Iterable[str], picked: str = "") -> "_Material":
        "The same about some of the runs, in the order asked for."
        runs, picked = {name: self.runs[name] for name in names}, picked or self.picked
        return replace(self, runs=runs, scores=self.scores[list(runs)], picked=picked)

    @property
    def own(self) -> dict[str, Run]:
        "Those that are run folders."
        return {k: run for k, run in self.runs.items() if isinstance(run, Run)}

    @cached_property
    def logs(self) -> dict[str, pd.DataFrame]:
        "What training logged, of the runs that have a log."
        found = {name: _tried(run.log) for name, run in self.own.items()}
        return {k: v for k, v in found.items() if not isinstance(v, str) and len(v)}

    def areas(self) -> tuple[pd.DataFrame, dict]:
        "Areas under the curves of runs that kept their scores; why others have none."
        how = dict(split=self.split, class_name=self.of, data=self.data)
        each = {k: _tried(plots.scored, {k: r}, **how) for k, r in self.runs.items()}
        lost = {k: why for k, why in each.items() if isinstance(why, str)}
        kept = {k: one[0][k].areas for k, one in each.items() if k not in lost}
        table = pd.DataFrame.from_dict(kept, orient="index").rename_axis("run")
        return table, lost

    def costs(self) -> pd.DataFrame:  # Index: run
        "What runs cost, as far as their folders say so: epochs, minutes, memory, speed."
        rows = {}
        for name, run in self.own.items():
            went = run.manifest.get("went", {})
            rows[name] = {
                "epochs": len(self.logs.get(name, ())) or None,
                "minutes": sweeps.cost_of(run),
                "GPU-minutes": sweeps.cost_of(run, "gpu_minutes"),
                "peak memory (MB)": went.get("peak_memory_mb"),
                "training chips/s": ((went.get("speed") or {}).get("train") or {}).get("chips_per_s"),
            }  # fmt: skip
        table = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
        return table.dropna(axis=1, how="all")

    def origins(self) -> pd.DataFrame:  # Index: run. Texts
        "Where runs come from: hyperparameters, data, machine, versions."
        rows = {}
        for name, run in self.own.items():
            asked, made = (run.manifest.get(k) or {} for k in ("asked", "made_with"))
            given = _tried(lambda run=run: run.hyperparams)
            facts = {} if isinstance(given, str) else given
            facts = facts | {"labels": (asked.get("labels") or {}).get("classes")}
            facts |= {"data digest": (asked.get("data") or {}).get("digest")}
            facts |= {"windows digest": asked.get("windows_digest"), **made}
            facts |= facts.pop("versions", {})
            rows[name] = {k: _typed(v) for k, v in facts.items() if v is not None}
        return pd.DataFrame.from_dict(rows, orient="index")

    def commands(self) -> list[str]:
        "What to type to make the runs again, as far as their records say it."
        lines = []
        for name, run in self.own.items():
            asked, went = (run.manifest.get(k) or {} for k in ("asked", "went"))
            data = (asked.get("data") or {}).get("data")
            given = {**(asked.get("hyperparams") or {}), "data": data}
            params = (went.get("job") or {}).get("params") or given
            words = [f"{k}={_typed(v)}" for k, v in params.items() if v is not None]
            words = ["rvtutorial", "train", f"again/{name}", *words] if words else []
            lines += [shlex.join(words)] if words else []
        return lines

    def scene_map(
        self,
        scene: str,  # Id
        side: int = 650,  # Longest side of the pictures, in pixels
    ) -> dict:  # `under`, a picture; `over`, a picture for each run; `lost`, run -> why
        """A scene, and what each run found, missed and drew in error on it.

        Layers and truth are of the first run that has them; folders of labels, which know
        no image, come last. Raises `FileNotFoundError` when no run has the scene, or none
        a prediction of it.
        """
        over, lost, why = {}, {}, []
        for run in [*self.own.values(), *self.runs.values()]:
            layers = _tried(maps.SceneLayers.of_run, run, scene, self.data, side)
            truth = layers
            if not isinstance(layers, str):
                truth = _tried(layers.class_truth, run, self.of)
            if not isinstance(truth, str):
                break
            why.append(truth)
        else:
            raise FileNotFoundError(why[0])
        for name, run in self.runs.items():
            codes = _tried(layers.errors, run, self.of, truth)
            if isinstance(codes, str):
                lost[name] = codes
            else:
                alt = _errors_in_words(codes, self.of)
                over[name] = _inside(*_scene_image(codes, layers.frame, side), alt)
        if not over:
            raise FileNotFoundError("; ".join(f"{k}: {why}" for k, why in lost.items()))
        what = "Image"
        if not np.ptp(layers.picture):
            layers.picture[truth == 1] *= 0.45
            what = f"The true {self.of} pixels, dark, for want of an image,"
        _, right, bottom, top = layers.frame.extent
        area = f"{right:.0f} by {max(bottom, top):.0f} {layers.frame.unit}"
        part = (truth == 1).sum() / max(1, (truth != 2).sum())
        alt = f"{what} of scene {scene}, {area}; {part:.0%} of it is {self.of}."
        under = _scene_image(layers.picture, layers.frame, side)
        return dict(under=_inside(*under, alt), over=over, lost=lost, area=area)


def _tried(make, *args, **how):
    "What a function returns, or why it cannot, in words."
    try:
        return make(*args, **how)
    except (OSError, ValueError, LookupError, TypeError, StopIteration, ImportError) as err:  # fmt: skip
        return str(err) or type(err).__name__


def _gather(
    what, split="validation", metric=None, data=None, class_name=None
) -> _Material:
    "Find out what can be compared, as in `write_report`; `ValueError` if it is nothing."
    one = what[0] if isinstance(what, (list, tuple)) and len(what) == 1 else what
    folder = Path(one).expanduser() if isinstance(one, (str, Path)) else None
    one = Sweep(folder) if folder and is_sweep(folder) else one
    sweep = one if isinstance(one, Sweep) else None
    runs, counts, left_out = {}, {}, {}
    for name, run in plots.open_runs(sweep or what).items():
        name = name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}"
        while name in runs:
            name += "'"
        runs[name] = run
        one = getattr(run, "trouble", None) or _tried(leaderboard.counts_of, run, split)
        if isinstance(one, str):  # it begins with the run's name
            left_out[name] = one.partition(": run ")[0].removeprefix(f"run {run.name} ")
        else:
            counts[name] = one
    if not counts:
        why = "; ".join(f"{k} {v}" for k, v in list(left_out.items())[:3])
        raise ValueError(
            f"nothing to compare: none of {len(runs)} runs has scores of {split} scenes "
            f"({why}). Wait until a run has finished, or ask for another split"
        )
    metric = counting.metric_name(metric or (sweep.plan.metric if sweep else "f1"))
    of, classes, unlike = _unlike(counts, metric, class_name)
    counts = {name: one for name, one in counts.items() if name not in unlike}
    every = {scene for one in counts.values() for scene in one.scenes}
    asked = classes if metric in counting.MEANS else of
    each = {k: counting.scores(c.table(asked), [metric]) for k, c in counts.items()}
    each = {k: one.iloc[:, 0] for k, one in each.items()}
    scores = pd.concat(each, axis=1, join="inner")
    scores = scores.loc[sorted(scores.index, key=natural_key)]
    runs, left_out = {name: runs[name] for name in counts}, left_out | unlike
    how = (of, classes, split, metric, sweep, data)
    return _Material(runs, scores, len(every), left_out, *how)


def _unlike(
    counts: dict, metric: str, of: str | None
) -> tuple[str, list, dict[str, str]]:
    """The class that most runs have, all classes, and why some runs cannot be compared.

    `ValueError` for a class that no run has.
    """
    known = dict.fromkeys(kind for one in counts.values() for kind in one.classes)
    if of is not None and of not in known:
        raise ValueError(f"no run has a class {of!r}; {near_match(of, known)}")
    kinds = Counter(one.first_class for one in counts.values())
    of, why = of or kinds.most_common(1)[0][0], "has no class {}, only {}"
    unlike = {k: why.format(of, ", ".join(one.classes))
              for k, one in counts.items() if of not in one.classes}  # fmt: skip
    rest = {name: one for name, one in counts.items() if name not in unlike}
    mean = metric if metric in counting.MEANS else "macro_f1"
    meant = {name: one.meant(mean) for name, one in rest.items()}
    usual = Counter(map(frozenset, meant.values())).most_common(1)[0][0]
    classes = next(one for one in meant.values() if frozenset(one) == usual)
    if metric in counting.MEANS:
        why, listed = "has the classes {}, not {}", ", ".join(classes)
        other = {k: why.format(", ".join(one), listed)
                 for k, one in meant.items() if frozenset(one) != usual}  # fmt: skip
        unlike, rest = unlike | other, {k: v for k, v in rest.items() if k not in other}
    else:
        classes = [c for c in classes if all(c in one.classes for one in rest.values())]
    usual = Counter(scene for one in rest.values() for scene in one.scenes)
    scene, why = (
        usual.most_common(1)[0][0],
        "has none of the scenes that the others were judged on",
    )
    lost = {k: why for k, one in rest.items() if scene not in one.scenes}
    return of, classes, unlike | lost


def _text(value, digits: int = 3) -> str:
    "A value for a reader: numbers short, what is not there as a dash."
    if value is None or value != value:
        return "-"
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)


def _typed(value) -> str:
    "A hyperparameter as it would be typed."
    if isinstance(value, (list, tuple)):
        return ",".join(map(_typed, value))
    return short(value) if isinstance(value, float) else str(value)


def _others(board: pd.DataFrame) -> str:
    "How many runs are told apart from the first."
    many, tied = len(board) - 1, int(board.tied.iloc[1:].sum())
    if tied in (0, many):
        none = f"None of the {many} others can be told apart from it."
        return none if tied else f"It is better than all {many} others."
    said = f"It is better than {many - tied} of the {many} others; "
    return f"{said}{tied} cannot be told apart from it."


def _errors_in_words(
    codes: np.ndarray,  # From `_error_codes`
    class_name: str,  # Class
) -> str:
    "Which part was found, and which part of what was drawn is wrong."
    hit, missed, wrong = (int((codes == i).sum()) for i in (1, 2, 3))
    found, false = "nothing to find", "nothing drawn"
    if hit + missed:
        found = f"{hit / (hit + missed):.0%} of the {class_name} pixels found"
    if hit + wrong:
        false = f"{wrong / (hit + wrong):.0%} of what was drawn is wrong"
    return f"{found}, {false}"


def _scene_image(
    pixels: np.ndarray,  # (rows, columns, 3) from 0 to 1, or `_error_codes`
    frame: maps.Frame,  # Of the scene
    max_size: int = 650,  # Longer side in pixels; never more than the scene has
) -> tuple[bytes, str]:  # Content of a file and its kind: JPEG, of codes PNG
    "A scene, or its errors on nothing: north up, in the proportions of the ground."
    pixels = pixels if pixels.ndim == 2 else (255 * pixels).round()
    pixels = pixels[::-1] if frame.origin == "lower" else pixels
    image, (_, right, *heights) = Image.fromarray(pixels.astype(np.uint8)), frame.extent
    sides = np.array([right, max(heights)]) / max(right, *heights)
    size = np.maximum(1, (min(max_size, max(frame.shape)) * sides).round()).astype(int)
    kind, file = "jpeg", io.BytesIO()
    if pixels.ndim == 2:
        colours = [
            (0,) * 4,
            *(to_rgba(colour, 0.72) for colour in maps.ERRORS.values()),
        ]
        image = image.convert("P")  # a palette is a third as large as colours
        image.putpalette((255 * np.ravel(colours)).round().astype(int).tolist(), "RGBA")
        kind = "png"
    nearest = Image.Resampling.NEAREST if kind == "png" else None
    image.resize(size.tolist(), nearest).save(file, kind, optimize=True, quality=80)
    return file.getvalue(), kind


def _telling_scenes(
    scores: pd.DataFrame,  # Scenes x runs
    scenes: int | Iterable | None = None,  # Ids, or how many; None: three
) -> dict[str, str]:  # Id -> its place in words, such as "the worst"
    "Pick scenes evenly from the worst to the best; `ValueError` for an unknown id."
    if isinstance(scenes, Iterable):
        asked = [scenes] if isinstance(scenes, str) else list(map(str, scenes))
        for scene in asked:
            if scene not in scores.index:
                hint = near_match(scene, sorted(scores.index, key=natural_key)[:20])
                raise ValueError(f"not all runs have a scene {scene!r}; {hint}")
        return dict.fromkeys(asked, "asked for")
    order = scores.mean(axis=1).dropna().sort_values(kind="stable").index
    last, many = len(order) - 1, min(3 if scenes is None else int(scenes), len(order))
    words = {0: "the worst", last: "the best"}
    middle = "in the middle" if many == 3 else f"place {{}} of {last + 1} from below"
    places = np.unique(np.linspace(0, last, many).round().astype(int))
    return {order[p]: words.get(p, middle.format(p + 1)) for p in places}


def _inside(content: bytes, kind: str, alt: str = "", scale: float = 1.0) -> dict:
    "A picture as an address that needs no file; sides in pixels, and what it shows."
    src = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    wide, high = (round(s / scale) for s in Image.open(io.BytesIO(content)).size)
    return dict(width=wide, height=high, src=src, alt=alt)


def _drawn(draw, *args, **how) -> dict:
    "A figure at the size of a screen: photographs as JPEG, charts as PNG."
    figure = draw(*args, **how)
    return _inside(maps.figure_bytes(figure), maps.figure_kind(figure), scale=1.1)


def _side_of(scenes: int, runs: int, budget: float = 7e6) -> int:
    "Longest side of maps in pixels so that all of them together stay in the budget."
    each = 1.34 * (0.45 + 0.06 * runs)  # bytes a pixel, measured; base64 adds a third
    return int(min(800, max(120, math.sqrt(budget / (max(scenes, 1) * each)))))


def _selected(found: _Material, board: pd.DataFrame) -> tuple[_Material, _Material]:
    "What figures of single runs are about, and figures of parameters: all, or some."
    shown, varied, many = found, found, len(board)
    if many > _DRAWN:
        said = f"The {_DRAWN} highest of {many} runs."
        shown = found.only(board.index[:_DRAWN], said)
    if many > _VARIED:
        even = np.linspace(0, many - 1, _VARIED).round().astype(int)
        said = f"{_VARIED} of {many} runs, evenly from the highest to the lowest score."
        varied = found.only(board.index[even], said)
    return shown, varied


def write_report(
    what,  # A sweep or its folder; runs: paths, Run, LabelFolder, a list, name -> run
    out: str | Path = "report.html",  # The file to write
    title: str | None = None,  # Heading of the page; None: the sweep's name
    split: str = "validation",  # Or "test", which is recorded as a look at it
    scenes: int | Iterable | None = None,  # Ids, or how many; None: three
    progress: bool = True,
    metric: str | None = None,  # What decides the order; None: the sweep's, or f1
    data: str | Path | None = None,  # Where the images are now
    class_name: str | None = None,  # Class that is scored and drawn; None: the first
) -> Path:  # The file
    """Write one self-contained HTML page about a sweep or about runs.

    `metric` is one of `counting.METRICS`, about one class, or of `counting.MEANS`, about
    all. Leaves out, with the reason, what cannot be compared. Of more than twenty runs the
    highest are drawn, and it is said; all are in the leaderboard. Raises `ValueError`
    when nothing can and for a class that no run has, `FileNotFoundError` for a folder that is not there. The file is
    written in one step, and about 2 MB large for 8 runs.
    """
    out = Path(out).expanduser()
    refuse_name(out)
    found = _gather(what, split, metric, data, class_name)
    record = found.sweep.folder if found.sweep and split == "test" else None
    with leaderboard.one_look():  # a report is one look at the test split
        how = dict(class_name=found.asked, record=record)
        board = leaderboard.leaderboard(found.runs, found.metric, split, **how)
        world = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        world.filters |= dict(text=_text, typed=_typed, digest=_digest)
        shown, varied = _selected(found, board)
        page = world.get_template("report.html").render(
            found=found, shown=shown, varied=varied, board=board, others=_others(board),
            title=title, telling=_telling_scenes(found.scores, scenes), scenes=scenes,
            viz=viz, words=leaderboard, why=board.why_no_interval(),
            tried=_tried, drawn=_drawn, side_of=_side_of, most=_DRAWN, key=_KEY,
            bar=partial(tqdm, desc="report", disable=not progress, leave=False),
            maker=f"rvtutorial {__version__} on {datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
        )  # fmt: skip
    with atomic_path(out) as partial_file:
        partial_file.write_text(page, encoding="utf-8")
    return out


def _digest(text: str) -> str:
    "How the page names the one script and the one style that it allows."
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
