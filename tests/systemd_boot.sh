#!/usr/bin/env bash
# Boots systemd as process 1 of namespaces of its own, on a throw-away copy of this machine, for tests/integration/test_systemd.py:
#   systemd_boot.sh CGROUP WORK PYTHON SITE CHECKOUT
# CGROUP  an empty group of the unified hierarchy, which becomes its root
# WORK    holds units/ (all the units there are) and etc/ (becomes /etc/ionos-poller)
# PYTHON  the prefix of an interpreter, SITE its packages, CHECKOUT this repository: together /usr/local/bin/ionos-poller
# Nothing it does outlives it: all mounts are in a mount namespace, all files it changes in a tmpfs. It shares the network, so
# that a simulator outside is reached. Prints "booting" when all is prepared. Needs root.
set -euo pipefail
umask 022  # it is a machine: what is not secret, its users can read

if [[ "${1}" != --inside ]]; then
    echo $$ >"$1/cgroup.procs"
    exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup "${BASH_SOURCE[0]}" --inside "${@:2}"
fi
shift
work=$1 python=$2 site=$3 checkout=$4

umask 022  # the tests' own is stricter, and the service's user has to get through
mount --make-rprivate /
base=$work/machine
mkdir -p "$base"
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base"/{upper,scratch,root}
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/scratch" overlay "$base/root"
root=$base/root

mkdir -p "$root"/etc/ionos-poller "$root"/opt/{python,site,checkout} "$root/srv/units" "$root/usr/local/bin"
mount --bind "$work/etc" "$root/etc/ionos-poller"
mount --bind "$work/units" "$root/srv/units"
mount --rbind "$python" "$root/opt/python"
mount --bind "$site" "$root/opt/site"
mount --bind "$checkout" "$root/opt/checkout"
rm -f "$root/usr/local/bin/ionos-poller"
cat >"$root/usr/local/bin/ionos-poller" <<'COMMAND'
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/checkout:/opt/site PYTHONDONTWRITEBYTECODE=1
exec /opt/python/bin/python3 -m poller "$@"
COMMAND
chmod 755 "$root/usr/local/bin/ionos-poller"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root"/dev/{shm,pts}
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"

cd "$root"
pivot_root . mnt
umount --lazy /mnt
mount --make-rshared /  # as systemd finds it on a real machine: credentials and sandboxes are made of propagated mounts
echo booting
exec env --ignore-environment container=test PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin SYSTEMD_UNIT_PATH=/srv/units \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
