#!/usr/bin/env bash
# A throw-away Kubernetes cluster of one node, for the cluster tests. Two providers with the same commands:
#
#   kind    kind on Docker, where Docker may run privileged containers
#   local   the real programs of Kubernetes beside containerd, in namespaces of their own on this machine (Linux, root)
#
#   hack/cluster.sh provider        prints kind or local, the reason on stderr; E2E_PROVIDER=kind|local forces one.
#                                   Exit code 3, and only then: no cluster can run on this machine
#   hack/cluster.sh binaries        builds or finds what `up` needs; prints the folders of the programs, fit for PATH
#   hack/cluster.sh up DIR          a new cluster; everything of it is in DIR, DIR/kubeconfig is its administrator's
#   hack/cluster.sh load DIR TAR... loads images from files of `docker save` (or of hack/cluster/image.sh)
#   hack/cluster.sh status DIR      whether it runs; exit code 0 only when it does
#   hack/cluster.sh logs DIR TO     copies the logs of its programs and containers into the folder TO
#   hack/cluster.sh down DIR        stops it and removes all that it has made, in whatever state it is; again: no harm
#
# Any number of clusters may run beside each other, each with its DIR. An `up` that fails or is interrupted leaves no
# cluster; one that is killed leaves what `down DIR` removes. Pods must find their images loaded: imagePullPolicy is
# IfNotPresent or Never. A client that obeys HTTPS_PROXY needs NO_PROXY for the address in DIR/kubeconfig.
set -euo pipefail
if ((BASH_VERSINFO[0] < 5)) || [[ "$(uname -s)" != Linux ]]; then
  echo "cluster: no cluster can run here: that needs Linux and bash 5 or newer" >&2
  exit 3
fi
shopt -s inherit_errexit
export LC_ALL=C
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
what=cluster
# shellcheck source=hack/go-tools.sh
source "$here/go-tools.sh"
# shellcheck source=hack/cluster/kind.sh
source "$here/cluster/kind.sh"
# shellcheck source=hack/cluster/local.sh
source "$here/cluster/local.sh"

usage() {
  fail "usage: hack/cluster.sh provider | binaries | up DIR | load DIR TAR... | status DIR | logs DIR TO | down DIR"
}

# Prints the provider, why it was chosen on stderr.
choose() {
  local kind_lacks local_lacks
  case "${E2E_PROVIDER:-}" in
    kind | local)
      kind_lacks="$("${E2E_PROVIDER}_lacks")"
      [[ -z "$kind_lacks" ]] || fail "E2E_PROVIDER=$E2E_PROVIDER cannot work here: $kind_lacks"
      note "provider $E2E_PROVIDER, as E2E_PROVIDER says"
      echo "$E2E_PROVIDER"
      return
      ;;
    "") ;;
    *) fail "E2E_PROVIDER is kind or local (or empty: what works), not $E2E_PROVIDER" ;;
  esac
  kind_lacks="$(kind_lacks)"
  if [[ -z "$kind_lacks" ]]; then
    note "provider kind: Docker runs privileged containers and kind is there"
    echo kind
    return
  fi
  local_lacks="$(local_lacks)"
  if [[ -n "$local_lacks" ]]; then
    note "no cluster can run here. For kind: $kind_lacks. For local: $local_lacks"
    exit 3
  fi
  note "provider local: root on Linux with what it needs (not kind: $kind_lacks)"
  echo local
}

# The folder of a cluster, absolute, and the provider that made it.
open() {
  dir="$(realpath -m -- "$1")"
  [[ -f "$dir/provider" ]] || fail "$dir holds no cluster: bring one up with hack/cluster.sh up $1"
  provider="$(<"$dir/provider")"
  [[ "$provider" == kind || "$provider" == local ]] || fail "$dir/provider says $provider, not kind or local"
}
alive() { [[ -n "$("${provider}_state" "$dir")" ]]; }

bring_up() {
  dir="$(realpath -m -- "$1")"
  if [[ -f "$dir/provider" ]]; then
    open "$1"
    ! alive || fail "a cluster of $dir runs: use it, or end it with hack/cluster.sh down $1"
    note "removing what a cluster that no longer runs has left in $dir"
    take_down
  elif [[ -e "$dir" && -n "$(find "$dir" -mindepth 1 -print -quit 2>/dev/null || echo none)" ]]; then
    fail "$dir is no empty folder: choose a new one"
  fi
  provider="$(choose)"
  # Programs first: a build takes minutes and leaves nothing in DIR when it is interrupted.
  programs="$("${provider}_binaries")"
  export PATH="$programs:$PATH"
  mkdir -p "$dir" || fail "cannot make the folder $dir"
  dir="$(realpath -- "$dir")"
  trap interrupted EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  echo "$provider" >"$dir/provider"
  begun=$SECONDS
  "${provider}_up" "$dir"
  trap - EXIT
  note "ready after $((SECONDS - begun)) s: export KUBECONFIG=$dir/kubeconfig"
}
# `up` ends without a cluster: what it has made goes, the logs stay when it is a fault that they may explain.
interrupted() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  if ((status > 128)); then
    take_down
    note "interrupted; everything that was started is stopped and removed"
  else
    "${provider}_stop" "$dir"
    note "everything that was started is stopped; logs are in $dir/logs until hack/cluster.sh down $dir"
  fi
  exit "$status"
}
take_down() {
  "${provider}_stop" "$dir"
  rm -rf --one-file-system -- "$dir"
}

command="${1:-}"
shift || true
case "$command" in
  provider)
    (($# == 0)) || usage
    choose
    ;;
  binaries)
    (($# == 0)) || usage
    provider="$(choose)"
    "${provider}_binaries"
    ;;
  up)
    (($# == 1)) || usage
    bring_up "$1"
    ;;
  load)
    (($# >= 2)) || usage
    open "$1"
    shift
    for tar in "$@"; do [[ -r "$tar" && -f "$tar" ]] || fail "no image archive $tar (a file of docker save)"; done
    alive || fail "the cluster of $dir does not run"
    "${provider}_load" "$dir" "$@"
    ;;
  status)
    (($# == 1)) || usage
    open "$1"
    alive || { echo "$provider, does not run"; exit 1; }
    echo "$provider, $("${provider}_state" "$dir")"
    ;;
  logs)
    (($# == 2)) || usage
    open "$1"
    mkdir -p -- "$2"
    "${provider}_logs" "$dir" "$2"
    ;;
  down)
    (($# == 1)) || usage
    dir="$(realpath -m -- "$1")"
    # Never made, or gone already.
    [[ -f "$dir/provider" ]] || exit 0
    open "$1"
    take_down
    ;;
  *) usage ;;
esac
