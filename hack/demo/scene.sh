# shellcheck shell=bash disable=SC2016,SC2154  # what is typed is expanded when it runs; variables are of demo.sh
# The part of hack/demo.sh in which a switch runs processes, to be sourced. Its headings go on where the last one was.

next() { heading $((step + 1)) "$1"; }

# --- What is looked at ---

# Lines that beat has written on the switch.
beats() { cat "$(on_device "${1:-/run/beat}")" 2>/dev/null; }
# version: when it wrote its first line, in milliseconds since 1970; nothing when it has not
first_beat() { beats | awk -v version="$1" '$2 == version { printf "%.0f\n", $1 / 1000; exit }'; }
# version, moment: milliseconds from there until it wrote its first line
took_to() { local first; first="$(first_beat "$1")"; echo $((${first:-9999999999999} - $2)); }
has_beaten() { [[ -n "$(first_beat "$1")" ]]; }
# Milliseconds between the last line of one version and the first of another, and how many lines of the former come later.
change_over() { # old, new
  beats | awk -v old="$1" -v new="$2" '$2 == new && !first { first = $1 } $2 == old { if (first) late++; else last = $1 }
    END { printf "%.0f %d\n", (first - last) / 1000, late }'
}
# The longest time without a line since a moment in milliseconds, until now.
silence_since() { beats | awk -v since="$1" '$1 / 1000 >= since { if (last && $1 - last > most) most = $1 - last; last = $1 } END { printf "%.0f\n", most / 1000 }'; }
# process, phase
in_phase() { [[ "$(field "$1" '{.status.phase}')" == "$2" ]]; }
# process, condition, then perhaps what of it
condition() { field "$1" "{.status.conditions[?(@.type==\"$2\")].${3:-status}}"; }
is_condition() { [[ "$(condition "$1" "$2")" == "$3" ]]; }
at_pid() { [[ "$(field "$1" '{.status.pid}')" == "$2" ]]; }
# The process on the switch that wrote last, by the switch's own numbers.
beating_pid() { beats "${1:-/run/beat}" | tail -n 1 | cut -d ' ' -f 3; }
# This machine's number of the agent on the switch, and the switch's own.
agent_pid() {
  local file namespace
  namespace="$(readlink "/proc/$device_pid/ns/pid")"
  for file in /proc/[0-9]*; do
    [[ "$(tr '\0' ' ' <"$file/cmdline")" == */praetor-agent\ --settings-file=* && "$(readlink "$file/ns/pid")" == "$namespace" ]] || continue
    # Not its parent, which is a shell with init scripts.
    echo "${file#/proc/} $(awk '/^NSpid:/ { print $NF }' "$file/status")"
  done 2>/dev/null | tail -n 1
}
# process: how long it has had a processor so far, in milliseconds, threads that have ended included
busy_ms() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ printf "%.0f\n", ($12 + $13) * 1000 / hz }'; }
beat_url() { echo "{\"spec\":{\"template\":{\"spec\":{\"artifact\":{\"type\":\"oci\",\"url\":\"$REGISTRY/network/beat:$1\",\"checksumSHA256\":${2:-null}}}}}}"; }
edit() { run "kubectl patch dpd beat --type=merge -p '$(beat_url "$@")'"; }
columns='-o custom-columns-file=$DEMO/columns'

# --- The steps ---

