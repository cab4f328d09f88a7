#!/usr/bin/env bash
# The house rules that no compiler knows. Every file under src/ says in its first line whether it is pure or an edge;
# pure files know no clock, runtime, lock, client, file, socket or chance; rooms use each other along the arrows only;
# no file is longer than 600 lines. Code for tests may do what it likes.
#   check-purity.sh [ROOT]        checks ROOT (the repository), lists every violation, fails when there is one
#   check-purity.sh --self-test   breaks each rule once in a temporary tree and expects to be told
set -euo pipefail

check() {
  (cd "$1" && find src -name '*.rs' | LC_ALL=C sort | xargs awk '
    function complain(what) { print FILENAME ":" FNR ": " what; bad = 1 }
    function word(list) { return "(^|[^A-Za-z0-9_])(" list ")([^A-Za-z0-9_]|$)" }
    BEGIN {
      impure = word("tokio|hyper|hyper_util|axum|parking_lot|dashmap|moka|Mutex|RwLock|SystemTime|(Instant|Timestamp|Zoned)::now|rand::(rng|random)" \
        "|std::(env|fs|net|thread|process)|kube::(Client|Api|client|runtime|config|Config)|tracing_subscriber") "|[.]elapsed[(][)]"
      # What a room may use besides itself; the others may use everything but what they must not.
      may["wire"] = may["runtime"] = "-"; may["agent"] = may["fleet"] = "wire|runtime"; may["api"] = "wire"
      mustnot["gateway"] = "rollout|manager"; mustnot["rollout"] = "gateway|manager"
    }
    FNR == 1 {
      depth = split(FILENAME, path, "/"); room = path[2]; last = path[depth]; skip = joined = ""; pure = /^\/\/! Pure: /
      exempt = room == "bin" || room == "lib.rs"
      testing = FILENAME ~ /(^|[\/_])tests([.]rs|\/)/
      crate = ""; for (i = 2; i <= depth - (last == "mod.rs"); i++) crate = crate "super::"
      if (!exempt && last != "mod.rs" && !/^\/\/! (Pure|Edge): ./) complain("first line: //! Pure: ... or //! Edge: ...")
    }
    FNR == 601 { complain("longer than 600 lines: split it by idea") }
    exempt || testing { next }
    skip != "" {  # an item under cfg(test), up to the brace that closes it, or a single line
      at = $0; sub(/[^ ].*/, "", at)
      if (opened ? (at == indent && $1 ~ /^}/) : (/[;,}]$/ && $1 !~ /^#/)) skip = ""
      else if ($1 !~ /^#/) opened = 1
      next
    }
    /^ *#\[cfg\(test\)\]$/ { skip = 1; opened = 0; indent = $0; sub(/[^ ].*/, "", indent); next }
    {
      sub(/\/\/.*/, ""); line = joined $0
      if (line ~ /^ *(pub(\([a-z]+\))? )?use [^;]*$/) { joined = line " "; next }
      joined = ""
      # use std::{a, b}: as if each were written out
      if (match(line, /use [a-z]+::\{/)) { first = substr(line, RSTART + 4, RLENGTH - 5); gsub(/[{,] */, " " first, line) }
      if (crate != "") gsub("(^|[^A-Za-z0-9_:])" crate, " crate::", line)
      if (pure && match(line, impure)) complain("a pure file uses " substr(line, RSTART, RLENGTH))
      for (rest = line; match(rest, /crate::[a-z_]+/); rest = substr(rest, RSTART + RLENGTH)) {
        used = substr(rest, RSTART + 7, RLENGTH - 7)
        if (used == room || room == "manager") continue
        if (room in may ? used !~ "^(" may[room] ")$" : used ~ "^(" (room in mustnot ? mustnot[room] : "manager") ")$")
          complain(room " must not use " used)
      }
    }
    END { exit bad }')
}

self_test() {
  root="$(mktemp -d)"
  trap 'rm -rf "$root"' EXIT
  local missed=0 rule
  file() { mkdir -p "$root/src/$(dirname "$1")" && cat >"$root/src/$1"; }
  expect() { # what is said, file; its text comes on standard input
    rm -rf "$root/src"
    file "$2"
    if check "$root" >"$root/said" || ! grep -qF -- "src/$2:" "$root/said" || ! grep -qF -- "$1" "$root/said"; then
      echo "self-test: not found in $2: $1"
      missed=1
    fi
  }
  # A tree in which all is well, with everything that only looks wrong.
  file wire/a.rs <<<$'//! Pure: a.\n// tokio\nuse std::time::Instant;\nuse crate::wire::name;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}'
  file agent/mod.rs <<<$'//! A room.\nuse crate::wire::a;'
  file agent/run.rs <<<$'//! Edge: b.\nuse std::{env, fs};\nuse crate::runtime::clock;'
  file gateway/service.rs <<<$'//! Edge: c.\nuse super::desired;\nuse crate::{desired::index, status::intake};'
  file desired/index_tests.rs <<<$'//! Pure: tests.\nuse std::thread;'
  file lib.rs <<<$'//! All.\npub mod wire;'
  check "$root" || { echo "self-test: a good tree is refused"; missed=1; }

  expect "first line" wire/a.rs <<<'//! Something.'
  expect "longer than 600 lines" wire/a.rs < <(echo '//! Pure: a.' && printf '%600s' '' | tr ' ' '\n')
  for rule in 'use tokio::sync::watch;' 'let t = Instant::now();' 'let t = std::time::SystemTime::now();' 'let t = Timestamp::now();' 'since.elapsed()' \
    'use kube::Client;' 'use kube::{Api, ResourceExt};' 'std::env::var("A")' 'use std::{collections::BTreeMap, fs};' 'use std::net::TcpStream;' 'use std::sync::Mutex;' \
    'use parking_lot::RwLock;' 'use dashmap::DashMap;' 'rand::rng()' 'use hyper::Request;' 'std::thread::spawn(f)' $'use std::{\n    fs,\n};'; do
    expect "a pure file uses" api/a.rs <<<$'//! Pure: a.\n#[cfg(test)]\nmod tests;\n'"$rule"
  done
  expect "agent must not use desired" agent/a.rs <<<$'//! Edge: a.\nuse crate::desired::index;'
  expect "agent must not use api" agent/b/a.rs <<<$'//! Edge: a.\nuse super::super::super::api::crds;'
  expect "gateway must not use rollout" gateway/a.rs <<<$'//! Edge: a.\nuse crate::{\n    wire,\n    rollout::plan,\n};'
  expect "rollout must not use gateway" rollout/a.rs <<<$'//! Edge: a.\nlet x = crate::gateway::limits::X;'
  expect "status must not use manager" status/mod.rs <<<$'//! A room.\nuse crate::manager::run;'
  expect "wire must not use runtime" wire/a.rs <<<$'//! Pure: a.\nuse crate::runtime::clock;'
  expect "runtime must not use wire" runtime/a.rs <<<$'//! Edge: a.\nuse crate::wire::name;'
  expect "api must not use status" api/a.rs <<<$'//! Pure: a.\nuse super::super::status::queue;'
  return "$missed"
}

case "${1:-}" in
  --self-test) self_test && echo "purity: the check finds what it should" ;;
  *) check "${1:-$(dirname "${BASH_SOURCE[0]}")/..}" && echo "purity: pure files are pure, arrows hold" ;;
esac
