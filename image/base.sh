#!/bin/sh
# Makes the local image that the Containerfile starts from: Debian 12, minimal, with Python 3.11 and CA certificates.
# Packages come from the mirror that apt is set to on this machine (MIRROR=... for another). Needs root.
set -eu
suite=bookworm
name=localhost/debian-base:12

fail() {
    echo "image/base.sh: $1" >&2
    exit 1
}

for tool in buildah debootstrap; do
    command -v "$tool" > /dev/null || fail "$tool is missing: apt-get install buildah debootstrap"
done
[ "$(id -u)" = 0 ] || fail "debootstrap needs root"

sources() { # "URI CODENAME" of what apt knows here
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2> /dev/null | sort -u
}

mirror=${MIRROR:-$(sources | awk -v suite=$suite '$2 == suite { print $1; exit }')}
[ -n "$mirror" ] || fail "apt knows no mirror with $suite on this machine: set MIRROR"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
debootstrap --variant=minbase --include=python3.11,ca-certificates $suite "$root" "$mirror"

# debootstrap only takes the release: the updates since then, where this machine has them set
echo "deb $mirror $suite main" > "$root/etc/apt/sources.list"
sources | awk -v suite=$suite '$2 == suite "-updates" || $2 == suite "-security" { print "deb", $1, $2, "main" }' \
    >> "$root/etc/apt/sources.list"
chroot "$root" apt-get -q update
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q -y upgrade

# what no pod reads; and nothing of this machine may stay in it
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/usr/share/man/* \
    "$root"/usr/share/locale/* "$root"/tmp/*
find "$root/usr/share/doc" -type f ! -name copyright -delete # licences stay
: > "$root/etc/apt/sources.list"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
ln -sf python3.11 "$root/usr/bin/python3"

tar -C "$root" --numeric-owner --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -cf "$work/root.tar" .
container=$(buildah from scratch)
buildah add -q "$container" "$work/root.tar" / > /dev/null
buildah commit -q "$container" "$name" > /dev/null
buildah rm "$container" > /dev/null
echo "$name"