play_switch() {
  local begun contact version gap late pid agent numbers before memory mark written ends secret own program="beat-$switch_name"

  next "A switch of its own"
  say "$switch_name is a machine in namespaces of its own, with a first process, a disk and a network of its own, and a cable to this one. 'switch' runs a command on it, as ssh would."
  start_registry
  for version in 1.0.0 1.1.0 1.2.0; do
    push_beat "$version" >>"$DEMO/pushed" || die "the registry does not take network/beat:$version: $(tail -n 1 "$DEMO/registry.log")"
  done
  make_device
  run 'switch cat /proc/1/comm'
  ship_agent
  say "It gets its token, as a file that only root can read, and a service for the agent:"
  run "praetor-manager token $switch_name --device-token-secret-file \$DEMO/secret | switch sh -c 'umask 077; mkdir -p /etc/apollo; cat >/etc/apollo/token'"
  write_objects
  run 'kubectl apply -f $DEMO/rack-2.yaml'
  kubectl config set-context --current --namespace=rack-2 >/dev/null
  begun="$(now)"
  run "switch praetor-agent install --device-name $switch_name --gateway-url $(gateways) --device-token-file /etc/apollo/token --insecure-registry $REGISTRY"
  run "kubectl wait --for=condition=AgentConnected --timeout=15s nsw/$switch_name"
  check_time "connected after the installation began" $(($(now) - begun)) 15
  try 'switch praetor-agent doctor'
  check "the doctor finds nothing that must be mended" "exit code $code" "exit code 0" test "$code" -eq 0
  knows_backends() { [[ -n "$(kubectl get nsw "$switch_name" -o 'jsonpath={.status.capabilities.backends}')" ]]; }
  within 20 knows_backends
  run 'kubectl get nsw -o wide'
  run "kubectl get nsw $switch_name -o 'jsonpath={.status.capabilities}'"
  check "the switch says that it has $device_init" "$(grep -o "\"$device_init\"" "$DEMO/out")" "\"$device_init\"" grep -q "\"$device_init\"" "$DEMO/out"

  next "It runs a program from a registry"
  run 'cat $DEMO/pushed'
  say "beat is a script that writes a line every 20 ms; 1 MiB of noise is packed with it."
  begun="$(now)"
  run 'kubectl apply -f $DEMO/beat.yaml'
  within 30 has_beaten 1.0.0 || { run "kubectl get dp -o yaml | sed -n '/^  *status:/,\$p'"; die "beat does not run"; }
  took="$(took_to 1.0.0 "$begun")"
  run "kubectl wait --for=condition=Healthy --timeout=30s dp/$program"
  run 'kubectl get dpd,dp'
  run "kubectl get dp $columns"
  run 'switch tail -n 2 /run/beat'
  if [[ "$device_init" == systemd ]]; then
    run "switch systemctl list-units --type=service --state=running --no-legend --plain | grep -i -e apollo -e praetor"
  else
    run "switch ls /etc/init.d /etc/rc2.d"
  fi
  check_time "apply until the process runs" "$took" 4
  check_equal "phase, Healthy, version" "$(field "$program" '{.status.phase}') $(condition "$program" Healthy) $(field "$program" '{.status.artifactVersion}')" "Running True 1.0.0"
  check_equal "pid in the status, and of who writes" "$(field "$program" '{.status.pid}')" "$(beating_pid)"
  run 'switch praetor-agent status'

  next "A new version"
  begun="$(now)"
  edit 1.1.0
  within 30 has_beaten 1.1.0
  took="$(took_to 1.1.0 "$begun")"
  read -r gap late < <(change_over 1.0.0 1.1.0)
  own="$(own_start)"
  within 20 version_is "$program" 1.1.0
  run "kubectl wait --for=condition=Healthy --timeout=30s dp/$program"
  run "kubectl get dp $columns"
  check_time "edit until the new version runs, 1 MiB of it fetched and checked" "$took" 2
  check "gap between the last line of the old one and the first of the new one" "$gap ms" "at most 200 ms and its own start, $own ms" test "$gap" -le $((200 + own))
  check_equal "lines of the old one after that" "${late:-0}" 0

  next "Versions that cannot be had"
  pid="$(beating_pid)" begun="$(now)"
  say "A tag that nobody has pushed:"
  edit 9.9.9
  run "kubectl wait --for=condition=ArtifactDownloaded=False --timeout=20s dp/$program"
  run "kubectl get dp $program -o 'jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}' | grep ^Artifact"
  check "it says what is missing" "$(condition "$program" ArtifactDownloaded reason)" "names 9.9.9" grep -q '9\.9\.9' "$DEMO/out"
  say "A checksum that is another's:"
  edit 1.2.0 "\"$(printf '0%.0s' {1..64})\""
  run "kubectl wait --for=condition=ArtifactVerified=False --timeout=20s dp/$program"
  run "kubectl get dp $program -o 'jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}' | grep ^Artifact"
  check "it says which checksum it has seen" "$(condition "$program" ArtifactVerified reason)" "a digest" grep -qE 'sha256:[0-9a-f]{12}' "$DEMO/out"
  run 'kubectl get dp'
  run "kubectl get dp $columns"
  check "meanwhile the old one ran on, as process $pid" "$(beating_pid)" "$pid" test "$(beating_pid)" = "$pid"
  check_equal "its phase, Healthy and version" "$(field "$program" '{.status.phase}') $(condition "$program" Healthy) $(field "$program" '{.status.artifactVersion}')" "Running True 1.1.0"
  check "longest time without a line" "$(silence_since "$begun") ms" "at most 500 ms" test "$(silence_since "$begun")" -le 500
  say "The next edit heals it:"
  begun="$(now)"
  edit 1.2.0
  within 30 has_beaten 1.2.0
  check_time "edit until the new version runs" "$(took_to 1.2.0 "$begun")" 2
  run "kubectl wait --for=condition=ArtifactVerified --timeout=20s dp/$program"
  run "kubectl wait --for=condition=Healthy --timeout=20s dp/$program"

  next "Killed: the process, then the agent"
  pid="$(beating_pid)" begun="$(now)"
  run "switch sh -c 'kill -9 $pid'"
  another() { [[ "$(beating_pid)" != "$pid" ]]; }
  within 20 another
  took=$(($(now) - begun))
  restarted() { [[ "$(field "$program" '{.status.restartCount}')" == 1 ]]; }
  within 75 restarted
  run "kubectl get dp $columns"
  check_time "kill -9 until it runs again" "$took" 5
  check_equal "RESTARTS" "$(field "$program" '{.status.restartCount}')" 1
  within 20 is_condition "$program" Healthy True
  quiet
  pid="$(beating_pid)" begun="$(now)"
  read -r _ agent < <(agent_pid)
  run "switch sh -c 'kill -9 $agent'"
  back() { local number; read -r _ number < <(agent_pid); [[ -n "$number" && "$number" != "$agent" ]]; }
  within 30 back
  took=$(($(now) - begun))
  knows() { switch praetor-agent status 2>/dev/null | grep -q "$pid"; }
  within 20 knows
  run 'switch praetor-agent status'
  check_time "the agent is back" "$took" 10
  check_equal "the process is the same, and the agent knows it" "$(beating_pid)" "$pid"
  check "longest time without a line" "$(silence_since "$begun") ms" "at most 500 ms" test "$(silence_since "$begun")" -le 500
  quiet
  check_equal "pid and RESTARTS in the status" "$(field "$program" '{.status.pid} {.status.restartCount}')" "$pid 1"

  next "No network, no power"
  say "One more process, without a deployment. Then the cable is pulled, and the power fails."
  run 'kubectl apply -f $DEMO/probe.yaml'
  run 'kubectl wait --for=condition=ProcessStarted --timeout=20s dp/probe'
  run "ip link set $device_link down"
  echo "${bold}\$ # the power fails, and comes back${plain}"
  begun="$(now)"
  power_cycle
  took=$(($(now) - begun))
  check_time "it boots" "$took" 60
  both_beat() { [[ -n "$(beats)" && -n "$(beats /run/probe)" ]]; }
  within 30 both_beat
  try "switch bash -c 'exec 3<>/dev/tcp/$host_address/${GATEWAY##*:}' 2>&1 | tail -n 1"
  check "managers and registry cannot be reached" "$(tail -n 1 "$DEMO/out" | sed 's/.*: //')" "an error" test -s "$DEMO/out"
  check "both run" "$(beating_pid) and $(beating_pid /run/probe), of version $(beats | tail -n 1 | cut -d ' ' -f 2)" "1.2.0" has_beaten 1.2.0
  check_time "the power is back until beat runs" "$(took_to 1.2.0 "$begun")" 30
  # Its exit code says that something is wrong.
  try 'switch praetor-agent status'
  say "Somebody deletes the second one meanwhile. The switch cannot know."
  run 'kubectl delete dp probe'
  pid="$(beating_pid /run/probe)"
  nap 2
  check_equal "probe goes on, as process $pid" "$(beating_pid /run/probe)" "$pid"
  contact="$(now)"
  run "ip link set $device_link up"
  stopped() { [[ ! -d "$(on_device "/proc/$pid")" ]]; }
  within 40 stopped
  check_time "probe has ended after the cable was in again" $(($(now) - contact)) 30
  recounted() { [[ "$(field "$program" '{.status.pid}')" == "$(beating_pid)" ]]; }
  within 75 recounted
  run "kubectl get dp $columns"
  check_equal "phase and pid of the other" "$(field "$program" '{.status.phase} {.status.pid}')" "Running $(beating_pid)"

  next "Ten processes, and nothing happens"
  idlers 9 >"$DEMO/idle.yaml"
  run 'kubectl apply -f $DEMO/idle.yaml | tail -n 1'
  run 'kubectl wait --for=condition=Healthy --timeout=60s dp --all | tail -n 1'
  run 'kubectl get dp'
  quiet
  mark="$(audit_mark)"
  read -r agent _ < <(agent_pid)
  before="$(busy_ms "$agent")" begun="$(now)"
  run 'sleep 30'
  numbers=$((($(busy_ms "$agent") - before) * 100000 / ($(now) - begun))) # thousandths of a percent
  check_equal "writes at the apiserver in that time, by anybody" "$(writes_since "$mark")" 0
  check "CPU of the agent" "0.$(printf %03d "$numbers") % of a core" "at most 0.1 %" test "$numbers" -le 100
  memory="$(awk '/^VmRSS:/ { print $2 }' "/proc/$agent/status")"
  if small_agent; then
    check "resident memory of the agent" "$memory kB" "at most 8192 kB" test "$memory" -le 8192
    check "size of its program" "$(agent_bytes) bytes" "at most 8000000" test "$(agent_bytes)" -le 8000000
  else
    say "It has $memory kB of resident memory; this one is not optimised ($(agent_bytes) bytes)."
  fi
  run 'kubectl delete -f $DEMO/idle.yaml | tail -n 1'

  next "A crash loop"
  pid="$(beating_pid)"
  crasher >"$DEMO/crash.yaml"
  mark="$(audit_mark)"
  run 'kubectl apply -f $DEMO/crash.yaml'
  run 'sleep 25'
  run "kubectl get dp $columns"
  run 'kubectl get events --field-selector involvedObject.name=crash'
  written="$(writes_since "$mark" '"resource":"deviceprocesses"' '"subresource":"status"' '"name":"crash"')"
  ends="$(grep -c '' "$(on_device /run/crashes)")"
  check "it has ended in that time" "$ends times" "2 or more" test "$ends" -ge 2
  say "What it is and what it was made of is written at once; how it fares six times, and then once a minute."
  check "status writes for it" "$written" "1 to 10" test "$written" -ge 1 -a "$written" -le 10
  check_equal "how it ended last, in the status" "$(field crash '{.status.lastTerminationReason}')" Error
  check_equal "the other one is not concerned" "$(beating_pid)" "$pid"
  run 'kubectl delete dp crash'

  next "The switch is taken out of service"
  begun="$(now)"
  if [[ "$device_init" == systemd ]]; then
    run 'switch journalctl --no-pager --output=cat --unit=praetor-agent | tail -n 5'
    secret="$(praetor-manager token "$switch_name" --device-token-secret-file "$DEMO/secret")"
    check_equal "lines of the agent's log that hold its token" "$(switch journalctl --no-pager --unit=praetor-agent | grep -c "$secret")" 0
  fi
  run 'kubectl delete dpd beat'
  stopped() { [[ ! -d "$(on_device "/proc/$pid")" ]]; }
  within 20 stopped
  check_time "beat has ended" $(($(now) - begun)) 5
  no_processes() { switch praetor-agent status 2>/dev/null | grep -q 'no process' || ! kubectl get dp -o name | grep -q .; }
  within 10 no_processes
  run 'switch praetor-agent uninstall'
  try "switch sh -c 'ls /etc/systemd/system /etc/init.d 2>/dev/null | grep -e apollo -e praetor'"
  check_equal "units and scripts of Praetor that are left on it" "$(wc -l <"$DEMO/out")" 0
  run 'kubectl delete namespace rack-2 --wait=false'
  kubectl config set-context --current --namespace=infra-system >/dev/null
  end_device
  end registry KILL 0
}

