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
from PIL import Image
from tqdm import tqdm

from rvtutorial import __version__, viz
from rvtutorial.core.files import refuse_name
from rvtutorial.figures import maps, sweeps
from rvtutorial.figures import runs as plots
from rvtutorial.metrics import counting, intervals, leaderboard
from rvtutorial.core.files import atomic_path
from rvtutorial.core.names import natural_key
from rvtutorial.runs import Run
from rvtutorial.sweep import Sweep
from rvtutorial.sweeps.sweepfile import short

DRAWN = 20  # Runs, the highest, that figures, maps and lists of single runs show
VARIED = 200  # Runs, evenly from the highest to the lowest, in figures of parameters
KEY = dict(zip(("found", "missed", "drawn in error"), maps.ERRORS.values(), strict=True))  # fmt: skip


@dataclass(eq=False)
class Material:
    "The runs that a report compares, and why it leaves out others."

    runs: dict  # Name -> Run or LabelFolder
    scores: pd.DataFrame  # Of the common scenes (rows) and runs; NaN: without a value
    scenes: int  # That any run has
    left_out: dict[str, str]  # Name -> reason
    of: str  # The class that is scored
    split: str
    metric: str
    sweep: Sweep | None
    data: str | Path | None  # Where the images are now
    picked: str = ""  # Which runs these are, where they are some of many

    def only(self, names: Iterable[str], picked: str = "") -> "Material":
        "The same about some of the runs, in the order asked for."
        runs, picked = {name: self.runs[name] for name in names}, picked or self.picked
        return replace(self, runs=runs, scores=self.scores[list(runs)], picked=picked)

    @cached_property
    def logs(self) -> dict[str, pd.DataFrame]:
        "What training logged, of the runs that have a log."
        found = {name: tried(run.log) for name, run in self.own.items()}
        return {k: v for k, v in found.items() if not isinstance(v, str) and len(v)}

    @property
    def own(self) -> dict[str, Run]:
        "Those that are run folders."
        return {k: run for k, run in self.runs.items() if isinstance(run, Run)}


def tried(make, *args, **how):
    "What a function returns, or why it cannot, in words."
    try:
        return make(*args, **how)
    except (OSError, ValueError, LookupError, TypeError, StopIteration, ImportError) as err:  # fmt: skip
        return str(err) or type(err).__name__


def gather(
    what,  # As in `write_report`
    split: str = "validation",  # Or "test"
    metric: str | None = None,  # What decides the order; None: the sweep's, or f1
    data: str | Path | None = None,  # Where the images are now
) -> Material:
    "Find out what can be compared; `ValueError` when that is nothing."
    sweep, runs = _sweep_of(what), {}
    for name, run in plots.open_runs(sweep or what).items():
        name = name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}"
        while name in runs:
            name += "'"
        runs[name] = run
    counts, left_out = _counted(runs, split)
    if not counts:
        why = "; ".join(f"{k} {v}" for k, v in list(left_out.items())[:3])
        raise ValueError(
            f"nothing to compare: none of {len(runs)} runs has scores of {split} scenes "
            f"({why}). Wait until a run has finished, or ask for another split"
        )
    of, unlike = _unlike(counts)
    counts = {name: one for name, one in counts.items() if name not in unlike}
    every = {scene for one in counts.values() for scene in one.scenes}
    metric = counting.metric_name(metric or (sweep.plan.metric if sweep else "f1"))
    tables = {name: counting.table(one, of) for name, one in counts.items()}
    each = {k: counting.scores(t, [metric]).iloc[:, 0] for k, t in tables.items()}
    scores = pd.concat(each, axis=1, join="inner")
    scores = scores.loc[sorted(scores.index, key=natural_key)]
    runs, left_out = {name: runs[name] for name in counts}, left_out | unlike
    return Material(runs, scores, len(every), left_out, of, split, metric, sweep, data)


def _counted(runs: dict, split: str) -> tuple[dict, dict[str, str]]:
    "Counts of the runs that have some, and why the others have none."
    counts, left_out = {}, {}
    for name, run in runs.items():
        one = getattr(run, "trouble", None) or tried(leaderboard.counts_of, run, split)
        if isinstance(one, str):  # it begins with the run's name
            left_out[name] = one.partition(": run ")[0].removeprefix(f"run {run.name} ")
        else:
            counts[name] = one
    return counts, left_out


def _unlike(counts: dict) -> tuple[str, dict[str, str]]:
    "The class that most runs have, and why some runs cannot be compared with most."
    kinds = Counter(counting.first_class(one) for one in counts.values())
    of = kinds.most_common(1)[0][0]
    unlike = {k: f"has no class {of}, only {', '.join(one.classes)}"
              for k, one in counts.items() if of not in one.classes}  # fmt: skip
    rest = {name: one for name, one in counts.items() if name not in unlike}
    usual = Counter(scene for one in rest.values() for scene in one.scenes)
    scene = usual.most_common(1)[0][0]
    why = "has none of the scenes that the others were judged on"
    return of, unlike | {k: why for k, one in rest.items() if scene not in one.scenes}


