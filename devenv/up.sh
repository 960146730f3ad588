# shellcheck shell=bash
# `up` and `down`, and the chart on the cluster.

install_chart() {
  step "helm upgrade --install larder" "see the log; kubectl -n larder-system get pods,events" helm_upgrade
}

# explain_failure NAMESPACE: in a step, what a person would look at first, at the end of its log.
explain_failure() {
  # shellcheck disable=SC2064
  trap "[[ \$? == 0 ]] || look_around $1" EXIT
}

look_around() { # NAMESPACE
  kubectl -n "$1" get cachepolicies,pods -o wide || true
  kubectl -n "$1" get events --field-selector type=Warning --sort-by=.lastTimestamp | tail -n 8 || true
  kubectl -n "$1" logs --selector app.kubernetes.io/name=larder --all-containers --prefix --tail=4 || true
}

helm_upgrade() {
  explain_failure larder-system
  local flag flags=() known status
  known=$(helm upgrade --help)
  # Definitions that somebody applied from crds/ become the chart's; the flags are not known to every Helm.
  for flag in --take-ownership --force-conflicts; do
    [[ $known != *"$flag"* ]] || flags+=("$flag")
  done
  # Not where only other images were built.
  [[ -z ${redirect_image:-} ]] || flags+=(--set capture.redirect.enabled=true
    --set image.redirect.repository="${redirect_image%:*}" --set image.redirect.tag="${redirect_image##*:}")
  # An interrupted run leaves the release locked.
  status=$(helm status larder -n larder-system -o json 2>/dev/null | jq -r .info.status || true)
  [[ $status != pending-* ]] || kubectl -n larder-system delete secret -l "owner=helm,name=larder,status=$status"
  helm upgrade --install larder charts/larder --namespace larder-system --create-namespace --wait --timeout 180s "${flags[@]}" \
    --set image.operator.repository="${operator_image%:*}" --set image.operator.tag="${operator_image##*:}" \
    --set image.sidecar.repository="${sidecar_image%:*}" --set image.sidecar.tag="${sidecar_image##*:}" \
    --set rollout.timeoutSeconds=20
}

# What the end-to-end tests and the example need: a cluster with the images and the chart. One run at a time.
need_larder_on_cluster() {
  local lock
  exec {lock}>"$cache/locks/on-cluster"
  flock --nonblock "$lock" || { say "waiting for another run of ./dev to set up the cluster"; flock "$lock"; }
  need_cluster
  need_helm
  need_companion_images
  build_images
  load_images
  install_chart
  exec {lock}>&-
}

up() {
  local started=$SECONDS example=yes
  case ${1:-} in
    --no-example) example=no ;;
    "") ;;
    *) usage >&2; exit 2 ;;
  esac
  need curl curl
  need_larder_on_cluster
  if [[ $example == yes ]]; then
    step "apply examples/shop" "see the log; kubectl -n shop get pods,events" apply_example
    say "up … $((SECONDS - started)) s; \`export KUBECONFIG=$KUBECONFIG\` to look around"
    transcript
  else
    say "up … $((SECONDS - started)) s; \`export KUBECONFIG=$KUBECONFIG\` to look around"
  fi
}

# The policy comes last: that is how a person meets it, with the application there already.
apply_example() {
  local workload
  explain_failure shop
  kubectl kustomize examples/shop | sed "s#image: larder/example-shop:.*#image: $shop_image#" | kubectl apply -f -
  kubectl -n shop rollout status deployment/shop --timeout=180s
  kubectl apply -f examples/shop/policy.yaml
  kubectl -n shop wait cachepolicy/shop --for=condition=Ready --timeout=180s
  for workload in $(kubectl -n shop get deployments,statefulsets -o name); do
    kubectl -n shop rollout status "$workload" --timeout=180s
  done
}

transcript() {
  local forward port=
  temporary_folder forward
  shown_command kubectl get cachepolicies -A
  kubectl -n shop port-forward service/shop :80 >"$forward/log" 2>&1 &
  services+=($!)
  for _ in $(seq 100); do
    port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\).*/\1/p' "$forward/log" | head -n 1)
    [[ -z $port ]] || break
    sleep 0.1
  done
  [[ -n $port ]] || fail "kubectl port-forward to the shop: $(tail -n 1 "$forward/log")" "kubectl -n shop get pods"
  # In its first seconds a policy may begin anew, when other pods have followed: then what was stored before is asked for again.
  for _ in $(seq 10); do
    # What a run before this one left in the cache goes: a write to the user purges it, as the policy says.
    curl -s -m 20 -o /dev/null -X PATCH -H 'content-type: application/json' -d '{"name": "Ada Lovelace"}' \
      "http://127.0.0.1:$port/api/users/1" || fail "the shop does not answer" "kubectl -n shop get pods"
    {
      ask_for_user "$port"
      ask_for_user "$port"
    } >"$forward/answers" || fail "the shop does not answer" "kubectl -n shop get pods"
    ! grep -q '; hit' "$forward/answers" || break
  done
  cat "$forward/answers"
}

ask_for_user() { # PORT
  printf '$ curl -i shop/api/users/1\n'
  curl -s -m 20 -D - -o /dev/null -w 'time: %{time_total} s\n' "http://127.0.0.1:$1/api/users/1" |
    tr -d '\r' | grep -iE '^(HTTP/|cache-status:|time:)'
}

shown_command() {
  printf '$ %s\n' "$*"
  "$@"
}

down() {
  case ${1:-} in
    --cache | "") ;;
    *) usage >&2; exit 2 ;;
  esac
  if command -v docker >/dev/null && engine_answers; then
    local left
    left=$(docker ps -aq --filter label=io.x-k8s.kind.cluster="$cluster_name")
    # shellcheck disable=SC2086
    [[ -z $left ]] || step "take away the cluster" "docker ps" docker rm -fv $left
    if [[ -f $engine/started-by-us ]]; then
      docker network rm kind >/dev/null 2>&1 || true
      step "stop dockerd" "kill \$(cat $engine/pid)" stop_engine
    fi
  else
    stop_engine
  fi
  rm -f "$KUBECONFIG" "$cache/cluster"
  if [[ ${1:-} == --cache ]]; then
    say "wiping $cache"
    rm -rf "$cache"
  fi
}
