# shellcheck shell=bash disable=SC2034,SC2154,SC2164,SC2317  # sourced, with errexit; its clean-up is for a trap
# Builds pinned Go programs once and keeps them outside of the clone, to be sourced by a script with `set -euo pipefail`
# that has set $what: the word its messages begin with. Progress goes to stderr.

module="$(cd "$(dirname "${BASH_SOURCE[0]}")/controlplane" && pwd)"
pinned() { awk -v m="$1" '$1 == m { print $2; exit }' "$module/go.mod"; }
kubernetes="$(pinned k8s.io/kubernetes)"
etcd="$(pinned go.etcd.io/etcd/server/v3)"
needs_go="$(pinned go)"

note() { printf '%s: %s\n' "$what" "$*" >&2; }
fail() { note "error: $*"; exit 1; }

cache_folder() {
  echo "${XDG_CACHE_HOME:-${HOME:?is needed to find the cache (or set XDG_CACHE_HOME)}/.cache}/praetor"
}

# Says in one line what is wrong with Go, if something is: not there, or too old.
go_fault() {
  local has
  if ! command -v go >/dev/null 2>&1; then
    echo "Go $needs_go or newer is missing (https://go.dev/dl)"
    return
  fi
  # Asked outside the module and with its own toolchain: otherwise an old Go would try to fetch a newer one.
  has="$(cd / && GOTOOLCHAIN=local GOWORK=off GOFLAGS='' go env GOVERSION)"
  [[ "$(printf '%s\n' "$needs_go" "${has#go}" | sort -V | head -n 1)" == "$needs_go" ]] ||
    echo "Go $needs_go or newer is needed, this is ${has#go} (https://go.dev/dl)"
}

# In a terminal the running phase is one line that counts up; elsewhere a line every 15 seconds.
beat=0
tick() { # label, started
  if [[ -t 2 ]]; then
    printf '\r\033[K%s: %s (%d s)' "$what" "$1" $((SECONDS - $2)) >&2
  elif ((SECONDS - beat >= 15)); then
    beat=$SECONDS
    note "  $1 ($((SECONDS - $2)) s)"
  fi
}
phase() { # label, file whose lines count as progress or "", their expected number, command...
  local label="$1" lines="$2" total="$3" started=$SECONDS shown
  shift 3
  note "$label ..."
  beat=$SECONDS
  "$@" >"$work/out" 2>"$work/log" 9>&- &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    shown="$label"
    [[ -z "$lines" ]] || shown="$label: $(wc -l <"$lines") of at most $total packages"
    tick "$shown" "$started"
    sleep 1
  done
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  if ! wait "$child"; then
    child=""
    tail -n 20 "$work/log" >&2
    fail "$label failed after $((SECONDS - started)) s (its last lines are above)"
  fi
  child=""
  note "$label: done in $((SECONDS - started)) s"
}

# Builds packages into a folder of the cache, unless what is there is usable. Arguments: the folder's name, a function
# that says whether a folder holds usable programs, what to say before a build, the packages.
# In a subshell of its own, so that its lock and traps end with it.
cached_build() (
  folder="$(cache_folder)" target="$(cache_folder)/$1" usable="$2" intent="$3"
  shift 3
  ! "$usable" "$target" || exit 0
  fault="$(go_fault)"
  [[ -z "$fault" ]] || fail "$fault; it is needed to build $intent"

  mkdir -p "$folder"
  if command -v flock >/dev/null 2>&1; then
    exec 9>"$folder/${target##*/}.lock"
    if ! flock --nonblock 9; then
      note "another build is under way, waiting for it"
      until flock --wait 15 9; do note "  still waiting ($SECONDS s)"; done
    fi
    ! "$usable" "$target" || exit 0
  fi

  work="$(mktemp -d "$folder/build.XXXXXX")"
  child=""
  cleanup() {
    [[ -z "$child" ]] || kill "$child" 2>/dev/null || true
    rm -rf "$work"
  }
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  begun=$SECONDS
  version="-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/client-go/pkg/version.gitVersion=$kubernetes"
  # The caller's settings must not change what is built.
  export GOFLAGS='' GOWORK=off CGO_ENABLED=0
  cd "$module"
  note "building $intent with $(cd / && GOTOOLCHAIN=local go env GOVERSION); once, into $target"
  phase "fetching modules" "" 0 go list -mod=readonly -deps "$@"
  total="$(wc -l <"$work/out")"
  mkdir "$work/bin"
  phase "compiling" "$work/log" "$total" \
    nice -n 5 go build -v -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w $version" -o "$work/bin/" "$@"
  # The package of etcd's program is called server.
  [[ ! -e "$work/bin/server" ]] || mv "$work/bin/server" "$work/bin/etcd"
  "$usable" "$work/bin" || fail "what was built does not run (see $module)"

  # A rename, so that no one ever sees half of it. What stands there is unusable or another's equal build.
  rm -rf "$target"
  mv "$work/bin" "$target"
  note "ready after $((SECONDS - begun)) s"
)
