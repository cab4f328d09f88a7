#!/usr/bin/env bash
# Provides kube-apiserver, etcd and kubectl for tests, benchmarks and the demo. The last line of stdout, and the only
# one, is the folder that holds them; progress goes to stderr. Sources, in this order:
#   1. $KUBEBUILDER_ASSETS, when set: checked, never filled in from elsewhere;
#   2. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/controlplane-<version>/;
#   3. a build of the pinned Go modules in hack/controlplane (about 4 minutes of two cores, once), put into the cache.
set -euo pipefail

module="$(cd "$(dirname "${BASH_SOURCE[0]}")/controlplane" && pwd)"
pinned() { awk -v m="$1" '$1 == m { print $2; exit }' "$module/go.mod"; }
kubernetes="$(pinned k8s.io/kubernetes)"
etcd="$(pinned go.etcd.io/etcd/server/v3)"
needs_go="$(pinned go)"

note() { printf 'controlplane: %s\n' "$*" >&2; }
fail() { note "error: $*"; exit 1; }

# A folder is good when all three are there and start (a cache may come from another machine).
usable() {
  local dir="$1"
  "$dir/etcd" --version >/dev/null 2>&1 &&
    "$dir/kube-apiserver" --version >/dev/null 2>&1 &&
    "$dir/kubectl" version --client >/dev/null 2>&1
}

if [[ -n "${KUBEBUILDER_ASSETS:-}" ]]; then
  for binary in kube-apiserver etcd kubectl; do
    [[ -x "$KUBEBUILDER_ASSETS/$binary" ]] ||
      fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no executable $binary; unset it to use the cache or a build"
  done
  usable "$KUBEBUILDER_ASSETS" || fail "the programs in KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS do not run on this machine"
  cd "$KUBEBUILDER_ASSETS" && pwd
  exit 0
fi

cache="${XDG_CACHE_HOME:-${HOME:?is needed to find the cache (or set XDG_CACHE_HOME)}/.cache}/praetor"
target="$cache/controlplane-$kubernetes-etcd-$etcd"
if usable "$target"; then
  echo "$target"
  exit 0
fi

command -v go >/dev/null 2>&1 ||
  fail "Go $needs_go or newer is needed to build kube-apiserver (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd and kubectl"
# Asked outside the module and with its own toolchain: otherwise an old Go would try to fetch a newer one.
has_go="$(cd / && GOTOOLCHAIN=local GOWORK=off GOFLAGS='' go env GOVERSION)"
[[ "$(printf '%s\n' "$needs_go" "${has_go#go}" | sort -V | head -n 1)" == "$needs_go" ]] ||
  fail "Go $needs_go or newer is needed to build kube-apiserver, this is ${has_go#go} (https://go.dev/dl)"

mkdir -p "$cache"
if command -v flock >/dev/null 2>&1; then
  exec 9>"$cache/controlplane.lock"
  if ! flock --nonblock 9; then
    note "another build is under way, waiting for it"
    until flock --wait 15 9; do note "  still waiting ($SECONDS s)"; done
  fi
  if usable "$target"; then
    echo "$target"
    exit 0
  fi
fi

work="$(mktemp -d "$cache/build.XXXXXX")"
child=""
cleanup() {
  [[ -z "$child" ]] || kill "$child" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# In a terminal the running phase is one line that counts up; elsewhere a line every 15 seconds.
begun=$SECONDS
beat=0
tick() { # label, started
  if [[ -t 2 ]]; then
    printf '\r\033[Kcontrolplane: %s (%d s)' "$1" $((SECONDS - $2)) >&2
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

packages=(go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl)
version="-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/client-go/pkg/version.gitVersion=$kubernetes"
# The caller's settings must not change what is built.
export GOFLAGS='' GOWORK=off CGO_ENABLED=0
cd "$module"

note "kube-apiserver and kubectl $kubernetes, etcd $etcd, with $has_go; once, into $target"
phase "fetching modules" "" 0 go list -mod=readonly -deps "${packages[@]}"
total="$(wc -l <"$work/out")"
mkdir "$work/bin"
phase "compiling" "$work/log" "$total" \
  nice -n 5 go build -v -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w $version" -o "$work/bin/" "${packages[@]}"
mv "$work/bin/server" "$work/bin/etcd"
usable "$work/bin" || fail "what was built does not run (see $module)"

# A rename, so that no one ever sees half of it. What stands there is unusable or another's equal build.
rm -rf "$target"
mv "$work/bin" "$target"
note "ready after $((SECONDS - begun)) s"
echo "$target"
