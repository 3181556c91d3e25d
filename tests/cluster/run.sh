#!/usr/bin/env bash
# What `make hpc-test` does: run.sh PYTHON [ARGUMENT OF PYTEST]...
# Set up a Slurm and an Apptainer, run the tests of this folder, and leave the machine
# as it was found: what ran before goes on running, what was set up is taken down.
# (The Debian packages stay installed.)
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$1
shift

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "hpc-test: skipped; it needs root and apt-get, to install Slurm and Apptainer"
    exit 0
fi

finish() {
    trap - EXIT INT TERM
    [ -n "$slurm_was" ] || "$here/standup.sh" down
    [ -n "$apptainer_was" ] || "$here/apptainer.sh" down
}
slurm_was=$("$here/standup.sh" env 2>/dev/null)
apptainer_was=$(ls -d "${RVTUTORIAL_APPTAINER:-/srv/rvtutorial-apptainer}" 2>/dev/null)
trap finish EXIT
trap 'exit 130' INT TERM

"$here/standup.sh" up || exit 1
"$here/apptainer.sh" up || [ $? = 3 ] || exit 1
# 25 minutes for all; setting up takes two to four of them
timeout --kill-after=30 1260 "$python" -m pytest "$here" --durations=15 "$@"
