"""The module names of version 0.1.0, under which jobs of that version are still queued.

They work for one release and say so on standard error (Raster Vision switches Python's
warnings off).
"""

import sys
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pkgutil import resolve_name

MOVED = {
    "batches": "engine.batches",
    "calibration": "metrics.calibration",
    "clusters": "hpc.scheduler",
    "comparisons": "metrics.intervals",
    "counting": "metrics.counting",
    "drawing": "figures.maps",
    "exercises": "course.exercises",
    "inputs": "engine.inputs",
    "jobs": "hpc.runner",
    "labels": "data.labels",
    "learner": "engine.learner",
    "mapfiles": "engine.mapfiles",
    "mapping": "engine.prediction",
    "ondemand": "hpc.ondemand",
    "pairs": "data.pairing",
    "plots": "figures.runs",
    "queues": "hpc.job",
    "reading": "engine.reading",
    "report": "figures.report",
    "scoring": "engine.scoring",
    "search": "sweeps.space",
    "sites": "hpc.sites",
    "sources": "data.synthetic",
    "speed": "engine.speed",
    "sweepfile": "sweeps.sweepfile",
    "sweepplots": "figures.sweeps",
    "sweeps.trials": "sweeps.folder",  # for some days after 0.1.0
    "tracking": "sweeps.folder",
    "trials": "sweeps.folder",
}


# names of Parts 1, 3, 5 and 6: plumbing that is private now, and what they only passed on
ATTRIBUTES = {
    "rvtutorial.config": {
        name: f"config._{name}" for name in ("build_run", "from_hub", "make_fillers")
    },
    "rvtutorial.container": {
        name: f"hpc.image.{name}"
        for name in "definition_file FREEZE DECISIVE in_container own_versions "
        "read_definition".split()
    }
    | {
        "check_binds": "hpc.image:Bind.all_of",
        "image_versions": "hpc.image._image_versions",
        "parse_bind": "hpc.image:Bind.of",
        "read_freeze": "hpc.image._read_freeze",
    },
    "rvtutorial.runs": {
        "atomic_path": "core.files.atomic_path",
        "headline": "core.record:Run.headline",
        "natural_key": "core.names.natural_key",
        "near_match": "core.names.near_match",
        "own_sites": "core.names.own_sites",
        "packaged": "core.names.packaged",
        "read_json": "core.records.read_json",
        "write_json": "core.records.write_json",
    },
    "rvtutorial.slurm": {
        "JOB_SH": "hpc.batch._JOB_SH",
        "accounts": "hpc.sites.accounts",
        "behind": "hpc.batch._after_part",
        "check_params": "hpc.job:JobNotebook.check",
        "check_site": "hpc.sites.check_site",
        "hand_over": "hpc.batch._hand_over",
        "in_parts": "hpc.batch._array_parts",
        "job_command": "hpc.batch._job_command",
        "job_notebook": "hpc.job:JobNotebook",
        "parameters": "hpc.job:JobNotebook.parameters",
        "prepare": "hpc.batch._write_submission",
        "refuse_missing": "hpc.batch._refuse_missing",
        "refuse_other_run": "hpc.job:JobNotebook.refuse_other_run",
        "refuse_pattern": "hpc.batch._refuse_pattern",
        "submission_folder": "hpc.batch._submission_folder",
    },
}


def _book(notebook):
    return resolve_name("rvtutorial.hpc.job:JobNotebook")(notebook)


_METHODS = {  # functions of before that are methods now
    "check_params": lambda notebook, params: _book(notebook).check(params),
    "job_notebook": lambda name: _book(name).path,
    "parameters": lambda notebook: _book(notebook).parameters,
    "refuse_other_run": lambda at, params, book: _book(book).refuse_other_run(
        at, params
    ),
}


def old_attributes(module: str):
    "A `__getattr__` for a module whose old names lie elsewhere; says so once for each."

    @cache
    def find(name: str):
        if name not in ATTRIBUTES[module]:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = f"rvtutorial.{ATTRIBUTES[module][name]}"
        said = new.replace(":", ".")
        print(f"{module}.{name} is now {said}; the old name goes soon", file=sys.stderr)
        return _METHODS.get(name) or resolve_name(new)

    return find


class _OldNames(MetaPathFinder, Loader):
    "Finds a module under its old name: it is the same module object."

    def find_spec(self, fullname, path=None, target=None):
        "The specification of an old name, None for any other name."
        package, _, old = fullname.partition(".")
        if package != "rvtutorial" or old not in MOVED:
            return None
        new = f"rvtutorial.{MOVED[old]}"
        print(f"{fullname} is now {new}; the old name goes soon", file=sys.stderr)
        return ModuleSpec(fullname, self)

    def create_module(self, spec):
        "The module under its new name."
        module = import_module(f"rvtutorial.{MOVED[spec.name.partition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        "Nothing to run: the module is complete. It keeps the specification it had."
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname):
        "What `python -m` runs: the module under its new name."
        new = f"rvtutorial.{MOVED[fullname.partition('.')[2]]}"
        if fullname == "rvtutorial.jobs" and sys.argv[1:2] == ["lessons"]:
            new = "rvtutorial.course.lessons"
            del sys.argv[1]
        if fullname == "rvtutorial.jobs" and sys.argv[1:2] == ["submit"]:
            new, sys.argv[1] = "rvtutorial.cli", "train"
        run = f"runpy.run_module({new!r}, run_name='__main__', alter_sys=True)"
        return compile(f"import runpy; {run}", fullname, "exec")


sys.meta_path.insert(0, _OldNames())
