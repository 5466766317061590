# Two hosts joined by a slow link; sourced by lazy.sh and boot.sh, in the directory that they work in, with $brant and $image set.
#
# Two network namespaces are joined by a veth pair with htb at a rate, both ways; an Indexer and node A, which has the image as
# vms/web, are in one, node B in the other. Bytes are those that B's end of the veth counts, headers and all, both ways.
a=brant-bench-$$-a b=brant-bench-$$-b
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
shape_end() {
  ip netns exec "$1" tc qdisc del dev "$2" root 2>/dev/null || true
  ip netns exec "$1" tc qdisc add dev "$2" root handle 1: htb default 1 r2q 100
  ip netns exec "$1" tc class add dev "$2" parent 1: classid 1:1 htb rate "$3mbit" burst 32k cburst 32k
}
shape() { shape_end "$a" va "$1"; shape_end "$b" vb "$1"; }
ready() { until grep -q ready "$1"; do sleep 0.05; kill -0 "$2"; done; }
on_a() { in_a "$brant" --node a "$@" >>commands.log 2>&1; }
on_b() { in_b "$brant" --node b "$@" >>commands.log 2>&1; }

rm -rf a indexer.sqlite*
ip netns exec "$a" "$brant" indexer serve --listen 10.77.0.1:7070 --insecure-listen --database sqlite:indexer.sqlite \
  >indexer.out 2>indexer.log & indexer=$!
ready indexer.out $indexer
"$brant" indexer account add alice --database sqlite:indexer.sqlite >token 2>/dev/null
ip netns exec "$a" "$brant" node serve --dir a --bind 10.77.0.1:0 >a.out 2>a.log & node_a=$!
ready a.out $node_a
on_a login http://10.77.0.1:7070 --token-file token
on_a bucket create vms; on_a import "$image" vms/web; on_a publish vms 10.77.0.1:7070/alice/vms

# Starts node B with nothing, and makes and attaches the clone web.
cold_clone() {
  rm -rf b
  ip netns exec "$b" "$brant" node serve --dir b --bind 10.77.0.2:0 >b.out 2>b.log & node_b=$!
  ready b.out $node_b
  on_b login http://10.77.0.1:7070 --token-file token
  on_b subscribe 10.77.0.1:7070/alice/vms; on_b clone vms/web web; on_b attach web
}
