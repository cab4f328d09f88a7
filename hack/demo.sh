#!/usr/bin/env bash
# The runbook, played against a real kube-apiserver: each step shows the command that a person would type, what it
# says, and a check with what was measured. Exit code 0 only when every check held. It takes about eight minutes,
# since heartbeats of 15 s are the real thing; the first run on a machine also builds what is needed.
#
#   hack/demo.sh                    play, clean up
#   hack/demo.sh switch             only what a switch does with its processes (about three minutes)
#   KEEP=1 hack/demo.sh             play, leave it running, say what to try and how to stop it
#   PROFILE=release hack/demo.sh    with optimised binaries (a much longer build; the demo looks the same)
#   PRAETOR_BIN=folder hack/demo.sh with binaries that are there, nothing is built
#   PRAETOR_SWITCH=systemd|initd    what the switch's init is; none: leave that part out. Without it, what works here
#
# Everything it starts has its own folder, ports and processes; nothing is left after the end, a failure or Ctrl-C.
# shellcheck disable=SC2016  # what is typed is shown with its variables and expanded when it runs
set -uo pipefail
export LC_ALL=C
if ((BASH_VERSINFO[0] < 5)) || [[ ! -d /proc/self/fd ]]; then
  echo "demo: needs Linux and bash 5 or newer" >&2
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=hack/keys.sh
source hack/keys.sh
# shellcheck source=hack/demo/stage.sh
source hack/demo/stage.sh
# shellcheck source=hack/demo/replicas.sh
source hack/demo/replicas.sh
# shellcheck source=hack/demo/device.sh
source hack/demo/device.sh
# shellcheck source=hack/demo/registry.sh
source hack/demo/registry.sh

play="${1:-all}"
[[ $# -le 1 && "$play" =~ ^(all|switch)$ ]] || die "usage: hack/demo.sh [switch]"
[[ "$play" == all || -z "${KEEP:-}" ]] || die "KEEP is for the whole demo"

# --- What is needed ---

missing() { die "$1 is needed ($2)"; }
command -v cargo >/dev/null || missing cargo "Rust, https://rustup.rs"
command -v curl >/dev/null || missing curl "it plays the device in some steps; any package manager has it"
case "${PROFILE:-debug}" in
  debug) flags=() ;;
  release) flags=(--release) ;;
  *) die "PROFILE is debug or release, not ${PROFILE}" ;;
esac
DEMO="$(mktemp -d "${TMPDIR:-/tmp}/praetor-demo.XXXXXX")" || die "no folder for this run"

heading 0 "What is needed"
choose_device
if [[ -z "$device_init" ]]; then
  say "No switch can run anything here: $device_lack."
  [[ "$play" == all ]] || exit 3
fi
assets="$(hack/controlplane.sh)" || die "there is no control plane; the line above says why"
start_ms="$(now)"
build() {
  printf '%s$ cargo build %s%s\n' "$bold" "${flags[*]:-  # minutes when nothing is built yet; PROFILE=release takes much longer and shows the same}" "$plain"
  set -m
  (exec cargo build --locked --bins "${flags[@]}") >"$DEMO/build.log" 2>&1 </dev/null &
  foreground=$!
  set +m
  beat=$start_ms
  while kill -0 "$foreground" 2>/dev/null; do
    nap 0.2
    if [[ -t 1 ]]; then
      printf '%s  %s%d s %s%s' "$line" "$dim" $((($(now) - start_ms) / 1000)) "$(tail -n 1 "$DEMO/build.log" | cut -c 1-90)" "$plain"
    elif (($(now) - beat > 15000)); then
      beat="$(now)"
      printf '  %d s, %s\n' $(((beat - start_ms) / 1000)) "$(tail -n 1 "$DEMO/build.log" | sed 's/^ *//' | cut -c 1-90)"
    fi
  done
  wait "$foreground" || { printf '%s' "$line"; tail -n 40 "$DEMO/build.log" >&2; die "the build failed"; }
  foreground=""
}
BIN="${PRAETOR_BIN:-}"
if [[ -z "$BIN" ]]; then
  build
  folder="$(cargo metadata --format-version 1 --no-deps 2>/dev/null | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
  BIN="$folder/${PROFILE:-debug}"
