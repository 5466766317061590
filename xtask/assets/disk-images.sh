#!/usr/bin/env bash
# Makes the real disks that brant is tried on: one Debian 12 root disk at up to four points of its life.
# Called by `cargo xtask images`, which checks first that what is needed is there (root, loop devices, mmdebstrap, mkfs.ext4).
#
#   disk-images.sh DIRECTORY ASSETS VERSION...     each VERSION one of v1 v2 v3 v4; the ones before it are made too
#
#   v1.raw   4 GiB ext4: kernel, systemd, ssh, python3          v3.raw   v2 after loading and running pgbench
#   v2.raw   v1 with nginx and postgresql installed             v4.raw   v3 after a little more pgbench: the typical small change
#   vmlinuz, initrd.img   v1's kernel; boot a disk with `root=/dev/vda console=ttyS0 rw`
#
# A file appears in DIRECTORY only when it is complete. What the disks do with `brant.*` on the kernel's command line is said in `marker.sh`.
set -euo pipefail

directory=$1 assets=$2
shift 2
mkdir -p "$directory"
work=$(mktemp -d "$directory/.making.XXXXXX")
root="$work/root"
mkdir "$root"

# Takes every mount below the work directory down again, the innermost first; called on every way out.
unmount_all() {
  local target
  for target in "$root/dev" "$root/proc" "$root"; do
    if mountpoint -q "$target"; then umount "$target" || umount -l "$target"; fi
  done
}
trap 'unmount_all; rm -rf --one-file-system "$work"' EXIT

mount_disk() { mount -o loop,discard "$1" "$root"; }

# run_inside DISK COMMAND: runs COMMAND in the system that is on DISK.
run_inside() {
  mount_disk "$1"
  mount -t proc proc "$root/proc"
  mount --bind /dev "$root/dev"
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" bash -euo pipefail -c "$2"
  unmount_all
}

# keep DISK VERSION: makes the finished work disk appear under its name, with its holes.
keep() {
  cp --sparse=always "$1" "$work/finished"
  mv "$work/finished" "$directory/$2.raw"
  echo "made $directory/$2.raw"
}

make_v1() {
  mmdebstrap --quiet --variant=minbase \
    --include=linux-image-cloud-amd64,systemd-sysv,udev,openssh-server,ifupdown,iproute2,ca-certificates,python3,fio \
    --customize-hook='echo root:root | chroot "$1" chpasswd' \
    --customize-hook="copy-in '$assets/marker.service' /etc/systemd/system" \
    --customize-hook="upload '$assets/marker.sh' /usr/local/sbin/brant-marker" \
    --customize-hook='chmod 755 "$1/usr/local/sbin/brant-marker"' \
    --customize-hook='chroot "$1" systemctl --quiet enable marker.service' \
    bookworm "$work/base.tar"
  truncate -s 4G "$work/disk"
  mkfs.ext4 -q -F -L root "$work/disk"
  mount_disk "$work/disk"
  tar --extract --numeric-owner --xattrs --xattrs-include='*' --file "$work/base.tar" --directory "$root"
  rm "$work/base.tar"
  echo 'LABEL=root / auto defaults 0 1' >"$root/etc/fstab"
  echo brant-guest >"$root/etc/hostname"
  cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
  cp "$root"/boot/initrd.img-* "$work/initrd.img"
  unmount_all
  # The kernel goes first: whoever sees v1.raw may boot it.
  mv "$work/vmlinuz" "$work/initrd.img" "$directory/"
  keep "$work/disk" v1
}

# Runs pgbench with the arguments given, the database server up around it.
with_postgres() {
  printf '%s\n' 'pg_ctlcluster 15 main start' \
    'trap "pg_ctlcluster 15 main stop -m fast" EXIT' \
    'for try in $(seq 60); do su postgres -c "pg_isready -q" && break; sleep 1; done' \
    "$1"
}
pgbench='su postgres -c "/usr/lib/postgresql/15/bin/pgbench'

# derive FROM TO COMMAND: TO is FROM after COMMAND ran in it.
derive() {
  cp --sparse=always "$directory/$1.raw" "$work/disk"
  run_inside "$work/disk" "$3"
  keep "$work/disk" "$2"
}

make() {
  local version=$1
  if [ -f "$directory/$version.raw" ]; then return; fi
  echo "making $version"
  case $version in
    v1) make_v1 ;;
    v2) make v1; derive v1 v2 'apt-get -q update; apt-get -q install -y --no-install-recommends nginx postgresql' ;;
    v3) make v2; derive v2 v3 "$(with_postgres "$pgbench -i -q -s 20 postgres\"; $pgbench -T 30 -c 4 postgres\"")" ;;
    v4) make v3; derive v3 v4 "$(with_postgres "$pgbench -T 20 -c 4 postgres\"")" ;;
    *) echo "no such disk: $version" >&2; exit 2 ;;
  esac
}

for version in "$@"; do make "$version"; done
