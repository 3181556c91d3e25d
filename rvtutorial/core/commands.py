"""Run the commands of Slurm in a clean environment, and read what they print as text."""

import os
import re
import subprocess


def clean_env() -> dict:
    "This environment without what an outer Slurm job or this notebook's kernel put there."
    drop = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SACCT", "SCONTROL_", "SCANCEL_")
    drop += ("SPRIO_", "JPY_", "MPLBACKEND", "PMI")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    conf = os.environ.get("SLURM_CONF")
    return kept | ({"SLURM_CONF": conf} if conf else {})


_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def slurm_says(
    args: list[str],  # A command of Slurm's
    seconds: float,  # Longest time
) -> subprocess.CompletedProcess:
    """Run a command; what it prints is text, whatever bytes and colours a site adds.

    Raises OSError where there is no such command, TimeoutExpired where it takes too long.
    """
    how = dict(env=clean_env(), capture_output=True, text=True, timeout=seconds)
    done = subprocess.run(args, **how, encoding="utf-8", errors="replace")
    done.stdout, done.stderr = (_COLOURS.sub("", t) for t in (done.stdout, done.stderr))
    return done


def answer(
    args: list[str],  # A command of Slurm's
    cluster: str = "",  # The one it speaks of; empty: the one we are on
) -> str | None:
    "What a Slurm command prints, or None when it is missing, fails or does not answer."
    args = [args[0], *(["-M", cluster] if cluster else []), *args[1:]]
    try:
        done = slurm_says(args, 30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if "Invalid job id" in done.stderr:  # an answer too: squeue has forgotten it
        return ""
    return done.stdout if done.returncode == 0 else None