def _sweep_of(what) -> Sweep | None:
    "The sweep, if that is all that was given."
    one = what[0] if isinstance(what, (list, tuple)) and len(what) == 1 else what
    if isinstance(one, (str, Path)):
        folder = Path(one).expanduser()
        return Sweep(folder) if (folder / "trials.csv").is_file() else None
    return one if isinstance(one, Sweep) else None


def text(value, digits: int = 3) -> str:
    "A value for a reader: numbers short, what is not there as a dash."
    if value is None or value != value:
        return "-"
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)


def typed(value) -> str:
    "A hyperparameter as it would be typed."
    if isinstance(value, (list, tuple)):
        return ",".join(map(typed, value))
    return short(value) if isinstance(value, float) else str(value)


def others(board: pd.DataFrame) -> str:
    "How many runs are told apart from the first."
    many, tied = len(board) - 1, int(board.tied.iloc[1:].sum())
    if tied in (0, many):
        none = f"None of the {many} others can be told apart from it."
        return none if tied else f"It is better than all {many} others."
    said = f"It is better than {many - tied} of the {many} others; "
    return f"{said}{tied} cannot be told apart from it."


def areas(found: Material) -> tuple[pd.DataFrame, dict]:
    "Areas under the curves of runs that kept their scores; why others have none."
    how = dict(split=found.split, class_name=found.of, data=found.data)
    each = {k: tried(plots.scored, {k: run}, **how) for k, run in found.runs.items()}
    kept = {k: one[0][k].areas for k, one in each.items() if not isinstance(one, str)}
    table = pd.DataFrame.from_dict(kept, orient="index").rename_axis("run")
    return table, {k: why for k, why in each.items() if k not in kept}


def costs(found: Material) -> pd.DataFrame:  # Index: run
    "What runs cost, as far as their folders say so: epochs, minutes, memory, speed."
    rows = {}
    for name, run in found.own.items():
        went = run.manifest.get("went", {})
        rows[name] = {
            "epochs": len(found.logs.get(name, ())) or None,
            "minutes": sweeps.cost_of(run),
            "GPU-minutes": sweeps.cost_of(run, "gpu_minutes"),
            "peak memory (MB)": went.get("peak_memory_mb"),
            "training chips/s": ((went.get("speed") or {}).get("train") or {}).get("chips_per_s"),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).dropna(
        axis=1, how="all"
    )


def origins(found: Material) -> pd.DataFrame:  # Index: run. Texts
    "Where runs come from: hyperparameters, data, machine, versions."
    rows = {}
    for name, run in found.own.items():
        asked, made = (run.manifest.get(k) or {} for k in ("asked", "made_with"))
        given = tried(lambda run=run: run.hyperparams)
        facts = {} if isinstance(given, str) else given
        facts = facts | {"labels": (asked.get("labels") or {}).get("classes")}
        facts |= {"data digest": (asked.get("data") or {}).get("digest")}
        facts |= {"windows digest": asked.get("windows_digest"), **made}
        facts |= facts.pop("versions", {})
        rows[name] = {k: typed(v) for k, v in facts.items() if v is not None}
    return pd.DataFrame.from_dict(rows, orient="index")


def command(name: str, run: Run) -> str:
    "What to type to make a run again; empty if its record does not say it."
    asked, went = (run.manifest.get(k) or {} for k in ("asked", "went"))
    given = {**(asked.get("hyperparams") or {}), "data": (asked.get("data") or {}).get("data")}  # fmt: skip
    params = (went.get("job") or {}).get("params") or given
    words = [f"{k}={typed(v)}" for k, v in params.items() if v is not None]
    return shlex.join(["rvtutorial", "train", f"again/{name}", *words]) if words else ""


def _inside(content: bytes, kind: str, size: Iterable, alt: str = "") -> dict:
    "A picture as an address that needs no file; sides in pixels, and what it shows."
    src = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return dict(zip(("width", "height"), size, strict=True), src=src, alt=alt)


def drawn(draw, *args, **how) -> dict:
    "A figure at the size of a screen: photographs as JPEG, charts as PNG."
    figure = draw(*args, **how)
    content, kind = maps.figure_bytes(figure), maps.figure_kind(figure)
    size = (round(side / 1.1) for side in Image.open(io.BytesIO(content)).size)
    return _inside(content, kind, size)


