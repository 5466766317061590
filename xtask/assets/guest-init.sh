#!/bin/sh
# Process 1 of the small guest: works on the ext4 file system of /dev/vda and speaks on the console, in lines that begin with
# BRANT. It follows the kernel's command line, in this order:
#   brant.disk          tells what the disk says of itself: "BRANT size BYTES", "BRANT queues N", "BRANT cache write back",
#                       "BRANT read-only 0", "BRANT serial NAME"
#   brant.cache=off     turns the disk's write cache off, and tells what it is then
#   brant.discard       writes the disk's first 4 MiB and discards two of them ("BRANT discarded", when they are zero)
#   brant.format        makes the file system first
#   brant.check         checks the file system before mounting it ("BRANT checked")
#   brant.write=TEXT    appends TEXT to the markers and makes them durable ("BRANT wrote TEXT")
#   brant.fill=MIB      writes MIB MiB that nobody can guess, with their SHA-256 ("BRANT filled MIB")
#   brant.records=N     appends N numbered records to those that are there, saying "BRANT record I" when record I is durable
#   brant.poweroff      powers off at the end; otherwise the guest waits, mounted, and tells when the disk has another size
# Before writing it tells what it found: "BRANT marker TEXT" for each marker, "BRANT verified FILES" after comparing what was
# filled with its SHA-256, "BRANT records N" for N records without a gap. "BRANT BAD …" is data that is not what it was.
# It begins with "BRANT boot finished" and ends with "BRANT done".
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

say() { echo "BRANT $*"; }

power_off() {
  umount /mnt 2>/dev/null
  sync
  poweroff -f
}

fail() {
  say "BAD $*"
  power_off
}

asked() { # asked WORD: prints the value of brant.WORD, and succeeds when it was given
  for word in $(cat /proc/cmdline); do
    case $word in
      "brant.$1="*) echo "${word#*=}"; return 0 ;;
      "brant.$1") return 0 ;;
    esac
  done
  return 1
}

report() {
  if [ -f /mnt/markers ]; then
    while read -r line; do say "marker $line"; done </mnt/markers
  fi
  files=0
  for sum in /mnt/fill-*.sha256; do
    [ -f "$sum" ] || continue
    (cd /mnt && sha256sum -c -s "$sum") || fail "content of ${sum%.sha256}"
    files=$((files + 1))
  done
  say "verified $files"
  count=0
  if [ -f /mnt/records ]; then
    while read -r number rest; do
      [ "$number" = $((count + 1)) ] && [ "$rest" = "record" ] || { [ -z "$rest" ] && break; fail "record after $count: $number $rest"; }
      count=$number
    done </mnt/records
  fi
  say "records $count"
}

say boot finished
for module in /modules/*; do insmod "$module" || fail "module $module"; done
tries=0
while [ ! -b /dev/vda ]; do
  tries=$((tries + 1))
  [ $tries -lt 100 ] || fail no disk
  sleep 0.1
done

tell_cache() { say "cache $(cat /sys/block/vda/queue/write_cache)"; }
tell_size() { say "size $(($(cat /sys/block/vda/size) * 512))"; }

if asked disk; then
  tell_size
  say "queues $(ls /sys/block/vda/mq | wc -l)"
  tell_cache
  say "read-only $(cat /sys/block/vda/ro)"
  say "serial $(cat /sys/block/vda/serial)"
fi
if [ "$(asked cache)" = off ]; then
  echo "write through" >/sys/block/vda/cache_type || fail cache
  tell_cache
fi
if asked discard; then
  dd if=/dev/urandom of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null || fail write
  blkdiscard -o 1048576 -l 2097152 /dev/vda || fail discard
  [ "$(dd if=/dev/vda bs=1M skip=1 count=2 2>/dev/null | tr -d '\0' | wc -c)" = 0 ] || fail "what was discarded"
  [ "$(dd if=/dev/vda bs=1M count=1 2>/dev/null | tr -d '\0' | wc -c)" -gt 1000000 ] || fail "what was not discarded"
  say discarded
fi

if asked format; then mkfs.ext4 -q -F /dev/vda || fail mkfs; fi
if asked check; then e2fsck -fy /dev/vda >/dev/null; [ $? -le 1 ] || fail file system; say checked; fi
mount -t ext4 -o discard /dev/vda /mnt || fail mount
report

if text=$(asked write); then
  echo "$text" >>/mnt/markers
  sync
  say "wrote $text"
fi
if mib=$(asked fill); then
  name=fill-$(ls /mnt/fill-*.sha256 2>/dev/null | wc -l)
  dd if=/dev/urandom of="/mnt/$name" bs=1M count="$mib" conv=fsync 2>/dev/null || fail "fill $mib"
  (cd /mnt && sha256sum "$name" >"$name.sha256")
  sync
  say "filled $mib"
fi
if wanted=$(asked records); then
  last=$((count + wanted))
  number=$count
  while [ "$number" -lt "$last" ]; do
    number=$((number + 1))
    echo "$number record" | dd of=/mnt/records oflag=append conv=notrunc,fsync 2>/dev/null || fail "write record $number"
    say "record $number"
  done
fi
# Whoever hears that it is done may make the disk larger at once.
before=$(cat /sys/block/vda/size)
say "done"
if asked poweroff; then power_off; fi
while :; do
  now=$(cat /sys/block/vda/size)
  [ "$now" = "$before" ] || tell_size
  before=$now
  sleep 0.2
done
