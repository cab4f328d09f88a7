#!/usr/bin/env bash
# The CRDs in crd/ are what the types in src/api say; the difference is shown when they are not. Asks the manager that
# `make binaries` has built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT

"${CARGO_TARGET_DIR:-target}/debug/praetor-manager" crds --output-dir "$fresh"
# Written by hand, lists the others.
cp crd/kustomization.yaml "$fresh/"
diff -ruN crd "$fresh" || { echo "generated: crd/ is not what the types say: run make manifests" >&2; exit 1; }
for crd in crd/azure.com_*.yaml; do
  grep -q "$(basename "$crd")" crd/kustomization.yaml || { echo "generated: crd/kustomization.yaml does not list $crd" >&2; exit 1; }
done
echo "generated: crd/ is up to date"
