#!/usr/bin/env bash
# The agent alone links nothing that knows Kubernetes, one TLS library with one crypto library, and no third party's list
# of CAs; and the check would see it: with the manager's feature there is a Kubernetes client.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
forbidden='^(kube|kube-.*|k8s-openapi|jsonpath.*|tonic|axum|openssl|openssl-sys|native-tls|aws-lc-.*|webpki-root.*) '
# Each one more is code on every device. Whoever raises it says why: archives, checksums and signals to whole groups
# came with running processes.
most=110
tree() { cargo tree --locked --no-default-features --features "$1" --edges normal --prefix none | sed 's/ (\*)$//' | LC_ALL=C sort -u; }

tree manager | grep -qE "$forbidden" || { echo "agent: the check itself is broken: it sees no kube in the manager" >&2; exit 1; }
linked="$(tree agent)"
if grep -E "$forbidden" <<<"$linked" >&2; then
  echo "agent: the crates above must not be part of the agent" >&2
  exit 1
fi
count=$(($(wc -l <<<"$linked") - 1))
((count <= most)) || { echo "agent: links $count crates; $most are the most that hack/check-agent.sh allows" >&2; exit 1; }
echo "agent: links $count crates, none of them a Kubernetes client"
