#!/usr/bin/env bash
# The whole story in a cluster of its own, from nothing to nothing: builds images and manifests, brings up a cluster
# (hack/cluster.sh: kind, or a node from the real Kubernetes binaries), loads the images and plays e2e/cluster.rs on it.
# Every step prints one line with what was seen. Everything is removed at the end, also after Ctrl-C.
#   E2E_PROVIDER=kind|local   which cluster; without it what works here, with the reason
#   KEEP=1                    leaves the cluster, and says how to reach and how to remove it
#   E2E_MEMORY=1              measures replicas with 10,000 devices, too: some minutes more
# After a failure the logs of all replicas, agents and forwards, their metrics, events, objects and what kubectl describes
# are in a folder below ${TMPDIR:-/tmp}, which the last line names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ok() { printf 'ok   %s\n' "$*"; }
fail() { printf 'e2e: %s\n' "$*" >&2; exit 1; }

for flag in KEEP E2E_MEMORY; do
  [[ "${!flag:-}" =~ ^[01]?$ ]] || fail "$flag=${!flag} is neither 1 nor 0"
done
(($# == 0)) || fail "there are no arguments; E2E_PROVIDER, KEEP and E2E_MEMORY are variables"
# Whatever the caller has: this is a cluster of its own.
export IMAGE=praetor-manager:dev AGENT_IMAGE=praetor-agent:dev NAMESPACE=praetor-system COMPONENTS=""
unset KUBECONFIG

temporary="$(mktemp -d "${TMPDIR:-/tmp}/praetor-e2e.XXXXXX")"
temporary="$(realpath "$temporary")"
cluster="$temporary/cluster" folder="$temporary/seen"
mkdir "$folder" "$temporary/tmp"
child="" stage=building compose=""

# In the background, so that a signal is heard at once, and in a group of its own, which can be ended as a whole.
run() {
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  local status=0
  wait "$child" || status=$?
  child=""
  return "$status"
}

# What explains a failure, as far as the cluster still answers.
collect() {
  local pod namespace
  mkdir -p "$folder/cluster"
  hack/cluster.sh logs "$cluster" "$folder/cluster" >/dev/null 2>&1
  [[ -f "$cluster/kubeconfig" ]] || return
  export KUBECONFIG="$cluster/kubeconfig" NO_PROXY='*' no_proxy='*'
  k() { timeout 20 kubectl --request-timeout=10s "$@"; }
  k get all,endpointslices,leases,networkpolicies --all-namespaces --output wide >"$folder/objects.txt" 2>&1
  k get events --all-namespaces --sort-by .lastTimestamp >"$folder/events.txt" 2>&1
  k get networkswitches,deviceprocesses,deviceprocessdeployments --all-namespaces --output yaml >"$folder/praetor.yaml" 2>&1
  for namespace in praetor-system astray; do
    k --namespace "$namespace" describe pods,deployments,replicasets,services,poddisruptionbudgets >"$folder/describe-$namespace.txt" 2>&1
    while read -r pod; do
      k --namespace "$namespace" logs "$pod" --timestamps >"$folder/logs/${pod#pod/}.last.log" 2>&1
      k --namespace "$namespace" logs "$pod" --timestamps --previous >"$folder/logs/${pod#pod/}.previous.log" 2>/dev/null || rm -f "$folder/logs/${pod#pod/}.previous.log"
      k get --raw "/api/v1/namespaces/$namespace/pods/${pod#pod/}:8081/proxy/metrics" >"$folder/metrics-${pod#pod/}.txt" 2>&1
    done < <(k --namespace "$namespace" get pods --output name 2>/dev/null)
  done
}

finish() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  set +e
  if [[ -n "$child" ]]; then
    kill -TERM -- "-$child" 2>/dev/null
    wait "$child" 2>/dev/null
  fi
  # Containers that an end by a signal has left.
  if [[ -n "$compose" && -f "$folder/compose/.env" ]]; then
    (cd "$folder/compose" && COMPOSE_PROJECT_NAME=praetor-e2e $compose -f docker-compose.yaml down --timeout 1 >/dev/null 2>&1)
  fi
  if ((status != 0)) && [[ "$stage" == playing ]]; then
    mkdir -p "$folder/logs"
    ((status > 128)) || collect
  fi
  if [[ "${KEEP:-}" == 1 && "$stage" == playing ]]; then
    echo "e2e: the cluster is left as it is: export KUBECONFIG=$cluster/kubeconfig"
    echo "e2e: remove it with: hack/cluster.sh down $cluster && rm -r $temporary"
  else
    hack/cluster.sh down "$cluster" || echo "e2e: the cluster in $cluster could not be removed: hack/cluster.sh down $cluster" >&2
    rm -rf "$temporary"/{tmp,next,next.tar,seen/home}
    if ((status == 0 || status > 128)) || [[ "$stage" != playing ]]; then
      rm -rf "$temporary"
    fi
  fi
  if ((status > 128)); then
    echo "e2e: interrupted" >&2
  elif ((status != 0)) && [[ "$stage" == playing ]]; then
    echo "e2e: failed; logs, metrics, events and descriptions are in $folder" >&2
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# --- What everything needs; takes long the first time, and is not counted ---

# The provider says on standard error why it was chosen, or what is missing.
provider="$(hack/cluster.sh provider 2>"$temporary/reason")" || { cat "$temporary/reason" >&2; exit 1; }
ok "$(sed -n '$s/^cluster: //p' "$temporary/reason")"
hack/tools.sh
programs() { hack/cluster.sh binaries >"$temporary/programs"; }
run programs
PATH="$(tail -n 1 "$temporary/programs"):$PATH"
export PATH
kubectl="$(command -v kubectl)" || fail "kubectl is missing: see https://kubernetes.io/docs/tasks/tools"
prometheus() { hack/prometheus.sh >"$temporary/prometheus"; }
run prometheus
run hack/images.sh
mkdir -p dist
hack/deploy.sh render >dist/install.yaml.new
mv dist/install.yaml.new dist/install.yaml
# The same image under another name, for an upgrade.
mkdir "$temporary/next"
tar --extract --file dist/praetor-manager.tar --directory "$temporary/next"
sed -i 's/praetor-manager:dev/praetor-manager:next/g; s/"dev"/"next"/g' "$temporary"/next/*.json
(cd "$temporary/next" && tar --create --file ../next.tar -- *)
build() { cargo test --locked --test cluster --no-run --message-format=json-render-diagnostics >"$temporary/built"; }
run build
play="$(sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p' "$temporary/built" | tail -n 1)"
[[ -x "$play" ]] || fail "cargo does not say where the test is"
ok "built: $(cd dist && stat --format='%n %s bytes' praetor-manager.tar praetor-agent.tar | tr '\n' ' ')and install.yaml; from here on it counts"

# --- The cluster ---

begun=$SECONDS
stage=playing
# With their output turned away in functions: the caller's is still needed to say that there was an end by a signal.
up() { hack/cluster.sh up "$cluster" 2>"$temporary/up"; }
load() { hack/cluster.sh load "$cluster" dist/praetor-manager.tar "$temporary/next.tar" >"$temporary/load" 2>&1; }
run up || { cat "$temporary/up" >&2; exit 1; }
took=$((SECONDS - begun))
run load || { cat "$temporary/load" >&2; exit 1; }
ok "cluster $(kubectl --kubeconfig "$cluster/kubeconfig" version --output yaml 2>/dev/null | sed -n '/^serverVersion/,$s/.*gitVersion: //p') up after $took s, images loaded after $((SECONDS - begun)) s"

# --- The story ---

# Agents run as containers where Docker is, as processes where not.
if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
  if docker compose version >/dev/null 2>&1; then
    compose="docker compose"
  elif command -v docker-compose >/dev/null; then
    compose=docker-compose
  fi
fi
# Nothing of the caller's environment reaches it. The agents are those of the images, where they were built here.
agents=()
[[ ! -x dist/rootfs/agent/praetor-agent ]] || agents=("PRAETOR_BIN_DIR=$PWD/dist/rootfs/agent")
run env -i PATH="$PATH" HOME="$HOME" TMPDIR="$temporary/tmp" RUST_BACKTRACE=0 "${agents[@]}" \
  PROMETHEUS_ASSETS="$(tail -n 1 "$temporary/prometheus")" PRAETOR_CLUSTER_KUBECONFIG="$cluster/kubeconfig" \
  PRAETOR_CLUSTER_KUBECTL="$kubectl" PRAETOR_CLUSTER_FOLDER="$folder" PRAETOR_CLUSTER_MEMORY="${E2E_MEMORY:-}" \
  PRAETOR_CLUSTER_COMPOSE="$compose" ${DOCKER_HOST:+"DOCKER_HOST=$DOCKER_HOST"} \
  "$play" --ignored --nocapture --test-threads=1 || exit 1
echo "e2e: everything holds; $((SECONDS - begun)) s with provider $provider after everything was built"
