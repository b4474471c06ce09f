#!/bin/sh
# Start of a guest with a root file system: modules, the root file system, and above it what the guest
# writes, in its memory.
export PATH=/bin
/bin/busybox --install -s /bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/lib/modules/$module"
done </lib/modules/order

fail() {
    echo "brood: $1"
    # The kernel panics when its first process ends; the guest ends by that.
    exit 1
}

. /disks
# In the guest's memory, or else on a disk that all clones read.
if [ -f /root.squashfs ]; then
    root=/dev/loop0
    losetup -r $root /root.squashfs || fail "cannot make a disk of the root file system"
else
    root=$(find_disk root) || fail "there is no root file system"
fi
size= writes=tmpfs
for word in $(cat /proc/cmdline); do
    case $word in
    brood.size=*) size=,size=${word#*=} ;;
    brood.disk=mount) writes=disk ;;
    esac
done
mkdir -p /lower /upper /root
mount -t squashfs -o ro $root /lower || fail "cannot mount the root file system"
if [ $writes = disk ]; then
    disk=$(find_disk disk) || fail "there is no disk for what is written"
    mount -t ext4 -o noatime "$disk" /upper || fail "cannot mount the disk for what is written"
else
    mount -t tmpfs -o mode=0755$size upper /upper
fi
mkdir -p /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root ||
    fail "cannot mount the overlay"
# Where the agent finds it, to freeze it.
if [ $writes = disk ]; then
    mkdir -p /root/usr/lib/brood/disk
    mount --move /upper /root/usr/lib/brood/disk
fi
for name in dev proc sys; do
    mkdir -p /root/$name
    mount --move /$name /root/$name
done
exec switch_root /root /usr/lib/brood/busybox sh /usr/lib/brood/init
