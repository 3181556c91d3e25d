"""The command line: make scenes, check data, train, predict, sweep, show states, compare runs, report and free disk."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import click


FINE, FAILED, AGAIN, STOPPED = 0, 1, 75, 130
EPILOG = """\b
Exit codes:
  0    fine
  1    failed, or something is wrong
  2    the command line cannot be understood
  75   not over yet, or interrupted: the same command goes on
  130  stopped by Ctrl-C; queued and running jobs go on

With --json there is one JSON document on standard output. Progress and errors go to standard error."""


@dataclass(frozen=True)
class _Answer:
    "What a command has to say."

    text: str  # To people
    doc: object = None  # To machines: dicts, lists, numbers, texts
    code: int = FINE  # To scripts


def _one_line(error: Exception) -> str:
    "An error as one line, which says where there is more to read."
    text = str(error).strip()
    if isinstance(error, OSError) and error.errno and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else text
    if not isinstance(error, (ValueError, OSError, RuntimeError, ImportError)):
        text = f"{type(error).__name__}: {text}"
    first, *more = text.splitlines() or [type(error).__name__]
    return first.rstrip(":") + (" (more with --debug)" if more else "")


class _Command(click.Command):
    "A command that returns an `_Answer`; adds --json and --debug."

    def __init__(self, *args, **more):
        super().__init__(*args, **{"epilog": EPILOG, **more})
        show = "Print one JSON document."
        self.params += [click.Option(["--json"], is_flag=True, help=show)]
        show = "Show where an error comes from."
        self.params += [click.Option(["--debug"], is_flag=True, help=show)]

    def invoke(self, ctx):
        machine, debug = ctx.params.pop("json"), ctx.params.pop("debug")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            note = "stopped; jobs that are queued or running go on"
            click.echo(f"\n{ctx.meta.get('stopped', note)}", err=True)
            ctx.exit(STOPPED)
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(_one_line(error)) from error
        if machine:
            from rvtutorial.core.records import jsonable

            click.echo(json.dumps(jsonable(answer.doc), indent=1))
        else:
            click.echo(answer.text)
        ctx.exit(answer.code)


class _Commands(click.Group):
    "A group that lists its commands in the order of work."

    command_class = _Command

    def list_commands(self, ctx):
        return list(self.commands)


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 88}


@click.group(cls=_Commands, epilog=EPILOG, context_settings=_CONTEXT)
@click.version_option(package_name="rvtutorial")
def _cli():
    """Find things in aerial imagery, and say how well.

    Runs and data are looked for below the folder that RVTUTORIAL_HOME names, else
    below the checkout around the current folder, else below that folder.
    """


def main() -> None:
    "The command `rvtutorial`."
    try:
        _cli(prog_name="rvtutorial")
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(STOPPED)


def _site_names(ctx, param, word):
    from rvtutorial.hpc.sites import Site

    return [name for name in Site.files() if name.startswith(word)]


def _parameter_names(ctx, param, word):
    from rvtutorial.hpc.job import JobNotebook

    book = JobNotebook(ctx.params.get("notebook") or "train_rastervision")
    return [f"{name}=" for name in book.parameters if name.startswith(word)]


_site = click.option(
    "--site", envvar="RVTUTORIAL_SITE", default="local", show_default=True,
    show_envvar=True, shell_complete=_site_names, help="Name or file of a site.",
)  # fmt: skip
_preset = click.option(
    "--preset", envvar="RVTUTORIAL_PRESET", default="sample", show_default=True,
    type=click.Choice(["sample", "smoke", "version1", "version2"]), show_envvar=True,
    help="Whose scenes are meant.",
)  # fmt: skip
_parameters = click.argument(
    "params", nargs=-1, metavar="[NAME=VALUE]...", shell_complete=_parameter_names
)
_wait = click.option("--wait", is_flag=True, help="Come back when it is over.")
_timeout = click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS",
    help="Wait no longer; the jobs go on.",
)  # fmt: skip
_folder = click.Path(path_type=Path, file_okay=False)
_path = click.Path(path_type=Path)
_paths = click.argument("paths", nargs=-1, type=_path)


def _choice(*names: str, words: str, help: str, default: str | None = None):
    "An option that takes one of some words."
    kind, shown = click.Choice(words.split()), default is not None
    return click.option(
        *names, type=kind, default=default, show_default=shown, help=help
    )


def _workspace(**said: str):
    "The workspace that a command means; what it says wins over the environment."
    from unittest import mock

    from rvtutorial.runs import Workspace

    named = {f"RVTUTORIAL_{name.upper()}": value for name, value in said.items()}
    with mock.patch.dict(os.environ, named):
        return Workspace()


def _all_runs() -> Path:
    "The folder of all runs of this workspace; FileNotFoundError before there is one."
    folder = _workspace().runs
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no runs in {folder} yet: `rvtutorial train` makes one"
        )
    return folder


def _values(pairs: Iterable[str]) -> dict[str, str]:
    "Parameters from texts such as lr=1e-3; a usage error for anything else."
    found = {}
    for pair in pairs:
        name, is_there, value = pair.partition("=")
        if not is_there or not name:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE, such as lr=1e-3")
        if name in found:
            raise click.UsageError(f"{name} is given twice")
        found[name] = value
    if "data" in found:
        found["data"] = os.path.abspath(os.path.expanduser(found["data"]))
    return found


def _text_table(rows: list[dict], gap: str = "  ") -> str:
    """Rows of the same keys as columns: numbers to the right, None as a hyphen.

    Own: pandas aligns texts to the right too, and takes half a second to be imported.
    """
    if not rows:
        return ""
    lines = [list(rows[0])]
    for row in rows:
        words = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append(["-" if word in ("None", "nan") else word for word in words])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = (int, float, type(None))
    right = [all(isinstance(row[k], numbers) for row in rows) for k in rows[0]]
    sides = [str.rjust if to_right else str.ljust for to_right in right]
    lines = [[f(w, n) for f, w, n in zip(sides, line, widths, strict=True)]
             for line in lines]  # fmt: skip
    return "\n".join(gap.join(line).rstrip() for line in lines)


def _run_folders(paths: Iterable[Path]) -> dict[str, Path]:
    "Name -> folder of the runs that some paths mean, the trials of a sweep in order."
    from rvtutorial.core.finding import named_runs

    return {name: run.path for name, run in named_runs(list(paths), True).items()}


@_cli.command("samples", short_help="Make sample scenes.")
@click.argument("folder", required=False, type=_folder)
@_preset
@click.option("--train", "n_train", type=int, help="Scenes for training.")
@click.option("--val", "n_val", type=int, help="Scenes for validation.")
@click.option("--test", "n_test", type=int, help="Scenes for the final test.")
@click.option("--size", type=int, help="Side of a scene in pixels.")
@click.option("--bands", type=int, help="1, 3, 4, or 8 and more.")
@click.option("--crs", help="Such as EPSG:32611.")
@click.option("--seed", type=int, help="Other scenes.")
def _samples_command(folder, preset, **changes):
    "Make sample scenes in FOLDER, by default where the preset looks for them."
    from rvtutorial.data.synthetic import SAMPLES, make_sample_scenes

    changes = {name: value for name, value in changes.items() if value is not None}
    if preset not in SAMPLES:
        raise click.UsageError(
            f"{preset} is for real imagery; sample and smoke are made"
        )
    if changes and folder is None:
        raise click.UsageError("scenes of your own choice want a FOLDER of their own")
    folder = Path(folder or _workspace(preset=preset).data).expanduser().absolute()
    make_sample_scenes(
        folder, progress=sys.stderr.isatty(), **{**SAMPLES[preset], **changes}
    )
    splits = ("train", "val", "test")
    counts = {s: len(list((folder / s).glob("*.tif"))) for s in splits}
    counted = ", ".join(f"{number} {split}" for split, number in counts.items())
    return _Answer(f"{folder}: {counted} scenes", {"folder": str(folder), **counts})


@_cli.command("check", short_help="Check a data set, settings for it, and a site.")
@click.argument("words", nargs=-1, metavar="[DATA] [NAME=VALUE]...",
                shell_complete=_parameter_names)  # fmt: skip
@_preset
@_site
@click.option("--image-pattern", help="Image files, with one {id}.")
@click.option("--label-pattern", help="Label files, with the same {id}.")
@click.option("--class-field", help="Attribute of vector labels that holds the class.")
@click.option("--classes", help="Names, such as building,background.")
@click.option("--label-values", help="Raster labels: 255:building,0:background.")
@click.option("--layer", help="Layer of vector labels.")
@_choice("--zeros", words="empty data",
         help="Patches of 0 in all bands: no data (empty), or data.")  # fmt: skip
@_choice("--only", words="data site", help="Leave out the other.")
def _check_command(words, preset, site, only, **how):
    """Check a data set (a folder or a table of scenes) and what the jobs of a site need.

    With settings, such as preset=own lr=1e-3 chip_sz=192, also whether they suit the
    scenes and the jobs. What is wrong keeps a run from starting; what is odd does not,
    and is probably a mistake.
    """
    from rvtutorial.hpc.checking import check_run
    from rvtutorial.hpc.sites import Site, check_site

    data, pairs = None, list(words)
    if pairs and ("=" not in pairs[0] or Path(pairs[0]).exists()):
        data = Path(pairs.pop(0))
    settings = _values(pairs)
    data = data or (Path(settings["data"]) if "data" in settings else None)
    settings.pop("data", None)
    doc, lines, looked = {"ok": True, "problems": [], "odd": []}, [], None
    if only != "data":
        doc["site"] = check_site(Site.read(site)).to_dict("records")
        wrong = [row for row in doc["site"] if not row["ok"]]
        for row in wrong:
            remedy = f": {row['remedy']}" if row["remedy"] else ""
            problem = f"site {site}, {row['what']}: {row['found']}{remedy}"
            doc["problems"].append(problem)
        fine = len(doc["site"]) - len(wrong)
        lines.append(f"site {site}: {fine} of {len(doc['site'])} fine")
    if only != "site":
        own = settings.get("preset", preset)
        own = preset if own == "own" else own
        folder = data or _workspace(preset=own, site=site).data
        if data is None and not folder.exists():
            doc["problems"].append(
                f"there are no scenes in {folder}: `rvtutorial samples` makes some"
            )
            doc["data"] = []
        else:
            asked = {n: v for n, v in how.items() if v} | settings
            if settings:
                asked = {"preset": preset} | asked
            found = check_run(folder, asked, None if only == "data" else site)
            scenes = sum(row["scenes"] for row in found.rows)
            if found.looked_at < scenes:
                looked = f"pixels of {found.looked_at} of {scenes} scenes were looked at"
            doc |= {"data": found.rows, "odd": found.doubts}
            doc["problems"] += found.problems
        lines += [f"data {folder}:", _text_table(doc["data"])] if doc["data"] else []
    doc["ok"] = not doc["problems"]
    said = [f"wrong: {problem}" for problem in doc["problems"]]
    said += [f"odd: {doubt}" for doubt in doc["odd"]]
    lines += [looked] if looked else []
    text = "\n".join([*lines, *(said or ["nothing is wrong"])])
    return _Answer(text, doc, FINE if doc["ok"] else FAILED)


def _code_of(states: Iterable[str]) -> int:
    "What a script should make of the states of some runs."
    from rvtutorial.hpc.scheduler import FINE as WELL

    rest = set(states) - set(WELL)
    later = {"queued", "running", "new", "interrupted", "unfinished", "lost"}
    return (AGAIN if rest <= later | {"node lost"} else FAILED) if rest else FINE


def _state_rows(runs: dict[str, Path]) -> list[dict]:
    "How some runs are, one row each."
    from rvtutorial.core.records import Unreadable
    from rvtutorial.hpc.job import Job
    from rvtutorial.runs import Run

    rows = []
    for name, detail in zip(runs, Job(runs.values()).details(), strict=True):
        run, state = Run(detail["folder"]), detail["state"]
        scores, why = {}, detail["why"] or ""
        try:
            state = run.state if state == "new" and not run.manifest else state
            scores = run.results.get("validation") or {}
        except Unreadable as error:
            state, why = "unreadable", why or str(error)
        state = (state or "unfinished") if run.path.is_dir() else "new"
        row = {"run": name, "state": state, "epochs": detail["done"]}
        row |= {"of": detail["epochs"], "F1": scores.get("f1"), "why": why}
        rows.append(row | {"folder": str(run.path)})
    return rows


def _wait_for(one, job, wait: bool, timeout: float | None) -> int:
    "Wait for a job or a sweep, if that was asked for; an exit code of its states."
    from rvtutorial.hpc.job import JobFailed

    if not wait and timeout is None:
        return FINE
    note = "stopped looking; the jobs go on: `rvtutorial status` shows them"
    click.get_current_context().meta["stopped"] = note
    try:
        one.wait(timeout=timeout)
    except (JobFailed, TimeoutError) as error:
        click.echo(str(error), err=True)
    return _code_of(job.states().values())


@_cli.command("train", short_help="Train, predict and evaluate one run as a job.")
@click.argument("folder", metavar="RUN_FOLDER")
@_parameters
@_site
@click.option("--notebook", default="train_rastervision", show_default=True,
              help="Job notebook, by name or path.")  # fmt: skip
@click.option("--after", multiple=True, type=_folder, metavar="RUN_FOLDER",
              help="Begin when this run is over; may be given again.")  # fmt: skip
@_wait
@_timeout
def _train_command(folder, params, site, notebook, after, wait, timeout):
    """Train, predict and evaluate one run as a job.

    Parameters are those of the job notebook, such as preset=sample lr=1e-3 epochs=8.
    """
    from rvtutorial.hpc.job import Job, JobNotebook
    from rvtutorial.slurm import submit

    book, asked = JobNotebook(notebook), _values(params)
    name, pair, _ = folder.partition("=")
    if pair and name in book.parameters and not Path(folder).exists():
        raise click.UsageError(
            f"RUN_FOLDER comes before {folder}; ./{folder} if it is called so"
        )
    try:
        book.check(asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    behind = [Job(run) for run in after]
    job = submit(folder, asked, site=site, notebook=notebook, after=behind or None)
    code = _wait_for(job, job, wait, timeout)
    rows = _state_rows({job.folders[0].name: job.folders[0]})
    if rows[0]["state"] not in ("queued", "running"):
        code = _code_of([rows[0]["state"]])  # over, or the queue is gone already
    return _Answer(_text_table(_short(rows)), rows[0], code)


def _short(rows: list[dict]) -> list[dict]:
    "Rows without folders, and without columns that say nothing."
    dull = {
        k for k in ("of", "F1", "why") if not any(r[k] not in (None, "") for r in rows)
    }
    dull |= {"folder"} | ({"epochs"} if "of" in dull else set())
    return [{k: v for k, v in row.items() if k not in dull} for row in rows]


@_cli.command("predict", short_help="Map images with a trained model.")
@click.argument("model", metavar="RUN_OR_BUNDLE", type=_path)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("-o", "--out", required=True, type=_folder, help="Folder of the maps.")
@_choice("--scores", words="uint8 float16 float32",
         help="Also write the scores of the classes.")  # fmt: skip
@click.option("--polygons/--no-polygons", default=True, help="Also polygons.gpkg.")
@click.option("--chip-sz", type=int, help="Pixels along a side of a chip.")
@click.option("--stride", type=int, help="Pixels from one chip to the next.")
@click.option("--crop-sz", type=int, help="Pixels discarded along each edge of a chip.")
@_choice("--blend", words="cosine mean votes", default="cosine",
         help="How overlapping chips are joined.")  # fmt: skip
@click.option("--bands", help="Such as 3,2,1, counted from 1.")
@_choice("--zeros", words="empty data",
         help="Patches that are 0 in all bands; as the run by default.")  # fmt: skip
@click.option("--min-area", help="Patches below so many m2 go; or pixels: 40px.")
@click.option("--batch-sz", type=int, help="Chips that are predicted together.")
@_choice("--precision", words="auto float32 bfloat16", default="auto",
         help="Numbers to compute with.")  # fmt: skip
@click.option("--trust", is_flag=True, help="Run code that the model carries.")
@click.option("--thresholds", "file", type=_path, metavar="FILE",
              help="Trained thresholds, from `rvtutorial thresholds`.")  # fmt: skip
@click.option("--threshold", "numbers", multiple=True, metavar="[CLASS=]NUMBER",
              help="Before those of the file; one for all, or several for classes.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Apply thresholds of another model, or changed by hand.")  # fmt: skip
@_choice("--draw", "style", words="overlay grey",
         help="Also a picture of each map: over the image, or grey levels.")  # fmt: skip
def _predict_command(model, images, out, bands, file, numbers, style, **how):
    """Map IMAGES (files, folders, globs, or URIs) with a trained model.

    A bundle may carry code, such as the definition of its network. Unless it is one of
    this package's own, it is refused without --trust: it could do whatever you can do.

    Each map gets a folder in OUT; one that is there already is made anew, unless it is by
    other thresholds. With thresholds a pixel is of the class with the largest score divided by its threshold, if
    that is at least 1; a class that neither --threshold nor the file names has 0.5 where
    there is no file. Without any, the largest score wins.
    """
    if not model.exists():
        raise FileNotFoundError(f"there is no run folder or bundle {model}")
    try:
        seen = [int(band) - 1 for band in bands.split(",")] if bands else None
        if seen and min(seen) < 0:
            raise ValueError
    except ValueError:
        raise click.UsageError(
            f"bands are like 3,2,1, counted from 1: {bands}"
        ) from None
    stopped = "stopped; the same command begins the unfinished map again"
    click.get_current_context().meta["stopped"] = stopped
    from rvtutorial.engine.prediction import find_images

    given = _threshold_numbers(numbers)
    find_images(list(images), out)  # before torch is imported, which takes a while
    if file is not None or given is not None:
        how["thresholds"] = (file, given)
    from rvtutorial import engine

    maps = engine.predict(model, list(images), out, bands=seen, **how)
    maps["folder"] = [os.path.abspath(folder) for folder in maps["folder"]]
    rows = [{"map": name, **row} for name, row in maps.to_dict("index").items()]
    if style:
        from rvtutorial.figures.drawn import draw_map

        for row in rows:
            row["drawn"] = str(draw_map(row["folder"], row["image"], style))
    text = "\n".join(f"{row['folder']}  of {row['image']}" for row in rows)
    return _Answer(text, rows)


def _threshold_numbers(texts: tuple[str, ...]) -> float | dict[str, float] | None:
    "One number, or numbers of classes, from 0.4 or building=0.4; a usage error for others."
    found = {}
    for text in texts:
        name, pair, number = text.rpartition("=")
        try:
            value = float(number)
            odd = (pair and not name) or (not pair and len(texts) > 1) or name in found
            if odd or not (0 <= value <= 1 or value == float("inf")):
                raise ValueError
        except ValueError:
            raise click.UsageError(
                "--threshold is a share from 0 to 1: 0.4 for all classes, or building=0.4 "
                f"for each, once; got {text!r}"
            ) from None
        if not pair:
            return value
        found[name] = value
    return found or None


def _gcp_bucket(ctx, param, value):
    if value is not None and not value.startswith("gs://"):
        raise click.BadParameter(f"must start with gs://, got {value}")
    return value


def _downsample_factor(ctx, param, value):
    if not 0 < value <= 1:
        raise click.BadParameter(f"must be above 0 and at most 1, got {value}")
    return value


@_cli.command("thresholds", short_help="Train the prediction thresholds of a model.")
@click.argument("model", required=False, metavar="[RUN_OR_BUNDLE]")
@click.option("--gcp-bucket", callback=_gcp_bucket, metavar="gs://BUCKET",
              help="Where models/MODEL_ID and datasets/ID/SPLIT lie.")  # fmt: skip
@click.option("--dataset-directory", metavar="ID/SPLIT",
              help="Data set, with /validation or /test behind it: in the bucket, else a "
                   "folder or an address; without it, as the run says.")  # fmt: skip
@click.option("--model-id", help="In the bucket, or below the runs of this workspace.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1),
              help="Chips that are predicted together, where scores are missing.")  # fmt: skip
@click.option("--optimizing-class-metric", "--metric", "metric", default="iou_score",
              show_default=True,
              help="iou, f1, f2, accuracy, balanced_accuracy, mcc, youden, cost:1:5, "
                   "precision@recall>=0.9; or iou_score, f1_score ...")  # fmt: skip
@click.option("--dataset-downsample-factor", "share", default=1.0, show_default=True,
              callback=_downsample_factor,
              help="Use this share of the scenes, one draw.")  # fmt: skip
@click.option("--random-module-global-seed", type=int, help="Is written down.")
@click.option("--numpy-random-global-seed", type=int,
              help="Of the draws of scenes; 0 where it is not given.")  # fmt: skip
@click.option("--tf-random-global-seed", type=int, help="Is written down.")
@click.option("--message", help="What the reader of the file should know.")
@_choice(
    "--split", words="validation test", help="Scenes; as the data set's by default."
)
@click.option("--class", "classes", multiple=True, metavar="NAME",
              help="A class; may be given again. All but background by default.")  # fmt: skip
@_choice("--rule", words="one-vs-rest ratio weights", default="one-vs-rest",
         help="Each class alone, or several together.")  # fmt: skip
@_choice("--over", words="micro mean worst", default="micro",
         help="All pixels together, the mean of scenes, or the worst scene.")  # fmt: skip
@_choice("--method", words="exact scipy", default="exact",
         help="Try every threshold, or search by trial as before.")  # fmt: skip
@_choice("--calibrate", words="temperature isotonic",
         help="Also fit a calibration of the scores.")  # fmt: skip
@_choice("--unscored", words="refuse leave-out", default="refuse",
         help="Pixels and scenes without labels or scores.")  # fmt: skip
@_choice("--report", words="test",
         help="Also score the thresholds on this split, against its own best.")  # fmt: skip
@click.option("--on-test", is_flag=True,
              help="Tune on the test split, which can then judge nothing.")  # fmt: skip
@click.option("--image-pattern", help="Image files, with one {id}.")
@click.option("--label-pattern", help="Label files, with the same {id}.")
@click.option(
    "--values", metavar="V=N,...", help="Value of a raster label = class number."
)
@click.option("-o", "--out", help="Folder of the file; beside the model by default.")
@click.option("--trust", is_flag=True, help="Run code that the model carries.")
def _thresholds_command(
    model, gcp_bucket, dataset_directory, model_id, batch_size, split, classes, values,
    random_module_global_seed, numpy_random_global_seed, tf_random_global_seed, unscored,
    report, **how,
):  # fmt: skip
    """Train the prediction thresholds of a model: the best by a metric, for each class.

    Scores that a run has kept are counted once; else the images of the data set are
    predicted once. Every threshold is tried. The result is a new file
    model_thresholds_UTC.yaml beside the model, and exit code 1 when a class that was
    asked for has no threshold: the file holds what is known of the others.
    """
    from rvtutorial.metrics.thresholds import Goal

    try:
        Goal(how["metric"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if (model is None) == (model_id is None):
        raise click.UsageError("name a RUN_OR_BUNDLE, or --model-id, and not both")
    named, data = None, dataset_directory
    if dataset_directory:
        last = dataset_directory.rstrip("/").rpartition("/")[2]
        named = {"validation": "validation", "val": "validation", "test": "test"}.get(
            last
        )
        if gcp_bucket:
            data = f"{gcp_bucket.rstrip('/')}/datasets/{dataset_directory}"
    if named and split and named != split:
        raise click.UsageError(
            f"--split {split}, and the data set is {dataset_directory}"
        )
    if model_id:
        model = _workspace().runs / model_id
        if gcp_bucket:
            model = f"{gcp_bucket.rstrip('/')}/models/{model_id}"
    if report and "://" in str(model):
        raise click.UsageError(
            "--report needs a model on this machine: looks at its test split are recorded"
        )
    pairs = None
    if values:
        try:
            pairs = {
                int(a): int(b) for a, b in (v.split("=") for v in values.split(","))
            }
        except ValueError:
            raise click.UsageError(
                f"--values is like 255=0,0=1, got {values}"
            ) from None
    from rvtutorial.engine.fitting import fit_thresholds, judge_thresholds

    seeds = {"random_module_global_seed": random_module_global_seed}
    seeds["numpy_random_global_seed"] = numpy_random_global_seed
    seeds["tf_random_global_seed"] = tf_random_global_seed
    how["metadata"] = {"gcp_bucket": gcp_bucket, **seeds}
    if dataset_directory:
        how["metadata"]["dataset_directory"] = dataset_directory
    patterns = ("image_pattern", "label_pattern", "calibrate", "out")
    how = {k: v for k, v in how.items() if k not in patterns or v}
    how |= dict(classes=list(classes) or None, values=pairs, batch_sz=batch_size)
    how |= dict(unscored=unscored.replace("-", " "), seed=numpy_random_global_seed or 0)
    made, path = fit_thresholds(model, split or named or "validation", data, **how)
    doc = {"file": path, "rule": made.rule, "metric": made.metric, "over": made.over}
    rows = made.table().reset_index().to_dict("records")
    doc |= {"split": made.split, "scenes": len(made.scenes), "classes": rows}
    lines = [repr(made), path]
    if report:
        if named:  # the folder beside it
            data = f"{data.rstrip('/').rpartition('/')[0] or '.'}/{report}"
        names = ("batch_sz", "trust", "image_pattern", "label_pattern", "values")
        more = {k: how[k] for k in (*names, "unscored", "seed") if k in how}
        found = judge_thresholds(made, model, report, data, **more)
        doc["report"] = found.reset_index().to_dict("records")
        names = (
            "class",
            "value",
            "low",
            "high",
            "best",
            "regret",
            "regret_low",
            "regret_high",
            "allowed",
        )
        rows = [{k: row[k] for k in names} for row in doc["report"]]
        lines.append(f"{made.metric} on {report} scenes:\n{_text_table(rows)}")
    if made.undefined:
        click.echo(f"no threshold for {', '.join(made.undefined)}", err=True)
    return _Answer("\n".join(lines), doc, FAILED if made.undefined else FINE)


def _plan_answer(sweep) -> _Answer:
    "The trials of a sweep, started or not, and what its runs need of the disk."
    room = sweep.room()
    rows = []
    for trial in sweep.trials:
        there = trial.path(sweep.folder).is_dir()
        row = {"trial": trial.name, "values": trial.parameters, "there": there}
        rows.append(row)
    doc = {"folder": str(sweep.folder), "trials": rows, "dry_run": True}
    doc["disk"] = {"runs": room.runs, "bytes": round(room.needed), "free": room.free}
    words = {True: "there already", False: "new"}
    shown = [{"trial": row["trial"], "": words[row["there"]]} for row in rows]
    text = f"{_text_table(shown)}\n{room!r}\nnothing was started"
    return _Answer(text, doc, FINE if room.enough else FAILED)


def _existing(folder: Path, action: str | None, extend: str | None, site, dry: bool):
    "Do something with a sweep that is there; returns the sweep, or an Answer."
    from rvtutorial.sweep import Sweep

    sweep = Sweep(folder)
    if extend is None:
        if dry:
            return _plan_answer(sweep)
        if action == "stop":
            return sweep.stop()
        return sweep.retry(site) if action == "retry" else sweep.resume(site)
    more = int(extend) if extend.isdecimal() else extend
    if extend == "next":
        more = sweep.next_round()
        click.echo(more.reason, err=True)
    if dry:
        return _Answer("\n".join(map(str, more if extend == "next" else [more])), more)
    return sweep.extend(more, site=site)


@_cli.command("sweep", short_help="Run the trials of a sweep file.")
@click.argument("plan", metavar="FILE.yaml|SWEEP_FOLDER", type=_path)
@_parameters
@click.option("-o", "--out", type=_folder, help="Sweep folder  [default: runs/FILE]")
@_site
@click.option("--dry-run", "dry", is_flag=True, help="Show trials and disk use only.")
@click.option("--stop", "action", flag_value="stop", help="It can go on later.")
@click.option("--retry", "action", flag_value="retry", help="Only what has failed.")
@click.option("--extend", metavar="N|FILE|next",
              help="Add trials: a number, a sweep file, or a proposal.")  # fmt: skip
@_wait
@_timeout
def _sweep_command(plan, params, out, site, dry, action, extend, wait, timeout):
    """Run the trials of a sweep file, or go on with a sweep folder.

    NAME=VALUE pairs hold for all trials, such as preset=sample data=scenes.
    """
    there = plan.is_dir()
    if there and (params or out):
        raise click.UsageError("a sweep that is there keeps its values and its folder")
    if not there and (action or extend):
        raise click.UsageError(f"{plan} is no sweep folder")
    if not there and not plan.is_file():
        raise click.UsageError(f"{plan} is neither a sweep file nor a sweep folder")
    if there:
        source = click.get_current_context().get_parameter_source("site")
        said = source == click.core.ParameterSource.COMMANDLINE
        found = _existing(plan, action, extend, site if said else None, dry)
    else:
        from rvtutorial.sweep import Sweep, run_sweep

        folder = out.expanduser() if out else _workspace().runs / plan.stem
        if dry:
            return _plan_answer(Sweep.asked(folder, plan, _values(params)))
        found = run_sweep(folder, plan, _values(params), site)
    if isinstance(found, _Answer):
        return found
    code = FINE
    if action != "stop":
        code = _wait_for(found, found.job, wait, timeout)
    rows = _state_rows({trial.name: trial.path(found.folder) for trial in found.trials})
    doc = _sweep_doc(found.folder)
    text = f"{_text_table(_short(rows))}\n{doc.pop('text')}"
    return _Answer(text, doc | {"trials": rows}, code)


def _sweep_doc(folder: Path) -> dict:
    "How a sweep is: states, best so far, seconds; `text` says it in one line."
    from rvtutorial.sweep import Sweep

    doc = {"folder": os.path.abspath(folder)}
    try:
        now = Sweep(folder).progress()
    except (ValueError, OSError) as error:
        why = _one_line(error)
        return doc | {"error": why, "text": f"{folder.name}: {why}"}
    return {**doc, **asdict(now), "text": f"{folder.name}: {now!r}"}


@_cli.command("status", short_help="Say how runs and sweeps are.")
@_paths
@click.option("--watch", "live", is_flag=True, help="Until nothing is at work.")
@click.option("--every", type=click.FloatRange(0.1), default=2.0, show_default=True,
              metavar="SECONDS", help="Between two looks of --watch.")  # fmt: skip
@click.option("--exit-code", is_flag=True,
              help="0 all succeeded, 1 some failed, 75 some still to come.")  # fmt: skip
def _status_command(paths, live, every, exit_code):
    "Say how runs and sweeps are; without PATHS, all of this workspace."
    from rvtutorial.hpc.scheduler import LIVE

    paths = paths or [_all_runs()]
    if live:
        note = "stopped looking; the jobs go on"
        click.get_current_context().meta["stopped"] = note
    said, screen = "", live and sys.stderr.isatty()
    while True:
        rows = _state_rows(_run_folders(paths))
        marks = {mark.parent for path in paths for mark in path.rglob("trials.csv")}
        sweeps = [_sweep_doc(folder) for folder in sorted(marks)]
        lines = [_text_table(_short(rows)), *(sweep["text"] for sweep in sweeps)]
        text = "\n".join(lines)
        above = f"\x1b[{said.count(chr(10)) + 1}A\x1b[J" if screen and said else ""
        if not live or not any(row["state"] in LIVE for row in rows):
            click.echo(above, err=True, nl=False)  # the last frame off the screen
            break
        if text != said:
            click.echo(above + text, err=True)
            said = text
        time.sleep(every)
    code = _code_of(row["state"] for row in rows) if exit_code else FINE
    return _Answer(text, {"runs": rows, "sweeps": sweeps}, code)


def _finished(paths: Iterable[Path], split: str = "validation") -> dict:
    "Name -> run for all that have succeeded or are unreadable; says what is left out."
    from rvtutorial.runs import Run

    done, out, broken = {}, {}, {}
    for name, path in _run_folders(paths).items():
        run = Run(path)
        judged = (run.path / f"eval/{split}_scenes/eval.json").is_file()
        state = run.state if judged or run.state != "succeeded" else "not evaluated"
        if state == "succeeded":
            done[name] = run
        else:
            out[name] = (
                f"{name} ({f'unreadable: {run.trouble}' if run.trouble else state})"
            )
        if state == "unreadable":
            broken[name] = run
    if not done:
        listed = ", ".join(out.values())
        raise ValueError(f"nothing to compare on {split} scenes: {listed}")
    out = [words for name, words in out.items() if name not in broken]
    if out:
        click.echo(f"left out: {', '.join(out)}", err=True)
    return done | broken


def _maps(paths, truth: str, classes: str, values: str | None, split: str) -> dict:
    "Name -> label rasters that another program wrote, to be compared like runs."
    from rvtutorial.metrics.leaderboard import label_folder

    try:
        pairs = [pair.split("=") for pair in values.split(",")] if values else []
        how = {"values": {int(a): int(b) for a, b in pairs} or None, "split": split}
    except ValueError:
        raise click.UsageError(f"--values is like 255=0,0=1, got {values}") from None
    found = {}
    for path in paths:
        one = label_folder(path, truth, classes.split(","), **how)
        found[one.name if one.name not in found else str(path)] = one
    return found


def _board_text(board, form: str) -> str:
    "A leaderboard in one of the forms of `compare`."
    if form == "csv":
        return board.to_csv().rstrip("\n")
    shown = [board.columns[0], "low", "high", "behind", "tied", "scenes", "pixel_iou"]
    shown += ["pixel_roc_auc", "pixel_average_precision", "pixel_brier", "pixel_ece"]
    shown += [c for c in board if c.startswith(("pixel_macro_", "pixel_foreground_"))]
    shown += [c for c in board if c.startswith(("pixel_f1_", "pixel_iou_"))]
    shown += [c for c in board if c.startswith("test_") and c != "test_scenes"]
    short = board[[c for c in dict.fromkeys(shown) if c in board]].copy()
    short["tied"] = ["-", *("yes" if tied else "no" for tied in board["tied"].iloc[1:])]
    if form == "latex":
        return short.to_latex(float_format="%.3f", escape=True).rstrip("\n")
    rows = [{"run": name, **row} for name, row in short.to_dict("index").items()]
    if form != "markdown":
        return _text_table(rows)
    rows = [{**row, "run": row["run"].replace("|", "\\|")} for row in rows]
    lines = _text_table(rows, gap=" | ").splitlines()
    rule = " | ".join("---" for _ in rows[0])
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


@_cli.command("compare", short_help="Order runs, and say which can be told apart.")
@_paths
@click.option("--metric", default="f1", show_default=True,
              help="f1, iou, precision, recall, specificity or accuracy; macro_f1, macro_iou, "
                   "foreground_f1, foreground_iou (means over classes); of runs that kept "
                   "scores roc_auc, average_precision, brier or ece.")  # fmt: skip
@_choice("--split", words="validation test", default="validation",
         help="Scenes that decide; looking at test is recorded.")  # fmt: skip
@_choice("--report", "also", words="test", help="Show this split too.")
@click.option("--class", "--of", "class_name", metavar="NAME",
              help="The class that is scored; of a mean over classes several: a,b.")  # fmt: skip
@click.option("--seeds", is_flag=True, help="Runs that differ in their seed are one.")
@_choice("--method", words="jackknife bootstrap", default="jackknife",
         help="Of the intervals.")  # fmt: skip
@click.option("--data", type=_folder, help="Where labels are now, to count scores.")
@click.option("--truth", metavar="FOLDER",
              help="Labels of PATHS that are no runs, such as truth/{id}.geojson.")  # fmt: skip
@click.option("--classes", default="building,background", show_default=True,
              help="With --truth: names in the order of the class numbers.")  # fmt: skip
@click.option("--values", metavar="V=N,...",
              help="With --truth: value in its rasters = class number.")  # fmt: skip
@_choice("--format", "form", words="table csv markdown latex", default="table",
         help="Of the table.")  # fmt: skip
def _compare_command(
    paths, metric, seeds, form, split, also, truth, classes, values, **how
):
    """Order runs by a score of whole scenes, and say which can be told apart.

    With --truth a path may also be a folder of label rasters from any program, named
    ID.tif, or a pattern such as 'maps/{id}_labels.tif'.
    """
    from rvtutorial.core.finding import find_runs, is_sweep
    from rvtutorial.metrics.leaderboard import group_seeds, leaderboard

    strange = [p for p in paths if truth and not (is_sweep(p) or find_runs(p))]
    own = [path for path in paths if path not in strange]
    runs = _finished(own or [_all_runs()], split) if own or not strange else {}
    groups = group_seeds(runs) if seeds else runs
    if strange:
        groups |= _maps(strange, truth, classes, values, split)
    if how["class_name"] and metric.startswith(("macro_", "foreground_")):
        how["class_name"] = how["class_name"].split(",")
    board = leaderboard(groups, metric, split, report=also, **how)
    note = board.attrs.get("note")
    rows = [{"run": name, **row} for name, row in board.to_dict("index").items()]
    doc = {"metric": metric, "split": split, "runs": rows, "note": note}
    doc["class"] = board.attrs["of"]
    text = _board_text(board, form)
    if form == "table":
        said = [row["verdict"] for row in rows[1:]] + ([note] if note else [])
        if metric.startswith(("macro_", "foreground_")):
            said.append(f"mean over {board.attrs['of']}")
        text = "\n".join([text, "", *said]).rstrip()
    return _Answer(text, doc)


@_cli.command("report", short_help="Write one HTML file about runs or a sweep.")
@_paths
@click.option("-o", "--out", default="report.html", show_default=True,
              type=click.Path(path_type=Path, dir_okay=False), help="The file.")  # fmt: skip
@click.option("--title", help="What stands on top.")
@_choice("--split", words="validation test", default="validation", help="Which scenes.")
@click.option("--scenes", type=click.IntRange(1), help="Maps of so many; else three.")
@click.option("--data", type=_folder, help="Where images and labels are now.")
@click.option(
    "--metric", help="What decides the order, as of compare; else the sweep's, or f1."
)
@click.option(
    "--class", "class_name", metavar="NAME", help="The class that is scored and drawn."
)
def _report_command(paths, out, title, **more):
    "Write one HTML file about runs or a sweep, to send to somebody."
    from rvtutorial.core.finding import is_sweep
    from rvtutorial.figures.report import write_report

    paths = [Path(os.path.abspath(path)) for path in paths or [_all_runs()]]
    runs = list(_run_folders(paths).values())
    one = paths[0] if len(paths) == 1 and is_sweep(paths[0]) else runs
    path = Path(write_report(one, out, title=title, **more)).absolute()
    size = path.stat().st_size
    return _Answer(f"{path} ({size / 1e6:.1f} MB)", {"file": str(path), "bytes": size})


@_cli.command("clean", short_help="Free disk by rules that are shown first.")
@_paths
@click.option("--rule", "rules", multiple=True, metavar="RULE",
              help="Only this rule of those that are shown; may be given again.")  # fmt: skip
@click.option("--scores", is_flag=True, help="Also the scores of predicted scenes.")
@click.option("--files", is_flag=True, help="List every file.")
@click.option("--yes", is_flag=True, help="Do it; without this, nothing is deleted.")
def _clean_command(paths, rules, scores, files, yes):
    """Free disk by rules that are shown first; without PATHS, all runs here.

    Runs at work, bundles, maps, labels and records are never touched.
    """
    from humanize import naturalsize

    from rvtutorial.housekeeping import look

    plan = look(paths or [_all_runs()], rules, scores)
    found = plan.clean() if yes else plan
    doc = {"deleted": yes, "bytes": found.size, "rules": found.rows()}
    doc["files"] = [
        {"rule": f.rule, "path": str(f.path), "bytes": f.size} for f in found.found
    ]
    doc["left"] = {str(path): why for path, why in found.left.items()}
    lines = [f"{f.rule:<12} {f.path}" for f in found.found] if files else []
    did = (
        f"{naturalsize(found.size)} freed"
        if yes
        else "nothing was deleted; --yes does it"
    )
    text = "\n".join([*lines, f"{found!r}", did])
    whole = len(found.found) == len(plan.found)
    return _Answer(text, doc, FINE if whole else FAILED)


@_cli.command("completion", short_help="Print what makes the Tab key work.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def _completion_command(shell):
    "Print what completes commands with the Tab key, for a start-up file of SHELL."
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)(_cli, {}, "rvtutorial", "_RVTUTORIAL_COMPLETE")
    text = made.source()
    return _Answer(text.rstrip("\n"), {"shell": shell, "script": text})


if __name__ == "__main__":
    main()
