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

# In the guest's memory, or else on its first disk.
if [ -f /root.squashfs ]; then
    disk=/dev/loop0
    losetup -r $disk /root.squashfs || fail "cannot make a disk of the root file system"
else
    disk=/dev/vda
    tries=0
    while [ ! -b $disk ]; do
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || fail "there is no root file system"
        usleep 10000
    done
fi
size=
for word in $(cat /proc/cmdline); do
    case $word in brood.size=*) size=,size=${word#*=} ;; esac
done
mkdir -p /lower /upper /root
mount -t squashfs -o ro $disk /lower || fail "cannot mount the root file system"
mount -t tmpfs -o mode=0755$size upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root ||
    fail "cannot mount the overlay"
for name in dev proc sys; do
    mkdir -p /root/$name
    mount --move /$name /root/$name
done
exec switch_root /root /usr/lib/brood/busybox sh /usr/lib/brood/init
