#!/usr/bin/env bash
# Volumes under full random writes: snapshots every second, space over time, and recovery after a kill.
#
#   bench/volume.sh BRANT DIR SECONDS GIB MINUTES ROUNDS     e.g. bench/volume.sh target/release/brant /var/tmp/bench 20 8 10 3
#
# Prints, each on a node of its own:
#  1. for ROUNDS rounds, interleaved: 4k random writes at QD32 over 1 GiB for SECONDS, without snapshots, with one every second,
#     and without them again: IOPS, the longest a write took, and the longest a flush took that is made every 4096 writes;
#  2. 4k random writes at QD32 over GIB for MINUTES, of brant and of `nbdkit file` on a raw file, in turns of a minute: IOPS, and
#     what brant's directory takes on disk every ten seconds, at its most and at the end;
#  3. for ROUNDS rounds: how long a node takes from its start until it answers and a read has come back, after kill -9 with 1 GiB
#     of 4k random writes that nothing has sealed.
# Needs fio, nbdkit, nbdsh.
set -euo pipefail
[ $# = 6 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") seconds=$3 gib=$4 minutes=$5 rounds=$6; mkdir -p "$2"; cd "$2"
rm -rf node raw.img nbdkit.sock
node= nbdkit=
finish() { for process in $node $nbdkit; do kill "$process" 2>/dev/null && wait "$process" 2>/dev/null || true; done; }
trap finish EXIT
export BRANT_NODE=$PWD/node
serve() {
  "$brant" node serve --dir node --bind 127.0.0.1:0 >ready 2>>log & node=$!
  until grep -q 'brant node ready' ready; do kill -0 "$node"; sleep 0.02; done
}
uri() { echo "nbd+unix:///$1?socket=$PWD/node/nbd/$1.sock"; }
volume() { "$brant" volume create "$1" --size "$2GiB" >/dev/null; "$brant" attach "$1" >/dev/null 2>&1; }
write() { # URI SIZE SECONDS EXTRA…: IOPS, the longest write and the longest flush in ms
  local uri=$1 size=$2 time=$3; shift 3
  fio --name=row --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --iodepth=32 --size="$size" --time_based --runtime="$time" \
    --norandommap --randrepeat=0 --refill_buffers --output-format=json --output=fio.json "$@" >/dev/null
  python3 -c '
import json
job = json.load(open("fio.json"))["jobs"][0]
flush = job["sync"]["lat_ns"]
print("%d IOPS, longest write %.0f ms, longest flush %.0f ms" %
      (job["write"]["iops"], job["write"]["clat_ns"]["max"] / 1e6, flush["max"] / 1e6 if flush["N"] else 0))'
}
serve; "$brant" bucket create b >/dev/null
volume one 1
write "$(uri one)" 1g 5 >/dev/null
for round in $(seq "$rounds"); do
  echo "1. round $round, without snapshots: $(write "$(uri one)" 1g "$seconds" --fsync=4096)"
  (while sleep 1; do "$brant" snapshot create one b/one >/dev/null && echo >>taken; done) & snapshots=$!
  : >taken
  echo "1. round $round, with snapshots:    $(write "$(uri one)" 1g "$seconds" --fsync=4096), $(wc -l <taken) taken"
  { kill $snapshots && wait $snapshots; } 2>/dev/null || true
  echo "1. round $round, without snapshots: $(write "$(uri one)" 1g "$seconds" --fsync=4096)"
done
kill "$node"; wait "$node" || true; rm -rf node; serve

volume wide "$gib"; truncate -s "${gib}G" raw.img
nbdkit -f -U "$PWD/nbdkit.sock" file raw.img & nbdkit=$!
until [ -S nbdkit.sock ]; do sleep 0.1; done
memory() { awk '/VmHWM/ {print $2}' "/proc/$node/status"; }
# Files come and go meanwhile.
space() { { du -sB1M node 2>/dev/null || true; } | cut -f1; }
(while sleep 10; do space; done) >spaces & sampler=$!
for minute in $(seq "$minutes"); do
  echo "2. minute $minute brant:  $(write "$(uri wide)" "${gib}g" 60), node takes $(space) MiB"
  echo "2. minute $minute nbdkit: $(write "nbd+unix:///?socket=$PWD/nbdkit.sock" "${gib}g" 60)"
done
{ kill $sampler && wait $sampler; } 2>/dev/null || true
echo "2. space of the node in MiB, every ten seconds: $(paste -sd ' ' spaces)"
echo "2. at its most $(sort -n spaces | tail -1) MiB; a minute after the end: $(sleep 60; space) MiB"
echo "2. node memory at its most $(memory) KiB"
kill "$nbdkit" "$node"; wait "$nbdkit" "$node" 2>/dev/null || true; nbdkit=; rm -rf raw.img node; serve

volume crash 4
for round in $(seq "$rounds"); do
  fio --name=row --ioengine=nbd --uri="$(uri crash)" --rw=randwrite --bs=4k --iodepth=32 --size=4g --io_size=1g --norandommap \
    --randrepeat=0 --refill_buffers --output=/dev/null
  unsealed=$("$brant" volume show crash | sed -n 's/^unsealed *//p')
  kill -9 "$node"; wait "$node" 2>/dev/null || true
  begin=$(date +%s%N); serve
  /usr/bin/python3 -c "import nbd; h = nbd.NBD(); h.connect_uri('$(uri crash)'); h.pread(4096, 1 << 30)"
  echo "3. round $round: $(( ($(date +%s%N) - begin) / 1000000 )) ms to a first read, $unsealed"
done
echo "3. node memory at its most $(memory) KiB"
