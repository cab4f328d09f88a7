#!/usr/bin/env bash
# Prepares agents for Docker Compose: for each device a folder hack/compose/devices/NAME with its token (0600) and room
# for its state, and .env with the user who may read them. The token is derived by the manager, in its pod; the secret
# stays there, and no token is ever printed or an argument of a program.
#
#   hack/compose/agents.sh              for the devices of docker-compose.yaml
#   hack/compose/agents.sh -n 20        for the cluster's first 20 NetworkSwitches, by name; writes agents.yaml
#   hack/compose/agents.sh NAME...      for these devices; writes agents.yaml
#
# Run it again, with the same variables, after a change of the secret: running agents take up their new token within a
# heartbeat.
#
#   NAMESPACE=...      where the manager is (praetor-system)
#   TOKEN_COMMAND=...  prints the token of the device whose name is added; words are split at blanks. For a manager
#                      outside of a cluster: TOKEN_COMMAND='praetor-manager token --device-token-secret-file=FILE'
#   GATEWAY_CA_FILE=F  for a manager with TLS: the CA certificates that agents check it against, copied for each of
#                      them; GATEWAY_URL then goes into .env, too, by itself as https://host.docker.internal:8080. The
#                      name in it must be one of the manager's certificate
#   AGENT_USER=...     uid:gid of the agents; without it the caller, or 65532:65532 when that is root. Where Docker
#                      itself runs without root: 0:0, which is the caller there
set -euo pipefail
export LC_ALL=C
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
namespace="${NAMESPACE:-praetor-system}"

fail() { printf 'agents: %s\n' "$*" >&2; exit 1; }

# --- Which devices ---

