#!/bin/sh
# Start of the minimal guest: file systems, modules, and the agent's port under its name.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
/bin/busybox --install -s

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/virtio-ports
mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
hostname -F /etc/hostname
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id

while read -r module; do
    insmod "/lib/modules/$module"
done </lib/modules/order
case " $(cat /proc/cmdline) " in
*" brood.disk=mount "*)
    . /etc/init.d/disks
    mkdir -p /data
    mount -t ext4 -o noatime "$(find_disk disk)" /data
    ;;
esac
ip link set lo up
. /etc/init.d/network
. /etc/init.d/port