fi
for name in manager agent fleet; do [[ -x "$BIN/praetor-$name" || "$play $name" == "switch fleet" ]] || die "$BIN holds no praetor-$name"; done
say "${line}The binaries are there ($(seconds $(($(now) - start_ms))))."

# What every command below finds, and nothing of the caller's own that could change what they do.
export PATH="$assets:$BIN:$PATH" KUBECONFIG="$DEMO/admin.kubeconfig" KUBECACHEDIR="$DEMO/kube-cache" KUBERC=off
export CURL_HOME="$DEMO" NO_PROXY='*' no_proxy='*' DEMO BIN
[[ -z "$device_init" ]] || lay_bridge
start_ms="$(now)"
start_control_plane
say "etcd and kube-apiserver $(kube-apiserver --version | cut -d ' ' -f 2) run on loopback, with RBAC and an audit log" \
  "($(seconds $(($(now) - start_ms)))). \$DEMO is the folder of this run."

# --- The runbook ---

heading 1 "The custom resources"
run 'kubectl apply -k crd'
run 'kubectl wait --for=condition=Established crd --all --timeout=30s'
check_equal "CRDs established" "$(grep -c 'condition met' "$DEMO/out")" 3
run 'kubectl api-resources --api-group=azure.com'
described() { kubectl explain deviceprocess.spec.execution 2>/dev/null | grep -q '^ *backend'; }
within 20 described
run 'kubectl explain deviceprocess.spec.execution'
check_equal "kubectl explain describes backend, command, env, user" "$(grep -cE '^ *(backend|command|env|user)\s' "$DEMO/out")" 4

heading 2 "Switches, and one replica of the manager"
run 'kubectl apply -f config/samples/namespace.yaml -f config/samples/networkswitches.yaml'
run 'kubectl get networkswitches -L role,site'
switches="$(kubectl get nsw -l role=tor -o name | wc -l)"
check "switches labelled role=tor" "$switches" "2 or more" test "$switches" -ge 2
say "The manager is no cluster admin: it gets the token of the ServiceAccount that config/rbac describes, and nothing else."
run 'kubectl apply -k config/rbac'
# Its roles may be a moment away from being in force.
within 10 kubectl auth can-i patch deviceprocesses/status --as=system:serviceaccount:praetor-system:praetor-manager >/dev/null
try 'kubectl auth can-i get secrets -A --as=system:serviceaccount:praetor-system:praetor-manager'
check_equal "the manager's account may read Secrets" "$(tail -n 1 "$DEMO/out")" no
kubeconfig praetor-manager "$(kubectl create token praetor-manager -n praetor-system --duration=8h)" >"$DEMO/manager.kubeconfig"
[[ "$play" == all ]] || replicas=(1)
prepare_replicas
GATEWAY="$GATEWAY1" ADMIN="$ADMIN1"
export GATEWAY ADMIN
start_replicas 1
run 'curl -si $ADMIN/readyz'
check_time "manager ready" "$took" 10

if [[ "$play" == all ]]; then
  # shellcheck source=hack/demo/control.sh
  source hack/demo/control.sh
fi
# shellcheck source=hack/demo/scene.sh
source hack/demo/scene.sh

heading $((step + 1)) "Clean-up"
if [[ "$play" == all ]]; then
  gone() { [[ -z "$(names)" ]]; }
  start_ms="$(now)"
  run 'kubectl delete dpd switch-agent'
  within 20 gone
  check_time "children gone, without any garbage collector" $(($(now) - start_ms)) 10
  run 'kubectl get dp'
  run "curl -s -H \"X-Device-Token: \$TOKEN\" $url"
  check "the gateway has nothing for tor1-01 any more" "$(grep -c '"name"' "$DEMO/out") items" "0 items" grep -q '"items": *\[\]' "$DEMO/out"
  say "What the thirty have seen, whose every request went to a replica at random while three of them died or were shut down:"
  signal fleet TERM
  await_end fleet 5
  run 'cat $DEMO/fleet.log'
  check_equal "answers older than what a device had seen" "$(of_fleet travelledBack)" 0
  check_equal "observations that were rejected" "$(of_fleet rejected)" 0
  say "One that breaks off is replaced at once; one that asks for time (503, while it starts) is left alone, and another is asked 1 to 2 s later."
  check_time "longest time in which a device could not report" "$(of_fleet longestRecoveryMs 2)" 3
  check_equal "logs that hold a token or a secret" "$(grep -lF -e "$TOKEN" -e "$token2" -e "$(cat "$DEMO/secret")" -e "$(cat "$DEMO/peer-secret")" "$DEMO"/*.log | wc -l)" 0