def painted(pixels: np.ndarray, frame: maps.Frame, side: int, alt: str) -> dict:
    "A scene or the errors on it: photographs as JPEG, colours as PNG."
    image, file = maps.scene_image(pixels, frame, side), io.BytesIO()
    kind = "png" if image.mode == "P" else "jpeg"
    image.save(file, kind, optimize=True, quality=80)
    return _inside(file.getvalue(), kind, image.size, alt)


def side_of(scenes: int, runs: int, budget: float = 7e6) -> int:
    "Longest side of maps in pixels so that all of them together stay in the budget."
    each = 1.34 * (0.45 + 0.06 * runs)  # bytes a pixel, measured; base64 adds a third
    return int(min(800, max(120, math.sqrt(budget / (max(scenes, 1) * each)))))


def scene_map(
    found: Material,
    scene: str,  # Id
    side: int = 650,  # Longest side of the pictures, in pixels
) -> dict:  # `under`, a picture; `over`, a picture for each run; `lost`, run -> why
    """A scene, and what each run found, missed and drew in error on it.

    Raises `FileNotFoundError` when no run has the scene, or none a prediction of it.
    """
    (layers, truth), over, lost = _scene_and_truth(found, scene, side), {}, {}
    for name, run in found.runs.items():
        codes = tried(layers.errors, run, found.of, truth)
        if isinstance(codes, str):
            lost[name] = codes
        else:
            alt = maps.errors_in_words(codes, found.of)
            over[name] = painted(codes, layers.frame, side, alt)
    if not over:
        raise FileNotFoundError("; ".join(f"{k}: {why}" for k, why in lost.items()))
    what = "Image"
    if not np.ptp(layers.picture):
        layers.picture[truth == 1] *= 0.45
        what = f"The true {found.of} pixels, dark, for want of an image,"
    _, right, bottom, top = layers.frame.extent
    area = f"{right:.0f} by {max(bottom, top):.0f} {layers.frame.unit}"
    part = (truth == 1).sum() / max(1, (truth != 2).sum())
    alt = f"{what} of scene {scene}, {area}; {part:.0%} of it is {found.of}."
    under = painted(layers.picture, layers.frame, side, alt)
    return dict(under=under, over=over, lost=lost, area=area)


def _scene_and_truth(found: Material, scene: str, side: int) -> tuple:
    "Those of the first run that has them; folders of labels, which know no image, last."

    def read(run):
        layers = maps.run_layers(run, scene, found.data, side)
        return layers, layers.class_truth(run, found.of)

    runs, why = [*found.own.values(), *found.runs.values()], []
    for run in runs:
        both = tried(read, run)
        if not isinstance(both, str):
            return both
        why.append(both)
    raise FileNotFoundError(why[0])


def selected(found: Material, board: pd.DataFrame) -> tuple[Material, Material]:
    "What figures of single runs are about, and figures of parameters: all, or some."
    shown, varied, many = found, found, len(board)
    if many > DRAWN:
        shown = found.only(board.index[:DRAWN], f"The {DRAWN} highest of {many} runs.")
    if many > VARIED:
        even = np.linspace(0, many - 1, VARIED).round().astype(int)
        said = f"{VARIED} of {many} runs, evenly from the highest to the lowest score."
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
) -> Path:  # The file
    """Write one self-contained HTML page about a sweep or about runs.

    Leaves out, with the reason, what cannot be compared. Of more than DRAWN runs the
    highest are drawn, and it is said; all are in the leaderboard. Raises `ValueError`
    when nothing can, `FileNotFoundError` for a folder that is not there. The file is
    written in one step, and about 2 MB large for 8 runs.
    """
    out = Path(out).expanduser()
    refuse_name(out)
    found = gather(what, split, metric, data)
    record = found.sweep.folder if found.sweep and split == "test" else None
    with leaderboard.one_look():  # a report is one look at the test split
        board = leaderboard.leaderboard(
            found.runs, found.metric, split, class_name=found.of, record=record
        )
        folder = jinja2.FileSystemLoader(Path(__file__).parent)
        how = dict(autoescape=True, undefined=jinja2.StrictUndefined)
        world = jinja2.Environment(
            loader=folder, trim_blocks=True, lstrip_blocks=True, **how
        )
        world.filters |= dict(text=text, digest=_digest)
        page = world.get_template("report.html").render(
            globals(), found=found, board=board, selected=selected(found, board),
            title=title, telling=plots.telling_scenes(found.scores, scenes), scenes=scenes,
            bar=partial(tqdm, desc="report", disable=not progress, leave=False),
            now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        )  # fmt: skip
    with atomic_path(out) as partial_file:
        partial_file.write_text(page, encoding="utf-8")
    return out


def _digest(text: str) -> str:
    "How the page names the one script and the one style that it allows."
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
