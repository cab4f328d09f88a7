# shellcheck shell=bash disable=SC2016,SC2034,SC2154  # what is typed is expanded when it runs; variables are of demo.sh
# Steps 3 to 13 of hack/demo.sh, to be sourced: the control plane itself, with agents that observe and start nothing.

heading 3 "One DeviceProcessDeployment, a DeviceProcess for each matching switch"
names() { kubectl get dp -o name | sort | sed 's|.*/||' | xargs; }
children=(switch-agent-tor1-01 switch-agent-tor1-02)
fanned_out() { [[ "$(names)" == "${children[*]}" ]]; }
start_ms="$(now)"
run 'kubectl apply -f config/samples/deviceprocessdeployment.yaml'
within 10 fanned_out
took=$(($(now) - start_ms))
run 'kubectl get deviceprocesses -L role,app,apollo.azure.com/deviceName'
check "children are named switch-agent-tor1-01 and -02" "$(names | wc -w)" 2 test "$(names)" = "${children[*]}"
check_time "they exist after the apply" "$took" 5
labelled="$(kubectl get dp -l app=switch-agent,role=tor,apollo.azure.com/deviceName -o name | wc -l)"
check_equal "they carry the labels of device, selector and template" "$labelled" 2
check_equal "phase before any agent, by schema default" "$(kubectl get dp -o 'jsonpath={.items[*].status.phase}')" "Pending Pending"
run 'kubectl get dpd'

