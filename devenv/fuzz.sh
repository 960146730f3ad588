# shellcheck shell=bash
# `fuzz`: libFuzzer looks for inputs of which the properties in fuzz/properties do not hold.
#
# No cargo-fuzz: fuzz/.cargo/config.toml has the few flags that it would pass, and they are stable. Its sanitizers, which are
# not, would look for what code without `unsafe` does not have.

run_fuzz() { # [SECONDS [TARGET]] | again TARGET FILE
  if [[ ${1:-} == again ]]; then
    fuzz_again "${@:2}"
    return
  fi
  local time=${1:-30} only=${2:-} started=$SECONDS target targets=() found
  [[ $time =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
  for target in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$target" .rs)
    [[ -n $only && $only != "$target" ]] || targets+=("$target")
  done
  [[ ${#targets[@]} != 0 ]] || fail "there is no target $only" "take one of fuzz/fuzz_targets"
  need_fuzz_programs
  found=$cache/fuzz
  mkdir -p "$found"
  for target in "${targets[@]}"; do
    fuzz_one "$target" "$time" "$found"
  done
  took "./dev fuzz" "$started"
}

fuzz_again() { # TARGET FILE
  [[ $# == 2 && -f fuzz/fuzz_targets/$1.rs && -f $2 ]] || { usage >&2; exit 2; }
  need_fuzz_programs
  shown "$1 once" "read what it says" fuzz_program "$1" "$2"
}

need_fuzz_programs() {
  need_rust
  need c++ g++
  step "build what is fuzzed" "see the log" build_fuzz
}

build_fuzz() {
  cd fuzz # where its flags are
  cargo build --release --locked
}

fuzz_one() { # TARGET SECONDS FOLDER: its corpus is copied, for libFuzzer writes what it finds into it
  local target=$1 time=$2 found=$3 corpus log=$logs/fuzz-$1.log seconds=$SECONDS
  temporary_folder corpus
  cp "fuzz/corpus/$target"/* "$corpus"
  rm -f "$log"
  fuzz_program "$target" -max_total_time="$time" -dict="fuzz/dictionaries/$target" -max_len=4096 -timeout=10 \
    -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$found/$target-" "$corpus" >"$log" 2>&1 </dev/null &
  child=$!
  if ! wait "$child"; then
    child=
    tail -n 40 "$log" | cut -c1-200 | sed 's/^/    | /' >&2
    fail "$target: a property does not hold of the input whose path is above" \
      "run it again by \`./dev fuzz again $target FILE\`; once it is fixed, put it into fuzz/corpus/$target under a name that says what it is"
  fi
  child=
  say "$target: $(figures_of_fuzzing "$log"), $((SECONDS - seconds)) s"
}

figures_of_fuzzing() { # LOG: executions, and what the last line says of coverage
  local executions coverage
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$1")
  coverage=$(grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "$1" | tail -n 1)
  echo "$executions executions, $coverage"
}

fuzz_program() { # TARGET ARGUMENT...
  local target=$1 host
  shift
  host=$(rustc -vV | sed -n 's/^host: //p')
  "$CARGO_TARGET_DIR/$host/release/$target" "$@"
}
