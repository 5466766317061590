#!/bin/sh
# Stands before a script of the provider, and stops there where a test has asked for it.
#
# A test makes the file SCRIPT.EXCLUSIVE in /srv/gates (EXCLUSIVE is what Ganeti says to `open`, and nothing for other scripts). Who comes to
# it renames it to SCRIPT.EXCLUSIVE.reached, and goes on when that has been removed.
script=$(basename "$0")
gate="/srv/gates/$script.$VOL_OPEN_EXCLUSIVE"
if mv "$gate" "$gate.reached" 2>/dev/null; then
  while [ -e "$gate.reached" ]; do sleep 0.05; done
fi
exec "./.$script"
