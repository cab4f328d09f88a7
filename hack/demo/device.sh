# shellcheck shell=bash disable=SC2154  # $pids and more are of stage.sh
# The switch of the demo, to be sourced by hack/demo.sh: a machine of its own as far as that goes without one. Its init
# is systemd (hack/switch.sh), or init scripts alone (hack/demo/boot.sh); its disk outlives reboots, and its cable can be
# pulled. Nothing of it is seen outside of its namespaces but the bridge at which the cable ends. It needs root;
# PRAETOR_SWITCH=systemd|initd|none forces what it is.

# Its name, its init (empty: there is no switch), why there is none, and its first process.
switch_name=leaf2-01 device_init="" device_lack="" device_pid=""
# The address of this machine at the bridge, the switch's, and the names of the bridge and of this end of the cable.
host_address=127.0.0.1 device_address="" device_bridge="" device_link=""

# Decides what the switch is, or says in $device_lack why there is none.
choose_device() {
  local tool lacks="" wanted="${PRAETOR_SWITCH:-}"
  case "$wanted" in
    "" | systemd | initd) ;;
    none)
      device_lack="PRAETOR_SWITCH=none"
      return
      ;;
    *) die "PRAETOR_SWITCH is systemd, initd, none or empty (what works), not $wanted" ;;
  esac
  if (($(id -u) != 0)); then
    device_lack="a switch takes root here (namespaces, mounts, a network link)"
    return
  fi
  for tool in unshare:util-linux nsenter:util-linux setpriv:util-linux mount:mount ip:iproute2; do
    if ! command -v "${tool%%:*}" >/dev/null; then
      device_lack="${tool%%:*} is missing (Debian: apt-get install ${tool#*:})"
      return
    fi
  done
  # What comes first, tried out.
  if ! unshare --mount --net --pid --ipc --uts --fork sh -c 'mount -t tmpfs none /mnt && cd /mnt && mkdir u w r &&
    mount -t overlay -o lowerdir=/,upperdir=u,workdir=w none r && ip link add name eth0 type veth peer name eth1 &&
    ip link add name bridge0 type bridge' >/dev/null 2>&1; then
    device_lack="this root may not make namespaces, layered mounts or network links"
    return
  fi
  if ! registry_program="$(hack/registry.sh 2>"$DEMO/registry.why")"; then
    device_lack="$(sed -n '$s/^registry: error: //p' "$DEMO/registry.why")"
    return
  fi
  device_init=initd
  [[ "$wanted" != initd ]] || return
  lacks="$(hack/switch.sh lacks 2>&1)" || lacks="${lacks:-hack/switch.sh does not run}"
  [[ -n "$lacks" ]] || debian_is_there || lacks="$(sed -n 's/^E: //p' "$DEMO/tree.log" | grep -m 1 . || tail -n 1 "$DEMO/tree.log" | sed 's/^switch: error: //')"
  if [[ -z "$lacks" ]]; then
    device_init=systemd
  elif [[ "$wanted" == systemd ]]; then
    device_init="" device_lack="PRAETOR_SWITCH=systemd cannot work: $lacks"
  else
    say "There can be no switch with systemd: $lacks. Here is one with init scripts instead."
  fi
}
# What the switch with systemd is made of: made the first time, which takes a minute and the network.
debian_is_there() {
  local begin
  begin="$(now)"
  start_quietly tree hack/switch.sh\ tree
  while running tree; do
    nap 0.1
    (($(now) - begin < 1000)) || tick "$begin"
  done
  printf '%s' "$line"
  await_end tree 1
  ((code == 0))
}

# A bridge with an address for what the switch reaches by its cable.
lay_bridge() {
  local n
  for ((n = 0; n < 250; n++)); do
    [[ -z "$(ip -4 route show root "10.218.$n.0/24")" ]] || continue
    # Whoever else wants this name has it already.
    if ip link add name "prtrb$n" type bridge 2>/dev/null; then
      device_bridge="prtrb$n"
      break
    fi
  done
  [[ -n "$device_bridge" ]] || die "no free network: all of 10.218.n.0/24 are in use"
  host_address="10.218.$n.1" device_address="10.218.$n.2" device_link="prtrl$n"
  ip link set "$device_bridge" alias "demo of Praetor, $DEMO"
  ip address add "$host_address/24" dev "$device_bridge"
  ip link set "$device_bridge" up
}

