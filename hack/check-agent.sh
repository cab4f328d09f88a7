#!/usr/bin/env bash
# The agent alone links nothing that knows Kubernetes, and the check would see it: with the manager's feature it does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
forbidden='^(kube|kube-.*|k8s-openapi|jsonpath.*|tonic|axum) '
tree() { cargo tree --locked --no-default-features --features "$1" --edges normal --prefix none | LC_ALL=C sort -u; }

tree manager | grep -qE "$forbidden" || { echo "agent: the check itself is broken: it sees no kube in the manager" >&2; exit 1; }
linked="$(tree agent)"
if grep -E "$forbidden" <<<"$linked" >&2; then
  echo "agent: the crates above must not be part of the agent" >&2
  exit 1
fi
echo "agent: links $(($(wc -l <<<"$linked") - 1)) crates, none of them a Kubernetes client"
