"""The command line: make scenes, check data, train, predict, sweep, show states, compare runs, report and free disk."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
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


def _as_json(
    doc,  # Dicts, lists, numbers (numpy's too), texts, paths
) -> str:
    "One JSON document; what is no number in JSON is null."
    whole = json.loads(json.dumps(doc, default=_plain), parse_constant=lambda _: None)
    return json.dumps(whole, indent=1)


def _plain(value):
    "What JSON has no word for: numpy's numbers, sets, paths."
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _one_line(
    error: Exception,
) -> str:  # Says where there is more to read
    "An error as one line."
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
            click.echo(
                f"\n{ctx.meta.get('stopped', 'stopped; jobs that are queued or running go on')}",
                err=True,
            )
            ctx.exit(STOPPED)
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(_one_line(error)) from error
        click.echo(_as_json(answer.doc) if machine else answer.text)
        ctx.exit(answer.code)


class _Commands(click.Group):
    "A group that lists its commands in the order of work."

    command_class = _Command

    def list_commands(self, ctx):
        return list(self.commands)


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 88}


@click.group(cls=_Commands, epilog=EPILOG, context_settings=_CONTEXT)
@click.version_option(package_name="rvtutorial")
def cli():
    """Find things in aerial imagery, and say how well.

    Runs and data are looked for below the folder that RVTUTORIAL_HOME names, else
    below the checkout around the current folder, else below that folder.
    """


def main() -> None:
    "The command `rvtutorial`."
    try:
        cli(prog_name="rvtutorial")
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(STOPPED)


def _site_names(ctx, param, word):
    from rvtutorial.hpc.sites import Site

    return [name for name in Site.files() if name.startswith(word)]


def _parameter_names(ctx, param, word):
    from rvtutorial.hpc.job import job_notebook, parameters

    names = parameters(job_notebook(ctx.params.get("notebook") or "train_rastervision"))
    return [f"{name}=" for name in names if name.startswith(word)]


_site = click.option(
    "--site", envvar="RVTUTORIAL_SITE", default="local", show_default=True,
    show_envvar=True, shell_complete=_site_names, help="Name or file of a site.",
)  # fmt: skip
_preset = click.option(
    "--preset", envvar="RVTUTORIAL_PRESET", default="sample", show_default=True,
    type=click.Choice(["sample", "smoke", "version1", "version2"]), show_envvar=True,
    help="Whose scenes are meant.",
)  # fmt: skip
_wait = click.option("--wait", is_flag=True, help="Come back when it is over.")
_timeout = click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS",
    help="Wait no longer; the jobs go on.",
)  # fmt: skip
_folder = click.Path(path_type=Path, file_okay=False)
_paths = click.argument("paths", nargs=-1, type=click.Path(path_type=Path))


def _workspace(
    preset: str | None = None,  # None: that of the environment, or sample
    site: str | None = None,  # None: that of the environment, or local
):  # A `Workspace`
    "The workspace that a command means; what it says wins over the environment."
    from rvtutorial.runs import Workspace

    before = dict(os.environ)
    said = {"RVTUTORIAL_PRESET": preset, "RVTUTORIAL_SITE": site}
    os.environ.update({k: v for k, v in said.items() if v})
    try:
        return Workspace()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _all_runs() -> Path:  # Such as runs/ of the checkout
    "The folder of all runs of this workspace; FileNotFoundError before there is one."
    folder = _workspace().runs
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no runs in {folder} yet: `rvtutorial train` makes one"
        )
    return folder


def _values(
    pairs: Iterable[str],  # Such as ["lr=1e-3", "data=scenes"]
) -> dict[str, str]:  # By name; the folder of scenes is absolute
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


def _text_table(
    rows: list[dict],  # With the same keys
    form: str = ".3f",  # Of numbers that are not whole
    gap: str = "  ",  # Between two columns
) -> str:
    """Rows as aligned columns: numbers to the right, None as a hyphen.

    Own: pandas aligns texts to the right too, and takes half a second to be imported.
    """
    if not rows:
        return ""

    def word(value):
        if value is None or value != value:
            return "-"
        return format(value, form) if isinstance(value, float) else str(value)

    lines = [list(rows[0]), *([word(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [
        all(isinstance(r[k], (int, float, type(None))) for r in rows) for k in rows[0]
    ]
    return "\n".join(
        gap.join(w.rjust(n) if r else w.ljust(n)
                 for w, n, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )  # fmt: skip


def _run_folders(
    paths: Iterable[Path],  # Of runs, sweeps, or folders that hold some
) -> dict[str, Path]:  # Name -> run folder; the trials of a sweep in their order
    "The runs that some paths mean; FileNotFoundError where there is none."
    from rvtutorial.core.finding import named_runs

    return {name: run.path for name, run in named_runs(list(paths), True).items()}


def _holds_runs(path: Path) -> bool:
    from rvtutorial.core.finding import runs_below

    return path.is_dir() and bool(runs_below(path))


@cli.command("samples", short_help="Make sample scenes.")
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
    folder = Path(folder or _workspace(preset).data).expanduser().absolute()
    make_sample_scenes(
        folder, progress=sys.stderr.isatty(), **{**SAMPLES[preset], **changes}
    )
    counts = {
        s: len(list((folder / s).glob("*.tif"))) for s in ("train", "val", "test")
    }
    counted = ", ".join(f"{number} {split}" for split, number in counts.items())
    return _Answer(f"{folder}: {counted} scenes", {"folder": str(folder), **counts})


def _check_data(data: Path, pattern: dict, how: dict) -> tuple[list[dict], list[str]]:
    "One row a split, and all that is wrong with the scenes of a folder or a table."
    from rvtutorial.data.pairing import DataError, find_splits, leaks, outlines
    from rvtutorial.scenes import check_scenes

    try:
        splits = find_splits(data, **pattern)
        scenes = check_scenes(splits, **how)
    except DataError as error:
        return [], error.problems
    except (ValueError, OSError) as error:
        return [], [str(error)]
    rows = []
    for split, own in scenes.groupby("split", sort=False):
        sides = sorted({f"{row.width} x {row.height}" for row in own.itertuples()})
        row = {"split": split, "scenes": len(own), "pixels": ", ".join(sides[:3])}
        row |= {"bands": int(own.bands.iloc[0]), "dtype": own.dtype.iloc[0]}
        notes = [f"{row.id}: {row.notes}" for row in own.itertuples() if row.notes]
        rows.append(
            row | {"labelled": float(own.share.mean()), "notes": "; ".join(notes)}
        )
    shared = leaks(outlines(splits))
    return rows, [
        f"{a} {one} and {b} {two} share {part:.0%} of their ground: move one of them"
        for a, one, b, two, part in shared
    ]


@cli.command("check", short_help="Check a data set and a site.")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@_preset
@_site
@click.option("--image-pattern", help="Image files, with one {id}.")
@click.option("--label-pattern", help="Label files, with the same {id}.")
@click.option("--class-field", help="Attribute of vector labels that holds the class.")
@click.option("--classes", help="Names, such as building,background.")
@click.option("--label-values", help="Raster labels: 255:building,0:background.")
@click.option("--layer", help="Layer of vector labels.")
@click.option(
    "--zeros",
    type=click.Choice(["empty", "data"]),
    help="Patches of 0 in all bands: no data (empty), or data.",
)
@click.option(
    "--only", type=click.Choice(["data", "site"]), help="Leave out the other."
)
def _check_command(
    data, preset, site, image_pattern, label_pattern, class_field, classes,
    label_values, layer, zeros, only,
):  # fmt: skip
    "Check a data set (a folder or a table of scenes) and what the jobs of a site need."
    from rvtutorial.hpc.sites import Site, check_site

    pattern = {"image_pattern": image_pattern, "label_pattern": label_pattern}
    pattern = {name: text for name, text in pattern.items() if text}
    how = {"class_field": class_field, "classes": classes and classes.split(",")}
    how |= {"label_values": label_values, "layer": layer, "zeros": zeros}
    how = {name: given for name, given in how.items() if given}
    doc, lines = {"ok": True, "problems": []}, []
    if only != "data":
        doc["site"] = check_site(Site.read(site)).to_dict("records")
        wrong = [row for row in doc["site"] if not row["ok"]]
        doc["problems"] += [_site_problem(site, row) for row in wrong]
        lines += [
            f"site {site}: {len(doc['site']) - len(wrong)} of {len(doc['site'])} fine"
        ]
    if only != "site":
        folder = data or _workspace(preset, site).data
        doc["data"], problems = _check_data(folder, pattern, how)
        if data is None and not folder.exists():
            problems = [
                f"there are no scenes in {folder}: `rvtutorial samples` makes some"
            ]
        doc["problems"] += problems
        lines += [f"data {folder}:", _text_table(doc["data"])] if doc["data"] else []
    doc["ok"] = not doc["problems"]
    lines += [f"wrong: {problem}" for problem in doc["problems"]] or [
        "nothing is wrong"
    ]
    return _Answer("\n".join(lines), doc, FINE if doc["ok"] else FAILED)


def _site_problem(site: str, row: dict) -> str:
    remedy = f": {row['remedy']}" if row["remedy"] else ""
    return f"site {site}, {row['what']}: {row['found']}{remedy}"


def _code_of(
    states: Iterable[str],  # Such as "succeeded" and "queued"
) -> int:  # 0 all fine; 1 something failed; 75 something is still to come
    "What a script should make of the states of some runs."
    from rvtutorial.hpc.scheduler import FINE as WELL

    rest = set(states) - set(WELL)
    later = {
        "queued",
        "running",
        "new",
        "interrupted",
        "unfinished",
        "lost",
        "node lost",
    }
    return (AGAIN if rest <= later else FAILED) if rest else FINE


def _state_rows(
    runs: dict[str, Path],  # Name -> run folder, which need not be there
) -> list[dict]:  # run, state, epochs, of, F1 (validation scenes), why, folder
    "How some runs are, one row each."
    from rvtutorial.hpc.job import Job
    from rvtutorial.core.records import Unreadable
    from rvtutorial.runs import Run

    rows = []
    for name, detail in zip(runs, Job(runs.values()).details(), strict=True):
        run, state = Run(detail["folder"]), detail["state"]
        scores, why = {}, detail["why"] or ""
        try:
            state = run.state if state == "new" and not run.manifest else state
            scores = run.results.get("validation") or {}
        except Unreadable as error:
            why = why or str(error)
            state = "unreadable"
        state = (state or "unfinished") if run.path.is_dir() else "new"
        of = detail["epochs"]
        row = {"run": name, "state": state, "epochs": detail["done"], "of": of}
        row["F1"] = scores.get("f1")
        rows.append(row | {"why": why, "folder": str(run.path)})
    return rows


def _wait_for(waiting, states, timeout: float | None = None) -> int:
    "Wait for jobs with `waiting`, then make an exit code of `states()`."
    from rvtutorial.hpc.job import JobFailed

    note = "stopped looking; the jobs go on: `rvtutorial status` shows them"
    click.get_current_context().meta["stopped"] = note
    try:
        waiting(timeout=timeout)
    except (JobFailed, TimeoutError) as error:
        click.echo(str(error), err=True)
    return _code_of(states())


@cli.command("train", short_help="Train, predict and evaluate one run as a job.")
@click.argument("folder", metavar="RUN_FOLDER")
@click.argument(
    "params", nargs=-1, metavar="[NAME=VALUE]...", shell_complete=_parameter_names
)
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
    from rvtutorial.hpc.job import Job, check_params, job_notebook, parameters
    from rvtutorial.slurm import submit

    book, asked = job_notebook(notebook), _values(params)
    name, pair, _ = folder.partition("=")
    if pair and name in parameters(book) and not Path(folder).exists():
        raise click.UsageError(
            f"RUN_FOLDER comes before {folder}; ./{folder} if it is called so"
        )
    try:
        check_params(book, asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    behind = [Job(run) for run in after]
    job = submit(folder, asked, site=site, notebook=notebook, after=behind or None)
    code = FINE
    if wait or timeout is not None:
        code = _wait_for(job.wait, lambda: job.states().values(), timeout)
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


@cli.command("predict", short_help="Map images with a trained model.")
@click.argument("model", metavar="RUN_OR_BUNDLE", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("-o", "--out", required=True, type=_folder, help="Folder of the maps.")
@click.option("--scores", type=click.Choice(["uint8", "float16", "float32"]),
              help="Also write the scores of the classes.")  # fmt: skip
@click.option(
    "--polygons/--no-polygons", default=True, help="Also write polygons.gpkg."
)
@click.option("--chip-sz", type=int, help="Pixels along a side of a chip.")
@click.option("--stride", type=int, help="Pixels from one chip to the next.")
@click.option("--crop-sz", type=int, help="Pixels discarded along each edge of a chip.")
@click.option("--blend", type=click.Choice(["cosine", "mean", "votes"]), default="cosine",
              show_default=True, help="How overlapping chips are joined.")  # fmt: skip
@click.option("--bands", help="Such as 3,2,1, counted from 1.")
@click.option("--zeros", type=click.Choice(["empty", "data"]),
              help="Patches that are 0 in all bands; as the run by default.")  # fmt: skip
@click.option("--batch-sz", type=int, help="Chips that are predicted together.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]),
              default="auto", show_default=True, help="Numbers to compute with.")  # fmt: skip
@click.option("--trust", is_flag=True, help="Run code that the model carries.")
def _predict_command(model, images, out, bands, **how):
    """Map IMAGES (files, folders, globs, or URIs) with a trained model.

    A bundle may carry code, such as the definition of its network. Unless it is one of
    this package's own, it is refused without --trust: it could do whatever you can do.

    Each map gets a folder in OUT; one that is there already is made anew.
    """
    if not model.exists():
        raise FileNotFoundError(f"there is no run folder or bundle {model}")
    try:
        numbers = [int(band) - 1 for band in bands.split(",")] if bands else None
        if numbers and min(numbers) < 0:
            raise ValueError
    except ValueError:
        raise click.UsageError(
            f"bands are like 3,2,1, counted from 1: {bands}"
        ) from None
    stopped = "stopped; the same command begins the unfinished map again"
    click.get_current_context().meta["stopped"] = stopped
    from rvtutorial.engine.prediction import find_images

    find_images(list(images), out)  # before torch is imported, which takes a while
    from rvtutorial import engine

    maps = engine.predict(model, list(images), out, bands=numbers, **how)
    maps["folder"] = [os.path.abspath(folder) for folder in maps["folder"]]
    rows = [{"map": name, **row} for name, row in maps.to_dict("index").items()]
    text = "\n".join(f"{row['folder']}  of {row['image']}" for row in rows)
    return _Answer(text, rows)


def _plan_new(folder: Path, file: Path, base: dict) -> _Answer:
    "The trials of a sweep that is not started, and what its runs need of the disk."
    from rvtutorial.core.finding import is_sweep
    from rvtutorial.sweeps.sweepfile import expand, new_trials, read_record
    from rvtutorial.sweeps.trials import checked_trials, room_for

    plan, asked = expand(file, base)
    known = read_record(folder)[1] if is_sweep(folder) else []
    new_trials(plan.fixed, asked, [])
    trials = checked_trials(folder, plan, asked, known)
    return _plan_answer(folder, trials, room_for(folder, plan, trials))


def _plan_answer(folder: Path, trials: list, room) -> _Answer:
    rows = [{"trial": t.name, "values": t.parameters, "there": t.path(folder).is_dir()}
            for t in trials]  # fmt: skip
    doc = {"folder": str(folder), "trials": rows, "dry_run": True}
    disk = {"runs": room.runs, "bytes": round(room.needed), "free": room.free}
    shown = [
        {"trial": r["trial"], "": "there already" if r["there"] else "new"}
        for r in rows
    ]
    enough = room.needed <= room.free
    text = f"{_text_table(shown)}\n{room!r}\nnothing was started"
    return _Answer(text, doc | {"disk": disk}, FINE if enough else FAILED)


def _sweep_answer(sweep, code: int = FINE) -> _Answer:
    "How a sweep is."
    rows = _state_rows({trial.name: trial.path(sweep.folder) for trial in sweep.trials})
    doc = _sweep_doc(sweep.folder)
    text = doc.pop("text")
    return _Answer(f"{_text_table(_short(rows))}\n{text}", doc | {"trials": rows}, code)


def _existing(folder: Path, action: str | None, extend: str | None, site, dry: bool):
    "Do something with a sweep that is there; returns the sweep, or an Answer."
    from rvtutorial.sweep import Sweep
    from rvtutorial.sweeps.trials import room_for

    sweep = Sweep(folder)
    if dry and extend is None:
        return _plan_answer(
            sweep.folder, sweep.trials, room_for(folder, sweep.plan, sweep.trials)
        )
    if action == "stop":
        return sweep.stop()
    if action == "retry":
        return sweep.retry(site)
    if extend is None:
        return sweep.resume(site)
    more = int(extend) if extend.isdecimal() else extend
    if extend == "next":
        more = sweep.next_round()
        click.echo(more.reason, err=True)
    if dry:
        return _Answer("\n".join(map(str, more if extend == "next" else [more])), more)
    return sweep.extend(more, site=site)


def _new_folder(file: Path, out: Path | None) -> Path:
    "The folder of a new sweep: as said, else runs/NAME of the file."
    if not file.is_file():
        raise click.UsageError(f"{file} is neither a sweep file nor a sweep folder")
    return Path(
        os.path.abspath(out.expanduser() if out else _workspace().runs / file.stem)
    )


@cli.command("sweep", short_help="Run the trials of a sweep file.")
@click.argument(
    "plan", metavar="FILE.yaml|SWEEP_FOLDER", type=click.Path(path_type=Path)
)
@click.argument(
    "params", nargs=-1, metavar="[NAME=VALUE]...", shell_complete=_parameter_names
)
@click.option("-o", "--out", type=_folder, help="Sweep folder  [default: runs/FILE]")
@_site
@click.option("--dry-run", "dry", is_flag=True, help="Show trials and disk use only.")
@click.option(
    "--stop", "action", flag_value="stop", help="Stop it; going on is possible."
)
@click.option("--retry", "action", flag_value="retry", help="Only what has failed.")
@click.option("--extend", metavar="N|FILE|next",
              help="Add trials: a number, a sweep file, or a proposal.")  # fmt: skip
@_wait
@_timeout
def _sweep_command(plan, params, out, site, dry, action, extend, wait, timeout):
    """Run the trials of a sweep file, or go on with a sweep folder.

    NAME=VALUE pairs hold for all trials, such as preset=sample data=scenes.
    """
    ctx, there = click.get_current_context(), plan.is_dir()
    if there and (params or out):
        raise click.UsageError("a sweep that is there keeps its values and its folder")
    if not there and (action or extend):
        raise click.UsageError(f"{plan} is no sweep folder")
    if there:
        said = (
            ctx.get_parameter_source("site") == click.core.ParameterSource.COMMANDLINE
        )
        found = _existing(plan, action, extend, site if said else None, dry)
    else:
        folder = _new_folder(plan, out)
        if dry:
            return _plan_new(folder, plan, _values(params))
        from rvtutorial.sweep import run_sweep

        found = run_sweep(folder, plan, _values(params), site)
    if isinstance(found, _Answer):
        return found
    code = FINE
    if (wait or timeout is not None) and action != "stop":
        code = _wait_for(found.wait, lambda: found.job.states().values(), timeout)
    return _sweep_answer(found, code)


def _sweep_doc(folder: Path) -> dict:
    "How a sweep is: states, best so far, seconds; `text` says it in one line."
    from rvtutorial.sweep import Sweep

    doc = {"folder": os.path.abspath(folder)}
    try:
        now = Sweep(folder).progress()
    except (ValueError, OSError) as error:
        return doc | {
            "error": _one_line(error),
            "text": f"{folder.name}: {_one_line(error)}",
        }
    doc |= {"states": now.states, "best": now.best, "elapsed": now.elapsed}
    doc |= {"remaining": now.remaining, "gpu_minutes": now.gpu_minutes}
    return doc | {"text": f"{folder.name}: {now!r}"}


def _look(paths: list[Path]) -> tuple[str, dict]:
    "How some runs and sweeps are, as a text and as an object."
    rows = _state_rows(_run_folders(paths))
    marks = {mark.parent for path in paths for mark in Path(path).rglob("trials.csv")}
    sweeps = [_sweep_doc(folder) for folder in sorted(marks)]
    text = "\n".join([_text_table(_short(rows)), *(sweep["text"] for sweep in sweeps)])
    return text, {"runs": rows, "sweeps": sweeps}


def _watch(paths: list[Path], every: float) -> None:
    "Draw the states of some runs again and again until nothing is at work."
    from rvtutorial.hpc.scheduler import LIVE

    said, live = None, sys.stderr.isatty()
    while True:
        text, doc = _look(paths)
        if text != said:
            click.echo((_up_again(said) if live and said else "") + text, err=True)
            said = text
        if not any(row["state"] in LIVE for row in doc["runs"]):
            click.echo(_up_again(said) if live else "", err=True, nl=False)
            return
        time.sleep(every)


def _up_again(text: str) -> str:
    "What takes the last frame off a screen."
    return f"\x1b[{text.count(chr(10)) + 1}A\x1b[J"


@cli.command("status", short_help="Say how runs and sweeps are.")
@_paths
@click.option(
    "--watch", "live", is_flag=True, help="Until nothing is at work any more."
)
@click.option("--every", type=click.FloatRange(0.1), default=2.0, show_default=True,
              metavar="SECONDS", help="Between two looks of --watch.")  # fmt: skip
@click.option("--exit-code", is_flag=True,
              help="0 all succeeded, 1 some failed, 75 some still to come.")  # fmt: skip
def _status_command(paths, live, every, exit_code):
    "Say how runs and sweeps are; without PATHS, all of this workspace."
    paths = paths or [_all_runs()]
    if live:
        note = "stopped looking; the jobs go on"
        click.get_current_context().meta["stopped"] = note
        _watch(paths, every)
    text, doc = _look(paths)
    code = _code_of(row["state"] for row in doc["runs"]) if exit_code else FINE
    return _Answer(text, doc, code)


def _finished(paths: Iterable[Path], split: str = "validation") -> dict:
    "Name -> run for all that have succeeded; says what is left out."
    from rvtutorial.runs import Run

    runs = {name: Run(path) for name, path in _run_folders(paths).items()}
    judged = {name: (run.path / f"eval/{split}_scenes/eval.json").is_file()
              for name, run in runs.items()}  # fmt: skip
    done = {n: run for n, run in runs.items() if judged[n] and run.state == "succeeded"}
    out = [f"{n} ({_left_out(run)})" for n, run in runs.items() if n not in done]
    if not done:
        raise ValueError(f"nothing to compare on {split} scenes: {', '.join(out)}")
    broken = {n: run for n, run in runs.items() if run.state == "unreadable"}
    done = {n: run for n, run in runs.items() if n in done or n in broken}
    out = [f"{n} ({_left_out(run)})" for n, run in runs.items() if n not in done]
    if out:
        click.echo(f"left out: {', '.join(out)}", err=True)
    return done


def _left_out(run) -> str:
    "Why a run has no place in a leaderboard."
    state = "not evaluated" if run.state == "succeeded" else run.state
    return f"unreadable: {run.trouble}" if run.trouble else state


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


def _markdown(rows: list[dict]) -> str:
    "Rows, each with a run, as a Markdown table."
    rows = [{**row, "run": row["run"].replace("|", "\\|")} for row in rows]
    lines = _text_table(rows, gap=" | ").splitlines()
    rule = " | ".join("---" for _ in rows[0])
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def _board_text(board, form: str) -> str:
    "A leaderboard in one of the forms of `compare`."
    if form == "csv":
        return board.to_csv().rstrip("\n")
    score = board.columns[0]
    shown = [score, "low", "high", "behind", "tied", "scenes", "pixel_iou"]
    shown += [
        f"pixel_{name}" for name in ("roc_auc", "average_precision", "brier", "ece")
    ]
    short = board[[c for c in dict.fromkeys(shown) if c in board] + [
        c for c in board if c.startswith("test_") and c != "test_scenes"]].copy()  # fmt: skip
    short["tied"] = ["-", *("yes" if tied else "no" for tied in board["tied"].iloc[1:])]
    if form == "latex":
        return short.to_latex(float_format="%.3f", escape=True).rstrip("\n")
    rows = [{"run": name, **row} for name, row in short.to_dict("index").items()]
    return _markdown(rows) if form == "markdown" else _text_table(rows)


@cli.command("compare", short_help="Order runs, and say which can be told apart.")
@_paths
@click.option("--metric", default="f1", show_default=True,
              help="f1, iou, precision, recall, specificity or accuracy; of runs that kept "
                   "scores roc_auc, average_precision, brier or ece.")  # fmt: skip
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation",
              show_default=True, help="Scenes that decide; looking at test is recorded.")  # fmt: skip
@click.option(
    "--report", "also", type=click.Choice(["test"]), help="Show this split too."
)
@click.option("--class", "--of", "class_name", metavar="NAME",
              help="The class that is scored.")  # fmt: skip
@click.option("--seeds", is_flag=True, help="Runs that differ in their seed are one.")
@click.option("--method", type=click.Choice(["jackknife", "bootstrap"]),
              default="jackknife", show_default=True, help="Of the intervals.")  # fmt: skip
@click.option("--data", type=_folder, help="Where labels are now, to count scores.")
@click.option("--truth", metavar="FOLDER",
              help="Labels of PATHS that are no runs, such as truth/{id}.geojson.")  # fmt: skip
@click.option("--classes", default="building,background", show_default=True,
              help="With --truth: names in the order of the class numbers.")  # fmt: skip
@click.option("--values", metavar="V=N,...",
              help="With --truth: value in its rasters = class number.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "csv", "markdown", "latex"]),
              default="table", show_default=True)  # fmt: skip
def _compare_command(
    paths, metric, seeds, form, split, also, truth, classes, values, **how
):
    """Order runs by a score of whole scenes, and say which can be told apart.

    With --truth a path may also be a folder of label rasters from any program, named
    ID.tif, or a pattern such as 'maps/{id}_labels.tif'.
    """
    from rvtutorial.metrics.leaderboard import group_seeds, leaderboard

    strange = [path for path in paths if truth and not _holds_runs(path)]
    own = [path for path in paths if path not in strange]
    runs = _finished(own or [_all_runs()], split) if own or not strange else {}
    groups = group_seeds(runs) if seeds else runs
    if strange:
        groups |= _maps(strange, truth, classes, values, split)
    board = leaderboard(groups, metric, split, report=also, **how)
    note = board.attrs.get("note")
    rows = [{"run": name, **row} for name, row in board.to_dict("index").items()]
    doc = {"metric": metric, "split": split, "runs": rows, "note": note}
    text = _board_text(board, form)
    if form == "table":
        said = [row["verdict"] for row in rows[1:]] + ([note] if note else [])
        text = "\n".join([text, "", *said]).rstrip()
    return _Answer(text, doc)


@cli.command("report", short_help="Write one HTML file about runs or a sweep.")
@_paths
@click.option("-o", "--out", default="report.html", show_default=True,
              type=click.Path(path_type=Path, dir_okay=False), help="The file.")  # fmt: skip
@click.option("--title", help="What stands on top.")
@click.option("--split", default="validation", show_default=True,
              type=click.Choice(["validation", "test"]), help="Which scenes.")  # fmt: skip
@click.option("--scenes", type=click.IntRange(1), help="Maps of so many; else three.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False),
              help="Where images and labels are now, if they were moved.")  # fmt: skip
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


@cli.command("clean", short_help="Free disk by rules that are shown first.")
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

    from rvtutorial import housekeeping as keep

    chosen = list(rules or keep.chosen_rules()) + ["scores"] * scores
    plan = keep.look(paths or [_all_runs()], list(dict.fromkeys(chosen)))
    found = keep.clean(plan) if yes else plan
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


@cli.command("completion", short_help="Print what makes the Tab key work.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def _completion_command(shell):
    "Print what completes commands with the Tab key, for a start-up file of SHELL."
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)(cli, {}, "rvtutorial", "_RVTUTORIAL_COMPLETE")
    text = made.source()
    return _Answer(text.rstrip("\n"), {"shell": shell, "script": text})


if __name__ == "__main__":
    main()
