#!/bin/bash
# run.sh FOLDER: runs the demo with the binaries in FOLDER. `make run` starts this script.
#
# The script ends in the supervisor (exec), so that Ctrl-C and SIGTERM reach the supervisor directly. A background function
# waits until every tenant has settled and prints commands to try.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:?usage: run.sh FOLDER}
config=tests/demo/supervisor.toml
supervisor=$$

# The demo writes only to target/demo, which is a link where the checkout cannot hold the data, see below.
[ -e target/demo ] || { rm -f target/demo; mkdir -p target/demo; }
demo=$(cd target/demo && pwd -P)
if [ "$(id -u)" = 0 ]; then
  # PostgreSQL refuses to run as root and must reach its folder as another user. Below a home that this user cannot enter,
  # target/demo becomes a link to a folder that the user can reach.
  user=$(id -un postgres 2>/dev/null || echo 65534)
  reachable() { setpriv --reuid="$user" --regid=65534 --clear-groups sh -c 'cd "$1"' sh "$1" 2>/dev/null; }
  if ! reachable "$demo"; then
    demo=$(mktemp -d /var/tmp/brokkr-demo.XXXXXX)
    chmod 755 "$demo"
    rm -rf target/demo
    ln -s "$demo" target/demo
  fi
  if [ -L target/demo ]; then
    echo "state and runtime are in $demo: user $user cannot reach $PWD"
    config=$demo/supervisor.toml
    sed -e "s#\"../../target/demo/#\"$demo/#" -e "s#\"../../tenants.d\"#\"$PWD/tenants.d\"#" tests/demo/supervisor.toml >"$config"
  fi
fi
state=$demo/state

show() {
  local name listen file first=
  for _ in $(seq 240); do
    kill -0 "$supervisor" 2>/dev/null || return 0
    answer=$("$bin/brokkr-supervisor" status --format json --config "$config" 2>/dev/null) || answer=
    # Stop waiting when `status` shows the tenants and no tenant is waiting or starting.
    if [ -n "$answer" ] && grep -q '"state"' <<<"$answer" && ! grep -Eq '"state": *"(waiting|starting)"' <<<"$answer"; then
      break
    fi
    sleep 0.25
  done
  echo
  "$bin/brokkr-supervisor" status --config "$config" || return 0
  echo
  for file in tenants.d/*.toml; do
    name=$(basename "$file" .toml)
    listen=$(sed -n 's/^ *listen *= *"\([^"]*\)".*/\1/p' "$file" | head -1)
    if [ -f "$state/tenants/$name/admin.pak" ]; then
      echo "tenant $name: http://$listen, admin PAK in $state/tenants/$name/admin.pak"
      [ -n "$first" ] || first="$name $listen"
    fi
  done
  [ -n "$first" ] || return 0
  name=${first% *} listen=${first#* }
  cat <<TRY

try, in another terminal:
  curl -s -H "Authorization: Bearer \$(cat $state/tenants/$name/admin.pak)" http://$listen/api/v1/agents
  $bin/brokkr-supervisor status --config $config
  $bin/brokkr-supervisor check --config $config
add a tenant by dropping a file into tenants.d; end with Ctrl-C

TRY
}

show &
exec "$bin/brokkr-supervisor" run --config "$config"