fi
if [[ -n "${KEEP:-}" && "$failed" == 0 ]]; then
  say "KEEP is set: the deployment is applied again, the thirty are started again, and all stays up."
  start fleet "$fleet"
  run 'kubectl apply -f config/samples/deviceprocessdeployment.yaml'
  within 10 fanned_out
  run 'kubectl wait --for=condition=AgentConnected --timeout=15s dp --all'
else
  [[ "$play" == switch ]] || run 'kubectl delete -f config/samples/networkswitches.yaml'
  start_ms="$(now)"
  for n in "${replicas[@]}"; do
    echo "${bold}\$ kill -TERM ${pids[manager-$n]}  # manager-$n${plain}"
    signal "manager-$n" TERM
  done
  codes=""
  for n in "${replicas[@]}"; do
    await_end "manager-$n" 20
    codes+="$code "
  done
  check "SIGTERM ends all replicas (exit codes ${codes% })" "$(seconds $(($(now) - start_ms)))" "at most 15 s" test -z "${codes//0 /}" -a $(($(now) - start_ms)) -le 15000
fi

summary
took="$(($(now) - begun_ms))" took="$((took / 60000)) min $((took / 1000 % 60)) s"
skipped="$(printf '%s\n' "${rows[@]}" | grep -c '|skipped$')"
if ((failed > 0)); then
  echo "${red}$failed of ${#rows[@]} checks failed${plain} ($took)."
  exit 1
fi
echo "${green}All $((${#rows[@]} - skipped)) checks held${plain} ($took)."
[[ -n "$device_init" ]] || echo "What a switch does with its processes was left out: $device_lack."
[[ -n "${KEEP:-}" ]] || exit 0

# --- KEEP=1 ---

{
  for name in PATH KUBECONFIG KUBECACHEDIR GATEWAY{,1,2,3} ADMIN{,1,2,3} TOKEN DEMO BIN; do printf 'export %s=%q\n' "$name" "${!name}"; done
} >"$DEMO/env"
{
  echo '#!/usr/bin/env bash'
  echo '# Ends what the demo has left running, and removes its folder.'
  for name in agent-tor1-01 agent-tor1-02 fleet manager-1 manager-2 manager-3 apiserver etcd; do
    pid="${pids[$name]}"
    # A pid may belong to another process by now; its start time tells.
    started="$(cut -d ' ' -f 22 "/proc/$pid/stat")"
    echo "[[ \"\$(cut -d ' ' -f 22 /proc/$pid/stat 2>/dev/null)\" != $started ]] || kill -KILL $pid  # $name"
  done
  [[ -z "$device_bridge" ]] || echo "ip link delete $device_bridge"
  printf 'rm -rf %q\n' "$DEMO"
} >"$DEMO/stop"
chmod 700 "$DEMO/stop"
cat <<TEXT

It is still running. In a shell:

  source $DEMO/env      # KUBECONFIG, PATH with kubectl, GATEWAY1 to 3, ADMIN1 to 3, TOKEN (of tor1-01)

  kubectl get dpd,dp,nsw -o wide
  kubectl describe dp switch-agent-tor1-01
  kubectl get events -w
  kubectl label nsw spine1-01 role=tor --overwrite     # a third child appears
  kubectl label nsw tor1-02 maintenance=yes            # its child goes
  kubectl edit dpd switch-agent                        # every agent has the new spec at once
  kubectl patch dp switch-agent-tor1-01 --type=merge -p '{"spec":{"deviceRef":{"name":"other"}}}'   # refused

  curl -si -H "X-Device-Token: \$TOKEN" \$GATEWAY/v1/devices/tor1-01/desired
  curl -si -H "X-Device-Token: \$TOKEN" -X POST -d '{"agentVersion":"curl"}' \$GATEWAY/v1/devices/tor1-01/connect
  curl -s \$ADMIN/metrics
  curl -s "\$ADMIN2/debug/ownership?device=tor1-01"
  tail -f \$DEMO/manager-*.log \$DEMO/agent-*.log

To stop it: $DEMO/stop
TEXT
kept=yes
