# For the scripts beside it, which stand in for other servers: a volume of the node at BRANT_NODE, served until the script ends.
# Needs BRANT, the program.

name=judge-$$-${RANDOM}
# Where the volume is served; set by attach.
socket=
# The background processes to end with the script.
children=()

# Makes the volume: CONTENT BYTES, and the file for the content `file`.
make_volume() {
  case $1 in
    memory | null) "$BRANT" volume create "$name" --size "$2" >/dev/null 2>&1 ;;
    pattern)
      # As nbdkit-pattern-plugin has it: each 8 bytes are their own offset, big-endian.
      python3 -c 'import array, sys
offsets = array.array("Q", range(0, int(sys.argv[1]), 8)); offsets.byteswap()
open(sys.argv[2], "wb").write(offsets.tobytes())' "$2" "$BRANT_NODE/$name.raw"
      import_volume "$BRANT_NODE/$name.raw"
      rm "$BRANT_NODE/$name.raw" ;;
    file) import_volume "$3" ;;
    *) echo "no such content: $1" >&2; exit 64 ;;
  esac
}

import_volume() {
  "$BRANT" import "$1" "judges/$name" >/dev/null 2>&1
  "$BRANT" clone "judges/$name" "$name" >/dev/null 2>&1
}

# Serves the volume, or where `read_only` is set a snapshot of it; arguments are those of `brant attach`.
attach() {
  trap finish EXIT
  trap 'exit 143' TERM INT HUP
  target=$name
  if [ -n "${read_only:-}" ]; then
    "$BRANT" snapshot create "$name" "judges/$name-fixed" >/dev/null 2>&1
    target=judges/$name-fixed@1
  fi
  socket=$("$BRANT" attach "$target" "$@" --json | sed -n 's/.*"socket": *"\([^"]*\)".*/\1/p')
}

finish() {
  trap '' TERM INT HUP
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  "$BRANT" detach --force "$target" >/dev/null 2>&1 || true
  "$BRANT" volume remove "$name" >/dev/null 2>&1 || true
}
