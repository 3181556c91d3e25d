#!/usr/bin/env bash
# Apptainer and a base image for the tests, on a Debian machine and as root.
#
#   apptainer.sh [up]   make what is missing, print the variables to use
#                       (status 3: this machine is no Debian, and has no apptainer)
#   apptainer.sh down   remove all that it made
#
# An apptainer that is on the PATH already is used. Else: Debian 12 has no package of
# it, Debian sid has one, so sid is unpacked into a folder of its own, and a wrapper
# /usr/local/bin/apptainer runs the program there with the machine's own folders
# around it. The wrapper enters a user namespace that has every user of the machine,
# in which apptainer can make its own; only root may do that.
#
# The base image is Debian with Python, made by debootstrap from the mirror in the
# machine's own apt sources: no container registry is asked for anything.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${RVTUTORIAL_APPTAINER:-/srv/rvtutorial-apptainer}
wrapper=/usr/local/bin/apptainer
base=$folder/debian.sif
export DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'apptainer.sh: %s\n' "$*" >&2; }

die() { say "$*"; exit 1; }

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

mirror() { # where this machine gets its Debian packages from
    # shellcheck disable=SC2016  # apt's own variables
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v name="$(codename)" '$1 == name { print $2; exit }'
}

inside() { chroot "$folder/root.part" env LC_ALL=C.UTF-8 "$@"; }

unpack_sid() { # a root folder with Debian sid's apptainer
    local new=$folder/root.part
    say "unpacking Debian sid with its apptainer into $folder"
    command -v debootstrap >/dev/null || {
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends debootstrap >/dev/null </dev/null
    }
    rm -rf "$new"
    debootstrap --variant=minbase --include=ca-certificates sid "$new" "$(mirror)" >"$folder/log" 2>&1 ||
        die "debootstrap failed; see $folder/log"
    as_this_machine "$new"
    # installing starts no daemons and writes no manuals
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d" && chmod +x "$new/usr/sbin/policy-rc.d"
    # a mirror that lags by some days serves the tests as well
    inside apt-get -o Acquire::Check-Valid-Until=false update -qq >>"$folder/log" 2>&1 || die "apt-get update failed; see $folder/log"
    # without squashfuse every start would unpack the whole image first
    inside apt-get install -y -qq --no-install-recommends \
        apptainer debootstrap squashfuse squashfs-tools fuse3 debian-archive-keyring \
        >>"$folder/log" 2>&1 </dev/null || die "no apptainer from Debian sid; see $folder/log"
    inside apt-get clean
    rm -rf "$new"/var/lib/apt/lists/* "$new"/usr/share/{doc,man,locale}
    mv "$new" "$folder/root"
}

as_this_machine() { # root folder: the network's names, proxies and certificates of this machine
    cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"
    fi
    { grep -hi '^ *acquire::https\?::proxy' /etc/apt/apt.conf /etc/apt/apt.conf.d/* 2>/dev/null || :; } \
        >"$1/etc/apt/apt.conf.d/90proxy"
}

write_wrapper() {
    # some versions of unshare leave the maps to newuidmap and newgidmap, which Debian has
    # in a package of their own and which ask /etc/subuid; root may write them itself
    mkdir -p "$folder/maps"
    for kind in uid gid; do
        # shellcheck disable=SC2016  # the script's own arguments
        printf '#!/bin/sh\necho "$2 $3 $4" >"/proc/$1/%s_map"\n' $kind >"$folder/maps/new${kind}map"
        chmod +x "$folder/maps/new${kind}map"
    done
    cat >"$wrapper.part" <<WRAP
#!/bin/bash
# made by rvtutorial's tests/cluster/apptainer.sh: Debian sid's apptainer in its own root
PATH=$folder/maps:\$PATH exec unshare -U --map-users=0,0,65536 --map-groups=0,0,65536 -m \\
    /bin/bash "$folder/enter" "$folder/root" "\$PWD" "\$@"
WRAP
    cat >"$folder/enter" <<'ENTER'
# enter ROOT FOLDER ARGUMENT... : ROOT becomes /, with every folder of this machine that
# is no part of its own system (/home, /tmp, /work ...), and apptainer starts in FOLDER
set -eu
root=$1 folder=$2
shift 2
PATH=${PATH#*:} # without the folder that only unshare needs
mount --make-rprivate /
mount --bind "$root" "$root"
for place in /*; do
    case $place in
    /bin | /boot | /etc | /lib | /lib32 | /lib64 | /libx32 | /lost+found | /run | /sbin | /usr | /var) continue ;;
    esac
    [ -d "$place" ] || continue
    mkdir -p "$root$place"
    mount --rbind "$place" "$root$place"
done
mkdir -p "$root/var/tmp" "$root/.old"
mount --rbind /var/tmp "$root/var/tmp"
cd "$root"
pivot_root . .old
umount -l /.old
cd "$folder"
exec /usr/bin/apptainer "$@"
ENTER
    chmod +x "$wrapper.part" && mv "$wrapper.part" "$wrapper"
}

build_base() {
    say "building a base image of $(codename)"
    apptainer build --build-arg "MIRROR=$(mirror)" --build-arg "RELEASE=$(codename)" \
        "$base.part" apptainer/debian.def >"$folder/base.log" 2>&1 ||
        die "the base image could not be built; see $folder/base.log"
    mv "$base.part" "$base"
}

ours() { grep -qs "made by rvtutorial" "$wrapper"; }

up() {
    [ "$(id -u)" = 0 ] || die "needs root"
    command -v apt-get >/dev/null || die "needs apt-get"
    mkdir -p "$folder"
    if ours || ! command -v apptainer >/dev/null; then
        if ! grep -q '^ID=debian' /etc/os-release; then
            say "this machine has no apptainer and is no Debian, from which to get one"
            exit 3
        fi
        [ -d "$folder/root" ] || unpack_sid
        as_this_machine "$folder/root"
        write_wrapper
    fi
    hash -r
    apptainer --version >/dev/null || die "apptainer does not start"
    [ -s "$base" ] || build_base
    echo "RVTUTORIAL_TEST_BASE=$base"
}

down() {
    if ours; then rm -f "$wrapper"; fi
    rm -rf "$folder"
}

case ${1:-up} in
up) up ;;
down) down ;;
*) die "usage: apptainer.sh [up|down]" ;;
esac
