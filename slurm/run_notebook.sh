#!/bin/bash
# Run a job notebook by papermill where a site file says: on a node of a cluster, or
# on this machine. A thin skin over `rvtutorial train`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: run_notebook.sh [-s SITE] [-n NOTEBOOK] [-p PYTHON] [-w] RUN_FOLDER [NAME=VALUE ...]

  -s SITE      name or path of a site file (default: $RVTUTORIAL_SITE, else local)
  -n NOTEBOOK  name or path of a job notebook (default: train_rastervision)
  -p PYTHON    the Python that has rvtutorial (default: python)
  -w           wait until it is over; exit 1 if it failed
  -h           this text

The run folder is made if need be. NAME=VALUE sets a parameter of the notebook:
  run_notebook.sh -s atlas -w runs/first lr=1e-3 epochs=8
TEXT
}

refuse() {
  echo "run_notebook.sh: $1" >&2
  usage >&2
  exit 2
}

site=${RVTUTORIAL_SITE:-local} notebook=train_rastervision python=python wait=()
while getopts ':s:n:p:wh' option; do
  case $option in
    s) site=$OPTARG ;;
    n) notebook=$OPTARG ;;
    p) python=$OPTARG ;;
    w) wait=(--wait) ;;
    h) usage; exit 0 ;;
    :) refuse "option -$OPTARG needs a value" ;;
    *) refuse "unknown option -$OPTARG" ;;
  esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || refuse "no run folder"
exec "$python" -m rvtutorial.cli train --site "$site" --notebook "$notebook" \
  ${wait[@]+"${wait[@]}"} -- "$@"
