#!/usr/bin/env bash
# A throw-away switch: a Debian whose first process is systemd, in namespaces of its own on this machine (Linux, root,
# no container engine). It shares the machine's network and clock, and nothing else: what is installed, started or
# broken in it stays in DIR. For tests of what needs a real service manager, and for the demo.
#
#   hack/switch.sh lacks              why none can run here; prints nothing when one can
#   hack/switch.sh tree               makes what all switches share, unless it is there, and prints its folder
#   hack/switch.sh up DIR             a new switch, booted; everything of it is in DIR
#   hack/switch.sh put DIR FILE PATH  copies a file into it, with its mode
#   hack/switch.sh exec DIR CMD...    runs a command in it as root, with no variable of the caller's but TERM
#   hack/switch.sh reboot DIR         shuts it down in order and boots it again
#   hack/switch.sh crash DIR          the same by a loss of power: nothing in it gets to say a word
#   hack/switch.sh status DIR         whether it runs; exit code 0 only when it does
#   hack/switch.sh down DIR           stops it and removes all of it; again: no harm
#
# SWITCH_RELEASE is the Debian that it runs (bookworm), DEBIAN_MIRROR where its packages come from. The tree is made
# once, in ${XDG_CACHE_HOME:-~/.cache}/praetor. Exit code 3, and only then: no switch can run on this machine.
set -euo pipefail
export LC_ALL=C
note() { printf 'switch: %s\n' "$*" >&2; }
fail() { note "error: $*"; exit 1; }
if ((BASH_VERSINFO[0] < 5)) || [[ "$(uname -s)" != Linux ]]; then
  note "no switch can run here: that needs Linux and bash 5 or newer"
  exit 3
fi
shopt -s inherit_errexit
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
release="${SWITCH_RELEASE:-bookworm}"
[[ "$release" =~ ^[a-z]+$ ]] || fail "SWITCH_RELEASE=$release is no name of a Debian, such as bookworm"
# Raised when what is done to the tree below changes.
edition=1
patience=90 # seconds that a boot or a shutdown may take

usage() {
  fail "usage: hack/switch.sh lacks | tree | up DIR | put DIR FILE PATH | exec DIR CMD... | reboot DIR | crash DIR | status DIR | down DIR"
}
cache_folder() {
  echo "${XDG_CACHE_HOME:-${HOME:?is needed to find the cache (or set XDG_CACHE_HOME)}/.cache}/praetor"
}
tree_folder() { echo "$(cache_folder)/switch-$release-$edition"; }

# The hierarchy of version 2 control groups in which the switch gets a branch of its own.
groups_root() {
  local root
  for root in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    [[ ! -f "$root/cgroup.procs" || "$(stat --file-system --format=%T "$root")" != cgroup2fs ]] || { echo "$root"; return 0; }
  done
}

