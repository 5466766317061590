#!/usr/bin/env bash
# A device of the kernel by fio on a fully local clone (`brant attach --via fuse`), against a loop device over nbdfuse and nbdkit file
# with the same bytes, interleaved.
#
#   bench/fuse.sh BRANT DIR IMAGE SECONDS ROUNDS     e.g. bench/fuse.sh target/release/brant /var/tmp/bench v4.raw 8 3
#
# The disk is the first GiB of the image's data, without holes. Rows touch REGION_MIB of it (128), with direct I/O on both loop
# devices. Before each run the same workload warms up for half as long. Prints each run, and at the end the medians: IOPS for 4k,
# MiB/s for 128k, the CPU seconds per GB of both processes that serve, and brant's ratio. Takes root; needs fio, nbdkit, libnbd-bin.
set -euo pipefail
[ $# = 5 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$(realpath "$0")")
brant=$(realpath "$1") image=$(realpath "$3") seconds=$4 rounds=$5; mkdir -p "$2"; cd "$2"
region_mib=${REGION_MIB:-128}
[ -e dense.raw ] || "$here/dense.py" "$image" dense.raw
declare -A device processes
node= nbdkit= fuse=
export BRANT_NODE=$PWD/node
finish() {
  "$brant" detach clone --force >/dev/null 2>&1 || true
  [ -z "${device[nbdfuse]:-}" ] || losetup -d "${device[nbdfuse]}" || true
  [ -z "$fuse" ] || { umount -l peer || true; wait "$fuse" || true; }
  [ -z "$nbdkit" ] || { kill "$nbdkit"; wait "$nbdkit" || true; }
  [ -z "$node" ] || { kill "$node"; wait "$node" || true; }
}
trap finish EXIT
rm -rf node nbdkit.raw nbdkit.sock peer runs
"$brant" node serve --dir node --bind 127.0.0.1:0 >node.out 2>node.log & node=$!
until grep -q 'brant node ready' node.out; do kill -0 "$node"; sleep 0.1; done
for command in "bucket create b" "import dense.raw b/disk" "clone b/disk clone"; do
  # shellcheck disable=SC2086
  "$brant" $command >/dev/null
done
device[brant]=$("$brant" attach clone --via fuse)
processes[brant]="$node $(cat node/fuse/clone/lock)"
cp --reflink=never dense.raw nbdkit.raw; touch peer
nbdkit -f -U "$PWD/nbdkit.sock" file nbdkit.raw 2>nbdkit.log & nbdkit=$!
until [ -S nbdkit.sock ]; do sleep 0.1; done
nbdfuse peer "nbd+unix:///?socket=$PWD/nbdkit.sock" 2>nbdfuse.log & fuse=$!
until grep -q " $PWD/peer " /proc/self/mounts; do kill -0 "$fuse"; sleep 0.1; done
device[nbdfuse]=$(losetup --find --show --direct-io=on peer)
processes[nbdfuse]="$nbdkit $fuse"
cpu() { # shellcheck disable=SC2086
  for process in ${processes[$1]}; do awk '{print $14 + $15}' "/proc/$process/stat"; done | awk '{sum += $1} END {print sum}'
}
workload() { # NAME ROW SECONDS OUTPUT
  # shellcheck disable=SC2086
  fio --name=row --ioengine=libaio --direct=1 --filename="${device[$1]}" $2 --time_based --runtime="$3" --group_reporting \
    --norandommap --randrepeat=0 --output-format=json --output="$4" >/dev/null
}
measure() { # NAME ROW
  workload "$1" "$2" $(((seconds + 1) / 2)) warm.json
  local before after; before=$(cpu "$1")
  workload "$1" "$2" "$seconds" fio.json
  after=$(cpu "$1")
  /usr/bin/python3 - "$1" "$2" $((after - before)) <<'PYTHON' | tee -a runs
import json, sys
name, row, ticks = sys.argv[1], sys.argv[2], int(sys.argv[3])
job = json.load(open("fio.json"))["jobs"][0]
side = max(job["read"], job["write"], key=lambda side: side["total_ios"])
figure = side["bw"] / 1024 if "128k" in row else side["iops"]
print("%-7s|%-50s|%10.0f|%8.2f" % (name, row, figure, ticks / 100 / (side["io_bytes"] / 1e9)))
PYTHON
}
for round in $(seq "$rounds"); do
  for row in "--rw=randread --bs=4k --iodepth=1" "--rw=randread --bs=4k --iodepth=32" "--rw=read --bs=128k --iodepth=8" \
             "--rw=randwrite --bs=4k --iodepth=1" "--rw=randwrite --bs=4k --iodepth=32" "--rw=write --bs=128k --iodepth=8" \
             "--rw=randwrite --bs=4k --iodepth=1 --fsync=1"; do
    case "${ROWS:-}" in '') ;; *) [[ $row =~ $ROWS ]] || continue ;; esac
    # Who is first finds the disk busy with what the other one left.
    for name in $( ((round % 2)) && echo brant nbdfuse || echo nbdfuse brant); do
      measure "$name" "$row --size=${region_mib}m"
    done
  done
done
/usr/bin/python3 - <<'PYTHON'
import collections, statistics
rows = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open("runs"):
    name, row, figure, cpu = (part.strip() for part in line.split("|"))
    rows[row][name].append((float(figure), float(cpu)))
print("| row | brant | nbdfuse | ÷ nbdfuse | CPU s/GB: brant, nbdfuse |\n|---|---|---|---|---|")
for row, names in rows.items():
    (ours, our_cpu), (theirs, their_cpu) = (
        [statistics.median(column) for column in zip(*names[name])] for name in ("brant", "nbdfuse"))
    shown = row.replace("--", "").replace("=", " ")
    print("| %s | %.0f | %.0f | %.2f | %.1f, %.1f |" % (shown, ours, theirs, ours / theirs, our_cpu, their_cpu))
PYTHON
