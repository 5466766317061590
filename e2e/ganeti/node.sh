#!/usr/bin/env bash
# Process 1 of a Ganeti node in namespaces of its own (network, mounts, processes, host name, IPC): makes its places, and waits.
#
#   node.sh CLUSTER NUMBER NODES DIRECTORY KEYS
#
# It is node NUMBER of the NODES of a cluster; clusters have numbers, too. Everything that it writes is in DIRECTORY; KEYS has the
# ssh keys that all nodes share. It prints "node ready" once Ganeti can be set up; whoever started it then connects br0.
#
# Run again in the same directory, it is the same node after a loss of power: what was on its disk is there.
#
# Nothing of the host's Ganeti is seen or changed. Whoever kills this process ends everything in the node.
set -euo pipefail
cluster=$1 number=$2 nodes=$3 directory=$4 keys=$5 home=/root
domain=cluster$cluster.test network=10.77.$cluster
here=$(dirname "$(readlink -f "$0")")

mount --make-rprivate /
hostname "node$number.$domain"
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

{
  echo "127.0.0.1 localhost"
  echo "$network.10 $domain"
  for other in $(seq "$nodes"); do echo "$network.$((10 + other)) node$other.$domain node$other"; done
} >/etc/hosts.new
mv /etc/hosts.new /etc/hosts
echo "node$number.$domain" >/etc/hostname
rm -f /etc/resolv.conf
: >/etc/resolv.conf
: >/etc/default/ganeti
mkdir -p /srv/ganeti/os /var/lib/ganeti/export
[ -d /srv/ganeti/os/marked ] || cp -r "$here/os" /srv/ganeti/os/marked
chmod 755 /srv/ganeti/os/marked/{create,export,import,rename,verify}

ip link set lo up
ip link add br0 type bridge
ip link set br0 up
ip addr add "$network.$((10 + number))/16" dev br0

# The directory and its files must be root's own, and unreadable for others.
cp "$keys"/id_rsa{,.pub} "$home"/.ssh/
cp "$keys"/id_rsa.pub "$home"/.ssh/authorized_keys
rm -f /etc/ssh/ssh_host_*
cp "$keys"/host /etc/ssh/ssh_host_rsa_key
cp "$keys"/host.pub /etc/ssh/ssh_host_rsa_key.pub
/usr/sbin/sshd
/usr/lib/ganeti/ensure-dirs >/dev/null 2>&1 || true

echo "node ready"
# Whatever is orphaned in the node is reaped here.
while :; do
  sleep 1000 &
  wait $! || true
done
