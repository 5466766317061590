#!/usr/bin/env bash
# Import of disk images, against borg, interleaved: seconds of each round, and what both stores allocate at the end.
#
#   bench/import.sh BRANT DIR ROUNDS IMAGE…     e.g. bench/import.sh target/release/brant /var/tmp/bench 3 v1.raw
#
# Each round begins with an empty borg repository and an empty node and imports the images in the order given. Needs borg.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") rounds=$3; mkdir -p "$2"; cd "$2"; shift 3
export BORG_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_BASE_DIR=$PWD/borg-home
seconds() {
  local begin; begin=$(date +%s%N)
  "$@" >/dev/null 2>failed.log || { echo "FAILED: $(head -1 failed.log)"; return; }
  echo "$(( ($(date +%s%N) - begin) / 1000000 )) ms"
}
for round in $(seq "$rounds"); do
  rm -rf borg node; borg init -e none borg
  "$brant" node serve --dir node --bind 127.0.0.1:0 >ready 2>log & node=$!
  trap 'kill $node 2>/dev/null || true' EXIT
  until grep -q 'brant node ready' ready; do kill -0 $node; done
  export BRANT_NODE=$PWD/node; "$brant" bucket create b >/dev/null 2>&1
  for image in "$@"; do
    cat "$image" >/dev/null
    name=$(basename "$image" .raw)
    echo "round $round $name borg  $(seconds borg create -C zstd,1 --chunker-params fixed,65536 "borg::$name" "$image")"
    echo "round $round $name brant $(seconds "$brant" import "$image" b/disk)"
  done
  echo "round $round allocated borg $(du -sB1 borg | cut -f1) brant $(du -sB1 node/store | cut -f1) bytes"
  echo "round $round node memory $(awk '/VmRSS/ {print $2}' /proc/$node/status) KiB, at its most $(awk '/VmHWM/ {print $2}' /proc/$node/status) KiB"
  kill $node; wait $node || true
done
