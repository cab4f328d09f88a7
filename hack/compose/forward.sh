#!/usr/bin/env bash
# Forwards a port of this machine to svc/praetor, for agents in containers of this machine, until it is interrupted.
# A forward goes to one pod. kubectl does not notice that this pod is gone, but only that connections fail; on the first
# that does, or when kubectl ends, a new forward is made, to another pod.
#
#   hack/compose/forward.sh [PORT]      8080 without one; NAMESPACE (praetor-system) says where the Service is
#
# It listens on loopback and, where Docker has a bridge of its own on this machine (Linux), on the bridge's address:
# there containers find host.docker.internal. Others on the network do not reach it.
set -euo pipefail
port="${1:-8080}"
namespace="${NAMESPACE:-praetor-system}"
fail() { printf 'forward: %s\n' "$*" >&2; exit 1; }
[[ $# -le 1 && "$port" =~ ^[1-9][0-9]{0,4}$ && "$port" -le 65535 ]] || fail "'$*' is no port: give one of 1 to 65535, or nothing for 8080"
command -v kubectl >/dev/null || fail "kubectl is needed"
kubectl -n "$namespace" get service praetor -o name >/dev/null ||
  fail "namespace $namespace has no Service praetor that can be read (kubectl says why above): install first, or set NAMESPACE"

addresses=127.0.0.1
bridge="$(docker network inspect bridge -f '{{range .IPAM.Config}}{{.Gateway}}{{end}}' 2>/dev/null || true)"
if [[ -z "$bridge" ]]; then
  # A daemon that has just made its bridge does not tell the address, but the name.
  name="$(docker network inspect bridge -f '{{index .Options "com.docker.network.bridge.name"}}' 2>/dev/null || true)"
  [[ -z "$name" ]] || bridge="$(ip -4 -o address show dev "$name" 2>/dev/null | awk '{ sub("/.*", "", $4); print $4; exit }' || true)"
fi
if [[ -n "$bridge" ]] && hostname -I 2>/dev/null | grep -qwF -- "$bridge"; then
  addresses+=",$bridge"
fi
for address in ${addresses//,/ }; do
  ! (: <"/dev/tcp/$address/$port") 2>/dev/null || fail "port $port of $address is in use: name another one, and set GATEWAY_URL for the agents"
done

child=""
trap '[[ -z "$child" ]] || kill "$child" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
while :; do
  exec 3< <(exec kubectl -n "$namespace" port-forward --address "$addresses" service/praetor "$port:8080" 2>&1)
  child=$!
  while read -r line <&3; do
    # One such line for each connection says nothing.
    [[ "$line" == "Handling connection"* ]] || printf '%s\n' "$line" >&2
    [[ ! "$line" =~ error\ (creating|forwarding)|lost\ connection ]] || break
  done
  kill "$child" 2>/dev/null || true
  wait "$child" 2>/dev/null || true
  exec 3<&-
  child=""
  echo "forward: broken (is its pod gone?); again in a second" >&2
  sleep 1
done
