#!/usr/bin/env bash
# Makes a small guest: one of Debian's kernels and an initial file system with busybox, up in about ten seconds without KVM.
# Called by `cargo xtask images`, which checks first that what is needed is there. Needs no root.
#
#   guest-image.sh DIRECTORY ASSETS guest     the guest of a virtual disk: makes DIRECTORY/guest-vmlinuz and -initrd.img
#   guest-image.sh DIRECTORY ASSETS host      a machine for a node, with Linux 6.12: DIRECTORY/host-vmlinuz and -initrd.img
#
# What they do is said in `guest-init.sh` and `host-init.sh`. Exit status 3: apt knows no such kernel.
set -euo pipefail

directory=$1 assets=$2 name=$3
mkdir -p "$directory"
work=$(mktemp -d "$directory/.$name.XXXXXX")
trap 'rm -rf "$work"' EXIT
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

case $name in
  guest)
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    modules="virtio_pci virtio_blk ext4" programs="mkfs.ext4 e2fsck" ;;
  host)
    package=$(apt-cache search --names-only '^linux-image-6\.12\.[0-9]+.*cloud-amd64-unsigned$' | awk '{ print $1 }' | sort -V | tail -n 1)
    modules="ext4 nbd ublk_drv" programs="mkfs.ext4 e2fsck resize2fs blkdiscard dd" ;;
  *) echo "there is no guest $name" >&2; exit 2 ;;
esac
[ -n "$package" ] || { echo "apt knows no kernel for the $name (has apt-get update been run?)" >&2; exit 3; }

# The kernel comes from its package, unpacked beside: nothing of it is installed.
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package")
dpkg-deb --extract "$work"/linux-image-*.deb "$work/kernel"
release=$(basename "$work"/kernel/lib/modules/*)
depmod --basedir "$work/kernel" "$release"

root="$work/root"
mkdir -p "$root"/{bin,dev,proc,sys,tmp,mnt,modules,usr/sbin}
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp "$assets/$name-init.sh" "$root/init"
chmod 755 "$root/init"

# Modules in the order in which they must go in, each with what it depends on before it.
number=100
for module in $modules; do
  while read -r action file _; do
    [ "$action" = insmod ] || continue
    target=$(basename "$file")
    target=${target%.xz}
    if ! compgen -G "$root/modules/*-$target" >/dev/null; then
      case $file in
        *.xz) xz --decompress --stdout "$file" >"$root/modules/$number-$target" ;;
        *) cp "$file" "$root/modules/$number-$target" ;;
      esac
      number=$((number + 1))
    fi
  done < <(modprobe --dirname "$work/kernel" --set-version "$release" --show-depends "$module")
done

# What busybox does not have, or not as it should be: the real tools, with their libraries.
for program in $programs; do
  file=$(readlink -f "$(command -v "$program")")
  cp "$file" "$root/usr/sbin/$program"
  { ldd "$file" || true; } | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root/$(dirname "$library")"
    cp -nL "$library" "$root/$library"
  done
done

(cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) | gzip -1 >"$work/initrd.img"
# The kernel last: it is what tells that the guest is complete.
mv "$work/initrd.img" "$directory/$name-initrd.img"
mv "$work"/kernel/boot/vmlinuz-* "$directory/$name-vmlinuz"
echo "made $directory/$name-vmlinuz and $directory/$name-initrd.img"
