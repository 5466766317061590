#!/usr/bin/env bash
# NBD reads and writes by fio on a fully local clone, against qemu-nbd on a qcow2 with a raw backing file, interleaved.
#
#   bench/nbd.sh BRANT DIR IMAGE SECONDS ROUNDS     e.g. bench/nbd.sh target/release/brant /var/tmp/bench v4.raw 8 3
#
# The disk is the first GiB of the image's data, without holes: 16 times what brant caches in memory by default. Each run has half
# as long to warm up. Prints each run, and at the end the medians: IOPS for 4k, MiB/s for 128k. Needs fio, qemu-utils.
set -euo pipefail
[ $# = 5 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") image=$(realpath "$3") seconds=$4 rounds=$5; mkdir -p "$2"; cd "$2"
[ -e dense.raw ] || /usr/bin/python3 - "$image" <<'PYTHON'
import sys
zero, left = bytes(65536), 16384
with open(sys.argv[1], "rb") as image, open("dense.raw", "wb") as dense:
    while left and (chunk := image.read(65536)):
        if chunk != zero[:len(chunk)]:
            dense.write(chunk); left -= 1
PYTHON
rm -rf node overlay.qcow2 runs
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true' EXIT
"$brant" node serve --dir node --bind 127.0.0.1:0 >ready 2>log & node=$!
until grep -q 'brant node ready' ready; do kill -0 $node; sleep 0.1; done
export BRANT_NODE=$PWD/node
"$brant" bucket create b; "$brant" import dense.raw b/disk; "$brant" clone b/disk clone; "$brant" attach clone
qemu-img create -q -f qcow2 -b "$PWD/dense.raw" -F raw overlay.qcow2
qemu-nbd -t -e 8 -f qcow2 -k "$PWD/qemu.sock" overlay.qcow2 & qemu=$!
until [ -S qemu.sock ]; do sleep 0.1; done
cat dense.raw >/dev/null
cpu() { awk '{print $14 + $15}' "/proc/$1/stat"; }
run() { # NAME URI PROCESS ROW
  local before after; before=$(cpu "$3")
  # shellcheck disable=SC2086
  fio --name=row --ioengine=nbd --uri="$2" $4 --time_based --runtime="$seconds" --ramp_time=$((seconds / 2)) --size=1g \
    --norandommap --randrepeat=0 --output-format=json --output=fio.json >/dev/null
  after=$(cpu "$3")
  python3 -c '
import json, sys
job = json.load(open("fio.json"))["jobs"][0]
side = max(job["read"], job["write"], key=lambda side: side["total_ios"])
figure = side["bw"] / 1024 if "128k" in sys.argv[2] else side["iops"]
print("%-6s %-44s %9.0f, server CPU %d %%" % (sys.argv[1], sys.argv[2], figure, (int(sys.argv[4]) - int(sys.argv[3])) / float(sys.argv[5])))
' "$1" "$4" "$before" "$after" "$(awk "BEGIN {print $seconds * 1.5}")" | tee -a runs
}
for round in $(seq "$rounds"); do
  for row in "--rw=randread --bs=4k --iodepth=1" "--rw=randread --bs=4k --iodepth=32" "--rw=read --bs=128k --iodepth=8" \
             "--rw=randwrite --bs=4k --iodepth=1" "--rw=randwrite --bs=4k --iodepth=32" "--rw=write --bs=128k --iodepth=8" \
             "--rw=randread --bs=4k --iodepth=32 --description=after-writes"; do
    # Who is first finds the disk busy with what the other one left.
    for server in $( ((round % 2)) && echo brant qemu || echo qemu brant); do
      if [ $server = brant ]; then
        run brant "nbd+unix:///clone?socket=$PWD/node/nbd/clone.sock" $node "$row"
      else
        run qemu "nbd+unix:///?socket=$PWD/qemu.sock" $qemu "$row"
      fi
    done
  done
  echo "node memory $(awk '/VmRSS/ {print $2}' /proc/$node/status) KiB, at its most $(awk '/VmHWM/ {print $2}' /proc/$node/status) KiB"
  # Each round begins with a clone that nothing was written to.
  "$brant" detach clone; "$brant" volume remove clone >/dev/null; "$brant" clone b/disk clone >/dev/null; "$brant" attach clone >/dev/null
  kill $qemu; wait $qemu || true; rm -f overlay.qcow2 qemu.sock
  qemu-img create -q -f qcow2 -b "$PWD/dense.raw" -F raw overlay.qcow2
  qemu-nbd -t -e 8 -f qcow2 -k "$PWD/qemu.sock" overlay.qcow2 & qemu=$!
  until [ -S qemu.sock ]; do sleep 0.1; done
done
python3 - <<'PYTHON'
import collections, statistics
rows = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open("runs"):
    server, rest = line.split(None, 1)
    row, figure = rest.split(",")[0].rsplit(None, 1)
    rows[row.strip()][server].append(float(figure))
for row, servers in rows.items():
    brant, qemu = (statistics.median(servers[server]) for server in ("brant", "qemu"))
    print("%-46s brant %8.0f  qemu %8.0f  %5.2f" % (row, brant, qemu, brant / qemu))
PYTHON
