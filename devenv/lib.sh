# shellcheck shell=bash
# How every step speaks, fails, is timed, locked and kept.

cache=${LARDER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/larder}
logs=$cache/logs
mkdir -p "$cache"/{bin,images,locks,logs,tmp,engine}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
export KUBECONFIG=$cache/kubeconfig
export PATH=$PATH:$cache/bin

child=        # the step that runs now
services=()   # processes of ours that end with us
declare -A beside=() # steps that run beside others, by their titles
temporaries=()

say() { printf '==> %s\n' "$*"; }

# fail CAUSE REMEDY: the last words of a run.
fail() {
  printf '\n==> FAILED: %s\n    remedy: %s\n' "$1" "$2" >&2
  exit 1
}

end_of_process() { # PID: it and what it started
  local started
  for started in $(pgrep -P "$1" 2>/dev/null); do end_of_process "$started"; done
  kill "$1" 2>/dev/null || true
}

end_of_service() { # PID: at once, for Postgres too, which takes SIGTERM for a reason to wait for its clients
  local _
  kill -INT "$1" 2>/dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
  local status=$? pid
  trap - EXIT INT TERM
  [[ -z $child ]] || end_of_process "$child"
  for pid in "${beside[@]}"; do
    end_of_process "$pid"
  done
  for pid in "${services[@]:+${services[@]}}"; do
    end_of_service "$pid"
  done
  [[ ${#temporaries[@]} == 0 ]] || rm -rf "${temporaries[@]}"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

temporary_folder() { # VARIABLE: names it a folder that ends with us
  local -n made=$1
  made=$(mktemp -d "$cache/tmp/XXXXXXXX")
  temporaries+=("$made")
}

took() { say "$1 … $((SECONDS - $2)) s"; }

log_of() { # TITLE
  echo "$logs/${1//[^A-Za-z0-9.-]/-}.log"
}

# begin TITLE COMMAND...: runs a program beside the steps that follow, in the CPU time that they leave, until `await TITLE`.
begin() {
  local title=$1
  shift
  say "$title, beside other steps"
  nice -n 19 "$@" >"$(log_of "$title")" 2>&1 </dev/null &
  beside[$title]=$!
}

# await TITLE REMEDY: shows what it printed.
await() {
  local title=$1 remedy=$2 status=0 started=$SECONDS
  wait "${beside[$title]}" || status=$?
  unset "beside[$title]"
  cat "$(log_of "$title")"
  ((status == 0)) || fail "$title (its output is above)" "$remedy"
  took "$title, waited for" "$started"
}

# step TITLE REMEDY COMMAND...: runs it with its output in a log, with a sign of life every 30 s.
step() {
  local title=$1 remedy=$2 started=$SECONDS said=$SECONDS
  shift 2
  local log
  log=$(log_of "$title")
  say "$title"
  ("$@") >"$log" 2>&1 </dev/null &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.3
    if ((SECONDS - said >= 30)); then
      said=$SECONDS
      printf '    %s, %s s: %s\n' "$title" "$((SECONDS - started))" "$(tail -n 1 "$log" | tr -d '\r' | cut -c1-120)"
    fi
  done
  if ! wait "$child"; then
    child=
    printf '\n    the end of %s:\n' "$log" >&2
    tail -n 25 "$log" | sed 's/^/    | /' >&2
    fail "$title" "$remedy"
  fi
  child=
  took "$title" "$started"
}

# shown TITLE REMEDY COMMAND...: runs it with its output on the screen.
shown() {
  local title=$1 remedy=$2 started=$SECONDS
  shift 2
  say "$title: $*"
  "$@" </dev/null &
  child=$!
  if ! wait "$child"; then
    child=
    fail "$title (its output is above)" "$remedy"
  fi
  child=
  took "$title" "$started"
}

# in_environment COMMAND...: runs it in devenv/, which the paths under cluster/ are relative to. A hash of a folder has the
# paths of its files in it: without this, moving devenv/ would compile Kubernetes again.
in_environment() {
  (cd "$root/devenv" && "$@")
}

hash_of() { # FILE-OR-TEXT...: 12 hex digits that change with any of them
  local thing
  for thing in "$@"; do
    if [[ -d $thing ]]; then
      find "$thing" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    elif [[ -f $thing ]]; then
      sha256sum <"$thing"
    else
      printf '%s\n' "$thing"
    fi
  done | sha256sum | cut -c1-12
}

# made_once FILE TITLE REMEDY COMMAND... TEMPORARY: unless FILE is there, COMMAND makes it under a name that is passed
# as its last argument, and it is moved into place when it is whole. One run of ./dev makes it, others wait for that.
made_once() {
  local file=$1 title=$2 remedy=$3
  shift 3
  [[ ! -e $file ]] || return 0
  local lock
  exec {lock}>"$cache/locks/$(basename "$file")"
  flock --nonblock "$lock" || { say "waiting for another run of ./dev: $title"; flock "$lock"; }
  if [[ ! -e $file ]]; then
    local unfinished=$file.unfinished
    rm -rf "$unfinished"
    mkdir -p "$(dirname "$file")"
    step "$title" "$remedy" "$@" "$unfinished"
    mv "$unfinished" "$file"
  fi
  exec {lock}>&-
}

# keep_newest COUNT FILE...: of what is kept by hash, older ones go.
keep_newest() {
  local count=$1 old
  shift
  for old in $(ls -1td -- "$@" 2>/dev/null | tail -n +$((count + 1))); do rm -rf "$old"; done
}

version_at_least() { # WANTED FOUND
  [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]
}