lacks() {
  local lacks=() command root
  (($(id -u) == 0)) || lacks+=("root is needed (sudo)")
  for command in unshare nsenter pivot_root mount flock; do
    command -v "$command" >/dev/null || lacks+=("$command is missing (Debian: util-linux)")
  done
  root="$(groups_root)"
  [[ -n "$root" ]] || lacks+=("no control groups of version 2 are mounted below /sys/fs/cgroup")
  if ((${#lacks[@]} == 0)); then
    unshare --mount --pid --ipc --uts --cgroup --fork --mount-proc mount -t tmpfs none /mnt 2>/dev/null ||
      lacks+=("this root may not make namespaces and mounts (CAP_SYS_ADMIN is needed)")
    { mkdir "$root/praetor-try-$$" && rmdir "$root/praetor-try-$$"; } 2>/dev/null || lacks+=("no control groups can be made below $root")
  fi
  if [[ ! -d "$(tree_folder)" ]] && ! command -v debootstrap >/dev/null && { (($(id -u) != 0)) || ! command -v apt-get >/dev/null; }; then
    lacks+=("debootstrap is missing (Debian: apt-get install debootstrap)")
  fi
  local IFS=,
  echo "${lacks[*]}"
}

# Makes the tree that all switches share, and that none of them writes to.
tree() (
  target="$(tree_folder)"
  [[ ! -d "$target" ]] || exit 0
  mkdir -p "$(cache_folder)"
  exec 9>"$target.lock"
  flock 9
  [[ ! -d "$target" ]] || exit 0
  if ! command -v debootstrap >/dev/null; then
    note "installing debootstrap"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap; } >&2 ||
      fail "apt-get could not install debootstrap"
  fi
  work="$(mktemp -d "$(cache_folder)/switch.XXXXXX")"
  trap 'rm -rf --one-file-system "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  note "making a Debian $release with systemd, once (about a minute), into $target"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus "$release" "$work/tree" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" \
    >"$work/log" 2>&1 9>&- || { tail -n 5 "$work/log" >&2; fail "debootstrap failed (its last lines are above)"; }
  # What would reach beyond the switch, or only costs time: the machine's kernel, its consoles, Debian's own chores.
  for unit in systemd-journald-audit.socket systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service \
    systemd-sysctl.service sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount getty.target console-getty.service systemd-remount-fs.service e2scrub_reap.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer; do
    ln -sf /dev/null "$work/tree/etc/systemd/system/$unit"
  done
  echo switch >"$work/tree/etc/hostname"
  : >"$work/tree/etc/machine-id"
  rm -rf "$work/tree/var/cache/apt" "$work/tree/var/lib/apt/lists" "$work/tree/usr/share/doc" "$work/tree/usr/share/man" "$work/tree/usr/share/locale"
  chmod 0755 "$work/tree"
  mv "$work/tree" "$target"
)

# --- A switch and its processes ---

# What a switch has in DIR, and all that is ever removed from there. Its control group marks the folder as one.
mark=praetor-switch
parts=("$mark" keeper keeper.new log again tree upper work root copy copy.new)
# The control group of the switch in DIR; nothing when DIR holds none, whatever else is in there.
group_of() {
  [[ ! -f "$dir/$mark" || -L "$dir/$mark" || ! "$(<"$dir/$mark")" =~ ^praetor-[0-9a-f]{12}$ ]] || cat "$dir/$mark"
}
open() {
  dir="$(realpath -m -- "$1")"
  [[ -n "$(group_of)" ]] || fail "$dir holds no switch: bring one up with hack/switch.sh up $1"
}
# Something when this process is still the one that was written down, with its start time.
same() { # file
  local pid start
  [[ -f "$1" ]] || return 0
  read -r pid start <"$1"
  [[ "$(awk '{ sub(/.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$pid/stat" 2>/dev/null)" != "$start" ]] || echo "$pid"
}
# The machine's name for the switch's first process: grandchild of the keeper. Nothing when it is not there (now).
first() {
  local keeper child
  keeper="$(same "$dir/keeper")"
  [[ -n "$keeper" ]] || return 0
  for child in $(cat "/proc/$keeper/task/$keeper/children" 2>/dev/null); do
    cut -d ' ' -f 1 "/proc/$child/task/$child/children" 2>/dev/null || true
  done | head -n 1
}
enter() { # pid, command...
  local pid="$1"
  shift
  nsenter --target "$pid" --mount --uts --ipc --pid --cgroup --root --wd -- /usr/bin/env -i HOME=/root \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ${TERM:+TERM="$TERM"} "$@"
}
running() {
  local pid
  pid="$(first)"
  [[ -n "$pid" ]] || fail "the switch of $dir does not run"
  echo "$pid"
}
# Waits until it has booted, as another process than the one given.
booted() { # pid of the former first process or nothing
  local deadline=$((SECONDS + patience)) pid state=""
  while ((SECONDS < deadline)); do
    [[ -n "$(same "$dir/keeper")" ]] || fail "the switch ended: $(tail -n 3 "$dir/log" | paste -sd ' ')"
    pid="$(first)"
    if [[ -n "$pid" && "$pid" != "${1:-}" ]]; then
      state="$(enter "$pid" systemctl is-system-running 2>/dev/null || true)"
      case "$state" in
        running) return 0 ;;
        degraded)
          note "booted, but not all is well: $(enter "$pid" systemctl --failed --plain --no-legend | cut -d ' ' -f 1 | paste -sd ' ')"
          return 0
          ;;
      esac
    fi
    sleep 0.1
  done
  fail "the switch did not boot within $patience s (state: ${state:-none}; see $dir/log)"
}

bring_up() {
  local why
  why="$(lacks)"
  if [[ -n "$why" ]]; then
    note "no switch can run here: $why"
    exit 3
  fi
  dir="$(realpath -m -- "$1")"
  if [[ -n "$(group_of)" ]]; then
    [[ -z "$(same "$dir/keeper")" ]] || fail "a switch of $dir runs: use it, or end it with hack/switch.sh down $1"
    take_down
  elif [[ -e "$dir" && -n "$(find "$dir" -mindepth 1 -print -quit 2>/dev/null || echo none)" ]]; then
    fail "$dir is no empty folder: choose a new one"
  fi
  tree
  group="praetor-$(head -c 6 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
  trap interrupted EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  mkdir -p "$dir" || fail "cannot make the folder $dir"
  # First of all, so that whatever is made can be found again.
  (set -o noclobber && echo "$group" >"$dir/$mark") || fail "cannot write $dir/$mark"
  mkdir "$dir"/{upper,work,root} "$(groups_root)/$group"
  tree_folder >"$dir/tree"
  # Detached from whoever asks for it, with nothing of their environment or open files.
  setsid env -i PATH="$PATH" bash "$here/switch/keep.sh" "$dir" "$(groups_root)/$group" "$(<"$dir/tree")" \
    >"$dir/log" 2>&1 </dev/null &
  disown
  local deadline=$((SECONDS + 10))
  until [[ -n "$(same "$dir/keeper")" ]]; do
    ((SECONDS < deadline)) || fail "no process for the switch could be started: $(tail -n 3 "$dir/log" | paste -sd ' ')"
    sleep 0.02
  done
  booted
  trap - EXIT
}

# `up` ends without a switch: what it has made goes.
interrupted() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  take_down
  rmdir -- "$dir" 2>/dev/null || true
  note "everything that was started is stopped and removed"
  exit "$status"
}

