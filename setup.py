"""The packages of the wheel: every wing that is found, and folders that travel under other names."""

from setuptools import find_packages, setup

# the lessons, the job notebooks, the sites, the Open OnDemand app, the image's definition
TRAVELS = {
    "rvtutorial._apptainer": "apptainer",
    "rvtutorial._jobs": "nbs/jobs",
    "rvtutorial._lessons": "nbs",
    "rvtutorial._ondemand": "slurm/ondemand",
    "rvtutorial._sites": "slurm/sites",
}

setup(
    packages=[*find_packages(include=["rvtutorial*"]), *TRAVELS],
    package_dir={"rvtutorial": "rvtutorial", **TRAVELS},
)
