#!/usr/bin/env bash
# Keeps a switch of hack/switch.sh running: boots it, and again when it reboots or was crashed on purpose; ends when it
# is shut down or dies. When this process is killed, the switch ends with it.
#   keep.sh DIR GROUP TREE
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
dir="$1" group="$2" tree="$3"
# Who it is, with its start time, so that no other process is mistaken for it.
echo "$$ $(awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$$/stat")" >"$dir/keeper.new"
mv "$dir/keeper.new" "$dir/keeper"
cd /
while :; do
  status=0
  unshare --mount --propagation slave --pid --ipc --uts --fork --kill-child bash "$here/boot.sh" "$dir" "$group" "$tree" 8>&- || status=$?
  # The kernel ends the first process of a namespace that reboots with SIGHUP, one that powers off with SIGINT.
  if [[ -f "$dir/again" ]]; then rm -f "$dir/again"; elif ((status != 129)); then exit "$status"; fi
done
