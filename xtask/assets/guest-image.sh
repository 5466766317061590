#!/usr/bin/env bash
# Makes the small guest: Debian's kernel and an initial file system with busybox, up in about ten seconds without KVM.
# Called by `cargo xtask images`, which checks first that what is needed is there. Needs no root.
#
#   guest-image.sh DIRECTORY ASSETS     makes DIRECTORY/guest-vmlinuz and DIRECTORY/guest-initrd.img
#
# What the guest does is said in `guest-init.sh`.
set -euo pipefail

directory=$1 assets=$2
mkdir -p "$directory"
work=$(mktemp -d "$directory/.guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
PATH=$PATH:/usr/sbin:/sbin

# The kernel comes from its package, unpacked beside: nothing of it is installed.
package=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
[ -n "$package" ] || { echo "apt knows no package linux-image-cloud-amd64 (has apt-get update been run?)" >&2; exit 1; }
(cd "$work" && LC_ALL=C apt-get -q -o APT::Sandbox::User=root download "$package")
dpkg-deb --extract "$work"/linux-image-*.deb "$work/kernel"
release=$(basename "$work"/kernel/lib/modules/*)
depmod --basedir "$work/kernel" "$release"

root="$work/root"
mkdir -p "$root"/{bin,dev,proc,sys,tmp,mnt,modules,usr/sbin}
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp "$assets/guest-init.sh" "$root/init"
chmod 755 "$root/init"

# Modules in the order in which they must go in, each with what it depends on before it.
number=100
for module in virtio_pci virtio_blk ext4; do
  while read -r action file _; do
    [ "$action" = insmod ] || continue
    if ! compgen -G "$root/modules/*-$(basename "$file")" >/dev/null; then
      cp "$file" "$root/modules/$number-$(basename "$file")"
      number=$((number + 1))
    fi
  done < <(modprobe --dirname "$work/kernel" --set-version "$release" --show-depends "$module")
done

# Debian's busybox makes no ext4: the real tool, with its libraries.
for program in mkfs.ext4 e2fsck; do
  file=$(readlink -f "$(command -v "$program")")
  cp "$file" "$root/usr/sbin/$program"
  { ldd "$file" || true; } | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root/$(dirname "$library")"
    cp -nL "$library" "$root/$library"
  done
done

(cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) | gzip -1 >"$work/initrd.img"
# The kernel last: it is what tells that the guest is complete.
mv "$work/initrd.img" "$directory/guest-initrd.img"
mv "$work"/kernel/boot/vmlinuz-* "$directory/guest-vmlinuz"
echo "made $directory/guest-vmlinuz and $directory/guest-initrd.img"
