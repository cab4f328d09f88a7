# shellcheck shell=bash
# The replicas of hack/demo.sh, to be sourced: starting them, asking them who leads and who owns what, and whether
# any device was called dead.

# The replicas by number; number N is process manager-N, identity praetor-N, at $GATEWAYN and $ADMINN.
replicas=(1 2 3)

# Chooses the addresses of all replicas, and what each of them is started with.
prepare_replicas() {
  local n
  random_hex >"$DEMO/secret"
  random_hex >"$DEMO/peer-secret"
  for n in "${replicas[@]}"; do
    # Where the switch reaches it, if there is one.
    printf -v "GATEWAY$n" 'http://%s:%d' "$host_address" "$(free_port)"
    printf -v "ADMIN$n" 'http://127.0.0.1:%d' "$(free_port)"
    printf -v "PEER$n" '127.0.0.1:%d' "$(free_port)"
    export "GATEWAY$n" "ADMIN$n" "PEER$n"
  done
}
# The settings of this shell are not the manager's: env -i.
manager() { # number
  echo "env -i \"\$BIN/praetor-manager\" --identity praetor-$1 --kubeconfig \"\$DEMO/manager.kubeconfig\" --device-token-secret-file \"\$DEMO/secret\" --addr \"\${GATEWAY$1#http://}\" --admin-addr \"\${ADMIN$1#http://}\" --peer-addr \"\$PEER$1\" --peer-secret-file \"\$DEMO/peer-secret\" --access-log all"
}
admin_of() { local name="ADMIN$1"; echo "${!name}"; }
is_ready() { running "manager-$1" && curl -sf -m 5 "$(admin_of "$1")/readyz" >/dev/null; }
# Starts replicas and waits until they are ready; $took is what the slowest took.
start_replicas() {
  local n begin
  begin="$(now)"
  for n in "$@"; do start "manager-$n" "$(manager "$n")"; done
  for n in "$@"; do
    within 30 is_ready "$n" || die "praetor-$n did not become ready: $(tail -n 1 "$DEMO/manager-$n.log")"
  done
  # shellcheck disable=SC2034  # for demo.sh
  took=$(($(now) - begin))
}

# Numbers of the replicas that run, without the one that is named.
others() {
  local n
  for n in "${replicas[@]}"; do
    if [[ "$n" != "${1:-}" ]] && running "manager-$n"; then echo "$n"; fi
  done
}
# Value of a metric; series that a pattern matches are added up, over all replicas or those that are numbered.
metric() {
  local pattern="$1" n
  shift
  for n in ${*:-$(others)}; do curl -s -m 5 "$(admin_of "$n")/metrics"; done |
    awk -v series="^$pattern" '$0 ~ series { sum += $NF } END { print sum + 0 }'
}
# Number of the replica that leads, nothing when there is none; one can be left out.
leader() {
  local n
  for n in $(others "${1:-}"); do
    [[ "$(metric 'praetor_leader ' "$n")" != 1 ]] || echo "$n"
  done
}
the_leader() { within 20 led_by_another "" && leader | head -n 1; }
led_by_another() { [[ -n "$(leader "$1")" ]]; }
# Identity of the owner of a device, as a replica sees it.
owner_of() { curl -s -m 5 "$(admin_of "$2")/debug/ownership?device=$1" | tr -d ' \n' | sed -n 's/.*"owner":"\([^"]*\)".*/\1/p'; }
# How many different answers the replicas have to who owns these devices; 0 when one has none.
opinions() {
  local n device owner all answers=()
  for n in $(others); do
    all=""
    for device in "$@"; do
      owner="$(owner_of "$device" "$n")"
      [[ -n "$owner" ]] || { echo 0; return; }
      all+="$owner "
    done
    answers+=("$all")
  done
  printf '%s\n' "${answers[@]}" | sort -u | wc -l
}
# how many members, then perhaps a replica that is left out: every replica sees so many, one of them leads, and each
# device is owned once.
agreed() {
  local n sum=0
  for n in $(others "${2:-}"); do
    [[ "$(metric 'praetor_members ' "$n")" == "$1" ]] || return 1
    sum=$((sum + $(metric 'praetor_owned_devices ' "$n")))
  done
  [[ "$sum" == "$(kubectl get nsw -A -o name | wc -l)" && "$(leader "${2:-}" | wc -l)" == 1 ]]
}

