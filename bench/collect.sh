#!/usr/bin/env bash
# Collection and full verification, against restic, interleaved: milliseconds and the most memory of each.
#
#   bench/collect.sh BRANT DIR SNAPSHOTS CHUNKS     e.g. bench/collect.sh target/release/brant /var/tmp/bench 1000 1000
#
# SNAPSHOTS snapshots of CHUNKS new chunks each: for brant a disk of so many chunks, each of which begins with 4 KiB that
# nothing else has, for restic a folder of so many files of those 4 KiB. Every second snapshot is dropped, and its room
# given back. Then both read everything again. Needs restic and GNU time. A thousand snapshots of a thousand chunks take
# about 20 GB in DIR, and the making most of the time.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") snapshots=$3 chunks=$4; mkdir -p "$2"; cd "$2"
export RESTIC_REPOSITORY=$PWD/restic RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=$PWD/restic-cache
rm -rf restic restic-cache node source disk.raw; restic init -q; mkdir source
"$brant" node serve --dir node --bind 127.0.0.1:0 --hot 0 --collect-every 0s --scrub-every 0s >ready 2>log & node=$!
trap 'kill $node 2>/dev/null || true' EXIT
until grep -q 'brant node ready' ready; do kill -0 $node; done
export BRANT_NODE=$PWD/node; "$brant" bucket create b >/dev/null

for snapshot in $(seq "$snapshots"); do
  rm -rf source/* disk.raw; truncate -s $((chunks * 65536)) disk.raw
  head -c $((chunks * 4096)) /dev/urandom >noise
  split -b 4096 -a 6 -d noise source/
  # The same bytes, each at the beginning of a chunk.
  python3 - "$chunks" <<'PYTHON'
import sys
with open("noise", "rb") as noise, open("disk.raw", "r+b") as disk:
    for chunk in range(int(sys.argv[1])):
        disk.seek(chunk * 65536)
        disk.write(noise.read(4096))
PYTHON
  restic backup -q --tag "$([ $((snapshot % 2)) = 0 ] && echo keep || echo drop)" source
  "$brant" import disk.raw b/disk >/dev/null 2>&1
done

peak() { awk '/VmHWM/ {print $2}' "/proc/$node/status"; }
measure() { # NAME COMMAND…: of restic the process's own peak, of brant the node's since its peak was set back
  local name=$1 begin; shift
  echo 5 >"/proc/$node/clear_refs" 2>/dev/null || true
  begin=$(date +%s%N)
  /usr/bin/time -f '%M' -o memory "$@" >/dev/null 2>&1
  echo "$name $(( ($(date +%s%N) - begin) / 1000000 )) ms, $(cat memory) KiB of the command, $(peak) KiB of the node"
}

restic forget -q --tag drop --unsafe-allow-remove-all 2>/dev/null ||
  restic forget -q $(restic snapshots --tag drop --json | python3 -c 'import json,sys; print(*[s["id"] for s in json.load(sys.stdin)])')
for snapshot in $(seq 1 2 "$snapshots"); do "$brant" snapshot retire "b/disk@$snapshot" >/dev/null; done
measure 'collect restic' restic prune
measure 'collect brant ' "$brant" store gc --grace 0s
echo "left over: restic $(du -sB1 restic | cut -f1) bytes, brant $(du -sB1 node/store | cut -f1) bytes"
for round in 1 2 3; do
  measure "verify $round restic" restic check --read-data
  measure "verify $round brant " "$brant" store scrub
done
kill $node; wait $node || true
