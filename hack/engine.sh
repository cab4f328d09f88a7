#!/usr/bin/env bash
# A Docker engine and two registries for tests, on their own: a daemon with its own folders and socket, a registry for
# all and one that wants a name and a password, at ports of 127.0.0.1. When it ends, nothing of them is left.
#   engine.sh serve             prints `socket=… registry=… locked=… config=… folder=…` when all is up, then does what
#                               lines on standard input say, and ends with it:
#                                 image NAME FILE  makes an image with a shell and FILE as /usr/local/bin/program, pushes
#                                                  it to both registries as NAME; prints its digest
#                                 halt, kill       ends the daemon, gently or with SIGKILL
#                                 start            starts it again
#                               each is answered with a line: `done …` or `failed …`
#   engine.sh run COMMAND…      runs a command with DOCKER_HOST and REGISTRY set
# Where that cannot be had it says why in one line and ends with 3.
set -euo pipefail
export LC_ALL=C
cannot() { echo "engine: skipped: $*" >&2; exit 3; }
mode="${1:-}"
[[ "$mode" == serve || ( "$mode" == run && $# -gt 1 ) ]] || { echo "engine: usage: engine.sh serve | run COMMAND..." >&2; exit 2; }

[[ "$(id -u)" == 0 ]] || cannot "only root can start a Docker engine"
for need in dockerd:docker.io docker:docker.io containerd:containerd runc:runc docker-registry:docker-registry busybox:busybox-static curl:curl; do
  command -v "${need%%:*}" >/dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v "${need%%:*}" >/dev/null || cannot "${need%%:*} is missing (Debian: apt-get install ${need##*:})"
done
export PATH="$PATH:/usr/sbin:/sbin"
file="$(command -v busybox)"
! head --bytes 4096 "$file" | grep -qa '/ld-' || cannot "busybox is not linked statically (Debian: apt-get install busybox-static)"

# A socket's path has at most 107 bytes.
folder="$(mktemp -d /tmp/praetor-engine.XXXXXX)"
socket="$folder/docker.sock"
export DOCKER_HOST="unix://$socket" DOCKER_CONFIG="$folder/client"
daemon="" registries=()

ended() { # process id
  for ((i = 0; i < 300; i++)); do
    [[ -d "/proc/$1" && "$(cut -d ' ' -f 3 "/proc/$1/stat" 2>/dev/null)" != Z ]] || return 0
    sleep 0.1
  done
  return 1
}
end_daemon() { # signal
  [[ -n "$daemon" ]] || return 0
  kill "-$1" "$daemon" 2>/dev/null || true
  ended "$daemon" || { kill -KILL "$daemon" 2>/dev/null || true; ended "$daemon" || true; }
  wait "$daemon" 2>/dev/null || true
  daemon=""
}
# shellcheck disable=SC2329 # called by the trap
cleanup() {
  trap - EXIT
  # A daemon that was killed has left containers; one that comes up takes them with it when it goes.
  [[ -n "$daemon" ]] || [[ ! -d "$folder/data/containers" ]] || start_daemon || true
  local containers
  containers="$(timeout 20 docker ps --quiet --all 2>/dev/null || true)"
  # shellcheck disable=SC2086 # one word each
  [[ -z "$containers" ]] || timeout 60 docker rm --force $containers >/dev/null 2>&1 || true
  end_daemon TERM
  for pid in "${registries[@]}"; do kill "$pid" 2>/dev/null || true; done
  local at
  while read -r at; do umount --lazy "$at" 2>/dev/null || true; done < <(awk -v under="$folder/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
  rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

answers() { curl --silent --fail --max-time 2 "$@" >/dev/null 2>&1; }
start_daemon() {
  # Its containerd dies with it, and may wait for somebody to notice: then a new daemon would take it for alive.
  rm -f "$folder/docker.pid" "$folder/exec/containerd/containerd.pid"
  # Away from the terminal, so that Ctrl-C reaches this script first. No bridge and no rules of the firewall: the
  # machine's network stays as it is.
  setsid dockerd --config-file "$folder/daemon.json" --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/docker.pid" \
    --host "$DOCKER_HOST" --bridge none --iptables=false --ip6tables=false --userland-proxy=false >>"$folder/dockerd.log" 2>&1 </dev/null &
  daemon=$!
  for ((i = 0; i < 600; i++)); do
    ! answers --unix-socket "$socket" http://engine/_ping || return 0
    [[ -d "/proc/$daemon" ]] || break
    sleep 0.1
  done
  wait "$daemon" 2>/dev/null || true
  daemon=""
  return 1
}
start_registry() { # name, more of its configuration; sets port
  for ((try = 0; try < 20; try++)); do
    port=$((20000 + RANDOM % 20000))
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue
    printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\n%s\n' \
      "$folder/registry" "$port" "${2:-}" >"$folder/$1.yml"
    setsid docker-registry serve "$folder/$1.yml" >>"$folder/$1.log" 2>&1 </dev/null &
    local pid=$!
    for ((i = 0; i < 100; i++)); do
      if [[ "$(curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$port/v2/" || true)" =~ ^(200|401)$ ]] && [[ -d "/proc/$pid" ]]; then
        registries+=("$pid")
        return 0
      fi
      [[ -d "/proc/$pid" ]] || break
      sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
  done
  cannot "docker-registry does not start: $(tail -n 1 "$folder/$1.log")"
}

mkdir -p "$folder"/{client,root/{bin,sbin,etc,tmp,usr/bin,usr/local/bin,proc,sys,dev}}
echo '{}' >"$folder/daemon.json"
# Both registries serve one store; this one for praetor with the password praetor.
# shellcheck disable=SC2016 # a hash, not variables
echo 'praetor:$2b$04$lBVk1cpsObQJrie5xj32E.Tp47tIT9ebasd5Q8W1uGzrDVHM/5WuW' >"$folder/htpasswd"
printf '{"auths": {"%s": {"auth": "%s"}}}' "LOCKED" "$(printf praetor:praetor | base64)" >"$folder/client/config.json"
cp "$file" "$folder/root/bin/busybox"
for applet in $(busybox --list); do [[ "$applet" == busybox ]] || ln -s busybox "$folder/root/bin/$applet"; done
printf 'root:x:0:0:root:/:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$folder/root/etc/passwd"
printf 'root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n' >"$folder/root/etc/group"
chmod 1777 "$folder/root/tmp"

start_daemon || cannot "dockerd does not start: $(grep -v 'level=info' "$folder/dockerd.log" | tail -n 1)"
start_registry registry
registry="127.0.0.1:$port"
start_registry locked "auth: {htpasswd: {realm: praetor, path: $folder/htpasswd}}"
locked="127.0.0.1:$port"
sed -i "s/LOCKED/$locked/" "$folder/client/config.json"

image() { # name, file; prints the digest
  local said
  install -m 0755 "$2" "$folder/root/usr/local/bin/program" || return 1
  tar --create --directory "$folder/root" --owner 0 --group 0 --numeric-owner . | docker import --change 'CMD ["the image has a command"]' - "$registry/$1" >/dev/null || return 1
  said="$(docker push "$registry/$1")" || return 1
  # Gone from the engine, so that it has to be pulled.
  docker rmi "$registry/$1" >/dev/null || return 1
  grep -oE 'sha256:[0-9a-f]{64}' <<<"$said" | tail -n 1
}

if [[ "$mode" == run ]]; then
  shift
  export REGISTRY="$registry"
  "$@"
  exit
fi
echo "socket=$socket registry=$registry locked=$locked config=$folder/client/config.json folder=$folder"
while read -r word name program; do
  said="" ok=0
  case "$word" in
    image) said="$(image "$name" "$program" 2>>"$folder/serve.log")" || ok=1 ;;
    halt) end_daemon TERM ;;
    kill) end_daemon KILL; ended "$(cat "$folder/exec/containerd/containerd.pid")" || ok=1 ;;
    start) start_daemon || ok=1 ;;
    *) ok=1 said="no such word: $word" ;;
  esac
  if ((ok == 0)); then echo "done $said"; else echo "failed $word $said"; fi
done
