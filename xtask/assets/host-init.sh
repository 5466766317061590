#!/bin/sh
# Process 1 of the machine for a node: runs /test, which a second archive of its initial file system brings with the programs
# that it needs, and powers off. /test finds the kernel's modules in /modules, in the order in which they must go in.
# It speaks on the console in lines that begin with BRANT.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ip link set lo up
echo "BRANT boot finished"
/test
poweroff -f
