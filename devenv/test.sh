# shellcheck shell=bash
# `generate` and `test`.

# Programs that write generated files, and with --check fail where one differs.
generators=(crdgen openapi)

generate() {
  case ${1:-} in
    --check | "") ;;
    *) usage >&2; exit 2 ;;
  esac
  build_programs "${generators[@]}"
  local generator
  for generator in "${generators[@]}"; do
    shown "generate" "run \`./dev generate\` and commit what it writes" "$CARGO_TARGET_DIR/debug/$generator" "$@"
  done
}

# With the features that the workspace gives their dependencies, which are those that the tests are built with: what is
# built by itself has others, and builds them all again.
build_programs() { # PROGRAM...
  need_rust
  step "cargo build --workspace: $*" "see the log" cargo build --workspace "${@/#/--bin=}"
}

run_tests() {
  local started=$SECONDS
  case ${1:-all} in
    all)
      test_style
      test_unit
      test_integration
      test_api
      begin_counting
      test_e2e
      await_counting
      test_dependencies
      ;;
    style) test_style ;;
    unit) test_unit ;;
    integration) test_integration ;;
    api) test_api ;;
    instructions) bench_instructions ;;
    e2e) test_e2e "${2:-}" ;;
    deny) test_dependencies "${@:2}" ;;
    *) usage >&2; exit 2 ;;
  esac
  took "./dev test ${1:-}" "$started"
}

test_style() {
  need_rust
  shown "format" "run \`cargo fmt\`" cargo fmt --check
  shown "clippy" "fix what it says" cargo clippy --workspace --all-targets -- -D warnings
  need shellcheck shellcheck
  shown "shell scripts" "fix what it says" check_scripts
  generate --check
  need_helm
  shown "chart" "fix what it says; two renders must be the same" check_chart
}

# Every shell script that is committed, by its first line.
check_scripts() {
  # shellcheck disable=SC2016
  git ls-files -z | xargs -0 awk '/^#!.*sh$|^# shellcheck shell=/ {print FILENAME} {nextfile}' | xargs -d '\n' shellcheck --severity=warning
}

check_chart() {
  local first
  helm lint --strict --quiet charts/larder
  first=$(render_chart)
  [[ $first == "$(render_chart)" ]]
}

render_chart() {
  helm template larder charts/larder --namespace larder-system --kube-version "${kubernetes_version#v}"
}

test_unit() {
  need_rust
  shown "unit tests" "run one by \`cargo test --workspace --lib --bins NAME\`" cargo test --workspace --lib --bins
  shown "schedules" "the shared fill under random schedules; shuttle prints the one that failed" \
    cargo test -p larder-flight --features shuttle --test shuttle
  need_go
  need_helm
  shown "repository" "run it by \`cd devenv/tests && go test ./...\`" test_repository
}

# The Tiltfile, the workflows, and what documents name.
test_repository() {
  cd devenv/tests
  go test -count=1 ./...
}

test_integration() {
  need_rust
  start_redis
  start_postgres
  need_test_applications
  need_test_clients
  # A test waits for more than half of its time: three of them keep two cores busy.
  shown "integration tests" "run one by \`./dev test integration\`; they ask for $LARDER_TEST_REDIS_URL and $LARDER_TEST_POSTGRES_URL" \
    cargo test --workspace --test integration --test allocations --test l1_memory -- --test-threads=3
}

# End-to-end tests take the release build, too, and leave most of a core to others.
begin_counting() {
  counts_here || return 0
  need_counting
  begin instructions "${counting[@]}"
}

await_counting() {
  [[ -z ${beside[instructions]:-} ]] || await instructions "$counting_remedy"
}

e2e_variables() {
  cat <<LIST
KUBECONFIG=$KUBECONFIG
LARDER_ROOT=$root
LARDER_HELM=$(command -v helm)
LARDER_KUBECTL=$(command -v kubectl)
LARDER_CLI=$CARGO_TARGET_DIR/debug/larder
LARDER_OPERATOR_IMAGE=$operator_image
LARDER_SIDECAR_IMAGE=$sidecar_image
LARDER_SIDECAR_IMAGE_NEXT=$sidecar_image-next
LARDER_SHOP_IMAGE=$shop_image
LARDER_EXAMPLE_ORIGIN_IMAGE=$example_origin_image
LARDER_E2E_APP_IMAGE=$e2e_app_image
LARDER_REDIS_IMAGE=$redis_image
LARDER_POSTGRES_IMAGE=$postgres_image
LARDER_COLLECTOR_IMAGE=$collector_image
LARDER_MESH_IMAGE=$mesh_image
LIST
}

print_e2e_environment() {
  {
    need_helm
    need_kubectl
    build_images
    build_programs larder
    need_mesh_image
  } >&2
  e2e_variables | sed 's/^/export /'
}

test_e2e() { # [NAME]
  need curl curl # the README's command asks the sidecar with it
  need_larder_on_cluster
  build_programs larder
  need_mesh_image
  load_archive "$cache/images/mesh-${mesh_image#*:}.tar" "$mesh_image"
  local variable
  while read -r variable; do export "${variable?}"; done < <(e2e_variables)
  # shellcheck disable=SC2086
  shown "end-to-end tests" "run one by \`./dev test e2e NAME\`; export KUBECONFIG=$KUBECONFIG to look around" \
    cargo test --workspace --test e2e ${1:-} -- --test-threads=4
}

test_dependencies() { # [--advisories]: known vulnerabilities too, from a database that must be in reach
  local checks=(bans licenses sources)
  case ${1:-} in
    --advisories) checks+=(advisories) ;;
    "") ;;
    *) usage >&2; exit 2 ;;
  esac
  need_rust
  made_once "$cache/bin/cargo-deny-$cargo_deny_version" "compile cargo-deny $cargo_deny_version" "see the log" install_cargo_deny
  shown "dependencies" "read what it says; deny.toml has the rules" \
    "$cache/bin/cargo-deny-$cargo_deny_version/bin/cargo-deny" check "${checks[@]}"
}

install_cargo_deny() { # FOLDER
  CARGO_TARGET_DIR=$1.target cargo install --locked --no-default-features --root "$1" "cargo-deny@$cargo_deny_version"
  rm -rf "$1.target"
}