# A switch that is on, and the command `switch`, which runs others on it.
make_device() {
  local holder
  mkdir -p "$DEMO/bin"
  # Holds what outlives a reboot: the network card and, for init scripts, the disk, which is in memory. It ends with the
  # demo, even if that is killed.
  mkdir "$DEMO/disk"
  start_quietly holder "setpriv --pdeathsig KILL unshare --mount --net bash -c '
    mount --make-rprivate / && mount -t tmpfs -o mode=0700 tmpfs \"\$1\" && ip link set lo up && : >\"\$1/ready\" && exec sleep infinity' holder $DEMO/disk"
  holder="${pids[holder]}"
  held() { [[ -e "/proc/$holder/root$DEMO/disk/ready" ]]; }
  within 10 held || die "no disk for the switch: $(tail -n 1 "$DEMO/holder.log")"
  ip link add name "$device_link" type veth peer name eth0 netns "$holder" || die "no cable for the switch"
  ip link set "$device_link" master "$device_bridge" up
  nsenter --target "$holder" --net ip address add "$device_address/24" dev eth0
  nsenter --target "$holder" --net ip link set eth0 up
  cat >"$DEMO/bin/switch" <<'SH'
#!/bin/sh
# Runs a command on the switch of the demo, as ssh would.
pid="$(cat "$DEMO/switch.init")" && [ -d "/proc/$pid" ] || { echo "switch: it is off" >&2; exit 255; }
exec nsenter --target "$pid" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
  /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C "$@"
SH
  chmod 755 "$DEMO/bin/switch"
  export PATH="$DEMO/bin:$PATH"
  if [[ "$device_init" == systemd ]]; then
    nsenter --target "$holder" --net hack/switch.sh up "$DEMO/switch" >"$DEMO/switch.log" 2>&1 ||
      die "the switch does not boot: $(tail -n 1 "$DEMO/switch.log")"
    know_systemd
  else
    boot_initd
  fi
}

# The power fails and is there again; returns when it has booted.
power_cycle() {
  if [[ "$device_init" == systemd ]]; then
    hack/switch.sh crash "$DEMO/switch" >>"$DEMO/switch.log" 2>&1 || die "the switch does not boot again: $(tail -n 1 "$DEMO/switch.log")"
    know_systemd
  else
    end switch KILL 0
    is_off() { [[ ! -d "/proc/$device_pid" ]]; }
    within 10 is_off || die "the switch does not end"
    boot_initd
  fi
}
know_systemd() {
  device_pid="$(hack/switch.sh status "$DEMO/switch" | sed -n 's/^process \([0-9]*\),.*/\1/p')"
  echo "$device_pid" >"$DEMO/switch.init"
}
boot_initd() {
  local outer
  start_quietly switch "setpriv --pdeathsig KILL nsenter --target ${pids[holder]} --mount --net \
    unshare --mount --pid --uts --ipc --fork --kill-child bash $PWD/hack/demo/boot.sh $DEMO/disk $switch_name"
  outer="${pids[switch]}"
  its_init() { device_pid="$(cat "/proc/$outer/task/$outer/children" 2>/dev/null)" device_pid="${device_pid%% *}" && [[ -n "$device_pid" ]]; }
  within 5 its_init || die "the switch does not start: $(tail -n 1 "$DEMO/switch.log")"
  echo "$device_pid" >"$DEMO/switch.init"
  booted() { [[ -e "$(on_device /run/booted)" ]] || ! running switch; }
  { within 30 booted && running switch; } || die "the switch does not boot: $(tail -n 1 "$DEMO/switch.log")"
}
# A file of the switch, as this machine reaches it.
on_device() { echo "/proc/$device_pid/root$1"; }

# Switches it off, and removes all of it but the bridge; also when it was never made.
end_device() {
  [[ ! -d "$DEMO/switch" ]] || hack/switch.sh down "$DEMO/switch" 2>/dev/null
  end switch KILL 0
  end holder KILL 0
  # It goes with the network at its other end, but a moment later.
  [[ -z "$device_link" ]] || ip link delete "$device_link" 2>/dev/null
}
raze_device() {
  # It cleans up after itself.
  end tree TERM 20
  end_device
  [[ -z "$device_bridge" ]] || ip link delete "$device_bridge" 2>/dev/null
  device_bridge=""
}
