#!/usr/bin/env bash
# A vhost-user-blk device by fio inside the small guest, on a fully local clone (`brant attach --via vhost-user`), against
# qemu-storage-daemon's with the same bytes in a raw file, interleaved.
#
#   bench/vhost.sh BRANT DIR IMAGE SECONDS ROUNDS    e.g. bench/vhost.sh target/release/brant /var/tmp/bench v4.raw 8 3
#
# The disk is the first GiB of the image's data, without holes. Each run boots the guest of `cargo xtask images` (GUEST, its directory:
# target/images) with two processors and as many queues, and touches REGION_MIB of the disk (128) with direct I/O, after half as long
# of the same to warm up. Without KVM the guest takes most of the time, which is the same for both. Prints each run, and at the end the
# medians: IOPS for 4k, MiB/s for 128k, the CPU seconds of the serving process for a whole run, and brant's ratio. Needs fio,
# qemu-system-x86, cpio and the guest. Debian's qemu-storage-daemon 7.2 says that it has no write cache and gets no flushes: its row with
# fsync is one without. ACCEL is QEMU's accelerator (tcg,thread=multi).
set -euo pipefail
[ $# = 5 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$(realpath "$0")")
guest=$(realpath "${GUEST:-$here/../target/images}")
brant=$(realpath "$1") image=$(realpath "$3") seconds=$4 rounds=$5; mkdir -p "$2"; cd "$2"
region_mib=${REGION_MIB:-128} accelerator=${ACCEL:-tcg,thread=multi}
[ -e dense.raw ] || "$here/dense.py" "$image" dense.raw
declare -A socket process
node= peer=
export BRANT_NODE=$PWD/node
finish() {
  [ -z "$peer" ] || { kill "$peer"; wait "$peer" || true; }
  [ -z "$node" ] || { kill "$node"; wait "$node" || true; }
}
trap finish EXIT
rm -rf node peer.raw peer.sock runs root bench.img bench-initrd.img
"$brant" node serve --dir node --bind 127.0.0.1:0 >node.out 2>node.log & node=$!
until grep -q 'brant node ready' node.out; do kill -0 "$node"; sleep 0.1; done
for command in "bucket create b" "import dense.raw b/disk" "clone b/disk clone"; do
  # shellcheck disable=SC2086
  "$brant" $command >/dev/null
done
socket[brant]=$("$brant" attach clone --via vhost-user 2>/dev/null) process[brant]=$node
cp --reflink=never dense.raw peer.raw
qemu-storage-daemon --blockdev driver=file,node-name=file,filename=peer.raw,discard=unmap,aio=threads \
  --blockdev driver=raw,node-name=disk,file=file \
  --export type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path="$PWD/peer.sock",writable=on,num-queues=2 \
  2>peer.log & peer=$!
until [ -S peer.sock ]; do kill -0 "$peer"; sleep 0.1; done
socket[qsd]=$PWD/peer.sock process[qsd]=$peer

# The guest, with fio and another process 1 over the one that it has.
mkdir -p root/fio/lib
cp "$(readlink -f "$(command -v fio)")" root/fio/fio
ldd root/fio/fio | grep -o '/[^ ]*' | while read -r library; do cp -L "$library" root/fio/lib/; done
cat >root/init <<INIT
#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
ip link set lo up
for module in /modules/*; do insmod "\$module"; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
fio() { # SECONDS ROW
  /fio/lib/ld-linux-x86-64.so.2 --library-path /fio/lib /fio/fio --name=row --ioengine=libaio --direct=1 --filename=/dev/vda \$2 \
    --time_based --runtime="\$1" --group_reporting --norandommap --randrepeat=0 --size=${region_mib}m --minimal --thread
}
while read -r row; do
  fio $(((seconds + 1) / 2)) "\$row" >/dev/null
  # Of version 3: bandwidth in KiB/s and IOPS of reads, then of writes.
  fio $seconds "\$row" | awk -F';' -v row="\$row" '{ print "ROW|" row "|" \$7 + \$48 "|" \$8 + \$49 }'
done </rows
echo "ROW|end"
poweroff -f
INIT
cat >root/rows <<'ROWS'
--rw=randread --bs=4k --iodepth=1
--rw=randread --bs=4k --iodepth=32
--rw=randread --bs=4k --iodepth=32 --numjobs=2
--rw=read --bs=128k --iodepth=8
--rw=randwrite --bs=4k --iodepth=1
--rw=randwrite --bs=4k --iodepth=32
--rw=write --bs=128k --iodepth=8
--rw=randwrite --bs=4k --iodepth=1 --fsync=1
ROWS
case "${ROWS:-}" in '') ;; *) grep -E -e "$ROWS" root/rows >rows.chosen; mv rows.chosen root/rows ;; esac
chmod 755 root/init
(cd root && find . | cpio --quiet --create --format=newc --owner=0:0) | gzip -1 >bench.img
cat "$guest/guest-initrd.img" bench.img >bench-initrd.img

ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
measure() { # NAME
  local before; before=$(ticks "${process[$1]}")
  qemu-system-x86_64 -nodefaults -no-user-config -display none -monitor none -no-reboot -smp 2 -accel "$accelerator" -cpu max \
    -m 512M -object memory-backend-memfd,id=ram,size=512M,share=on -machine memory-backend=ram -serial stdio \
    -kernel "$guest/guest-vmlinuz" -initrd bench-initrd.img -append "console=ttyS0 panic=-1 quiet no_timer_check" \
    -chardev socket,id=disk,path="${socket[$1]}" -device vhost-user-blk-pci,chardev=disk,num-queues=2 </dev/null >console 2>&1
  tr -d '\r' <console | grep -q '^ROW|end' || { tail -20 console >&2; exit 1; }
  tr -d '\r' <console | grep '^ROW|--' | sed "s/^ROW/$1/" | tee -a runs
  echo "$1|CPU seconds of a run|0|$(awk -v ticks=$(($(ticks "${process[$1]}") - before)) 'BEGIN { print ticks / 100 }')" | tee -a runs
}
for round in $(seq "$rounds"); do
  for name in $( ((round % 2)) && echo brant qsd || echo qsd brant); do measure "$name"; done
done
/usr/bin/python3 - <<'PYTHON'
import collections, statistics
rows = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open("runs"):
    name, row, bandwidth, figure = (part.strip() for part in line.split("|"))
    rows[row][name].append(float(bandwidth) / 1024 if "128k" in row else float(figure))
print("| row | brant | qemu-storage-daemon | ÷ |\n|---|---|---|---|")
for row, names in rows.items():
    ours, theirs = statistics.median(names["brant"]), statistics.median(names["qsd"])
    print("| %s | %.4g | %.4g | %.2f |" % (row.replace("--", "").replace("=", " "), ours, theirs, ours / theirs if theirs else 0))
PYTHON
