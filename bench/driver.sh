#!/usr/bin/env bash
# A device of one of the kernel's drivers by fio on a fully local clone (`brant attach --via nbd-kernel|ublk`), against a file of the
# same bytes on the same driver, interleaved: nbdkit file connected by nbd-client, or the loop target of rublk.
#
#   bench/driver.sh BRANT DRIVER DIR IMAGE SECONDS ROUNDS     e.g. bench/driver.sh target/release/brant nbd-kernel /var/tmp/bench v4.raw 8 3
#
# On a machine with the driver (modprobe nbd or ublk_drv) it runs as it is. On one without, `GUEST=target/images bench/driver.sh …` runs it
# in the machine for a node that `cargo xtask images` makes, with SIZE_MIB (256) of the image, everything in its memory, and without
# KVM by translation: such figures compare the two, and say nothing of the speed of either.
#
# The disk is the first SIZE_MIB (1024) of the image's data, without holes. Rows touch REGION_MIB of it (128), with direct I/O and one
# connection. The region is read once first; before each run the same workload warms up for half as long. Prints each run, and at
# the end the medians: IOPS for 4k, MiB/s for 128k, the CPU seconds per GB of the process that serves, and brant's ratio. Takes root;
# needs fio, and nbdkit and nbd-client, or rublk (cargo install rublk --no-default-features).
set -euo pipefail
usage() { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# = 6 ] || usage
here=$(dirname "$(realpath "$0")")
brant=$(realpath "$1") driver=$2 image=$(realpath "$4") seconds=$5 rounds=$6; mkdir -p "$3"; directory=$(realpath "$3")
PATH=$PATH:/usr/sbin
case $driver in nbd-kernel) peer=nbdkit programs="nbdkit nbd-client";; ublk) peer=rublk programs=rublk;; *) usage;; esac
for program in fio $programs; do type -P "$program" >/dev/null || { echo "$program is not installed" >&2; exit 2; }; done

