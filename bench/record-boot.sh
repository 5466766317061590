#!/usr/bin/env bash
# Records what a boot of a Debian disk reads: one line `OFFSET LENGTH` in bytes for each read, in order.
#
#   bench/record-boot.sh IMAGES IMAGE OUTPUT     e.g. bench/record-boot.sh target/images target/images/v1.raw boot-reads.txt
#
# Boots a copy-on-write view of the image under QEMU (TCG) up to the login prompt, through nbdkit's log. Needs nbdkit.
set -euo pipefail
[ $# = 3 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
images=$(realpath "$1") image=$(realpath "$2") output=$3
work=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
nbdkit --foreground --unix "$work/nbd" --filter=log --filter=cow file "$image" logfile="$work/log" &
until [ -S "$work/nbd" ]; do sleep 0.1; done
qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1G -nodefaults -display none -serial "file:$work/console" \
  -kernel "$images/vmlinuz" -initrd "$images/initrd.img" -no-reboot \
  -append 'root=/dev/vda rw console=ttyS0 no_timer_check' \
  -drive "if=none,id=disk,format=raw,cache=none,file.driver=nbd,file.server.type=unix,file.server.path=$work/nbd" \
  -device virtio-blk-pci,drive=disk &
for _ in $(seq 300); do grep -q 'login:' "$work/console" 2>/dev/null && break; sleep 1; done
grep -q 'login:' "$work/console" || { echo "no login prompt" >&2; exit 1; }
python3 - "$work/log" >"$output" <<'PYTHON'
import re, sys
for line in open(sys.argv[1]):
    found = re.search(r" Read id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)", line)
    if found:
        print(int(found[1], 16), int(found[2], 16))
PYTHON
awk '{bytes += $2} END {printf "%d reads of %.1f MiB\n", NR, bytes / 1048576}' "$output"
