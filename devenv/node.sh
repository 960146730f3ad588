# shellcheck shell=bash
# The node image where none can be pulled: Debian, containerd, and Kubernetes as one program of ours.

etcd_image=registry.k8s.io/etcd:3.6.8-0
coredns_image=registry.k8s.io/coredns/coredns:v1.14.2
pause_image=registry.k8s.io/pause:3.10.2
node_packages=systemd,systemd-sysv,containerd,runc,containernetworking-plugins,nftables,iptables,iproute2,kmod,conntrack,ethtool,socat,hostname,procps,ca-certificates,jq,mount,util-linux,libcap2-bin

kubernetes_program=$cache/bin/kubernetes-$(in_environment hash_of cluster/kubernetes "$kubernetes_version")/kubectl

compile_go() { # FOLDER LDFLAGS TAGS PROGRAM...: the last word is where it goes
  cd "$1" || return
  CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags "$3" -ldflags "-s -w $2" -o "$4" .
}

compile_kubernetes() {
  local version=k8s.io/component-base/version minor=${kubernetes_version#v1.}
  mkdir -p "$1"
  in_environment compile_go cluster/kubernetes "-X $version.gitVersion=$kubernetes_version -X $version.gitMajor=1 -X $version.gitMinor=${minor%%.*}" \
    grpcnotrace "$1/kubectl"
}

make_kubernetes() {
  need_go
  made_once "$(dirname "$kubernetes_program")" "compile Kubernetes $kubernetes_version" \
    "see the log; is the Go module proxy in reach, and are there 4 GB of memory?" compile_kubernetes
}

make_go_program() { # FOLDER-UNDER-CLUSTER: prints nothing, leaves it at $(go_program FOLDER)
  need_go
  made_once "$(go_program "$1")" "compile $1" "see the log; is the Go module proxy in reach?" \
    in_environment compile_go "cluster/$1" "" ""
}

go_program() { echo "$cache/bin/$1-$(in_environment hash_of "cluster/$1")"; }

# debian_files PACKAGES FILE: a root file system with those packages, without what nobody reads there.
debian_files() {
  mmdebstrap --variant=minbase --include="$1" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/llvmjit*' \
    --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/bitcode/*' \
    --format=tar bookworm "$2"
}

make_debian_files() { # NAME PACKAGES: at $(debian_files_of NAME PACKAGES)
  need mmdebstrap "mmdebstrap debian-archive-keyring" "without an image registry the images are made by mmdebstrap, which is Debian's: log in to a registry, or use a Debian or Ubuntu machine"
  made_once "$(debian_files_of "$1" "$2")" "Debian root file system of $1" \
    "see the log; is Debian's mirror in reach?" debian_files "$2"
}

debian_files_of() { echo "$cache/images/$1-files-$(hash_of "$2").tar"; }

# Every image that kubeadm asks for is the same layer under another name; kube-proxy has nft and the names of protocols besides.
# Without /etc/protocols nft lists `tcp` as 6. kube-proxy, which lists its sets once an hour, takes that for other elements and
# deletes them: no Service is reachable then, and each later sync fails at `delete element`.
kubernetes_images() { # ROOT-FILE-SYSTEM WORK FILE
  local files=$1 work=$2 path='"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin"]' name library
  mkdir -p "$work"/{archive,kubernetes/usr/local/bin,proxy,coredns,pause}
  ln "$kubernetes_program" "$work/kubernetes/usr/local/bin/kubernetes" 2>/dev/null ||
    cp "$kubernetes_program" "$work/kubernetes/usr/local/bin/kubernetes"
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd; do
    ln -s kubernetes "$work/kubernetes/usr/local/bin/$name"
  done
  make_layer "$work/kubernetes" "$work/kubernetes.tar"

  mkdir "$work/files"
  tar -C "$work/files" --exclude='./dev/*' -xf "$files"
  install -D -m 755 "$work/files/usr/sbin/nft" "$work/proxy/usr/sbin/nft"
  install -D -m 644 "$work/files/etc/protocols" "$work/proxy/etc/protocols"
  for library in $(chroot "$work/files" ldd /usr/sbin/nft | grep -oE '/[^ ]+'); do
    mkdir -p "$work/proxy$(dirname "$library")"
    cp -L "$work/files$library" "$work/proxy$library"
  done
  rm -rf "$work/files"
  make_layer "$work/proxy" "$work/proxy.tar"

  cp "$(go_program coredns)" "$work/coredns/coredns"
  mkdir -p "$work/coredns/etc/ssl/certs"
  make_layer "$work/coredns" "$work/coredns.tar"
  cp "$(go_program pause)" "$work/pause/pause"
  make_layer "$work/pause" "$work/pause.tar"

  local tags=
  for name in kube-apiserver kube-controller-manager kube-scheduler; do
    tags+="registry.k8s.io/$name:$kubernetes_version "
  done
  add_image "$work/archive" "{$path}" "$tags$etcd_image" "$work/kubernetes.tar"
  add_image "$work/archive" "{$path}" "registry.k8s.io/kube-proxy:$kubernetes_version" "$work/kubernetes.tar" "$work/proxy.tar"
  add_image "$work/archive" '{"Entrypoint": ["/coredns"]}' "$coredns_image" "$work/coredns.tar"
  add_image "$work/archive" '{"Entrypoint": ["/pause"], "User": "65535:65535"}' "$pause_image" "$work/pause.tar"
  finish_archive "$work/archive" "$3"
}

node_image_archive() { # ROOT-FILE-SYSTEM IMAGE FILE
  local work unit
  work=$(mktemp -d "$cache/tmp/node.XXXX")
  mkdir -p "$work/archive" "$work/own"/{kind/images,kind/manifests,usr/bin,usr/local/sbin,etc/containerd,etc/systemd/system/multi-user.target.wants}
  kubernetes_images "$1" "$work/kubernetes" "$work/own/kind/images/kubernetes.tar"

  local own=$work/own
  cp "$kubernetes_program" "$own/usr/bin/kubelet"
  ln -s kubelet "$own/usr/bin/kubeadm"
  ln -s kubelet "$own/usr/bin/kubectl"
  install -m 755 cluster/node/{entrypoint,make-kubelet-cgroups,runc-within-bounds} "$own/usr/local/sbin/"
  install -m 644 cluster/node/containerd.toml "$own/etc/containerd/config.toml"
  for unit in kubelet larder-images larder-resolver; do
    install -m 644 "cluster/node/$unit.service" "$own/etc/systemd/system/"
    ln -s "../$unit.service" "$own/etc/systemd/system/multi-user.target.wants/"
  done
  ln -s /lib/systemd/system/containerd.service "$own/etc/systemd/system/multi-user.target.wants/"
  ln -s /lib/systemd/system/multi-user.target "$own/etc/systemd/system/default.target"
  # A node has no devices, consoles or logins of its own.
  for unit in systemd-udevd.service systemd-udev-trigger.service systemd-logind.service getty.target console-getty.service \
    systemd-modules-load.service sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
    nftables.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
    ln -s /dev/null "$own/etc/systemd/system/$unit"
  done
  echo "$kubernetes_version" >"$own/kind/version"
  for unit in cni storage; do
    printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kind-%s, namespace: kube-system}\n' "$unit" \
      >"$own/kind/manifests/default-$unit.yaml"
  done
  make_layer "$own" "$work/own.tar"
  add_image "$work/archive" '{
    "Entrypoint": ["/usr/local/sbin/entrypoint"], "StopSignal": "SIGRTMIN+3",
    "Env": ["container=docker", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}' "$2" "$1" "$work/own.tar"
  finish_archive "$work/archive" "$3"
  rm -rf "$work"
}

# Sets node_image: empty where kind's own can be pulled.
need_node_image() {
  node_image=
  if registry_answers; then return; fi
  make_kubernetes
  make_go_program coredns
  make_go_program pause
  make_debian_files node "$node_packages"
  local files key
  files=$(debian_files_of node "$node_packages")
  key=$(in_environment hash_of cluster/node cluster/pause cluster/coredns "${kubernetes_program#"$cache"}" "${files#"$cache"}" "$(declare -f node_image_archive kubernetes_images add_image)")
  node_image=larder/node:$key
  local archive=$cache/images/node-image-$key.tar
  made_once "$archive" "node image" "see the log" in_environment node_image_archive "$files" "$node_image"
  if ! docker image inspect "$node_image" >/dev/null 2>&1; then
    docker image ls -q larder/node | xargs -r docker image rm -f >/dev/null 2>&1 || true
    step "load the node image into the engine" "is there room on the disk? docker system df" docker load -q -i "$archive"
  fi
  keep_newest 2 "$cache"/images/node-image-*.tar
}
