#!/bin/bash
# What the demo runs on its switch: writes a line into the file $BEATS every 20 ms: the time in microseconds, its
# version, its process id. By these lines one sees from outside when which version ran, and when none did.
#   beat          does that until it is ended
#   beat once     writes one line and ends
#   beat crash    says why it cannot work, and ends with 3
version=@VERSION@
beat() { echo "${EPOCHREALTIME/./} $version $$" >>"${BEATS:-/run/beat}"; }
case "${1:-}" in
  "") ;;
  once) beat && exit 0 ;;
  *) echo "beat $version: no such thing as $1" >&2 && exit 3 ;;
esac
# Something to wait for that never comes, so that no other process is needed.
exec 3<> <(:)
while :; do
  beat
  read -rt 0.02 -u 3
done