in_guest() { # the same script, in the machine for a node: its programs and libraries in a second archive
  local images=$1 root=$directory/root program file plugins=''
  rm -rf "$root"; mkdir -p "$root/usr/sbin" "$root/bench"
  "$here/dense.py" "$image" "$directory/whole.raw"
  head -c "$((${SIZE_MIB:-256} << 20))" "$directory/whole.raw" >"$root/bench/dense.raw"
  for program in bash fio $programs; do
    file=$(readlink -f "$(type -P "$program")")
    cp -L "$file" "$root/usr/sbin/$program"
  done
  cp "$brant" "$root/usr/sbin/brant"; cp "$0" "$root/bench"
  if [ $peer = nbdkit ]; then
    plugins=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
    mkdir -p "$root$plugins"; cp "$plugins/nbdkit-file-plugin.so" "$root$plugins"
  fi
  for file in "$root"/usr/sbin/* ${plugins:+"$root$plugins"/*.so}; do { ldd "$file" 2>/dev/null || true; } | grep -o '/[^ ]*'; done | sort -u |
    while read -r file; do mkdir -p "$root$(dirname "$file")"; cp -nL "$file" "$root$file"; done
  cat >"$root/test" <<TEST
#!/bin/sh
mkdir -p /tmp/bench; for module in /modules/*; do insmod \$module; done
export GUEST_MEMORY=1 REGION_MIB=${REGION_MIB:-64} ROWS='${ROWS:-}' DENSE=/bench/dense.raw
bash /bench/$(basename "$0") /usr/sbin/brant $driver /tmp/bench /bench/dense.raw $seconds $rounds 2>&1
TEST
  chmod 755 "$root/test"
  cp "$images/host-initrd.img" "$directory/initrd"
  truncate --size=%4 "$directory/initrd"
  (cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) >>"$directory/initrd"
  local accelerator=(-accel "tcg,thread=multi" -cpu max); [ -z "${KVM:-}" ] || accelerator=(-accel kvm -cpu host)
  qemu-system-x86_64 "${accelerator[@]}" -nodefaults -no-user-config -display none -monitor none -no-reboot -smp 2 -m 6144M \
    -serial stdio -kernel "$images/host-vmlinuz" -initrd "$directory/initrd" -append "console=ttyS0 panic=-1 quiet" </dev/null
  rm -rf "$root" "$directory/initrd" "$directory/whole.raw"
}
if [ -n "${GUEST:-}" ]; then in_guest "$(realpath "$GUEST")"; exit; fi

cd "$directory"
region_mib=${REGION_MIB:-128}
dense=${DENSE:-dense.raw}
[ -e "$dense" ] || "$here/dense.py" "$image" dense.raw
declare -A device processes
node='' server=''
export BRANT_NODE=$PWD/node
finish() {
  "$brant" detach clone --force >/dev/null 2>&1 || true
  case $peer in
    nbdkit) [ -z "${device[nbdkit]:-}" ] || nbd-client -d "${device[nbdkit]}" >/dev/null || true;;
    rublk) [ -z "$server" ] || rublk del -n 15 >/dev/null || true;;
  esac
  [ -z "$server" ] || { kill "$server"; wait "$server"; } 2>/dev/null || true
  [ -z "$node" ] || { kill "$node"; wait "$node" || true; }
}
trap finish EXIT
rm -rf node peer.raw nbdkit.sock runs
"$brant" node serve --dir node --bind 127.0.0.1:0 >node.out 2>node.log & node=$!
until grep -q 'brant node ready' node.out; do kill -0 "$node"; sleep 0.1; done
for command in "bucket create b" "import $dense b/disk" "clone b/disk clone"; do
  # shellcheck disable=SC2086
  "$brant" $command >commands.log 2>&1 || { cat commands.log; exit 1; }
done
device[brant]=$("$brant" attach clone --via "$driver")
processes[brant]=$node
cp "$dense" peer.raw
case $peer in
  nbdkit)
    nbdkit -f -U "$PWD/nbdkit.sock" file peer.raw 2>peer.log & server=$!
    until [ -S nbdkit.sock ]; do kill -0 "$server"; sleep 0.1; done
    device[nbdkit]=/dev/nbd15
    nbd-client -unix "$PWD/nbdkit.sock" "${device[nbdkit]}" -b 512 >/dev/null;;
  rublk)
    # The file is in memory where it is in a machine of ours, where direct I/O means nothing.
    rublk add loop --foreground --number 15 --file "$PWD/peer.raw" ${GUEST_MEMORY:+--buffered-io} >peer.log 2>&1 & server=$!
    device[rublk]=/dev/ublkb15
    until [ -b "${device[rublk]}" ]; do kill -0 "$server"; sleep 0.1; done;;
esac
processes[$peer]=$server
cpu() { awk '{print $14 + $15}' "/proc/${processes[$1]}/stat"; }
workload() { # NAME ROW SECONDS OUTPUT
  # shellcheck disable=SC2086
  fio --name=row --ioengine=libaio --direct=1 --filename="${device[$1]}" $2 --time_based --runtime="$3" --group_reporting \
    --norandommap --randrepeat=0 --output-format=terse --terse-version=3 --output="$4" >/dev/null
}
measure() { # NAME ROW
  workload "$1" "$2" $(((seconds + 1) / 2)) warm
  local before after; before=$(cpu "$1")
  workload "$1" "$2" "$seconds" row
  after=$(cpu "$1")
  # fio's terse version 3: KiB, KiB/s and IOPS of reads from field 6 on, of writes from field 47 on.
  awk -F';' -v name="$1" -v row="$2" -v ticks=$((after - before)) '{
    at = $6 + 0 > $47 + 0 ? 6 : 47
    figure = row ~ /128k/ ? $(at + 1) / 1024 : $(at + 2)
    printf "%-7s|%-50s|%10.0f|%8.2f\n", name, row, figure, ticks / 100 / ($at * 1024 / 1e9) }' row | tee -a runs
}
# The first read of a chunk decompresses and checks it, which is not what is compared.
for name in brant $peer; do dd if="${device[$name]}" of=/dev/null bs=1M count="$region_mib" iflag=direct status=none; done
for round in $(seq "$rounds"); do
  for row in "--rw=randread --bs=4k --iodepth=1" "--rw=randread --bs=4k --iodepth=32" "--rw=read --bs=128k --iodepth=8" \
             "--rw=randwrite --bs=4k --iodepth=1" "--rw=randwrite --bs=4k --iodepth=32" "--rw=write --bs=128k --iodepth=8" \
             "--rw=randwrite --bs=4k --iodepth=1 --fsync=1"; do
    case "${ROWS:-}" in '') ;; *) [[ $row =~ $ROWS ]] || continue ;; esac
    # Who is first finds the disk busy with what the other one left.
    for name in $( ((round % 2)) && echo brant $peer || echo $peer brant); do
      measure "$name" "$row --size=${region_mib}m"
    done
  done
done
echo "| row | brant | $peer | ÷ $peer | CPU s/GB: brant, $peer |"
echo "|---|---|---|---|---|"
median() { # NAME ROW FIELD
  awk -F'|' -v name="$1" -v row="$2" -v field="$3" '{ gsub(/ +$/, "", $1); gsub(/ +$/, "", $2) } $1 == name && $2 == row { print $field + 0 }' runs |
    sort -n | awk '{ all[NR] = $1 } END { print (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2 }'
}
awk -F'|' '{ gsub(/ +$/, "", $2) } !seen[$2]++ { print $2 }' runs | while read -r row; do
  ours=$(median brant "$row" 3) theirs=$(median $peer "$row" 3)
  awk -v row="$row" -v ours="$ours" -v theirs="$theirs" -v our_cpu="$(median brant "$row" 4)" -v their_cpu="$(median $peer "$row" 4)" 'BEGIN {
    gsub(/--/, "", row); gsub(/=/, " ", row)
    printf "| %s | %.0f | %.0f | %.2f | %.1f, %.1f |\n", row, ours, theirs, ours / theirs, our_cpu, their_cpu }'
done
