# shellcheck shell=bash
# The stage of hack/demo.sh, to be sourced: how it speaks, checks, starts processes, and leaves nothing behind.

# Folder of the run; everything that the demo writes is in it.
DEMO=""
# Name and pid of every process that the demo has started and not yet seen end.
declare -A pids=()
# Results: step|check|measured|wanted|ok, FAILED or skipped
rows=()
step=0 failed=0 kept="" foreground="" code=0
begun_ms="${EPOCHREALTIME/./}" begun_ms=$((begun_ms / 1000))

if [[ -t 1 ]]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m' line=$'\r\e[K'
else
  bold="" dim="" green="" red="" plain="" line=""
fi

# --- Time ---

# Not `read -t`: an exit in a trap that interrupts it leaves its alarm on, and that kills the clean-up.
nap() { sleep "$1"; }
now() { local micros="${EPOCHREALTIME/./}"; echo $((micros / 1000)); }
seconds() { printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100)); }
# On a terminal a line that counts up while nothing is to be seen.
tick() { [[ ! -t 1 ]] || printf '%s%s  %d s%s' "$line" "$dim" $((($(now) - $1) / 1000)) "$plain"; }

# Waits until a command succeeds, at most so many seconds.
within() {
  local begin deadline
  begin="$(now)"
  deadline=$((begin + $1 * 1000))
  shift
  until "$@"; do
    (($(now) < deadline)) || return 1
    nap 0.1
  done
}

# --- Speech ---

