#!/usr/bin/env bash
# The first process of a switch, in namespaces of its own; started by hack/switch/keep.sh. It lays out the file system,
# and becomes systemd. What it mounts is seen by nobody else, and gone with it.
#   boot.sh DIR GROUP TREE
set -euo pipefail
dir="$1" group="$2" tree="$3" root="$1/root"
# Here it can be found by itself alone, and its group is the root of all groups that it sees.
echo 0 >"$group/cgroup.procs"

# What is written goes to DIR/upper; where no layers can be had, the switch gets a copy.
if [[ ! -d "$dir/copy" ]] && ! mount -t overlay -o "lowerdir=$tree,upperdir=$dir/upper,workdir=$dir/work" overlay "$root" 2>/dev/null; then
  echo "no overlay file system in $dir: the switch gets a copy of $tree"
  cp -a "$tree" "$dir/copy.new"
  mv "$dir/copy.new" "$dir/copy"
fi
[[ ! -d "$dir/copy" ]] || mount --bind "$dir/copy" "$root"

mount -t proc proc "$root/proc"
# The kernel's settings are the machine's.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/sys"
mkdir -p "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm,mqueue}
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# Names are looked up as the machine does.
# Removed first: as a link it would lead out of the switch.
rm -f "$root/etc/resolv.conf"
[[ ! -s /etc/resolv.conf ]] || cat /etc/resolv.conf >"$root/etc/resolv.conf" || true
hostname switch

# A namespace of control groups can only be entered where one already is.
exec unshare --cgroup /bin/sh -c '
  mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup" && cd "$1" && mkdir -p run/old && pivot_root . run/old &&
    exec /usr/bin/env -i container=praetor PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      /bin/sh -c "umount -l /run/old && rmdir /run/old && exec /lib/systemd/systemd --system --log-target=console --show-status=0"' sh "$root"
