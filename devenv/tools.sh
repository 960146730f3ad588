# shellcheck shell=bash
# Programs: what is in PATH is used; what is missing comes from Debian, or is compiled into the cache.

kubernetes_version=v1.36.3
kind_version=v0.33.0
helm_version=v4.3.1
cargo_deny_version=0.20.2

is_debian() { [[ -f /etc/debian_version ]] && command -v apt-get >/dev/null; }

# need PROGRAM PACKAGE [HOW-ELSEWHERE]: installs the package where we may.
need() {
  command -v "$1" >/dev/null && return
  install_packages "$2" "${3:-install $1 with the package manager of your system}"
}

install_packages() { # "PACKAGE..." HOW-ELSEWHERE
  is_debian && [[ $(id -u) == 0 ]] || fail "missing on this machine: $1" "$2 (on Debian: sudo apt-get install $1)"
  # shellcheck disable=SC2086
  step "apt: $1" "see the log; try \`apt-get install $1\` by hand" apt_install $1
}

apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q || true # a source that is not ours may be out of reach; the installation tells what matters
  # RUNLEVEL=1: a package's own service stays off; ./dev starts what it needs, where it needs it.
  RUNLEVEL=1 apt-get install -q -y --no-install-recommends "$@"
}

need_go() {
  command -v go >/dev/null || fail "Go is missing: it compiles what cannot be pulled here" "install Go 1.26 or newer from go.dev/dl"
}

go_install() { # MODULE@VERSION FOLDER
  need_go
  mkdir -p "$2"
  cd /
  GOBIN=$2 CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" "$1"
}

# use_or_compile NAME OLDEST-VERSION FOUND-VERSION MODULE@VERSION
use_or_compile() {
  local name=$1 oldest=$2 found=$3 module=$4 version=${4##*@}
  if [[ -n $found ]] && version_at_least "$oldest" "$found"; then return; fi
  [[ -z $found ]] || say "$name $found is older than $oldest: using one of our own"
  made_once "$cache/bin/$name-$version" "compile $name $version" "see the log; is the Go module proxy in reach?" go_install "$module"
  ln -sfn "$name-$version/$name" "$cache/bin/$name"
  hash -r
  [[ $(command -v "$name") == "$cache/bin/$name" ]] || PATH=$cache/bin:$PATH
}

first_version() { grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1 || true; }

need_kind() {
  use_or_compile kind 0.20.0 "$(kind version 2>/dev/null | first_version)" "sigs.k8s.io/kind@$kind_version"
}

need_helm() {
  use_or_compile helm 3.12.0 "$(helm version --short 2>/dev/null | first_version)" "helm.sh/helm/v4/cmd/helm@$helm_version"
}

need_kubectl() {
  local found
  found=$(kubectl version --client 2>/dev/null | first_version)
  if [[ -n $found ]] && version_at_least 1.29.0 "$found"; then return; fi
  make_kubernetes
  ln -sfn "$kubernetes_program" "$cache/bin/kubectl"
  PATH=$cache/bin:$PATH
}

need_rust() {
  [[ -z ${rust_is_ready:-} ]] || return 0
  command -v cargo >/dev/null || fail "cargo is missing" "install Rust from rustup.rs; rust-toolchain.toml names the version"
  need cc "gcc libc6-dev"
  need make make # of the sidecar's allocator
  need_room_for_target
  rust_is_ready=yes
}

# A target folder that several branches and profiles share grows without end.
need_room_for_target() {
  local gib=14 size
  [[ -d $CARGO_TARGET_DIR ]] || return 0
  size=$(du -s --block-size=1G "$CARGO_TARGET_DIR" | cut -f1)
  if ((size > gib)); then
    say "$CARGO_TARGET_DIR has grown to $size GiB: wiped"
    rm -rf "${CARGO_TARGET_DIR:?}"
  fi
}
