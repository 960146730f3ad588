# shellcheck shell=bash
# `bench`: what Larder costs, beside others on the same machine.

run_bench() {
  case ${1:-} in
    hit) bench_hit "${@:2}" ;;
    paths) bench_paths "${@:2}" ;;
    instructions) bench_instructions "${@:2}" ;;
    l1) bench_l1 "${@:2}" ;;
    soak) bench_soak "${@:2}" ;;
    invalidation) bench_invalidation "${@:2}" ;;
    operator) bench_operator "${@:2}" ;;
    *) usage >&2; exit 2 ;;
  esac
}

bench_hit() { # what else `hit --help` has
  local started=$SECONDS scratch
  need_servers_and_load
  shown "hits" "the logs of the servers are gone with them: start the one that failed as bench/src/server does" \
    on_a_network_of_its_own "$CARGO_TARGET_DIR/release/hit" --scratch "$scratch" "$@"
  took "./dev bench hit" "$started"
}

bench_paths() { # what else `paths --help` has
  local started=$SECONDS scratch
  need redis-server redis-server
  need redis-benchmark redis-tools
  need h2load nghttp2-client
  need_envoy
  need_servers_and_load
  shown "paths" "the logs of the servers are gone with them: start the one that failed as bench/src/server does" \
    on_a_network_of_its_own "$CARGO_TARGET_DIR/release/paths" --scratch "$scratch" --envoy "$envoy" "$@"
  took "./dev bench paths" "$started"
}

counting_remedy="see which functions rose; if they are meant to, \`./dev bench instructions --update\`, and say why in the commit"

bench_instructions() { # what else `instructions --help` has
  local started=$SECONDS
  counts_here || return 0
  need_counting
  shown "instructions" "$counting_remedy" "${counting[@]}" "$@"
  took "./dev bench instructions" "$started"
}

counts_here() {
  [[ $(uname -m) == x86_64 ]] || { say "instructions: those on record are of x86-64, and this is $(uname -m)"; false; }
}

need_counting() { # sets counting, the command
  local scratch
  need valgrind "valgrind libc6-dbg"
  need redis-server redis-server
  need taskset util-linux
  need setpriv util-linux
  build_programs instructions
  build_sidecar
  temporary_folder scratch
  counting=("$CARGO_TARGET_DIR/debug/instructions" --larder "$CARGO_TARGET_DIR/release/larder-sidecar" --scratch "$scratch")
}

need_servers_and_load() { # sets scratch
  (($(nproc) >= 2)) || fail "there is one core here" "run it where the servers and the load have a core each"
  PATH=$PATH:/usr/sbin:/sbin # where HAProxy and nginx are, which is not in everybody's PATH
  need taskset util-linux
  need setpriv util-linux
  need haproxy haproxy
  need nginx nginx-light
  [[ $(id -u) != 0 ]] || need ip iproute2
  need_rust
  build_sidecar
  step "cargo build --release -p larder-bench" "see the log" cargo build --release -p larder-bench
  scratch=$(mktemp -d /dev/shm/larder-bench.XXXXXX)
  temporaries+=("$scratch")
}

bench_l1() { # what else `l1 --help` has
  local started=$SECONDS
  need_rust
  step "cargo build --release" "see the log" cargo build --release -p larder-bench --bin l1
  shown "caches in memory" "run $CARGO_TARGET_DIR/release/l1 by hand" "$CARGO_TARGET_DIR/release/l1" "$@"
  took "./dev bench l1" "$started"
}

bench_soak() { # what else `soak --help` has
  local started=$SECONDS
  need taskset util-linux
  need setpriv util-linux
  need_rust
  build_sidecar
  step "cargo build --release" "see the log" cargo build --release -p larder-bench --bin soak
  shown "memory under churn" "run $CARGO_TARGET_DIR/release/soak by hand" "$CARGO_TARGET_DIR/release/soak" "$@"
  took "./dev bench soak" "$started"
}

bench_invalidation() { # what else `invalidation --help` has
  local started=$SECONDS scratch
  need redis-server redis-server
  need taskset util-linux
  need setpriv util-linux
  need_rust
  build_sidecar
  step "cargo build --release" "see the log" cargo build --release -p larder-bench --bin invalidation
  temporary_folder scratch
  shown "purges" "the logs of the servers are gone with them: run $CARGO_TARGET_DIR/release/invalidation by hand" \
    on_a_network_of_its_own "$CARGO_TARGET_DIR/release/invalidation" --scratch "$scratch" "$@"
  took "./dev bench invalidation" "$started"
}

bench_operator() { # what else `operator --help` has
  local started=$SECONDS
  need_rust
  need_kubectl
  kubectl get --raw /readyz >/dev/null 2>&1 || fail "there is no cluster at $KUBECONFIG" "./dev up --no-example"
  step "cargo build --release" "see the log" cargo build --release -p larder-bench --bin operator
  shown "the operator at scale" "kubectl logs --namespace larder-system deployment/larder-operator" \
    "$CARGO_TARGET_DIR/release/operator" "$@"
  took "./dev bench operator" "$started"
}

# A cluster on this machine, or what is left of one, has the kernel look at each packet of the loopback interface too.
on_a_network_of_its_own() { # COMMAND...
  if [[ $(id -u) != 0 ]] || ! unshare --net true; then
    "$@"
    return
  fi
  # shellcheck disable=SC2016
  unshare --net sh -c 'ip link set lo up && exec "$@"' sh "$@"
}
