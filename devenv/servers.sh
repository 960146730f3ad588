# shellcheck shell=bash
# The servers that integration tests share: one Redis and one Postgres. A test that stops a server, or needs Sentinels, a
# Cluster or TLS, starts its own with the same programs (sidecar/tests/integration/harness).

free_port() { # prints a loopback port that nobody listens on
  local port
  while port=$((20000 + RANDOM % 12000)); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}

wait_for_port() { # PORT WHAT LOG
  local _
  for _ in $(seq 100); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    sleep 0.1
  done
  tail -n 20 "$3" >&2
  fail "$2 does not answer on port $1" "its log is above and in $3"
}

start_redis() {
  need redis-server redis-server
  local port folder version
  version=$(redis-server --version | sed -n 's/.* v=\([0-9.]*\) .*/\1/p')
  version_at_least 7.0 "$version" || fail "redis-server is $version" "install Redis 7.0 or newer"
  port=$(free_port)
  temporary_folder folder
  redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --dir "$folder" >"$logs/redis.log" 2>&1 &
  services+=($!)
  wait_for_port "$port" redis-server "$logs/redis.log"
  LARDER_TEST_REDIS_SERVER=$(command -v redis-server)
  export LARDER_TEST_REDIS_SERVER LARDER_TEST_REDIS_URL=redis://127.0.0.1:$port/
}

postgres_folder() { # prints the folder of initdb and postgres
  local folder
  for folder in $(ls -d /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin 2>/dev/null | sort -rV); do
    [[ -x $folder/initdb ]] && echo "$folder" && return
  done
  folder=$(command -v initdb) && dirname "$folder"
}

start_postgres() {
  local port folder programs as_user=()
  postgres_folder >/dev/null || install_packages postgresql-15 "install PostgreSQL 15 or newer"
  programs=$(postgres_folder)
  port=$(free_port)
  folder=$(mktemp -d /tmp/larder-postgres.XXXXXX) # its user may not enter a home folder of root's
  temporaries+=("$folder")
  if [[ $(id -u) == 0 ]]; then # Postgres refuses to run as root
    chown postgres: "$folder"
    as_user=(setpriv --reuid=postgres --regid=postgres --init-groups --)
  fi
  "${as_user[@]}" "$programs/initdb" -D "$folder/data" -U larder --auth=trust --encoding=UTF8 --locale=C >"$logs/postgres.log" 2>&1 ||
    fail "initdb" "see $logs/postgres.log"
  "${as_user[@]}" "$programs/postgres" -D "$folder/data" -p "$port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories="$folder" -c fsync=off >>"$logs/postgres.log" 2>&1 &
  services+=($!)
  wait_for_port "$port" postgres "$logs/postgres.log"
  export LARDER_TEST_POSTGRES_PROGRAMS=$programs LARDER_TEST_POSTGRES_URL=postgres://larder@127.0.0.1:$port/postgres
}

# The applications that some tests put behind the sidecar: Express, nginx and Go's net/http, as people run them
# (sidecar/tests/applications). Tests start them (sidecar/tests/integration/harness/servers.rs).
need_test_applications() {
  local sources=sidecar/tests/applications express go
  need node nodejs
  express=$cache/test-express-$(hash_of "$sources/express/package-lock.json")
  if [[ ! -d $express ]]; then
    need npm npm
    made_once "$express" "npm ci: express" "see the log; is the npm registry in reach?" install_express "$root/$sources/express"
    keep_newest 2 "$cache"/test-express-*
  fi
  need nginx nginx-light
  need_go
  go=$cache/bin/test-application-go-$(hash_of "$sources/go")
  made_once "$go" "compile the Go test application" "see the log" compile_go_application "$root/$sources/go"
  keep_newest 2 "$cache"/bin/test-application-go-*
  LARDER_TEST_NGINX=$(command -v nginx)
  LARDER_TEST_NODE=$(command -v node)
  export LARDER_TEST_EXPRESS=$express LARDER_TEST_GO_APPLICATION=$go LARDER_TEST_NGINX LARDER_TEST_NODE
}

install_express() { # SOURCES FOLDER
  mkdir "$2"
  cp "$1/package.json" "$1/package-lock.json" "$2"
  cd "$2"
  npm ci --no-audit --no-fund --ignore-scripts
}

# The clients that some tests have purge by PURGE requests (sidecar/tests/clients).
need_test_clients() {
  local requirements=$root/sidecar/tests/clients/requirements.txt clients
  need python3 python3
  clients=$cache/test-clients-$(hash_of sidecar/tests/clients/requirements.txt)
  if [[ ! -d $clients ]]; then
    python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv "install Python 3 with venv and pip"
    made_once "$clients" "pip install: clients that purge" "see the log; is PyPI in reach?" install_test_clients "$requirements"
    keep_newest 2 "$cache"/test-clients-*
  fi
  LARDER_TEST_PYTHON=$(command -v python3)
  export LARDER_TEST_CLIENTS=$clients LARDER_TEST_PYTHON
}

install_test_clients() { # REQUIREMENTS FOLDER
  python3 -m venv "$2/python"
  "$2/python/bin/python3" -m pip install --quiet --disable-pip-version-check --no-deps --target "$2" --requirement "$1"
  rm -rf "$2/python"
}

compile_go_application() { # SOURCES FILE
  cd "$1"
  CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$2" .
}
