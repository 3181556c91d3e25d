"""The module names of version 0.1.0, under which jobs of that version are still queued.

They work for one release and say so on standard error (Raster Vision switches Python's
warnings off).
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

MOVED = {
    "batches": "engine.batches",
    "calibration": "metrics.calibration",
    "clusters": "hpc.scheduler",
    "comparisons": "metrics.intervals",
    "counting": "metrics.counting",
    "drawing": "figures.maps",
    "exercises": "course.exercises",
    "forks": "hpc.forks",
    "inputs": "engine.inputs",
    "jobs": "hpc.runner",
    "labels": "data.labels",
    "learner": "engine.learner",
    "mapfiles": "engine.mapfiles",
    "mapping": "engine.prediction",
    "ondemand": "hpc.ondemand",
    "pairs": "data.pairing",
    "plots": "figures.runs",
    "queues": "hpc.queue",
    "reading": "engine.reading",
    "report": "figures.report",
    "scoring": "engine.scoring",
    "search": "sweeps.space",
    "sites": "hpc.sites",
    "data.sources": "data.synthetic",
    "sources": "data.synthetic",
    "speed": "engine.speed",
    "sweepfile": "sweeps.sweepfile",
    "sweepplots": "figures.sweeps",
    "tracking": "sweeps.tracking",
    "trials": "sweeps.trials",
}


class OldNames(MetaPathFinder, Loader):
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
        run = f"runpy.run_module({new!r}, run_name='__main__', alter_sys=True)"
        return compile(f"import runpy; {run}", fullname, "exec")


sys.meta_path.insert(0, OldNames())
