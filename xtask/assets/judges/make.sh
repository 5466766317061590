#!/bin/bash
# Fetches the sources of libnbd and QEMU from Debian, and builds what of them judges an NBD server.
#
#   make.sh DIR PROGRAM…
#
# Exit status 75: the sources cannot be fetched.
# DIR/bin has libnbd's test programs, DIR/bin-tls those that use TLS, DIR/pki their certificates, DIR/iotests QEMU's tests of
# block drivers. The sources come by a list of packages of DIR's own: the system's are not touched.
set -euo pipefail
directory=$1; shift
mkdir -p "$directory"; cd "$directory"

lists=$PWD/lists
mkdir -p "$lists/partial"
# The same places and releases that the system has its packages of Debian from.
apt-get indextargets --format '$(ORIGIN) deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  sed -n 's/^Debian deb-src/deb-src/p' | sort -u >sources.list
apt=(apt-get -q -o "Dir::Etc::SourceList=$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$lists"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
"${apt[@]}" update || exit 75
"${apt[@]}" source --download-only libnbd qemu || exit 75
rm -rf source iotests bin bin-tls pki lists sources.list
mkdir source
tar -xf libnbd_*.orig.tar.?z -C source
tar -xf qemu_*.orig.tar.?z -C source --wildcards 'qemu-*/tests/qemu-iotests' 'qemu-*/python'
mv source/libnbd-* source/libnbd
mv source/qemu-* source/qemu
rm libnbd_* qemu_*

# What libnbd's build would find out of the system, its tests do without.
mkdir bin bin-tls
: >bin/config.h
build() { # OUTPUT SOURCE OPTION…
  local output=$1 source=$2; shift 2
  gcc -O1 -w -I bin -I source/libnbd/common/include -I source/libnbd/tests "$@" \
    "source/libnbd/$source" source/libnbd/tests/requires.c -o "$output" -lnbd -lpthread
}
for program in "$@"; do build "bin/$program" "tests/$program.c"; done
for program in synch-parallel aio-parallel aio-parallel-load; do
  build "bin/$program" "tests/$program.c"
  # libnbd has these for pre-shared keys alone.
  sed -i 's/nbd_set_tls_psk_file (nbd, "keys.psk")/nbd_set_tls_certificates (nbd, "pki")/' "source/libnbd/tests/$program.c"
  build "bin-tls/$program-certificates" "tests/$program.c" -DTLS=1
done
interop=(-DNEEDS_TMPFILE=1 -DSERVER='"nbdkit"')
build bin/interop interop/interop.c "${interop[@]}" -DSERVER_PARAMS='"-s", "--exit-with-parent", "file", TMPFILE'
build bin/socket-activation interop/socket-activation.c -DSERVER='"qemu-nbd"' -DSERVER_PARAMS='"-f", "raw", "-x", "", tmpfile'
build bin-tls/connect-certificates tests/connect-tls.c -DCERTS=1
for mode in require allow; do
  build "bin-tls/interop-certificates-$mode" interop/interop.c "${interop[@]}" -DCERTS=1 -DTLS_MODE="LIBNBD_TLS_${mode^^}" \
    -DSERVER_PARAMS='"--tls=require", "--tls-certificates=../tests/pki", "-s", "--exit-with-parent", "file", TMPFILE'
done
build bin-tls/interop-certificates-fallback interop/interop.c "${interop[@]}" -DCERTS=1 -DTLS_MODE=LIBNBD_TLS_ALLOW \
  -DTLS_FALLBACK=1 -DSERVER_PARAMS='"--tls=off", "-s", "--exit-with-parent", "file", TMPFILE'

# The tests look for these beside themselves, or one folder up under `tests`.
SRCDIR=source/libnbd/tests CERTTOOL='certtool' bash source/libnbd/tests/make-pki.sh pki
mkdir -p tests; ln -sfn ../pki tests/pki
ln -sfn ../pki bin-tls/pki
mv source/qemu iotests
