#!/bin/sh
# Builds both images from nothing but Debian's archive and a wheelhouse, and runs what is installed in them.
#   sh deploy/images.sh WHEELHOUSE FOLDER
# FOLDER takes a Debian root, a base image and buildah's storage: some 15 GB. It is safe to repeat: the root is made once.
# ONCOFED_DEBIAN names a mirror, ONCOFED_STORAGE a storage driver (vfs where overlay cannot be mounted).
set -eu

wheels=$(realpath "$1")
place=$(realpath --canonicalize-missing "$2")
recipe=$(dirname "$(realpath "$0")")/Containerfile
version=0.1.0

missing=
for program in buildah debootstrap tar; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
test -z "$missing" || { echo "images: missing:$missing (apt-get install buildah debootstrap); nothing was built" >&2; exit 3; }
test "$(id -u)" = 0 || { echo "images: debootstrap needs root; nothing was built" >&2; exit 3; }
test -e "$wheels/SHA256SUMS" || { echo "images: $wheels is not filled; make wheelhouse" >&2; exit 3; }
mkdir -p "$place"

# One storage of our own: nothing of another one on this machine is seen or changed.
ours() {
    command=$1
    shift
    buildah --root "$place/storage" --runroot "$place/run" --storage-driver "${ONCOFED_STORAGE:-overlay}" "$command" "$@"
}

# A Debian root with what the recipe asks of its base: Python 3.11 with venv, and nginx.
if ! test -e "$place/base.tar"; then
    rm -rf "$place/root"
    debootstrap --variant=minbase --include=python3,python3-venv,nginx-light,ca-certificates bookworm \
        "$place/root" ${ONCOFED_DEBIAN:+"$ONCOFED_DEBIAN"} >"$place/debootstrap.log"
    tar --create --one-file-system --directory "$place/root" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' \
        --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' --file "$place/base.tar.part" .
    mv "$place/base.tar.part" "$place/base.tar"
    rm -rf "$place/root"
fi
if ! ours inspect --type image localhost/oncofed-base:bookworm >/dev/null 2>&1; then
    base=$(ours from scratch)
    ours add --quiet "$base" "$place/base.tar" / >/dev/null
    ours commit --quiet "$base" localhost/oncofed-base:bookworm >/dev/null
    ours rm "$base" >/dev/null
fi

for target in site aggregator; do
    # Healthchecks are written in the older of the two formats only.
    ours build --isolation chroot --format docker --layers --quiet --file "$recipe" --target "$target" \
        --tag "localhost/oncofed-$target:$version" "$wheels" >/dev/null
    echo "images: localhost/oncofed-$target:$version built"
done

# What is installed, run in a container of the image, as the user whom the image names.
try() {
    image=$1
    shift
    inside=$(ours from "localhost/oncofed-$image:$version")
    if ours run --isolation chroot "$inside" -- sh -euc "$*" >"$place/$image.log" 2>&1; then
        echo "images: in $image: $*: done"
        ours rm "$inside" >/dev/null
    else
        ours rm "$inside" >/dev/null
        cat "$place/$image.log" >&2
        echo "images: in $image: $*: failed" >&2
        exit 1
    fi
}
try site 'id -u; oncofed-site --help'
try site 'mkdir /state/data; printf "patient_id,age\np1,60\np2,61\n" >/state/data/clinical.csv; oncofed-site init /state/data'
try site 'python -m oncofed_client.gate --help'
try aggregator 'id -u; oncofed-aggregator --help'
try aggregator 'cd /hub; oncofed-aggregator plan-key --out plan.key
    oncofed-aggregator init hub --name hub --address localhost:8443 --plan-key plan.pub
    oncofed-aggregator list --dir hub'
