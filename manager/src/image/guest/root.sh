#!/usr/lib/brood/busybox sh
# First process of a guest with a root file system. It starts the agent, and again when that has
# ended, and buries whoever has no parent any more: its wait takes every child.
export PATH=/usr/lib/brood/bin

mkdir -p /dev/pts /dev/shm /dev/virtio-ports /run /tmp
mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=0755 run /run
chmod 1777 /tmp
hostname localhost
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
ip link set lo up
. /usr/lib/brood/network
. /usr/lib/brood/port

while :; do
    /usr/lib/brood/brood-agent --port /dev/virtio-ports/brood.agent &
    wait $!
    echo "brood: the agent has ended; it is started again"
    usleep 100000
done
