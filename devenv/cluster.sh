# shellcheck shell=bash
# The kind cluster `larder`: one control plane, one worker, both for pods.

cluster_name=larder

need_cluster() {
  need_engine
  need_kind
  need_node_image
  need_kubectl
  local wanted
  wanted=$(in_environment hash_of cluster/kind.yaml "$node_image")
  if [[ $(cat "$cache/cluster" 2>/dev/null) == "$wanted" ]] && cluster_is_ready; then return; fi
  if kind get clusters 2>/dev/null | grep -qx "$cluster_name"; then
    step "take away the old cluster" "docker ps; kind delete cluster --name $cluster_name" \
      kind delete cluster --name "$cluster_name" --kubeconfig "$KUBECONFIG"
  fi
  step "kind create cluster" "see the log; \`docker logs larder-control-plane\` says how far the node came" create_cluster
  echo "$wanted" >"$cache/cluster"
}

create_cluster() {
  local image=()
  [[ -z $node_image ]] || image=(--image "$node_image")
  rm -f "$KUBECONFIG"
  kind create cluster --name "$cluster_name" --config devenv/cluster/kind.yaml --kubeconfig "$KUBECONFIG" --wait 180s --retain "${image[@]}"
  kubectl taint nodes --all node-role.kubernetes.io/control-plane- || true
  kubectl wait --for=condition=Ready nodes --all --timeout=120s
  kubectl -n kube-system rollout status deployment/coredns --timeout=120s
}

cluster_is_ready() {
  [[ -s $KUBECONFIG ]] && timeout 20 kubectl wait --for=condition=Ready nodes --all --timeout=15s >/dev/null 2>&1
}

nodes() { kind get nodes --name "$cluster_name" 2>/dev/null; }

node_has() { # NODE IMAGE
  [[ -n $(docker exec "$1" ctr -n k8s.io images ls -q "name==$2" 2>/dev/null) ]]
}

# load_archive ARCHIVE IMAGE...: onto the nodes that lack one of the images.
load_archive() {
  local archive=$1 node image full
  shift
  for node in $(nodes); do
    for image in "$@"; do
      full=docker.io/$image
      [[ $image == */* ]] || full=docker.io/library/$image
      if ! node_has "$node" "$full"; then
        step "load $* onto $node" "is there room on the disk? docker system df" import_archive "$node" "$archive"
        break
      fi
    done
  done
}

import_archive() { # NODE ARCHIVE
  docker exec -i "$1" ctr -n k8s.io images import --digests --snapshotter=overlayfs - <"$2"
}
