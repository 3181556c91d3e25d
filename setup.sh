#!/usr/bin/env bash
# Make the virtual environment that the Makefile uses: setup.sh FOLDER
# A missing system package is installed where we may (root and apt), else named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=${1:-.venv}
python=${PYTHON:-python3}

need() { # need PACKAGE... : install Debian packages, or say which are missing
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing system packages: $*"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
  else
    echo "error: this machine lacks $*; install it (on Debian: sudo apt-get install $*) and try again" >&2
    exit 1
  fi
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $("$python" --version 2>&1) was found; say which to use: make run PYTHON=python3.12" >&2
  exit 1
}

# Debian keeps venv and pip in packages of their own.
"$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv

if [ ! -x "$venv/bin/pip" ]; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
echo "Installing the packages of constraints.txt into $venv: about 6.5 GB the first time, a few minutes"
export PYTHONWARNINGS=ignore # what setuptools says of editable installs helps nobody here
log=$venv/install.log
"$venv/bin/python" -m pip install --quiet --upgrade pip
# Of pip's thousand lines, show the large downloads as they come; the log has all.
"$venv/bin/python" -m pip install --progress-bar off -c constraints.txt -e '.[dev]' 2>&1 |
  tee "$log" |
  awk '/Downloading .*[0-9][0-9]\.[0-9] MB/ { print "  " $2, $3, $4; fflush() }
       /^Installing collected/ { print "  unpacking"; fflush() }' || {
  tail -n 30 "$log" >&2
  echo "error: the packages could not be installed; all of pip's output is in $log" >&2
  exit 1
}
unset PYTHONWARNINGS

# The wheels expect a few shared libraries of the system.
check='import rasterio, torch, cv2, rastervision.pytorch_learner'
for _ in 1 2 3 4; do
  if message=$("$venv/bin/python" -c "$check" 2>&1); then
    touch "$venv/.ready"
    echo "Ready."
    exit 0
  fi
  case $message in
    *libexpat*) need libexpat1 ;;
    *libquadmath*) need libquadmath0 ;;
    *libgomp*) need libgomp1 ;;
    *libGL*) need libgl1 ;;
    *libglib* | *libgthread*) need libglib2.0-0 ;;
    *) break ;;
  esac
done
echo "$message" >&2
echo "error: the packages were installed and cannot be imported; see above" >&2
exit 1
