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
ip link set lo up
# The network of QEMU's user has these addresses. A new MAC address is told to it at once.
if [ -e /sys/class/net/eth0 ]; then
    echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    ip route add default via 10.0.2.2
    echo nameserver 10.0.2.3 >/etc/resolv.conf
fi
. /etc/init.d/port
