#!/bin/sh
# Stage one of a node's boot: find the disk, unpack what this node is, hand over.
export PATH=/bin
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
for module in /modules/*.ko; do
    busybox insmod "$module"
done
while ! [ -b /dev/vdb ]; do busybox usleep 20000; done
busybox mount -t ext4 /dev/vda /root
busybox mount -t tmpfs run /root/run
busybox mkdir /root/run/node
busybox tar -xf /dev/vdb -C /root/run/node
busybox umount /proc
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /run/node/init
