#!/bin/sh
# Runs once at the end of every boot of a test guest and speaks on the serial console, in lines that begin with BRANT.
# The kernel's command line says what it does besides:
#   brant.write=TEXT   appends TEXT to /var/lib/brant-marker and makes it durable
#   brant.poweroff     powers the guest off at the end
# Lines: "BRANT boot finished", "BRANT wrote TEXT", "BRANT marker TEXT" for each marker so far, oldest first, "BRANT done".
set -eu
markers=/var/lib/brant-marker
power_off=no

say() { echo "BRANT $*" >/dev/ttyS0; }

say boot finished
for word in $(cat /proc/cmdline); do
  case $word in
    brant.write=*)
      echo "${word#brant.write=}" >>"$markers"
      sync
      say "wrote ${word#brant.write=}"
      ;;
    brant.poweroff) power_off=yes ;;
  esac
done
if [ -f "$markers" ]; then
  while read -r line; do say "marker $line"; done <"$markers"
fi
say "done"
if [ "$power_off" = yes ]; then systemctl --no-block poweroff; fi
