# shellcheck shell=bash disable=SC2034,SC2154
# What is true of this site alone; `python -m rvtutorial.hpc.ondemand app` writes this file
# from a site's own. By hand: load modules here, name the folder for temporary files, and
# say how Python is called in the image and without it. script.sh sets the variables.
parent="${TMPDIR:-/tmp}"
use_image() {
  python=(apptainer exec --no-eval --cleanenv --contain --workdir "$scratch"
    --home "$scratch/home" --pwd "$work" --bind "$work" --bind "$session" --nv
    "$image" python)
}
use_python() { python=(python3); }
