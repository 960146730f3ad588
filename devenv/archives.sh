# shellcheck shell=bash
# Container images as archives (what `docker save` writes), made of folders: no engine, no builder and no registry is
# asked for, the same content gives the same bytes, and images share their layers.

image_architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64 | arm64) echo arm64 ;;
    *) uname -m ;;
  esac
}

make_layer() { # FOLDER FILE
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf "$2" .
}

add_image() { # FOLDER-OF-THE-ARCHIVE CONFIG-AS-JSON "TAG..." LAYER...
  local archive=$1 config=$2 tags=$3 layer digest
  local names=() digests=()
  shift 3
  for layer in "$@"; do
    digest=$(sha256sum <"$layer" | cut -d' ' -f1)
    [[ -e $archive/$digest.tar ]] || ln "$layer" "$archive/$digest.tar" 2>/dev/null || cp "$layer" "$archive/$digest.tar"
    names+=("$digest.tar")
    digests+=("sha256:$digest")
  done
  jq -cn --arg architecture "$(image_architecture)" --argjson config "$config" '{
    architecture: $architecture, os: "linux", created: "1970-01-01T00:00:00Z", config: $config,
    rootfs: {type: "layers", diff_ids: $ARGS.positional}}' --args "${digests[@]}" >"$archive/config"
  digest=$(sha256sum <"$archive/config" | cut -d' ' -f1)
  mv "$archive/config" "$archive/$digest.json"
  [[ -e $archive/manifest.json ]] || echo '[]' >"$archive/manifest.json"
  # shellcheck disable=SC2086
  jq -c --arg config "$digest.json" --arg tags "$tags" \
    '. + [{Config: $config, RepoTags: ($tags | split(" ")), Layers: $ARGS.positional}]' \
    --args "${names[@]}" <"$archive/manifest.json" >"$archive/manifest"
  mv "$archive/manifest" "$archive/manifest.json"
}

finish_archive() { # FOLDER FILE
  make_layer "$1" "$2"
  rm -rf "$1"
}

# copy_with_libraries PROGRAM PATH-IN-THE-IMAGE FOLDER: a program and the libraries that it is linked with.
copy_with_libraries() {
  local library
  install -D -m 755 "$1" "$3$2"
  for library in $(ldd "$1" 2>/dev/null | grep -oE '/[^ ]+'); do
    mkdir -p "$3$(dirname "$library")"
    cp -L "$library" "$3$library"
  done
}
