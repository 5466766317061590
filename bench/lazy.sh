#!/usr/bin/env bash
# Lazy start over a slow link: recorded boot reads, one after the other, on a cold clone, against copying the whole image.
#
#   bench/lazy.sh BRANT DIR IMAGE READS ROUNDS MBIT…     e.g. bench/lazy.sh target/release/brant /var/tmp/bench v1.raw boot-reads.txt 3 200 20
#
# The link is bench/link.sh's. The peer is the image as qcow2 with zstd, sent through the same link by socat. READS has lines
# `OFFSET LENGTH`; bench/record-boot.sh writes such a file. Needs root, qemu-utils, socat, python3-libnbd.
set -euo pipefail
[ $# -ge 6 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
link=$(realpath "$(dirname "$0")/link.sh") brant=$(realpath "$1") image=$(realpath "$3") reads=$(realpath "$4") rounds=$5
mkdir -p "$2"; cd "$2"; shift 5
[ -e image.qcow2 ] || qemu-img convert -O qcow2 -c -o compression_type=zstd "$image" image.qcow2
# shellcheck source=bench/link.sh
. "$link"
for mbit in "$@"; do
  for round in $(seq "$rounds"); do
    shape "$mbit"
    ip netns exec "$b" socat -u TCP-LISTEN:7071,reuseaddr OPEN:/dev/null & listener=$!
    until in_b ss -tln | grep -q 7071; do sleep 0.05; done
    before=$(wire) begin=$(now)
    in_a socat -u OPEN:image.qcow2 TCP:10.77.0.2:7071; wait $listener
    echo "$mbit Mbit/s round $round: whole image $(( ($(now) - begin) / 1000000 )) ms, $(( $(wire) - before )) bytes on the wire"
    before=$(wire) begin=$(now)
    cold_clone
    echo "$mbit Mbit/s round $round: start of B, login, subscribe, clone, attach $(( ($(now) - begin) / 1000000 )) ms, $(( $(wire) - before )) bytes"
    before=$(wire)
    in_b /usr/bin/python3 - "$reads" b/nbd/web.sock <<'PYTHON' | sed "s/^/$mbit Mbit\/s round $round: replay /"
import nbd, sys, time
reads = [tuple(map(int, line.split())) for line in open(sys.argv[1])]
disk = nbd.NBD()
disk.connect_uri("nbd+unix:///web?socket=" + sys.argv[2])
times = []
for offset, length in reads:
    begin = time.monotonic()
    disk.pread(length, offset)
    times.append(time.monotonic() - begin)
times.sort()
print("%.0f ms for %d reads of %d bytes, p50 %.2f p90 %.2f p99 %.2f ms" % (1000 * sum(times), len(reads),
      sum(length for _, length in reads), *(1000 * times[int(len(times) * part)] for part in (0.5, 0.9, 0.99))))
PYTHON
    echo "$mbit Mbit/s round $round: replay $(( $(wire) - before )) bytes on the wire"
    kill $node_b; wait $node_b || true
  done
done