devices=()
file=agents.yaml
case "${1:-}" in
  "")
    (($# == 0)) || fail "an empty argument is no device name"
    file=docker-compose.yaml
    mapfile -t devices < <(sed -n '/^services:/,$s/^  \([^ :]*\):$/\1/p' "$folder/$file")
    ;;
  -n)
    [[ $# == 2 && "$2" =~ ^[1-9][0-9]{0,4}$ ]] || fail "'$*' is no number of devices: -n 1 to -n 99999"
    listed="$(kubectl get networkswitches -A -o custom-columns=N:.metadata.name --no-headers)" ||
      fail "the NetworkSwitches cannot be listed (kubectl says why above)"
    mapfile -t devices < <(sort -u <<<"$listed" | grep . | head -n "$2")
    ((${#devices[@]} == $2)) ||
      fail "-n $2 asks for more devices than there are: ${#devices[@]} NetworkSwitches; create more, or name the devices"
    ;;
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  -*) fail "$1 is no flag: there are -n N and --help, else names of devices" ;;
  *) mapfile -t devices < <(printf '%s\n' "$@" | sort -u) ;;
esac
label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
for device in "${devices[@]}"; do
  [[ ${#device} -le 253 && "$device" =~ ^$label(\.$label)*$ ]] ||
    fail "$(printf %q "$device") is no device name: lower-case letters, digits, '-' and '.', at most 253, as in NetworkSwitch names"
done

# --- What gateways are checked against ---

ca="${GATEWAY_CA_FILE:-}"
gateway="${GATEWAY_URL:-https://host.docker.internal:8080}"
if [[ -n "$ca" ]]; then
  [[ -f "$ca" && -r "$ca" ]] || fail "GATEWAY_CA_FILE=$ca is no file that can be read: name the PEM file of the CA"
  grep -q -- '-----BEGIN CERTIFICATE-----' "$ca" || fail "GATEWAY_CA_FILE=$ca holds no certificate in PEM"
  [[ "$gateway" =~ ^https://[[:graph:]]+$ && "$gateway" != *[\'\"\$\#]* ]] ||
    fail "GATEWAY_URL=$gateway does not fit to GATEWAY_CA_FILE: use https://HOST:PORT, without quotes, blanks, \\, \$ or #"
fi

# --- Who derives the tokens ---

if [[ -n "${TOKEN_COMMAND:-}" ]]; then
  read -ra token_command <<<"$TOKEN_COMMAND"
else
  command -v kubectl >/dev/null || fail "kubectl is needed to ask the manager for tokens (or set TOKEN_COMMAND, see the top of this script)"
  arguments="$(kubectl -n "$namespace" get deployment praetor-manager \
    -o 'jsonpath={range .spec.template.spec.containers[?(@.name=="manager")].args[*]}{@}{"\n"}{end}')" ||
    fail "namespace $namespace has no Deployment praetor-manager that can be read (kubectl says why above): set NAMESPACE, or TOKEN_COMMAND for a manager outside of a cluster"
  token_command=(kubectl -n "$namespace" exec deployment/praetor-manager -c manager -- /praetor-manager token)
  # Only names of files: a secret itself must not become an argument here.
  while read -r argument; do
    [[ "$argument" != --device-token*-file=* ]] || token_command+=("$argument")
  done <<<"$arguments"
fi

# --- Folders and tokens ---

umask 077
user="${AGENT_USER:-$(id -u):$(id -g)}"
[[ "$user" =~ ^[0-9]+:[0-9]+$ ]] || fail "AGENT_USER=$user is not uid:gid, in numbers"
[[ -n "${AGENT_USER:-}" || "$(id -u)" != 0 ]] || user=65532:65532
temporary=""
trap '[[ -z "$temporary" ]] || rm -f "$temporary"' EXIT
for device in "${devices[@]}"; do
  # Not at stdin: exec would read the rest of a caller's script.
  token="$("${token_command[@]}" "$device" </dev/null)" ||
    fail "no token for $device (the line above says why; asked with: ${token_command[*]})"
  [[ "$token" =~ ^[[:graph:]]+$ ]] || fail "no token for $device: '${token_command[*]} $device' printed no single word"
  mkdir -p "$folder/devices/$device/token" "$folder/devices/$device/state"
  temporary="$folder/devices/$device/token/.new"
  printf '%s\n' "$token" >"$temporary"
  # Beside the token: the folder is mounted already.
  if [[ -n "$ca" ]]; then
    cp -- "$ca" "$folder/devices/$device/token/.ca"
    mv "$folder/devices/$device/token/.ca" "$folder/devices/$device/token/ca.crt"
  fi
  # Only root can; anybody else is the user, or knows why not.
  [[ "$(id -u)" != 0 ]] || chown -R "$user" "$folder/devices/$device"
  # At once: the agent reads the old one or the new one.
  mv "$temporary" "$folder/devices/$device/token/token"
  temporary=""
done

# --- For Compose ---

{
  printf 'COMPOSE_PROJECT_NAME=praetor-agents\nAGENT_USER=%s\n' "$user"
  [[ -z "$ca" ]] || printf 'AGENT_CA_FILE=/run/praetor/ca.crt\nGATEWAY_URL=%s\n' "$gateway"
} >"$folder/.env"
if [[ "$file" == agents.yaml ]]; then
  {
    echo "# Written by agents.sh from docker-compose.yaml."
    sed -n '/^x-environment:/,/^services:/p' "$folder/docker-compose.yaml"
    for device in "${devices[@]}"; do
      # The first service of the file, as a template.
      sed -n '/^services:/,$p' "$folder/docker-compose.yaml" |
        awk '/^  [^ ].*:$/ { n++; if (n == 1) { old = $1; sub(/:$/, "", old) } } n == 1' | grep -v '^ *#' |
        sed "s/tor1-01/$device/g"
    done
  } >"$folder/agents.yaml"
fi
compose="docker compose"
docker compose version >/dev/null 2>&1 || ! command -v docker-compose >/dev/null || compose=docker-compose
echo "agents: ${#devices[@]} tokens in $folder/devices, readable for $user only. Start the agents:"
echo "  $compose -f $folder/$file up -d"
