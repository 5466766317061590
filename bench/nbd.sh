#!/usr/bin/env bash
# NBD by fio on a fully local clone, against nbdkit file on the same bytes and qemu-nbd on a qcow2 with them behind it, interleaved.
#
#   bench/nbd.sh BRANT DIR IMAGE SECONDS ROUNDS     e.g. bench/nbd.sh target/release/brant /var/tmp/bench v4.raw 8 3
#
# The disk is the first GiB of the image's data, without holes. Each server runs under the same limit of memory (MEMORY_MIB, 256;
# cgroup v1), which its page cache counts against too; rows touch a region of half that limit, and of four times it. Without a
# cgroup v1, or as another user than root, there is no limit, and the output says so. Before each run the same workload warms up
# for half as long. Prints each run, and at the end the medians: IOPS for 4k, MiB/s for 128k, the server's CPU seconds per GB, and
# brant's ratios to both. Needs fio, nbdkit, qemu-utils.
set -euo pipefail
[ $# = 5 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$(realpath "$0")")
brant=$(realpath "$1") image=$(realpath "$3") seconds=$4 rounds=$5; mkdir -p "$2"; cd "$2"
memory_mib=${MEMORY_MIB:-256} groups=/sys/fs/cgroup/memory/brant-bench-$$
[ -e dense.raw ] || "$here/dense.py" "$image" dense.raw
declare -A process uri
stop_all() {
  for server in "${!process[@]}"; do kill "${process[$server]}" 2>/dev/null && wait "${process[$server]}" 2>/dev/null || true; done
  process=()
}
finish() { stop_all; rmdir "$groups"/*/ "$groups" 2>/dev/null || true; }
trap finish EXIT
if mkdir "$groups" 2>/dev/null; then
  echo "each server has $memory_mib MiB of memory, with its page cache"
else
  echo "NOTE: no memory cgroup can be made: the servers run without a limit"
  groups=
fi
# Starts a server: NAME COMMAND…
serve() {
  local name=$1; shift
  (
    if [ -n "$groups" ]; then
      mkdir -p "$groups/$name"
      echo "${memory_mib}M" >"$groups/$name/memory.limit_in_bytes"
      echo "$BASHPID" >"$groups/$name/cgroup.procs"
    fi
    exec "$@"
  ) >"$name.out" 2>"$name.log" &
  process[$name]=$!
}
# All three on a disk that nothing was written to.
serve_all() {
  stop_all; rm -rf node nbdkit.raw overlay.qcow2 ./*.sock
  serve brant "$brant" node serve --dir node --bind 127.0.0.1:0
  until grep -q 'brant node ready' brant.out; do kill -0 "${process[brant]}"; sleep 0.1; done
  export BRANT_NODE=$PWD/node
  for command in "bucket create b" "import dense.raw b/disk" "clone b/disk clone" "attach clone"; do
    # shellcheck disable=SC2086
    "$brant" $command >/dev/null 2>&1
  done
  cp --reflink=never dense.raw nbdkit.raw
  qemu-img create -q -f qcow2 -b "$PWD/dense.raw" -F raw overlay.qcow2
  sync; if [ -n "$groups" ]; then echo 3 >/proc/sys/vm/drop_caches; fi
  serve nbdkit nbdkit -f -U "$PWD/nbdkit.sock" file nbdkit.raw
  serve qemu qemu-nbd -t -e 8 -f qcow2 -k "$PWD/qemu.sock" overlay.qcow2
  until [ -S nbdkit.sock ] && [ -S qemu.sock ]; do sleep 0.1; done
  uri[brant]="nbd+unix:///clone?socket=$PWD/node/nbd/clone.sock"
  uri[nbdkit]="nbd+unix:///?socket=$PWD/nbdkit.sock"
  uri[qemu]="nbd+unix:///?socket=$PWD/qemu.sock"
}
cpu() { awk '{print $14 + $15}' "/proc/${process[$1]}/stat"; }
workload() { # SERVER ROW SECONDS OUTPUT
  # shellcheck disable=SC2086
  fio --name=row --ioengine=nbd --uri="${uri[$1]}" $2 --time_based --runtime="$3" --group_reporting --norandommap \
    --randrepeat=0 --output-format=json --output="$4" >/dev/null
}
measure() { # SERVER ROW
  workload "$1" "$2" $(((seconds + 1) / 2)) warm.json
  local before after; before=$(cpu "$1")
  workload "$1" "$2" "$seconds" fio.json
  after=$(cpu "$1")
  python3 - "$1" "$2" $((after - before)) <<'PYTHON' | tee -a runs
import json, sys
server, row, ticks = sys.argv[1], sys.argv[2], int(sys.argv[3])
job = json.load(open("fio.json"))["jobs"][0]
side = max(job["read"], job["write"], key=lambda side: side["total_ios"])
figure = side["bw"] / 1024 if "128k" in row else side["iops"]
print("%-6s|%-58s|%10.0f|%8.2f" % (server, row, figure, ticks / 100 / (side["io_bytes"] / 1e9)))
PYTHON
}
region() { echo "--size=$1m"; }
rm -f runs
inside=$((memory_mib / 2)) beyond=$((memory_mib * 4 > 1024 ? 1024 : memory_mib * 4))
for round in $(seq "$rounds"); do
  for size in $inside $beyond; do
    serve_all
    for row in "--rw=randread --bs=4k --iodepth=1" "--rw=randread --bs=4k --iodepth=32" "--rw=read --bs=128k --iodepth=8" \
               "--rw=randread --bs=4k --iodepth=32 --numjobs=4" "--rw=read --bs=128k --iodepth=8 --numjobs=4" \
               "--rw=randwrite --bs=4k --iodepth=1" "--rw=randwrite --bs=4k --iodepth=32" "--rw=write --bs=128k --iodepth=8" \
               "--rw=randwrite --bs=4k --iodepth=32 --numjobs=4" "--rw=randwrite --bs=4k --iodepth=1 --fsync=1"; do
      case "${ROWS:-}" in '') ;; *) [[ $row =~ $ROWS ]] || continue ;; esac
      # Who is first finds the disk busy with what the other ones left.
      for server in $( ((round % 2)) && echo brant nbdkit qemu || echo qemu nbdkit brant); do
        measure "$server" "$row $(region "$size")"
      done
    done
  done
  echo "node memory $(awk '/VmRSS/ {print $2}' "/proc/${process[brant]}/status") KiB, at its most $(awk '/VmHWM/ {print $2}' "/proc/${process[brant]}/status") KiB"
done
python3 - <<'PYTHON'
import collections, statistics
rows = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open("runs"):
    server, row, figure, cpu = (part.strip() for part in line.split("|"))
    rows[row][server].append((float(figure), float(cpu)))
print("| row | brant | nbdkit | qemu-nbd | ÷ nbdkit | ÷ qemu-nbd | CPU s/GB: brant, nbdkit, qemu-nbd |\n|---|---|---|---|---|---|---|")
for row, servers in rows.items():
    names = ("brant", "nbdkit", "qemu")
    figures = [statistics.median(run[0] for run in servers[name]) for name in names]
    cpus = [statistics.median(run[1] for run in servers[name]) for name in names]
    shown = row.replace("--", "").replace("=", " ")
    print("| %s | %.0f | %.0f | %.0f | %.2f | %.2f | %s |" % (
        shown, *figures, figures[0] / figures[1], figures[0] / figures[2], ", ".join("%.1f" % cpu for cpu in cpus)))
PYTHON
