#!/bin/bash
# Version 2 of the model: every value that Part 8 tunes is an option.
set -u

usage() {
    cat <<'TEXT'
usage: run_model2.sh [options]

Train, predict and evaluate version 2 of the model with plain Raster Vision.

  -c PIXELS  chip size (default: 220)
  -s PIXELS  stride, the distance between chips when predicting (default: 215)
  -m NUMBER  random chips per scene and epoch (default: 5)
  -e NUMBER  epochs (default: 8)
  -b NUMBER  batch size, in chips (default: 24)
  -l RATE    learning rate (default: 1e-4)
  -o OUTPUT  folder for this run; each run needs one of its own (default: output)
  -S SITE    site file: a name or a path (default: $RVTUTORIAL_SITE, else local)
  -n         show what would run, and run nothing
  -h         show this text

The scenes lie where the site file or $RVTUTORIAL_DATA says. Start this with bash,
also on a cluster: it checks all values and then calls sbatch itself.
TEXT
}

me=run_model2.sh
here=${BASH_SOURCE[0]} inside_job=0
if [[ $here == */slurm_script ]]; then # sbatch runs a copy; Slurm knows the original
    here=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
    inside_job=1
fi
root=$(cd "$(dirname "$here")/.." && pwd) || exit 1
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

site=${RVTUTORIAL_SITE:-local} dry_run=0 output=output values=()
while getopts ':hnc:s:m:e:b:l:o:S:' option; do
    case $option in
    c) values+=(chip_sz "$OPTARG") ;;
    s) values+=(stride_length "$OPTARG") ;;
    m) values+=(max_windows "$OPTARG") ;;
    e) values+=(epochs "$OPTARG") ;;
    b) values+=(batch_sz "$OPTARG") ;;
    l) values+=(lr "$OPTARG") ;;
    o) output=$OPTARG ;;
    S) site=$OPTARG ;;
    n) dry_run=1 ;;
    h) usage && exit 0 ;;
    :) usage >&2 && die "option -$OPTARG needs a value" ;;
    *) usage >&2 && die "there is no option -$OPTARG" ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 0 ] || { usage >&2 && die "no plain words here, only options: $*"; }

start "${RVTUTORIAL_PRESET:-version2}" "${values[@]}"
