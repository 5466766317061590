#!/usr/bin/env bash
# Snapshot and clone of volumes of 1 GiB and 16 TiB, interleaved: milliseconds of the whole command, beside `brant status`.
#
#   bench/clone.sh BRANT DIR ROUNDS
set -euo pipefail
[ $# = 3 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") rounds=$3; mkdir -p "$2"; cd "$2"; rm -rf node
"$brant" node serve --dir node --bind 127.0.0.1:0 >ready 2>log & node=$!
trap 'kill $node 2>/dev/null || true' EXIT
until grep -q 'brant node ready' ready; do kill -0 $node; done
export BRANT_NODE=$PWD/node
timed() { local what=$1 begin; shift; begin=$(date +%s%N); "$@" >/dev/null 2>&1; echo "$what $(( ($(date +%s%N) - begin) / 1000 )) us"; }
echo "memory at rest $(awk '/VmRSS/ {print $2}' /proc/$node/status) KiB"
"$brant" bucket create b >/dev/null 2>&1
"$brant" volume create small --size 1GiB >/dev/null 2>&1; "$brant" volume create large --size 16TiB >/dev/null 2>&1
for round in $(seq "$rounds"); do
  timed "status" "$brant" status
  for size in small large; do
    timed "snapshot $size" "$brant" snapshot create "$size" "b/$size"
    timed "clone $size" "$brant" clone "b/$size" "$size-$round"
  done
done