heading 4 "Two agents, which hold no kubeconfig"
say "Each knows the addresses of three replicas, of which one is there so far; it moves on to the next when one does not answer."
agent() { # device
  echo "env -i APOLLO_DEVICE_NAME=$1 APOLLO_GATEWAY_URL=\$GATEWAY1,\$GATEWAY2,\$GATEWAY3 APOLLO_DEVICE_TOKEN=\$(praetor-manager token $1 --device-token-secret-file \$DEMO/secret) APOLLO_AGENT_STATE_FILE=\$DEMO/$1/state.json \$BIN/praetor-agent --observe-only"
}
start_ms="$(now)"
start agent-tor1-01 "$(agent tor1-01)"
start agent-tor1-02 "$(agent tor1-02)"
run 'kubectl wait --for=condition=SpecObserved --timeout=15s dp --all'
run 'kubectl wait --for=condition=AgentConnected --timeout=15s dp --all'
took=$(($(now) - start_ms))
run 'kubectl get dp,nsw'
run "kubectl describe dp switch-agent-tor1-01 | sed -n '/^Status:/,\$p'"
check_time "status of both after the agents' start" "$took" 5
check_equal "AgentConnected of both" "$(kubectl get dp -o 'jsonpath={.items[*].status.conditions[?(@.type=="AgentConnected")].status}')" "True True"
check_equal "SpecObserved of both" "$(kubectl get dp -o 'jsonpath={.items[*].status.conditions[?(@.type=="SpecObserved")].status}')" "True True"
check_equal "phase of both (these agents observe, they start nothing)" "$(kubectl get dp -o 'jsonpath={.items[*].status.phase}')" "Pending Pending"
TOKEN="$(praetor-manager token tor1-01 --device-token-secret-file "$DEMO/secret")"
export TOKEN
served_hash() { # device; the hash of the spec that the gateway serves it
  local token
  token="$(praetor-manager token "$1" --device-token-secret-file "$DEMO/secret")"
  curl -s -H "X-Device-Token: $token" "$GATEWAY/v1/devices/$1/desired" | grep -o 'sha256:[0-9a-f]\{64\}' | head -n 1
}
counts() { echo "$(events_of "${children[0]}" "$1"), $(events_of "${children[1]}" "$1")"; }
first_hash="$(served_hash tor1-01)"
observed() { kubectl get dp -o 'jsonpath={.items[*].status.observedSpecHash}'; }
check "observedSpecHash is the hash that the gateway serves" "${first_hash:0:15}..." "on both" test "$(observed)" = "$first_hash $first_hash"
run 'kubectl get events --sort-by=.metadata.creationTimestamp'
check_equal "events AgentConnected of tor1-01, tor1-02" "$(counts AgentConnected)" "1, 1"
check_equal "events SpecObserved of tor1-01, tor1-02" "$(counts SpecObserved)" "1, 1"
say "What an agent knows, and whom it talks to:"
for device in tor1-01 tor1-02; do
  export PID="${pids[agent-$device]}"
  run "tr '\\0' '\\n' </proc/$PID/environ | sed -E 's/(TOKEN=).*/\\1.../'"
  check_equal "agent $device: variables beside its own four" "$(grep -cvE '^APOLLO_(DEVICE_NAME|GATEWAY_URL|DEVICE_TOKEN|AGENT_STATE_FILE)=' "$DEMO/out")" 0
  command -v ss >/dev/null && run "ss -Htnp | grep pid=$PID, | tr -s ' '"
  check_equal "agent $device: open files named after a kubeconfig" "$(for fd in /proc/"$PID"/fd/*; do readlink "$fd"; done | grep -ci kubeconfig)" 0
  check_equal "agent $device: connections to the apiserver (:$apiserver_port)" "$(peers_of "$PID" | grep -c ":$apiserver_port$")" 0
  talks="$(peers_of "$PID" | grep -c ":${GATEWAY##*:}$")"
  check "agent $device: connections to the gateway (:${GATEWAY##*:})" "$talks" "1 or more" test "$talks" -ge 1
done
seen="$(peers_of "${pids[manager-1]}" | grep -c ":$apiserver_port$")"
check "manager, looked at in the same way: to the apiserver" "$seen" "1 or more" test "$seen" -ge 1

heading 5 "The device API by hand"
say "TOKEN is what 'praetor-manager token tor1-01' prints."
url='"$GATEWAY/v1/devices/tor1-01/desired"'
status() { head -n 1 "$1" | cut -d ' ' -f 2; }
run "curl -si $url"
check_equal "without a token" "$(status "$DEMO/out")" 401
run "curl -si -H \"X-Device-Token: \$TOKEN\" $url"
check_equal "with the device's token" "$(status "$DEMO/out")" 200
etag_in() { tr -d '\r' <"$1" | sed -n 's/^[Ee][Tt][Aa][Gg]: *//p'; }
ETAG="$(etag_in "$DEMO/out")"
export ETAG
run "curl -si -H \"X-Device-Token: \$TOKEN\" -H \"If-None-Match: \$ETAG\" $url"
check "with the token and the ETag" "$(status "$DEMO/out")" "304, same ETag" test "$(status "$DEMO/out") $(etag_in "$DEMO/out")" = "304 $ETAG"
start_ms="$(now)"
run "curl -si -H \"X-Device-Token: \$TOKEN\" -H \"If-None-Match: \$ETAG\" ${url%\"}?waitSeconds=2\""
check_between "a long-poll of 2 s without a change, answered with $(status "$DEMO/out")" $(($(now) - start_ms)) 2 3
run 'curl -s $ADMIN/metrics | grep ^praetor_desired_requests_total'
ratio() { # 304s, all
  awk -v hit="$1" -v all="$2" 'BEGIN { printf "%d %%", (all ? 100 * hit / all : 0) }'
}
hits="$(metric 'praetor_desired_requests_total\{code="304"')" all="$(metric 'praetor_desired_requests_total')"
check "304s so far, first requests and the 401 included" "$(ratio "$hits" "$all") ($hits of $all)" "2 or more" test "$hits" -ge 2

heading 6 "Two more replicas, thirty more devices"
quiet
remember
mark="$(audit_mark)" start_ms="$(now)"
start_replicas 2 3
within 30 agreed 3
check_time "three replicas agree on who is there, who leads and who owns what" $(($(now) - start_ms)) 20
run 'kubectl get leases -n praetor-system'
simulated_objects >"$DEMO/simulated.yaml"
run 'kubectl apply -f $DEMO/simulated.yaml | sort | tail -n 3'
start fleet "$fleet"
say "Each request of these thirty goes to a replica at random; what changes something is passed on to the device's owner."
thirty_ready() { [[ "$(kubectl get dpd probe -n simulated -o 'jsonpath={.status.numberReady}')" == 30 ]]; }
within 30 thirty_ready
run 'kubectl get dpd -A'
check_equal "of them ready" "$(kubectl get dpd probe -n simulated -o 'jsonpath={.status.numberReady}')" 30
within 10 agreed 3
say "Who leads, how many are there, how many devices each owns; and who owns two of them:"
run 'for admin in $ADMIN1 $ADMIN2 $ADMIN3; do curl -s $admin/metrics | grep -E "^praetor_(leader|members|owned_devices) " | xargs; done'
for device in tor1-01 tor1-02; do
  run "curl -s \"\$ADMIN2/debug/ownership?device=$device\" | grep -oE '\"(name|owner|why)\":\"[^\"]*\"|\"identity\":\"[^\"]*\",\"weight\":\"[^\"]*\"'"
done
check_equal "owned devices, all replicas together" "$(metric 'praetor_owned_devices ')" 33
check_equal "different opinions on who owns each of ten devices" "$(opinions tor1-0{1,2} sim-0000{0..7})" 1
forwards="$(metric 'praetor_forwards_total\{result="ok"')"
check "reports passed on to their owners" "$forwards" "1 or more" test "$forwards" -ge 1
written="$(writes_since "$mark" '"namespace":"simulated"' '"resource":"deviceprocesses"' '"subresource":"status"')"
check "status writes of their thirty processes (there, and running)" "$written" "30 to 60" test "$written" -ge 30 -a "$written" -le 60
quiet
check_equal "writes about the two agents' devices since there are three" "$(writes_since "$mark" '"namespace":"infra-system"')" 0
check_equal "events about them" "$(diff "$DEMO/events" <(comings_and_goings | grep -v sim-) | grep -c '^[<>]')" 0

heading 7 "A minute of heartbeats"
say "32 devices report every 15 s and long-poll in between. Nobody touches anything for 60 s; then the apiserver's audit log (all but its own requests to itself) is asked who has written. Leases are not counted: replicas know of each other by them."
quiet
mark="$(audit_mark)" reports="$(metric 'praetor_reports_total\{code="200"')"
hits="$(metric 'praetor_desired_requests_total\{code="304"')" all="$(metric 'praetor_desired_requests_total')"
run 'sleep 60'
asked="$(tail -c "+$((mark + 1))" "$DEMO/audit.log" | grep -c '"username":"system:serviceaccount:praetor-system:praetor-manager"')"
reports=$(($(metric 'praetor_reports_total\{code="200"') - reports))
hits=$(($(metric 'praetor_desired_requests_total\{code="304"') - hits)) all=$(($(metric 'praetor_desired_requests_total') - all))
try "tail -c +$((mark + 1)) \$DEMO/audit.log | grep -E '\"verb\":\"(create|update|patch|delete|deletecollection)\"' | grep -vc '\"resource\":\"leases\"'"
check_equal "writes at the apiserver in that minute, by anybody" "$(writes_since "$mark")" 0
check "requests of three managers to it, Leases and watches" "$((asked / 60)).$((asked % 60 / 6)) a second" "at most 4.0" test "$asked" -le 240
check "reports in that minute" "$reports" "115 to 141" test "$reports" -ge 115 -a "$reports" -le 141
check_equal "304s among that minute's $all requests for desired state" "$(ratio "$hits" "$all")" "100 %"

heading 8 "A new version"
mark="$(audit_mark)"
start_quietly poll 'curl -s -D $DEMO/poll.headers -o $DEMO/poll.body -H "X-Device-Token: $TOKEN" -H "If-None-Match: $ETAG" "$GATEWAY/v1/devices/tor1-01/desired?waitSeconds=30"'
parked() { [[ "$(metric 'praetor_longpolls_parked ')" -ge 33 ]]; }
within 5 parked
say "All devices wait in a long-poll, and so does a curl of ours for tor1-01."
start_ms="$(now)"
run "kubectl patch dpd switch-agent --type=merge -p '{\"spec\":{\"template\":{\"spec\":{\"artifact\":{\"url\":\"registry.example.com/network/switch-agent:1.3.0\",\"checksumSHA256\":null}}}}}'"
poll_answered() { ! running poll; }
within 10 poll_answered
took_poll=$(($(now) - start_ms))
end poll TERM 0
taken_over() { local seen; seen="$(observed)"; [[ -n "$seen" && "$seen" != *"$first_hash"* && "${seen% *}" == "${seen#* }" ]]; }
within 15 taken_over
took=$(($(now) - start_ms))
second_hash="$(served_hash tor1-01)"
run 'kubectl get dp'
run 'tail -n 2 $DEMO/agent-tor1-01.log'
check_time "long-poll answered with $(status "$DEMO/poll.headers") after the edit" "$took_poll" 5
new="$(etag_in "$DEMO/poll.headers")"
check "the ETag is a new one" "${new:1:8}, was ${ETAG:1:8}" different test -n "$new" -a "$new" != "$ETAG"
check_time "new hash in the status of both after the edit" "$took" 5
check "observedSpecHash is what the gateway serves now" "${second_hash:0:15}..." "on both" test "$(observed)" = "$second_hash $second_hash"
quiet
run 'kubectl get events --field-selector reason=SpecObserved'
check_equal "events SpecObserved: one more for tor1-01, tor1-02" "$(counts SpecObserved)" "2, 2"
status_writes() { writes_since "$mark" '"resource":"deviceprocesses"' '"subresource":"status"' "\"name\":\"$1\""; }
check_equal "status writes for it, tor1-01, tor1-02" "$(status_writes "${children[0]}"), $(status_writes "${children[1]}")" "1, 1"

heading 9 "An agent dies"
lost=switch-agent-tor1-02
mark="$(audit_mark)"
kill9 agent-tor1-02
contact="$(last_contact tor1-02)"
say "Its last report was $(seconds $(($(now) - contact))) ago. A device is called disconnected after three heartbeats of silence (45 s), and at most 10 s later."
run "kubectl wait --for=condition=AgentConnected=False --timeout=75s dp/$lost"
check_between "AgentConnected=False after its last contact" $(($(now) - contact)) 45 55
quiet
run "kubectl get dp,nsw; kubectl get events --field-selector type=Warning"
check_equal "Warnings AgentDisconnected of tor1-01, tor1-02" "$(counts AgentDisconnected)" "0, 1"
check_equal "Warnings in all" "$(kubectl get events --field-selector type=Warning -o name | wc -l)" 1
check_equal "writes for it: its status, its switch's, one event" "$(writes_since "$mark")" 3
check_equal "AgentConnected of switch tor1-02" "$(kubectl get nsw tor1-02 -o 'jsonpath={.status.conditions[?(@.type=="AgentConnected")].status}')" False

heading 10 "It comes back"
token2="$(praetor-manager token tor1-02 --device-token-secret-file "$DEMO/secret")"
tag_of_tor1_02() { curl -s -o /dev/null -D "$DEMO/headers" -H "X-Device-Token: $token2" "$GATEWAY/v1/devices/tor1-02/desired" && etag_in "$DEMO/headers"; }
before="$(tag_of_tor1_02)"
start_ms="$(now)"
start agent-tor1-02 "$(agent tor1-02)"
run "kubectl wait --for=condition=AgentConnected --timeout=15s dp/$lost"
check_time "AgentConnected=True after its start" $(($(now) - start_ms)) 3
check "its desired state is still the same" "ETag ${before:1:8}" "the same ETag" test -n "$before" -a "$before" = "$(tag_of_tor1_02)"
quiet
check_equal "events AgentConnected of tor1-01, tor1-02" "$(counts AgentConnected)" "1, 2"
check_equal "events SpecObserved of tor1-01, tor1-02" "$(counts SpecObserved)" "2, 2"

heading 11 "The leader dies"
old="$(the_leader)" || die "nobody leads"
say "praetor-$old leads. It gets no chance to say so when it goes; the others have to notice. Meanwhile somebody edits the deployment."
quiet
remember
agent_log_mark
start_ms="$(now)"
kill9 "manager-$old"
run "kubectl patch dpd switch-agent --type=merge -p '{\"spec\":{\"template\":{\"spec\":{\"artifact\":{\"url\":\"registry.example.com/network/switch-agent:1.4.0\"}}}}}'"
within 30 led_by_another "$old"
check_time "another leads" $(($(now) - start_ms)) 17
at_1_4() { [[ "$(kubectl get dp -o 'jsonpath={.items[*].status.artifactVersion}')" == "1.4.0 1.4.0" && "$(observed)" != *"$second_hash"* ]]; }
within 30 at_1_4
check_time "the edit is on both switches, and seen by their agents" $(($(now) - start_ms)) 20
run 'kubectl get leases -n praetor-system; kubectl get dp,nsw'
within 20 agreed 2 "$old"
check_time "two replicas agree on who is there and who owns what" $(($(now) - start_ms)) 20
within 20 recovered 4
run "grep -hE 'request failed|answers again' \$DEMO/agent-tor1-0*.log | tail -n 8"
check "longest time without an answer, both agents, polls and reports" "$(recoveries | sort -n | tail -n 1) ms" "at most 1050 ms" test "$(recoveries | sort -n | awk 'END { print (NR == 4 && $1 <= 1050) }')" = 1
quiet
check_nobody_flapped
check_equal "events SpecObserved: one more for tor1-01, tor1-02" "$(counts SpecObserved)" "3, 3"
start_replicas "$old"
within 20 agreed 3
check "it is back, as a member" "$(metric 'praetor_members ' "$old") members" "3 members" test "$(metric 'praetor_members ' "$old")" -eq 3

heading 12 "An owner dies, and with it one of its devices"
for victim in tor1-01 tor1-02; do
  owner="$(owner_of "$victim" "$(the_leader)")"
  [[ "$owner" == "praetor-$(leader)" ]] || break
done
[[ "$owner" == praetor-[123] ]] || die "nobody knows who owns $victim"
say "$victim is owned by $owner; the leader is praetor-$(leader). The survivors have heard from each other when every device was last heard, so the dead device is not given a new window, and nobody else is suspected."
quiet
remember
kill9 "agent-$victim"
kill9 "manager-${owner#praetor-}"
start_ms="$(now)"
contact="$(last_contact "$victim")"
run "kubectl wait --for=condition=AgentConnected=False --timeout=90s dp/switch-agent-$victim"
silence=$(($(now) - contact)) took=$(($(now) - start_ms))
check "silence when AgentConnected became False" "$(seconds "$silence")" "45 to 75 s" test "$silence" -ge 45000 -a "$silence" -le 75000
check_time "AgentConnected=False after both were killed" "$took" 75
quiet
run "kubectl get dp,nsw; kubectl get events --field-selector type=Warning"
check_nobody_flapped "$victim"
check_equal "Warnings in all, with the one of step 9" "$(kubectl get events -A --field-selector type=Warning -o name | wc -l)" 2
start "agent-$victim" "$(agent "$victim")"
start_replicas "${owner#praetor-}"
run "kubectl wait --for=condition=AgentConnected --timeout=15s dp/switch-agent-$victim"
within 20 agreed 3

heading 13 "A replica is shut down"
old="$(the_leader)" || die "nobody leads"
say "praetor-$old, the leader, is told to end: it hands over, sends what it has heard to the others, and goes on answering devices for 5 s."
quiet
remember
start_ms="$(now)"
echo "${bold}\$ kill -TERM ${pids[manager-$old]}  # manager-$old${plain}"
signal "manager-$old" TERM
within 10 led_by_another "$old"
check_time "another leads" $(($(now) - start_ms)) 3
within 20 agreed 2 "$old"
check_time "two replicas agree on who is there and who owns what" $(($(now) - start_ms)) 3
await_end "manager-$old" 20
check "it has ended (exit code $code)" "$(seconds $(($(now) - start_ms)))" "at most 15 s" test "$code" -eq 0 -a $(($(now) - start_ms)) -le 15000
run 'kubectl get leases -n praetor-system'
quiet
check_nobody_flapped
start_replicas "$old"
within 20 agreed 3
