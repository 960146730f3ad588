# shellcheck shell=bash
# `conformance`: the public HTTP cache test suite against the bare sidecar, against one under the policy conformance/policy.yaml, and
# against the caches that they are compared with.
# The configurations of those are in conformance/peers.

conformance_peers=(varnish nginx haproxy squid trafficserver)

conformance() { # [--peers | CACHE]: both sidecars; they, all others and the table of docs/conformance.md; or one cache
  local caches=(larder larder_policy) name files=() failed=
  case ${1:-} in
    --peers) caches+=("${conformance_peers[@]}") ;;
    "") ;;
    *)
      [[ " larder larder_policy ${conformance_peers[*]} " == *" $1 "* ]] || { usage >&2; exit 2; }
      caches=("$1")
      ;;
  esac
  need node nodejs
  need_suite
  # Everything is there before the first is measured.
  for name in "${caches[@]}"; do "need_$name"; done
  mkdir -p "$cache/conformance"
  for name in "${caches[@]}"; do
    measure_conformance "$name"
    files+=("$cache/conformance/$name.json")
    # What others fail is no failure of ours.
    node conformance/report.mjs "$suite" summary "$cache/conformance/$name.json" || [[ $name != larder* ]] || failed=yes
  done
  if [[ ${1:-} == --peers ]]; then
    node conformance/report.mjs "$suite" table docs/conformance.md "${files[@]}"
    say "docs/conformance.md has the table"
  fi
  [[ -z $failed ]] || fail "required tests fail" "they are listed above, and all results are in $cache/conformance"
}

need_suite() { # sets $suite
  suite=$cache/conformance-$(hash_of conformance/package-lock.json)
  [[ ! -d $suite ]] || return 0
  need npm npm
  made_once "$suite" "npm ci: http-cache-tests" "see the log; is the npm registry in reach?" install_suite
  keep_newest 2 "$cache"/conformance-*
}

install_suite() { # FOLDER
  mkdir "$1"
  cp conformance/package.json conformance/package-lock.json "$1"
  cd "$1"
  npm ci --no-audit --no-fund --ignore-scripts
}

need_larder() {
  need_rust
  build_sidecar
}
need_larder_policy() { need_larder; }
need_varnish() { need varnishd varnish; }
need_nginx() { need nginx nginx; }
need_haproxy() { need haproxy haproxy; }
need_squid() { need squid squid; }
need_trafficserver() { need traffic_server trafficserver; }

version_of() { # CACHE
  case $1 in
    larder | larder_policy) "$CARGO_TARGET_DIR/release/larder-sidecar" --version ;;
    varnish) varnishd -V ;;
    nginx) nginx -v ;;
    haproxy) haproxy -v ;;
    squid) squid -v ;;
    trafficserver) traffic_server -V ;;
  esac 2>&1 | first_version
}

title_of() { # CACHE
  case $1 in
    larder) echo Larder ;;
    larder_policy) echo "Larder, one route" ;;
    varnish) echo Varnish ;;
    nginx) echo nginx ;;
    haproxy) echo HAProxy ;;
    squid) echo Squid ;;
    trafficserver) echo "Apache Traffic Server" ;;
  esac
}

measure_conformance() { # CACHE: leaves $cache/conformance/CACHE.json
  local name=$1 title log=$logs/conformance-$1.log port origin folder server pid
  title=$(title_of "$name")
  folder=$(mktemp -d /tmp/larder-conformance.XXXXXX) # the users of some caches may not enter a home folder of root's
  temporaries+=("$folder")
  chmod 755 "$folder"
  rm -f "$cache/conformance/$name.json"

  # The origin first: Squid looks for it when it starts.
  origin=$(free_port)
  node conformance/origin.mjs "$suite" "$origin" >"$logs/conformance-origin.log" 2>&1 &
  server=$!
  services+=("$server")
  wait_for_port "$origin" "the suite's server" "$logs/conformance-origin.log"
  port=$(free_port)
  "start_$name" "$port" "$origin" "$folder" >"$log" 2>&1
  pid=${services[-1]}
  wait_for_port "$port" "$title" "$log"

  step "http-cache-tests: $title" "see the log, $log and $logs/conformance-origin.log" \
    node conformance/run.mjs "$suite" "http://127.0.0.1:$port" "$title" "$(version_of "$name")" "$cache/conformance/$name.json"
  for pid in "$pid" "$server"; do
    kill "$pid" 2>/dev/null || fail "$title or the suite's server died during the tests" "see $log and $logs/conformance-origin.log"
    end_of_conformance_server "$pid"
    unset 'services[-1]'
  done
}

end_of_conformance_server() { # PID
  local _
  for _ in $(seq 100); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

peer_file() { # FILE FOLDER PORT ORIGIN: prints it with its places filled
  sed -e "s#@FOLDER@#$2#g" -e "s#@PORT@#$3#g" -e "s#@ORIGIN@#$4#g" "conformance/peers/$1"
}

# start_CACHE PORT ORIGIN FOLDER: the last of $services is the process.

start_larder() { # PORT ORIGIN FOLDER [ARGUMENT...]
  local admin
  while admin=$(free_port); do [[ $admin == "$1" ]] || break; done
  "$CARGO_TARGET_DIR/release/larder-sidecar" --listen "127.0.0.1:$1" --admin-listen "127.0.0.1:$admin" \
    --upstream "http://127.0.0.1:$2" --threads 1 "${@:4}" &
  services+=($!)
}

start_larder_policy() { start_larder "$@" --policy conformance/policy.yaml; }

start_varnish() {
  peer_file varnish.vcl "$3" "$1" "$2" >"$3/default.vcl"
  varnishd -F -j none -n "$3/varnish" -a "127.0.0.1:$1" -f "$3/default.vcl" -T none -s malloc,64M \
    -p default_ttl=0 -p default_grace=0 -p default_keep=3600 &
  services+=($!)
}

start_nginx() {
  peer_file nginx.conf "$3" "$1" "$2" >"$3/nginx.conf"
  nginx -p "$3" -e "$3/error.log" -c "$3/nginx.conf" &
  services+=($!)
}

start_haproxy() {
  peer_file haproxy.cfg "$3" "$1" "$2" >"$3/haproxy.cfg"
  haproxy -db -f "$3/haproxy.cfg" &
  services+=($!)
}

start_squid() {
  peer_file squid.conf "$3" "$1" "$2" >"$3/squid.conf"
  [[ $(id -u) != 0 ]] || chown proxy: "$3"
  squid -N -f "$3/squid.conf" &
  services+=($!)
}

start_trafficserver() {
  local file
  mkdir "$3"/{etc,data,state,run,log,storage}
  peer_file trafficserver/runroot.yaml "$3" "$1" "$2" >"$3/runroot.yaml"
  for file in records.config remap.config storage.config ip_allow.yaml; do
    peer_file "trafficserver/$file" "$3" "$1" "$2" >"$3/etc/$file"
  done
  [[ $(id -u) != 0 ]] || chown -R trafficserver: "$3"
  traffic_server --run-root="$3/runroot.yaml" &
  services+=($!)
}
