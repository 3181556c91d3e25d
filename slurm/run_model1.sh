#!/bin/bash
# Version 1 of the model: fixed values, one argument, the output folder.
set -u

usage() {
    cat <<'TEXT'
usage: run_model1.sh [-h] [-n] [-S SITE] [OUTPUT]

Train, predict and evaluate version 1 of the model (chips of 300 pixels, 5 per
scene, 3 epochs, batches of 2, learning rate 1e-4) with plain Raster Vision.

  OUTPUT   folder for this run; each run needs one of its own (default: output)
  -S SITE  site file: a name or a path (default: $RVTUTORIAL_SITE, else local)
  -n       show what would run, and run nothing
  -h       show this text

The scenes lie where the site file or $RVTUTORIAL_DATA says. Start this with bash,
also on a cluster: it checks all values and then calls sbatch itself.
TEXT
}

me=run_model1.sh
here=${BASH_SOURCE[0]} inside_job=0
if [[ $here == */slurm_script ]]; then # sbatch runs a copy; Slurm knows the original
    here=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
    inside_job=1
fi
root=$(cd "$(dirname "$here")/.." && pwd) || exit 1
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

site=${RVTUTORIAL_SITE:-local} dry_run=0
while getopts ':hnS:' option; do
    case $option in
    h) usage && exit 0 ;;
    n) dry_run=1 ;;
    S) site=$OPTARG ;;
    :) usage >&2 && die "option -$OPTARG needs a value" ;;
    *) usage >&2 && die "there is no option -$OPTARG" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -le 1 ] || { usage >&2 && die "one output folder, not $#: $*"; }
output=${1:-output}

start "${RVTUTORIAL_PRESET:-version1}"
