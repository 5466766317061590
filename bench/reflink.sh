#!/usr/bin/env bash
# Import and materialize of one raw file on XFS, sharing room and not, against cp; interleaved: milliseconds, and what the file
# system has less afterwards, durable each time.
#
#   bench/reflink.sh BRANT DIR ROUNDS IMAGE     e.g. bench/reflink.sh target/release/brant /var/tmp/bench 3 data.raw
#
# Mounts an image file of 16 GiB, sparse, in DIR, and unmounts it in the end. Needs root, loop devices and mkfs.xfs.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") rounds=$3 image=$(realpath "$4"); mkdir -p "$2/mnt"; cd "$2"
truncate -s 16G xfs; mkfs.xfs -q -f xfs; mount -o loop xfs mnt
node=''
finish() { [ -z "$node" ] || { kill "$node"; wait "$node" || true; } 2>/dev/null; cd /; umount "$OLDPWD"; }
trap finish EXIT
cd mnt; cp "$image" disk.raw; sync -f .
free() { sync -f .; df -B1 --output=avail . | tail -1; }
forget() { for file in disk.raw node/store/packs/*.pack; do [ ! -e "$file" ] || dd if="$file" iflag=nocache count=0 status=none; done; }
row() {
  local before begin end what=$1; shift
  before=$(free); begin=$(date +%s%N); "$@" >/dev/null 2>&1; sync -f .; end=$(date +%s%N)
  echo "round $round $what: $(( (end - begin) / 1000000 )) ms, $(( (before - $(free)) >> 20 )) MiB"
}
for round in $(seq "$rounds"); do
  for reflink in never always; do
    rm -rf node out.raw; : >../ready; sync -f .
    "$brant" node serve --dir node --bind 127.0.0.1:0 >../ready 2>../log & node=$!
    until grep -q 'brant node ready' ../ready; do kill -0 $node; done
    export BRANT_NODE=$PWD/node; "$brant" bucket create b >/dev/null 2>&1
    forget
    row "import, $reflink" "$brant" import disk.raw b/disk --format raw --reflink "$reflink"
    forget
    row "materialize, $reflink" "$brant" materialize b/disk out.raw --reflink "$reflink"
    cmp disk.raw out.raw; rm out.raw
    forget
    row "cp, $reflink" cp --reflink="$reflink" disk.raw out.raw
    kill $node; wait $node || true; node=''
  done
done
