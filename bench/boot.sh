#!/usr/bin/env bash
# A real boot over a slow link: seconds until the login prompt of a cold clone under QEMU, with and without hydration beside it.
#
#   bench/boot.sh BRANT DIR IMAGES IMAGE ROUNDS MBIT…     e.g. bench/boot.sh target/release/brant /var/tmp/bench target/images v1.raw 1 200 20
#
# The link is bench/link.sh's. IMAGES has the kernel of the Debian disks. Beside it the same boot from the raw file, through QEMU
# itself. Needs root, qemu-system-x86.
set -euo pipefail
[ $# -ge 6 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
link=$(realpath "$(dirname "$0")/link.sh") brant=$(realpath "$1") images=$(realpath "$3") image=$(realpath "$4") rounds=$5
mkdir -p "$2"; cd "$2"; shift 5
# shellcheck source=bench/link.sh
. "$link"
boot() { # DRIVE: prints the seconds
  local begin qemu; begin=$(now); rm -f console
  qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1G -nodefaults -display none -serial file:console -no-reboot \
    -kernel "$images/vmlinuz" -initrd "$images/initrd.img" -append 'root=/dev/vda rw console=ttyS0 no_timer_check' \
    -drive "if=none,id=disk,format=raw,cache=none,$1" -device virtio-blk-pci,drive=disk 2>qemu.log & qemu=$!
  until grep -q 'login:' console 2>/dev/null; do sleep 0.1; kill -0 $qemu; done
  echo "$(( ($(now) - begin) / 1000000 )) ms"
  kill $qemu; wait $qemu || true
}
for round in $(seq "$rounds"); do
  echo "round $round: from the raw file $(boot "snapshot=on,file.filename=$image")"
  for mbit in "$@"; do
    for with in lazy hydrating; do
      shape "$mbit"
      cold_clone
      before=$(wire)
      [ $with = lazy ] || on_b hydrate web --detach
      echo "$mbit Mbit/s round $round: $with $(boot "file.driver=nbd,file.server.type=unix,file.server.path=b/nbd/web.sock,file.export=web"), $(( $(wire) - before )) bytes on the wire until then"
      kill $node_b; wait $node_b || true
    done
  done
done