# --- Whether anybody flapped ---

# AgentConnected of every switch and process, with the time since when; a name can be left out.
connections() {
  kubectl get dp,nsw -A -o 'jsonpath={range .items[*]}{.kind}{" "}{.metadata.name}{" "}{range .status.conditions[?(@.type=="AgentConnected")]}{.status}{" "}{.lastTransitionTime}{end}{"\n"}{end}' |
    grep -v -- "${1:-^$}"
}
# Events that say that a device came or went.
comings_and_goings() {
  kubectl get events -A -o 'jsonpath={range .items[*]}{.reason}{" "}{.metadata.name}{"\n"}{end}' |
    grep -E '^Agent(Connected|Disconnected) ' | sort
}
remember() { connections >"$DEMO/connections" && comings_and_goings >"$DEMO/events"; }
# Checks that it is as it was remembered; one device that really died is told of in one event.
check_nobody_flapped() {
  local died="${1:-}" changed
  changed="$(diff <(grep -v -- "${died:-^$}" "$DEMO/connections") <(connections "$died") | grep -c '^[<>]')"
  check_equal "changes of AgentConnected among $(connections "$died" | wc -l) ${died:+other }switches and processes" "$changed" 0
  changed="$(diff "$DEMO/events" <(comings_and_goings) | grep -c '^[<>]')"
  check_equal "events AgentConnected and AgentDisconnected${died:+, that of $died included}" "$changed" $((${#died} > 0))
}

# A place in the logs of the agents, and the longest time since then for which an agent was without an answer.
agent_log_mark() { local log; for log in "$DEMO"/agent-*.log; do stat -c '%n %s' "$log"; done >"$DEMO/agent-logs"; }
# Prints a line "milliseconds" for each loop of each agent that failed and is answered again.
recoveries() {
  local log size route failed again
  while read -r log size; do
    for route in desired report; do
      failed="$(tail -c "+$((size + 1))" "$log" | grep "route=\"$route\"" | grep -m 1 'request failed' | cut -d ' ' -f 1)"
      again="$(tail -c "+$((size + 1))" "$log" | grep "route=\"$route\"" | grep -m 1 'answers again' | cut -d ' ' -f 1)"
      [[ -z "$failed" || -z "$again" ]] || echo $(($(date -d "$again" +%s%3N) - $(date -d "$failed" +%s%3N)))
    done
  done <"$DEMO/agent-logs"
}
recovered() { [[ "$(recoveries | wc -l)" -ge "$1" ]]; }

# --- More devices ---

# Thirty switches in a namespace of their own, and a process on each.
simulated_objects() {
  local n
  cat <<'YAML'
apiVersion: v1
kind: Namespace
metadata: {name: simulated}
---
apiVersion: azure.com/v1alpha1
kind: DeviceProcessDeployment
metadata: {name: probe, namespace: simulated}
spec:
  selector: {matchLabels: {role: leaf}}
  template:
    spec:
      artifact: {type: oci, url: 'registry.example.com/network/probe:1.0.0'}
      execution: {backend: systemd, command: [/usr/local/bin/probe]}
YAML
  for n in {0..29}; do
    printf -- '---\napiVersion: azure.com/v1alpha1\nkind: NetworkSwitch\nmetadata: {name: sim-%05d, namespace: simulated, labels: {role: leaf}}\n' "$n"
  done
}
# The fleet, as a person would start it.
# shellcheck disable=SC2016,SC2034  # expanded when it runs, by demo.sh
fleet='env -i "$BIN/praetor-fleet" --gateway-url "$GATEWAY1,$GATEWAY2,$GATEWAY3" --spread random --devices 30 --prefix sim --ramp-per-second 20 --device-token-secret-file "$DEMO/secret" --progress-seconds 0'
# A whole number of the fleet's summary: its name, and which one of that name (polls come first, then reports).
of_fleet() { sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p" "$DEMO/fleet.log" | sed -n "${2:-1}p"; }
