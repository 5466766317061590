#!/usr/bin/env bash
# Lazy start over a slow link: recorded boot reads, one after the other, on a cold clone, against copying the whole image.
#
#   bench/lazy.sh BRANT DIR IMAGE READS ROUNDS MBIT…     e.g. bench/lazy.sh target/release/brant /var/tmp/bench v1.raw boot-reads.txt 3 200 20
#
# Two network namespaces are joined by a veth pair with htb at the rate, both ways; node A and the Indexer are in one, node B in the
# other. Bytes are those that the veth counts, headers and all, both ways. The peer is the image as qcow2 with zstd, sent through
# the same link by socat. READS has lines `OFFSET LENGTH`; bench/record-boot.sh writes such a file. Needs root, qemu-img, socat,
# python3-libnbd.
set -euo pipefail
[ $# -ge 6 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
brant=$(realpath "$1") image=$(realpath "$3") reads=$(realpath "$4") rounds=$5; mkdir -p "$2"; cd "$2"; shift 5
here=brant-bench-$$; a=$here-a b=$here-b
finish() { kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; ip netns del "$a"; ip netns del "$b"; }
ip netns add "$a"; ip netns add "$b"; trap finish EXIT
ip link add va netns "$a" type veth peer name vb netns "$b"
ip -n "$a" addr add 10.77.0.1/24 dev va; ip -n "$b" addr add 10.77.0.2/24 dev vb
up() { ip -n "$1" link set lo up; ip -n "$1" link set "$2" up; }
up "$a" va; up "$b" vb
in_a() { ip netns exec "$a" "$@"; }
in_b() { ip netns exec "$b" "$@"; }
now() { date +%s%N; }
wire() { in_b cat /sys/class/net/vb/statistics/rx_bytes /sys/class/net/vb/statistics/tx_bytes | awk '{n += $1} END {print n}'; }
shape() {
  ip netns exec "$1" tc qdisc replace dev "$2" root handle 1: htb default 1
  ip netns exec "$1" tc class replace dev "$2" parent 1: classid 1:1 htb rate "$3mbit" burst 32k cburst 32k
}
ready() { until grep -q ready "$1"; do sleep 0.05; kill -0 "$2"; done; }

[ -e image.qcow2 ] || qemu-img convert -O qcow2 -c -o compression_type=zstd "$image" image.qcow2
rm -rf a indexer.sqlite*
ip netns exec "$a" "$brant" indexer serve --listen 10.77.0.1:7070 --insecure-listen --database sqlite:indexer.sqlite >indexer.out 2>indexer.log & indexer=$!
ready indexer.out $indexer
"$brant" indexer account add alice --database sqlite:indexer.sqlite >token
ip netns exec "$a" "$brant" node serve --dir a --bind 10.77.0.1:0 >a.out 2>a.log & node_a=$!
ready a.out $node_a
on_a() { in_a "$brant" --node a "$@" >>commands.log 2>&1; }
on_b() { in_b "$brant" --node b "$@" >>commands.log 2>&1; }
on_a login http://10.77.0.1:7070 --token-file token
on_a bucket create vms; on_a import "$image" vms/web; on_a publish vms 10.77.0.1:7070/alice/vms
for mbit in "$@"; do
  for round in $(seq "$rounds"); do
    shape "$a" va "$mbit"; shape "$b" vb "$mbit"
    ip netns exec "$b" socat -u TCP-LISTEN:7071,reuseaddr OPEN:/dev/null & listener=$!
    until in_b ss -tln | grep -q 7071; do sleep 0.05; done
    before=$(wire) begin=$(now)
    in_a socat -u OPEN:image.qcow2 TCP:10.77.0.2:7071; wait $listener
    echo "$mbit Mbit/s round $round: whole image $(( ($(now) - begin) / 1000000 )) ms, $(( $(wire) - before )) bytes on the wire"
    rm -rf b
    ip netns exec "$b" "$brant" node serve --dir b --bind 10.77.0.2:0 >b.out 2>b.log & node_b=$!
    ready b.out $node_b
    before=$(wire) begin=$(now)
    on_b login http://10.77.0.1:7070 --token-file token
    on_b subscribe 10.77.0.1:7070/alice/vms; on_b clone vms/web web; on_b attach web
    echo "$mbit Mbit/s round $round: login, subscribe, clone and attach $(( ($(now) - begin) / 1000000 )) ms, $(( $(wire) - before )) bytes"
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
    echo "$mbit Mbit/s round $round: replay $(( $(wire) - before )) bytes on the wire; $("$brant" --node b status | grep received)"
    kill $node_b; wait $node_b || true
  done
done
