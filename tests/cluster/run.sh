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
command -v ruby >/dev/null || apt-get install -y -qq --no-install-recommends ruby >/dev/null

# 15 minutes on a quiet machine; setting up takes two to four more
timeout --kill-after=30 2400 "$python" -m pytest "$here" --durations=15 "$@" || exit

# the Open OnDemand app: its templates by Ruby, its sessions under this Slurm and in an
# image that borrows this Python
root=$(cd "$here/../.." && pwd)
eval "$("$here/standup.sh" env | sed 's/^/export /')"
base=$("$here/apptainer.sh" up | sed -n 's/^RVTUTORIAL_TEST_BASE=//p')
binds="$("$python" -c 'import sys; print(*{sys.prefix, sys.base_prefix} - {"/usr"})') $root"
[ -z "$base" ] || export RVTUTORIAL_TEST_IMAGE=$base RVTUTORIAL_TEST_BINDS=$binds \
    RVTUTORIAL_TEST_PYTHON=$python
timeout --kill-after=30 300 "$python" -m pytest "$root/tests/test_ondemand.py" --durations=5
