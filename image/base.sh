#!/bin/sh
# Makes the image that the control plane's is built on: Debian 12 with Python, nothing else, from this machine's
# own package mirror. Needs root, debootstrap and buildah.
#
#     image/base.sh [TAG]
set -eu
tag=${1:-localhost/debian-base:12}
for program in debootstrap buildah; do
    command -v "$program" >/dev/null || { echo "$program is not installed: apt-get install $program" >&2; exit 69; }
done
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] *\)\{0,1\}\([^ ]*\) .*/\2/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1)
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" ${mirror:+"$mirror"}
rm -rf "$root"/var/cache/apt "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/man
container=$(buildah from scratch)
buildah add "$container" "$root" /
buildah commit "$container" "$tag"
buildah rm "$container"