# --- What it is played with ---

gateways() { local n all=""; for n in "${replicas[@]}"; do all+="\$GATEWAY$n,"; done; echo "${all%,}"; }
version_is() { [[ "$(field "$1" '{.status.artifactVersion}')" == "$2" ]]; }
# Milliseconds from the start of beat until its first line, by hand on the switch.
own_start() {
  local root begun
  root="$(on_device /tmp)"
  cp "$DEMO/image-1.1.0/usr/local/bin/beat" "$root/beat"
  begun="$(switch bash -c 'echo "${EPOCHREALTIME/./}"; BEATS=/tmp/once /tmp/beat once')"
  echo $((($(cut -d ' ' -f 1 "$root/once") - begun + 999) / 1000))
}
agent_bytes() { stat -c %s "$(on_device /usr/local/bin/praetor-agent)"; }
small_agent() { (($(agent_bytes) < 20000000)); }
ship_agent() {
  local agent="$BIN/praetor-agent" why
  # One that was linked on a newer system than the switch.
  if [[ "$device_init" == systemd && -z "${PRAETOR_SWITCH:-}" ]] && ! why="$(switch sh -c 'cat >/tmp/agent && chmod 700 /tmp/agent && /tmp/agent --version' <"$agent" 2>&1)"; then
    say "The agent that was built here does not run on this switch (${why##*: }), so here is one with the libraries of this machine, and with init scripts:"
    end_device
    device_init=initd
    make_device
  fi
  run "switch sh -c 'cat >/usr/local/bin/praetor-agent && chmod 755 /usr/local/bin/praetor-agent' <\$BIN/praetor-agent"
  run 'switch praetor-agent --version'
}
write_objects() {
  cat >"$DEMO/columns" <<'TEXT'
NAME           PHASE         PID         VERSION                RESTARTS             LAST-END                      HEALTHY
.metadata.name .status.phase .status.pid .status.artifactVersion .status.restartCount .status.lastTerminationReason .status.conditions[?(@.type=="Healthy")].status
TEXT
  cat >"$DEMO/rack-2.yaml" <<YAML
apiVersion: v1
kind: Namespace
metadata: {name: rack-2}
---
apiVersion: azure.com/v1alpha1
kind: NetworkSwitch
metadata: {name: $switch_name, namespace: rack-2, labels: {role: leaf}}
YAML
  cat >"$DEMO/beat.yaml" <<YAML
apiVersion: azure.com/v1alpha1
kind: DeviceProcessDeployment
metadata: {name: beat}
spec:
  selector: {matchLabels: {role: leaf}}
  template:
    spec:
      artifact: {type: oci, url: '$REGISTRY/network/beat:1.0.0'}
      execution: {backend: $device_init, command: [/usr/local/bin/beat]}
YAML
  process probe "type: oci, url: '$REGISTRY/network/beat:1.2.0'" '[/usr/local/bin/beat], env: [{name: BEATS, value: /run/probe}]' >"$DEMO/probe.yaml"
}
process() { # name, artifact, command and more
  cat <<YAML
---
apiVersion: azure.com/v1alpha1
kind: DeviceProcess
metadata: {name: $1}
spec:
  deviceRef: {kind: NetworkSwitch, name: $switch_name}
  artifact: {$2}
  execution: {backend: $device_init, command: $3}
YAML
}
idlers() { # how many
  local n
  for ((n = 1; n <= $1; n++)); do process "idle-$n" 'type: file, url: /bin/sleep' '[/bin/sleep], args: [infinity]'; done
}
crasher() { process crash "type: oci, url: '$REGISTRY/network/beat:1.2.0'" "[/bin/sh, -c, 'echo >>/run/crashes; exec \$APOLLO_ARTIFACT_DIR/usr/local/bin/beat crash']"; }

if [[ -n "$device_init" ]]; then
  play_switch
else
  next "A switch that runs processes (left out)"
  say "There is none here: $device_lack."
  skip "what a switch does with its processes" "$device_lack"
fi
