# shellcheck shell=bash disable=SC2154
# Sourced when the session ends: let script.sh stop the server and empty its folders.
if [[ -n "${SCRIPT_PID:-}" ]] && kill "${SCRIPT_PID}" 2>/dev/null; then
  wait "${SCRIPT_PID}"
fi
