# shellcheck shell=bash
# The container engine: the one that answers, or Debian's, started by us.

engine=$cache/engine

engine_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

our_engine_pid() { # prints the pid of the dockerd that we started, if it lives
  local pid
  pid=$(cat "$engine/pid" 2>/dev/null) || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]] && echo "$pid"
}

need_engine() {
  if command -v docker >/dev/null && engine_answers; then return; fi
  if [[ $(id -u) != 0 || $(uname -s) != Linux ]]; then
    fail "no container engine answers" "start Docker (Docker Desktop, or \`sudo systemctl start docker\`) and see that \`docker version\` works as you"
  fi
  need dockerd docker.io
  need docker docker.io
  need jq jq
  need ip iproute2
  if [[ -d /run/systemd/system ]]; then
    step "start docker by systemd" "systemctl status docker" systemctl start docker
  else
    step "start dockerd" "see the log and $engine/dockerd.log" start_engine
  fi
}

start_engine() {
  if [[ -n $(our_engine_pid) ]]; then
    echo "waiting for the dockerd that we started"
  else
    rm -f "$engine/pid"
    install -m 755 devenv/cluster/node/runc-within-bounds "$engine/runc-within-bounds"
    jq -n --arg data "$engine/data" --arg runc "$engine/runc-within-bounds" '{
      "data-root": $data, "exec-opts": ["native.cgroupdriver=cgroupfs"],
      "default-runtime": "within-bounds", runtimes: {"within-bounds": {path: $runc}},
      "log-opts": {"max-size": "20m"}}' >"$engine/daemon.json"
    # 9>&- and the like: an engine that outlives us must not hold our locks.
    (close_locks; setsid nohup dockerd --config-file "$engine/daemon.json" --pidfile "$engine/pid" \
      >>"$engine/dockerd.log" 2>&1 </dev/null &)
    touch "$engine/started-by-us"
  fi
  local _
  for _ in $(seq 60); do
    if engine_answers; then
      forget_old_cluster
      keep_cluster_traffic_inside
      return
    fi
    sleep 1
  done
  tail -n 20 "$engine/dockerd.log"
  return 1
}

close_locks() {
  local fd
  for fd in /proc/self/fd/*; do
    [[ ! $(readlink "$fd") == "$cache"/locks/* ]] || eval "exec ${fd##*/}>&-"
  done
}

# Nodes that died with their engine come up half alive, and another run's leftovers with them: a new cluster takes no
# longer than their recovery.
forget_old_cluster() {
  docker ps -aq --filter label=io.x-k8s.kind.cluster=larder | xargs -r docker rm -fv
}

# A Service address that nobody has taken yet must not be asked of the outside.
keep_cluster_traffic_inside() {
  ip route replace unreachable 10.96.0.0/16
  ip route replace unreachable 10.244.0.0/16
}

stop_engine() {
  [[ -f $engine/started-by-us ]] || return 0
  local pid
  if pid=$(our_engine_pid); then
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
  fi
  ip route del unreachable 10.96.0.0/16 2>/dev/null || true
  ip route del unreachable 10.244.0.0/16 2>/dev/null || true
  ip link del docker0 2>/dev/null || true
  rm -f "$engine/pid" "$engine/started-by-us"
}

# Whether images can be pulled here; asked once in a run.
registry_answers() {
  if [[ -z ${registry:-} ]]; then
    registry=no
    if timeout 10 docker pull -q hello-world >/dev/null 2>&1; then registry=yes; fi
    say "image registry in reach: $registry"
  fi
  [[ $registry == yes ]]
}
