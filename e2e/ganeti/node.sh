#!/usr/bin/env bash
# Process 1 of a Ganeti node in namespaces of its own (network, mounts, processes, host name, IPC): makes its places, and waits.
#
#   node.sh NUMBER DIRECTORY     everything that it writes is in DIRECTORY; prints "node ready" once Ganeti can be set up
#
# Nothing of the host's Ganeti is seen or changed. Whoever kills this process ends everything in the node.
set -euo pipefail
number=$1 directory=$2 home=/root
here=$(dirname "$(readlink -f "$0")")

mount --make-rprivate /
hostname "node$number.brant.test"
mkdir -p "$directory"/{etc,etc-work,lib,log,root/.ssh,srv,providers}
chmod 700 "$directory/root" "$directory/root/.ssh"
# All of /etc, as Ganeti replaces /etc/hosts and ssh's keys by renaming.
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$directory/etc,workdir=$directory/etc-work" /etc
mount --bind "$directory/lib" /var/lib/ganeti
mount --bind "$directory/log" /var/log/ganeti
mount --bind "$directory/root" /root
mount --bind "$directory/srv" /srv
mount --bind "$directory/providers" /usr/share/ganeti/extstorage
mount -t tmpfs -o mode=755 tmpfs /run
# The network devices that Ganeti looks for are this node's own.
mount -t sysfs sysfs /sys
mkdir -p /run/lock /run/sshd
chmod 1777 /run/lock

cat >/etc/hosts.new <<HOSTS
127.0.0.1 localhost
10.77.0.10 cluster.brant.test cluster
10.77.0.11 node1.brant.test node1
10.77.0.12 node2.brant.test node2
HOSTS
mv /etc/hosts.new /etc/hosts
echo "node$number.brant.test" >/etc/hostname
rm -f /etc/resolv.conf
: >/etc/resolv.conf
: >/etc/default/ganeti
mkdir -p /srv/ganeti/os /var/lib/ganeti/export
cp -r "$here/os" /srv/ganeti/os/marked
chmod 755 /srv/ganeti/os/marked/{create,export,import,rename,verify}

ip link set lo up
ip link add br0 type bridge
ip link set br0 up
ip addr add "10.77.0.1$number/24" dev br0

ssh-keygen -q -t rsa -b 2048 -N '' -f "$home"/.ssh/id_rsa
cp "$home"/.ssh/id_rsa.pub "$home"/.ssh/authorized_keys
rm -f /etc/ssh/ssh_host_*
ssh-keygen -A >/dev/null
/usr/sbin/sshd
/usr/lib/ganeti/ensure-dirs >/dev/null 2>&1 || true

echo "node ready"
# Whatever is orphaned in the node is reaped here.
while :; do
  sleep 1000 &
  wait $! || true
done
