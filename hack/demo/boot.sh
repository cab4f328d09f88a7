#!/usr/bin/env bash
# The first process of a switch of the demo that knows init scripts alone, started by hack/demo/device.sh in namespaces
# of its own: it lays a writable layer over the file system of this machine, so that nothing is written to it, takes away
# what this machine starts, and runs the scripts of runlevel 2. When it ends, or is killed, everything on the switch is
# gone at once, as when the power fails; the layer stays for the next boot.
#   boot.sh FOLDER NAME
set -euo pipefail
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
folder="$1" name="$2" root="$1/root"

mkdir -p "$folder"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"
cd "$root"
# Where it keeps what is its own, beginning with nothing: what this machine has there is not seen.
for place in root home var/log var/lib/apollo etc/apollo etc/init.d etc/rc{0,1,2,3,4,5,6,S}.d; do
  mkdir -p "$folder/own/$place" "$place"
  mount --bind "$folder/own/$place" "$place"
done
chmod 0700 root
echo "$name" >etc/hostname
hostname "$name"

mkdir -p proc sys dev run tmp
mount -t proc proc proc
# The settings of this machine are not the switch's to change.
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t tmpfs -o mode=0755 tmpfs sys
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
  : >"dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# Of this machine nothing else is seen.
mkdir run/machine
pivot_root . run/machine
umount -l /run/machine
rmdir /run/machine
cd /

for script in /etc/rc2.d/S*; do
  [[ ! -x "$script" ]] || env -i PATH="$PATH" runlevel=2 previous=N "$script" start </dev/null || echo "$script failed"
done
: >/run/booted
# Nothing but the last rites of orphans, which bash does by itself.
while :; do
  sleep 3600 &
  wait "$!" || :
done
