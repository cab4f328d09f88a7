#!/usr/bin/env bash
# Measures what the README's table of numbers says, with release builds, and prints a Markdown table (also written to
# bench.md in cargo's target folder).
#   bench.sh                  everything, about half an hour
#   bench.sh hot-path nginx   some of: hot-path replicas nginx report transition fanout latency memory heartbeats
# BENCH_MINUTES (10), BENCH_DEVICES (10000,50000), BENCH_SECONDS (6) make it shorter; BENCH_PROFILES=DIR keeps the
# profiles of callgrind. Wall-clock figures are only worth something on a machine that does nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for program in valgrind nginx wrk taskset; do
  command -v "$program" >/dev/null || echo "bench: $program is missing (a Debian package of that name, or util-linux); what needs it is left out" >&2
done
load="$(cut -d' ' -f1 /proc/loadavg)"
awk -v load="$load" 'BEGIN { exit load < 1 }' && echo "bench: the machine is busy (load $load): wall-clock figures will be off" >&2
ulimit -n "$(ulimit -Hn)"
exec cargo bench --bench numbers -- "$@"