heading() {
  step="$1"
  printf '\n%s== %s. %s%s\n' "$bold" "$1" "$2" "$plain"
}
say() { printf '%s\n' "$*" | fold -s -w 110 | sed 's/ *$//'; }
# Output, indented; long lines are cut so that tables stay tables, empty ones at the end are left out.
quote() { awk '{ line = length($0) > 150 ? substr($0, 1, 147) "..." : $0 } line ~ /^[ \t]*$/ { empty++; next }
  { for (; empty > 0; empty--) print ""; print "  " line }' "$1"; }

# Shows a command as a person would type it, runs it, shows what it says (also in $DEMO/out). It must succeed.
run() {
  try "$1"
  ((code == 0)) || check "$1" "exit code $code" 0 false
}
# The same for a command that may fail; $code is its exit code.
try() {
  local begin
  printf '%s$ %s%s\n' "$bold" "$1" "$plain"
  begin="$(now)"
  # In a process group of its own, so that an interruption ends all of it at once.
  set -m
  (eval "$1") >"$DEMO/out" 2>&1 </dev/null &
  foreground=$!
  set +m
  while kill -0 "$foreground" 2>/dev/null; do
    nap 0.1
    (($(now) - begin < 2000)) || tick "$begin"
    # Longer than anything here waits: it hangs.
    (($(now) - begin < 120000)) || kill -KILL -- "-$foreground"
  done
  wait "$foreground" 2>/dev/null
  code=$?
  foreground=""
  printf '%s' "$line"
  quote "$DEMO/out"
}

# --- Checks ---

# what, what was measured, what is wanted, then the command that decides
check() {
  local what="$1" measured="$2" wanted="$3" verdict=ok color="$green"
  shift 3
  if ! "$@"; then
    verdict=FAILED color="$red"
    failed=$((failed + 1))
  fi
  rows+=("$step|$what|$measured|$wanted|$verdict")
  printf '  %s%-6s%s %s: %s %s(wanted: %s)%s\n' "$color" "$verdict" "$plain" "$what" "$measured" "$dim" "$wanted" "$plain"
}
# what, why: says in the summary that something was not played
skip() { rows+=("$step|$1|left out|$2|skipped"); }
# what, milliseconds, at most seconds
check_time() { check "$1" "$(seconds "$2")" "at most $3 s" test "$2" -le $(($3 * 1000)); }
# what, milliseconds, at least seconds, at most seconds
check_between() { check "$1" "$(seconds "$2")" "$3 to $4 s" test "$2" -ge $(($3 * 1000)) -a "$2" -le $(($4 * 1000)); }
# what, value, wanted value
check_equal() { check "$1" "$2" "$3" test "$2" = "$3"; }

summary() {
  local row number what measured wanted verdict color
  local -i a=5 b=8 c=6
  for row in "${rows[@]}"; do
    IFS='|' read -r number what measured wanted verdict <<<"$row"
    a=$((${#what} > a ? ${#what} : a)) b=$((${#measured} > b ? ${#measured} : b)) c=$((${#wanted} > c ? ${#wanted} : c))
  done
  printf '\n%s%4s  %-*s  %-*s  %-*s%s\n' "$bold" step "$a" check "$b" measured "$c" wanted "$plain"
  for row in "${rows[@]}"; do
    IFS='|' read -r number what measured wanted verdict <<<"$row"
    color="$green"
    [[ "$verdict" != FAILED ]] || color="$red"
    printf '%4s  %-*s  %-*s  %-*s  %s%s%s\n' "$number" "$a" "$what" "$b" "$measured" "$c" "$wanted" "$color" "$verdict" "$plain"
  done
  echo
}

# --- Processes ---

# name, command as a person would type it; it logs into $DEMO/NAME.log and runs in a process group of its own
start() {
  printf '%s$ %s &%s\n' "$bold" "$2" "$plain"
  start_quietly "$@"
}
start_quietly() {
  set -m
  (eval "exec $2") >>"$DEMO/$1.log" 2>&1 </dev/null &
  pids[$1]=$!
  set +m
  echo "${pids[$1]}" >"$DEMO/$1.pid"
}
running() { [[ -n "${pids[$1]:-}" ]] && kill -0 "${pids[$1]}" 2>/dev/null; }

# kill -9, gone when this returns
kill9() {
  printf '%s$ kill -9 %d  # %s%s\n' "$bold" "${pids[$1]}" "$1" "$plain"
  end "$1" KILL 0
}
# name, signal, seconds until it is killed; $code is its exit code
end() {
  signal "$1" "$2"
  await_end "$1" "$3"
}
signal() { [[ -z "${pids[$1]:-}" ]] || kill "-$2" -- "-${pids[$1]}" 2>/dev/null; }
await_end() {
  local pid="${pids[$1]:-}" deadline
  [[ -n "$pid" ]] || return 0
  {
    deadline=$(($(now) + $2 * 1000))
    while kill -0 "$pid" && (($(now) < deadline)); do nap 0.05; done
    [[ "$2" == 0 ]] || kill -KILL -- "-$pid"
    wait "$pid"
    # shellcheck disable=SC2034  # for demo.sh
    code=$?
  } 2>/dev/null
  unset "pids[$1]"
  rm -f "$DEMO/$1.pid"
}

# A free loopback port, below the range from which the system hands out its own.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# One line about what stands in the way, and out.
die() {
  printf '%s%sdemo: %s%s\n' "$line" "$red" "$*" "$plain" >&2
  failed=$((failed + 1))
  exit 1
}

# Ends what the demo has started, in whatever state it is. Runs at every exit, also after Ctrl-C.
leave() {
  local status=$? name logs
  trap '' INT TERM HUP PIPE
  trap - EXIT
  [[ -z "$kept" ]] || exit "$status"
  if [[ -n "$foreground" ]]; then
    { kill -KILL -- "-$foreground" && wait "$foreground"; } 2>/dev/null
  fi
  for name in "${!pids[@]}"; do
    [[ "$name" == agent-* ]] && end "$name" TERM 3
  done
  raze_device
  # Nobody wants the others' data any more.
  for name in "${!pids[@]}"; do end "$name" KILL 0; done
  if [[ -d "$DEMO" ]]; then
    if ((failed > 0)) && compgen -G "$DEMO/*.log" >/dev/null; then
      logs="$(mktemp -d "${TMPDIR:-/tmp}/praetor-demo-logs.XXXXXX")"
      cp "$DEMO"/*.log "$logs" 2>/dev/null
      printf 'demo: the logs of this run are in %s\n' "$logs" >&2
    fi
    rm -rf "$DEMO"
  fi
  ((status < 129)) || printf '%sdemo: interrupted; everything it had started is stopped\n' "$line" >&2
  exit "$status"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
trap 'exit 141' PIPE

# --- The control plane ---

# user, token
kubeconfig() {
  cat <<YAML
apiVersion: v1
kind: Config
current-context: demo
clusters: [{name: demo, cluster: {server: 'https://127.0.0.1:$apiserver_port', certificate-authority: '$DEMO/certificates/apiserver.crt'}}]
contexts: [{name: demo, context: {cluster: demo, user: '$1', namespace: infra-system}}]
users: [{name: '$1', user: {token: '$2'}}]
YAML
}

# etcd and kube-apiserver of this run, with RBAC and an audit log of every request.
start_control_plane() {
  local etcd_port peer_port token
  etcd_port="$(free_port)" peer_port="$(free_port)" apiserver_port="$(free_port)"
  token="$(random_hex)"
  signing_key >"$DEMO/service-account.pem"
  echo "$token,admin,admin,\"system:masters\"" >"$DEMO/tokens.csv"
  # Everything but what the apiserver asks itself, and probes.
  cat >"$DEMO/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users: ['system:apiserver']
  - level: None
    nonResourceURLs: ['/readyz*', '/livez*', '/healthz*', '/openapi*', '/version*']
  - level: Metadata
YAML
  kubeconfig admin "$token" >"$DEMO/admin.kubeconfig"
  start_quietly etcd "etcd --data-dir=$DEMO/etcd --log-level=warn --unsafe-no-fsync \
    --listen-client-urls=http://127.0.0.1:$etcd_port --advertise-client-urls=http://127.0.0.1:$etcd_port \
    --listen-peer-urls=http://127.0.0.1:$peer_port --initial-advertise-peer-urls=http://127.0.0.1:$peer_port \
    --initial-cluster=default=http://127.0.0.1:$peer_port"
  start_quietly apiserver "kube-apiserver --etcd-servers=http://127.0.0.1:$etcd_port --bind-address=127.0.0.1 \
    --secure-port=$apiserver_port --cert-dir=$DEMO/certificates --token-auth-file=$DEMO/tokens.csv \
    --authorization-mode=RBAC --service-cluster-ip-range=10.96.0.0/16 \
    --service-account-key-file=$DEMO/service-account.pem --service-account-signing-key-file=$DEMO/service-account.pem \
    --service-account-issuer=https://kubernetes.default.svc --endpoint-reconciler-type=none --profiling=false \
    --audit-policy-file=$DEMO/audit-policy.yaml --audit-log-path=$DEMO/audit.log --audit-log-maxsize=100000"
  within 90 control_plane_settled || die "the control plane did not become ready in 90 s"
  { running apiserver && running etcd; } || die "kube-apiserver or etcd ended at its start: $(tail -n 1 "$DEMO/etcd.log" "$DEMO/apiserver.log")"
}
control_plane_settled() {
  # Ended: nothing more to wait for.
  { running apiserver && running etcd; } || return 0
  kubectl get --raw /readyz >/dev/null 2>&1 && kubectl get namespace/default clusterrole/cluster-admin >/dev/null 2>&1
}

# --- What the demo looks at ---

# A place in the audit log, for the functions below.
audit_mark() { stat -c %s "$DEMO/audit.log"; }
# mark, then optional patterns that the lines must hold: how many changes were asked for since then, by anybody, but of
# the Leases by which replicas know of each other.
writes_since() {
  local mark="$1" text pattern
  shift
  text="$(tail -c "+$((mark + 1))" "$DEMO/audit.log" | grep -E '"verb":"(create|update|patch|delete|deletecollection)"' | grep -vF '"resource":"leases"')"
  for pattern in "$@"; do text="$(grep -F -- "$pattern" <<<"$text")"; done
  [[ -n "$text" ]] && wc -l <<<"$text" || echo 0
}
# Waits until the apiserver has seen no write for 3 s.
quiet() {
  local mark last=-1 since size
  since="$(now)" mark="$(audit_mark)"
  while (($(now) - since < 3000)); do
    size="$(writes_since "$mark")"
    [[ "$size" == "$last" ]] || since="$(now)" last="$size"
    nap 0.25
  done
}

# process, reason: how many such events there are
events_of() { kubectl get events --field-selector "involvedObject.name=$1,reason=$2" -o name | wc -l; }

# process, JSONPath
field() { kubectl get dp "$1" -o "jsonpath=$2"; }

# When a gateway last answered a report of a device, in milliseconds since 1970, from the access logs.
last_contact() {
  local stamp
  stamp="$(grep -hE "access: .*device=\"$1\".*route=\"report\".*status=200" "$DEMO"/manager-*.log | cut -d ' ' -f 1 | sort | tail -n 1)"
  date -d "$stamp" +%s%3N
}

# The other ends of a process's TCP connections, from its descriptors and the kernel's table.
peers_of() {
  local inodes address port
  inodes="$(for fd in "/proc/$1/fd/"*; do readlink "$fd"; done 2>/dev/null | sed -n 's/^socket:\[\(.*\)\]$/\1/p' | tr '\n' ' ')"
  awk -v inodes="$inodes" 'BEGIN { n = split(inodes, list, " "); for (i = 1; i <= n; i++) mine[list[i]] = 1 }
    $4 == "01" && ($10 in mine) { print $3 }' "/proc/$1/net/tcp" "/proc/$1/net/tcp6" 2>/dev/null |
    while IFS=: read -r address port; do
      # The last four bytes, in the order of this machine; IPv4 in IPv6 ends in them, too.
      address="${address: -8}"
      printf '%d.%d.%d.%d:%d\n' "0x${address:6:2}" "0x${address:4:2}" "0x${address:2:2}" "0x${address:0:2}" "0x$port"
    done
}
