#!/usr/bin/env bash
# A real Ganeti cluster of two nodes in namespaces, with brant and a provider of shared files (a loop device over a file that both
# nodes see): milliseconds of each call of the provider, of adding an instance from an origin of 4 GiB, and of a live migration.
# Needs root, Ganeti, QEMU and the small guest (cargo xtask images guest).
#
#   bench/ganeti.sh BRANT IMAGES DIR ROUNDS
set -euo pipefail
[ $# = 4 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") images=$(realpath "$2") rounds=$4
here=$(dirname "$(readlink -f "$0")")
mkdir -p "$3"; cd "$3"; dir=$PWD; rm -rf n1 n2 keys shared ./*.log
scripts=/usr/share/ganeti/extstorage name=node started=() init=()
# Loop devices are the machine's: they do not go with the nodes.
cleanup() {
  for node in "${!init[@]}"; do
    in_node $node sh -c 'kill -9 $(cat /run/ganeti/kvm-hypervisor/pid/*); sleep 1; for loop in /run/shared/*.loop; do losetup -d "$(cat "$loop")"; done'
    b $node attach --json | grep -o '"target": *"[^"]*"' | cut -d'"' -f4 | while read -r target; do b $node detach --force "$target"; done
  done >/dev/null 2>&1 || true
  kill -9 "${started[@]}" 2>/dev/null || true
}
trap cleanup EXIT
in_node() { local node=$1; shift; nsenter --target "${init[node]}" --net --mount --pid --uts --ipc -- \
  env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }
gnt() { in_node 1 "$@" >>"$dir/ganeti.log" 2>&1; }
b() { local node=$1; shift; in_node "$node" "$brant" --node "/srv/brant$node" "$@"; }
now() { date +%s%N; }
ms() { echo "$(( ($(now) - $1) / 1000000 ))"; }

# The nodes.
mkdir -p keys shared
for key in id_rsa host; do [ -f keys/$key ] || ssh-keygen -q -t rsa -b 2048 -N '' -C bench -f keys/$key; done
unshare --net sh -c 'ip link set lo up; ip link add sw0 type bridge; ip link set sw0 up; echo ready; exec sleep infinity' >switch & switch=$!; started+=($switch)
until grep -q ready switch; do kill -0 $switch; done
for node in 1 2; do
  mkdir -p n$node; : >n$node.out
  unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc "$here/../e2e/ganeti/node.sh" 9 $node 2 "$dir/n$node" "$dir/keys" >n$node.out 2>&1 &
  unshare=$!; started+=($unshare)
  until grep -q 'node ready' n$node.out; do kill -0 $unshare; sleep 0.1; done
  init[node]=$(tr -d ' ' </proc/$unshare/task/$unshare/children)
  nsenter --target "${init[node]}" --net -- ip link add eth0 type veth peer name p$node netns $switch
  nsenter --target $switch --net -- ip link set p$node master sw0 up
  nsenter --target "${init[node]}" --net -- ip link set eth0 master br0 up
  in_node $node "$brant" node serve --dir /srv/brant$node --bind 10.77.9.1$node:4701 >n$node/ready 2>n$node/brant.log & started+=($!)
  until grep -q 'brant node ready' n$node/ready; do sleep 0.1; done
  b $node ganeti install >/dev/null 2>&1
done
for pair in "1 2" "2 1"; do
  read -r node other <<<"$pair"
  endpoint=$(b "$other" cluster show --json | grep -o '"endpoint": *"[^"]*"' | head -1 | cut -d'"' -f4)
  b "$node" cluster add node"$other" "$endpoint" 10.77.9.1"$other":4701 >/dev/null 2>&1
done

# The peer: what the simplest provider does that both nodes can use.
peer=$(mktemp); cat >"$peer" <<PEER
#!/bin/bash
f=$dir/shared/\$VOL_NAME.raw l=/run/shared/\$VOL_NAME.loop
mkdir -p /run/shared
case \$(basename "\$0") in
create) truncate -s "\${VOL_SIZE}M" "\$f"; [ -z "\$EXTP_FROM" ] || cp --sparse=always "\$EXTP_FROM" "\$f"; truncate -s "\${VOL_SIZE}M" "\$f";;
attach) exec 9>"\$l.lock"; flock 9; [ -e "\$l" ] || losetup -f --show --direct-io=on "\$f" >"\$l" || exit 1; cat "\$l";;
detach) [ ! -e "\$l" ] || { losetup -d "\$(cat "\$l")"; rm -f "\$l"; };;
remove) rm -f "\$f";;
grow) truncate -s "\${VOL_NEW_SIZE}M" "\$f"; [ ! -e "\$l" ] || losetup -c "\$(cat "\$l")";;
snapshot) cp --sparse=always "\$f" "$dir/shared/\$VOL_SNAPSHOT_NAME.raw";;
esac
PEER
for node in 1 2; do
  mkdir -p n$node/providers/shared
  for script in create attach detach remove grow setinfo verify snapshot open close; do install -m 755 "$peer" n$node/providers/shared/$script; done
  echo 'from The file that a disk begins as' >n$node/providers/shared/parameters.list
done
rm -f "$peer"

# Each call, one after the other, as noded makes them.
call() { # PROVIDER SCRIPT VOLUME [NAME=VALUE…]
  local provider=$1 script=$2 volume=$3 begin; shift 3
  begin=$(now)
  in_node 1 VOL_NAME="$volume" EXTP_PROVIDER="$provider" EXTP_ACCESS=kernelspace "$@" sh -c "cd $scripts/$provider && exec ./$script" >>calls.log 2>&1
  echo "call $provider ${label:-$script} $(ms "$begin") ms"
}
begin=$(now); in_node 1 true; echo "entering a node takes $(ms "$begin") ms of each"
for round in $(seq "$rounds"); do
  for provider in brant shared; do
    volume=calls$round.ext.disk0
    call $provider create $volume VOL_SIZE=1024
    if [ $provider = brant ]; then
      label="attach, userspace" call brant attach $volume EXTP_EXPORT=userspace
      label="detach, userspace" call brant detach $volume
    fi
    call $provider attach $volume
    label="attach, again" call $provider attach $volume
    label="open, alone" call $provider open $volume VOL_OPEN_EXCLUSIVE=True
    call $provider setinfo $volume VOL_METADATA=originstname+calls
    call $provider grow $volume VOL_SIZE=1024 VOL_NEW_SIZE=1088
    call $provider snapshot $volume VOL_SNAPSHOT_NAME=$volume.snap VOL_SNAPSHOT_SIZE=1088
    call $provider close $volume
    call $provider detach $volume
    label="remove, of a snapshot" call $provider remove $volume.snap
    call $provider remove $volume
  done
done

# An instance that begins as a disk of 4 GiB, of which one is noise.
truncate -s 4G origin.raw
dd if=/dev/urandom of=origin.raw bs=1M count=1024 conv=notrunc status=none
b 1 bucket create templates >/dev/null 2>&1
b 1 import "$dir/origin.raw" templates/four >/dev/null 2>&1
for round in $(seq "$rounds"); do
  for provider in brant shared; do
    volume=add$round.ext.disk0 begin=$(now)
    origin=EXTP_ORIGIN=templates/four; [ $provider = brant ] || origin=EXTP_FROM=$dir/origin.raw
    call $provider create $volume VOL_SIZE=4096 $origin >/dev/null
    for script in attach open setinfo attach open; do call $provider $script $volume VOL_OPEN_EXCLUSIVE=True VOL_METADATA=originstname+add >/dev/null; done
    echo "add from 4 GiB $provider $(ms "$begin") ms of the provider's"
    call $provider detach $volume >/dev/null; call $provider remove $volume >/dev/null
  done
done

# Live migration, of a guest that writes. Its memory is no multiple of 256 KiB, as QEMU before 9.0 loses pages of an emulated processor's then
# (e2e/src/cluster.rs).
gnt gnt-cluster init --enabled-hypervisors=kvm --enabled-disk-templates=ext,diskless --ipolicy-disk-templates=ext,diskless --no-etc-hosts \
  --no-ssh-init --master-netdev=br0 --nic-parameters=mode=bridged,link=br0 \
  --hypervisor-parameters="kvm:kvm_path=/usr/bin/qemu-system-x86_64,kvm_flag=disabled,kernel_path=$images/guest-vmlinuz,initrd_path=$images/guest-initrd.img,root_path=/dev/ram0,serial_console=true,vnc_bind_address=,kvm_extra=--m 131080k" \
  --backend-parameters=minmem=128,maxmem=128,vcpus=1 \
  --ipolicy-bounds-specs="min:memory-size=64,cpu-count=1,disk-count=0,disk-size=1,nic-count=0,spindle-use=1/max:memory-size=4096,cpu-count=4,disk-count=8,disk-size=1048576,nic-count=8,spindle-use=12" \
  cluster9.test
gnt gnt-node add --no-ssh-key-check ${name}2.cluster9.test
for what in "brant export=kernel" "shared mode=rw" "userspace export=userspace,access=userspace"; do
  read -r instance parameters <<<"$what"
  provider=$instance; [ "$instance" != userspace ] || provider=brant
  gnt gnt-instance add -t ext -o marked+default --no-install --no-name-check --no-ip-check --no-start --net 0:ip=none -n ${name}1.cluster9.test \
    --disk 0:size=256M,provider=$provider,$parameters "$instance"
  gnt gnt-instance start -H "kernel_args=console=ttyS0 panic=-1 quiet brant.format brant.records=1000000" "$instance"
  # Not while it boots: QEMU's emulated processor has been seen to hang where it was moved then.
  in_node 1 timeout 120 sh -c "socat -u UNIX-CONNECT:/run/ganeti/kvm-hypervisor/ctrl/$instance.serial - | grep -m1 'record 20'" >/dev/null 2>&1
done
for round in $(seq "$rounds"); do
  for target in 2 1; do
    for instance in brant shared userspace; do
      begin=$(now)
      gnt gnt-instance migrate -f -n $name$target.cluster9.test "$instance"
      echo "migration $instance $(ms "$begin") ms"
      [ "$instance" != shared ] || continue
      while b $target task list --json | tr -d ' \n' | grep -q '"kind":"take"[^}]*"state":"running"'; do sleep 0.1; done
      echo "disk of $instance here $(ms "$begin") ms after it began"
    done
  done
done