take_down() {
  local group keeper pid root part deadline=$((SECONDS + 30))
  group="$(group_of)"
  [[ -n "$group" ]] || return 0
  root="$(groups_root)"
  # The keeper first, so that it does not boot it again; the end of the first process is the end of all others.
  while keeper="$(same "$dir/keeper")" && [[ -n "$keeper" ]]; do
    pid="$(first)"
    kill -KILL "$keeper" ${pid:+"$pid"} 2>/dev/null || true
    ((SECONDS < deadline)) || fail "process $keeper of $dir does not end"
    sleep 0.02
  done
  while [[ -d "$root/$group" ]] && ! find "$root/$group" -depth -type d -exec rmdir {} + 2>/dev/null; do
    # A keeper that was killed before its time has left some.
    [[ ! -w "$root/$group/cgroup.kill" ]] || echo 1 >"$root/$group/cgroup.kill"
    ((SECONDS < deadline)) || fail "the control group $root/$group cannot be removed"
    sleep 0.05
  done
  # The mark last: what is interrupted can be done again.
  for part in "${parts[@]:1}" "$mark"; do rm -rf --one-file-system -- "${dir:?}/$part"; done
  rmdir -- "$dir" 2>/dev/null || note "$dir holds more than the switch: the rest stays"
}

command="${1:-}"
shift || true
case "$command" in
  lacks)
    (($# == 0)) || usage
    lacks
    ;;
  tree)
    (($# == 0)) || usage
    # Only after what it does has cleaned up.
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    tree
    tree_folder
    ;;
  up)
    (($# == 1)) || usage
    bring_up "$1"
    ;;
  put)
    (($# == 3)) || usage
    open "$1"
    [[ -f "$2" && -r "$2" ]] || fail "no file $2"
    [[ "$3" == /* ]] || fail "$3 is no absolute path"
    pid="$(running)"
    # Under another name first: what runs from the old one goes on.
    enter "$pid" /bin/sh -c 'mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"' \
      sh "$3" "$(stat --dereference --format=%a "$2")" <"$2"
    ;;
  exec)
    (($# >= 2)) || usage
    open "$1"
    shift
    pid="$(running)"
    enter "$pid" "$@"
    ;;
  reboot)
    (($# == 1)) || usage
    open "$1"
    pid="$(running)"
    # It may be gone before systemctl has an answer.
    enter "$pid" systemctl --no-wall reboot >/dev/null 2>&1 || true
    booted "$pid"
    ;;
  crash)
    (($# == 1)) || usage
    open "$1"
    pid="$(running)"
    touch "$dir/again"
    kill -KILL "$pid"
    booted "$pid"
    ;;
  status)
    (($# == 1)) || usage
    open "$1"
    pid="$(first)"
    [[ -n "$pid" ]] || { echo "does not run"; exit 1; }
    echo "process $pid, $(enter "$pid" systemctl is-system-running || true)"
    ;;
  down)
    (($# == 1)) || usage
    dir="$(realpath -m -- "$1")"
    take_down
    ;;
  *) usage ;;
esac
