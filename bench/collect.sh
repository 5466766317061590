#!/usr/bin/env bash
# Collection and full verification, against restic, interleaved: milliseconds and the most memory of each.
#
#   bench/collect.sh BRANT DIR SNAPSHOTS CHUNKS     e.g. bench/collect.sh target/release/brant /var/tmp/bench 1000 1000
#
# SNAPSHOTS snapshots of CHUNKS new chunks each: for brant a disk of so many chunks, each of which begins with 4 KiB that
# nothing else has, for restic a folder of so many files of those 4 KiB. Every second snapshot is dropped, and its room
# given back. Then both read everything again. Needs restic and GNU time. A thousand snapshots of a thousand chunks take
# about 9 GB in DIR, and as much again for the copies that are measured; what was made is kept in DIR/made, and used again.
# Nearly all of the time goes into restic's snapshots, a second or two each: every one derives the key and reads the whole
# index first. They are made one after another: of two at once, one may wait for minutes for a lock that is gone.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") snapshots=$3 chunks=$4; mkdir -p "$2"; cd "$2"
export RESTIC_PASSWORD=bench BRANT_NODE=$PWD/node
node=; trap '[ -z "$node" ] || kill $node 2>/dev/null || true' EXIT

use() { export RESTIC_REPOSITORY=$1/restic RESTIC_CACHE_DIR=$1/restic-cache; }
start() {
  : >ready
  "$brant" node serve --dir node --bind 127.0.0.1:0 --hot 0 --collect-every 0s --scrub-every 0s >ready 2>log & node=$!
  until grep -q 'brant node ready' ready; do kill -0 $node; done
}
stop() { kill $node; wait $node || true; node=; }

make() { # every second snapshot to be dropped, the others to be kept
  local scratch; scratch=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo "$PWD")")
  for snapshot in $(seq "$snapshots"); do
    local what; what=$([ $((snapshot % 2)) = 0 ] && echo keep || echo drop)
    # The same bytes, each at the beginning of a chunk, and each in a file.
    python3 - "$scratch" "$chunks" <<'PYTHON'
import os, sys
scratch, chunks = sys.argv[1], int(sys.argv[2])
os.makedirs(f"{scratch}/source", exist_ok=True)
with open(f"{scratch}/disk.raw", "wb") as disk:
    disk.truncate(chunks * 65536)
    for chunk in range(chunks):
        noise = os.urandom(4096)
        os.pwrite(disk.fileno(), noise, chunk * 65536)
        with open(f"{scratch}/source/{chunk}", "wb", buffering=0) as file:
            file.write(noise)
PYTHON
    restic backup -q --tag "$what" "$scratch/source"
    "$brant" import "$scratch/disk.raw" "b/$what" >/dev/null 2>&1
  done
  rm -rf "$scratch"
}

if [ "$(cat made/done 2>/dev/null)" != "$snapshots of $chunks" ]; then
  rm -rf made node; mkdir made; use "$PWD/made"; restic init -q
  start; "$brant" bucket create b >/dev/null 2>&1
  make
  stop; mv node made/node; echo "$snapshots of $chunks" >made/done
fi
rm -rf restic restic-cache node; cp -a made/restic made/restic-cache made/node .; sync
use "$PWD"; start

peak() { awk '/VmHWM/ {print $2}' "/proc/$node/status"; }
busy() { awk '{print ($14 + $15) * 10}' "/proc/$node/stat"; }
measure() { # NAME COMMAND…: of restic the process's own peak, of brant the node's since its peak was set back
  local name=$1 begin before; shift
  echo 5 >"/proc/$node/clear_refs" 2>/dev/null || true
  before=$(busy) begin=$(date +%s%N)
  /usr/bin/time -f '%M KiB, processors %U + %S s' -o usage "$@" >/dev/null 2>&1
  echo "$name $(( ($(date +%s%N) - begin) / 1000000 )) ms; the command $(cat usage); the node $(peak) KiB, processors $(($(busy) - before)) ms"
}

restic forget -q $(restic snapshots --tag drop --json | python3 -c 'import json,sys; print(*[s["id"] for s in json.load(sys.stdin)])')
begin=$(date +%s%N)
for version in $(seq $(((snapshots + 1) / 2))); do "$brant" snapshot retire "b/drop@$version" >/dev/null; done
echo "retire brant $(( ($(date +%s%N) - begin) / 1000000 )) ms for all"
sync
measure 'collect restic' restic prune
measure 'collect brant ' "$brant" store gc --grace 0s
echo "left over: restic $(du -sB1 restic | cut -f1) bytes, brant $(du -sB1 node/store | cut -f1) bytes"
for round in 1 2 3; do
  measure "verify $round restic" restic check --read-data
  measure "verify $round brant " "$brant" store scrub
done
stop
