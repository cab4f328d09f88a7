#!/usr/bin/env bash
# Provides kube-apiserver, etcd and kubectl for tests, benchmarks and the demo. The last line of stdout, and the only
# one, is the folder that holds them; progress goes to stderr. Sources, in this order:
#   1. $KUBEBUILDER_ASSETS, when set: checked, never filled in from elsewhere;
#   2. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/controlplane-<version>/;
#   3. a build of the pinned Go modules in hack/controlplane (about 4 minutes of two cores, once), put into the cache.
set -euo pipefail
# shellcheck disable=SC2034  # for go-tools.sh
what=controlplane
# shellcheck source=hack/go-tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/go-tools.sh"

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

name="controlplane-$kubernetes-etcd-$etcd"
cached_build "$name" usable "kube-apiserver and kubectl $kubernetes, etcd $etcd (or set KUBEBUILDER_ASSETS to a folder with the three)" \
  go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl
echo "$(cache_folder)/$name"
