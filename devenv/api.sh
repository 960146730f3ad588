# shellcheck shell=bash
# `api`: schemathesis reads the document of the admin API, sends what it allows and what it does not, and fails where an answer
# is not as the document says.

schemathesis_version=4.32.5
schemathesis_examples=${LARDER_API_EXAMPLES:-50} # of each operation and phase

test_api() {
  need_schemathesis
  build_programs larder-sidecar
  local folder log=$logs/api-sidecar.log origin port admin token=of-schemathesis
  temporary_folder folder
  origin=$(free_port)
  port=$(free_port)
  admin=$(free_port)
  echo "$token" >"$folder/token"
  policy_of_api_test >"$folder/policy.yaml"
  mkdir -p "$folder/site/api/users"
  echo '{}' >"$folder/site/api/users/1"
  # Without this, a process in the background ignores what ends services.
  python3 -c 'import runpy, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); runpy.run_module("http.server", run_name="__main__")' \
    --bind 127.0.0.1 --directory "$folder/site" "$origin" >"$logs/api-origin.log" 2>&1 &
  services+=($!)
  "$CARGO_TARGET_DIR/debug/larder-sidecar" --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$admin" \
    --upstream "http://127.0.0.1:$origin" --policy "$folder/policy.yaml" --admin-token-file "$folder/token" >"$log" 2>&1 &
  services+=($!)
  wait_for_port "$origin" "the application" "$logs/api-origin.log"
  wait_for_port "$port" "the sidecar" "$log"
  # So that there is something to show.
  (exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /api/users/1 HTTP/1.0\r\n\r\n' >&3 && cat <&3 >/dev/null)
  shown "schemathesis $schemathesis_version" "run what it prints as Reproduce with; the sidecar's log is $log" \
    run_schemathesis "$folder" "$admin" "$token"
}

run_schemathesis() { # FOLDER PORT TOKEN: it writes into FOLDER; /requests has no end
  cd "$1"
  "$schemathesis/bin/python3" -m schemathesis.cli --no-color run --url "http://127.0.0.1:$2" \
    --header "Authorization: Bearer $3" --max-examples "$schemathesis_examples" \
    --exclude-path /requests \
    --generation-deterministic --continue-on-failure "$root/sidecar/openapi.json"
}

need_schemathesis() { # sets $schemathesis
  schemathesis=$cache/schemathesis-$schemathesis_version
  [[ ! -d $schemathesis ]] || return 0
  need python3 python3
  python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv "install Python 3 with venv and pip"
  made_once "$schemathesis" "pip install schemathesis $schemathesis_version" "see the log; is PyPI in reach?" install_schemathesis
  keep_newest 2 "$cache"/schemathesis-*
}

install_schemathesis() { # FOLDER: it is moved afterwards, so its scripts name a folder that is gone; its Python does not
  python3 -m venv "$1"
  "$1/bin/python3" -m pip install --quiet --disable-pip-version-check "schemathesis==$schemathesis_version"
}

policy_of_api_test() {
  cat <<'POLICY'
apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {name: api, namespace: test}
spec:
  routes:
  - name: user
    match: {path: "/api/users/{id}"}
    ttl: 1h
    staleWhileRevalidate: 30s
    key: {headers: [accept-language]}
    tags: ["user:{id}"]
  - name: search
    match: {path: "/search", methods: [GET, POST]}
    ttl: 1h
    key: {body: {maxSize: 64Ki}}
  - {name: page, match: {path: "/{page}"}}
POLICY
}
