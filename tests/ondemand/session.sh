#!/bin/bash
# shellcheck disable=SC1091,SC2329
# A stand-in for the script that the dashboard submits around an app's three files:
#     session.sh FOLDER
# with the helpers, the order and the clean-up that a session finds there.
cd "$1" || exit 1
export host port password
host=127.0.0.1

port_used() { python3 - "${1%:*}" "${1#*:}" <<'P'
import socket, sys
s = socket.socket(); s.settimeout(2); sys.exit(s.connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)
P
}
find_port() {
  local port
  while port=$(shuf -i 20000-60000 -n 1) && port_used "$1:$port"; do :; done
  echo "$port"
}
create_passwd() { tr -cd '[:alnum:]' </dev/urandom 2>/dev/null | head -c"$1"; }
clean_up() {
  [ ! -e clean.sh ] || . ./clean.sh
  [ -z "${SCRIPT_PID:-}" ] || pkill -P "$SCRIPT_PID"
  pkill -P $$
  exit "${1:-0}"
}

. ./before.sh
./script.sh &
SCRIPT_PID=$!
. ./after.sh
(umask 077; printf 'host: %s\nport: %s\npassword: %s\n' "$host" "$port" "$password" >connection.yml)
wait "$SCRIPT_PID" || clean_up 1
clean_up
