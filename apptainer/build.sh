#!/bin/bash -l
# Build the image once, as a batch job or on a machine with the internet.
#SBATCH --job-name=build-image
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=02:00:00
set -u

usage() {
    cat <<'TEXT'
usage: build.sh [-h] [-n] [-t SCRATCH] [-m MODULE]... [-w yes|no|FOLDER] [-d MIRROR]
                [-b FROM:TO]... [-a NAME=VALUE]... [IMAGE]

Build rastervision.def into one image file.

  IMAGE       the file to write (default: rastervision.sif)
  -t SCRATCH  folder for Apptainer's cache and temporary files, 15 GB free
              (default: $SCRATCH, else the folder of IMAGE); not the home folder
  -m MODULE   load this module first, such as apptainer
  -w WEIGHTS  the ImageNet weights of the backbones: yes (download them into the image,
              the default), no (bind a folder to /opt/torch in every job), or a folder
              with files such as resnet50-11ad3fa6.pth to copy from
  -d MIRROR   start from Debian itself, taken from this Debian mirror (debian.def; needs
              debootstrap), and not from an image of a container registry
  -b FROM:TO  show a folder of the machine to the build: to /opt/pip one with a pip.conf,
              to the folder named by -a PACKAGES=... that one
  -a N=V      another build argument of rastervision.def, such as FROM=...
  -n          show the command, and run nothing
  -h          show this text

As a job: sbatch --account=... --partition=... apptainer/build.sh /project/me/rv.sif
started in the checkout. Needs Apptainer 1.2 or newer.
TEXT
}

die() {
    printf 'build.sh: %s\n' "$1" >&2
    exit 2
}

find_root() { # the checkout: sbatch runs a copy of this script from its own folder
    local here=${BASH_SOURCE[0]}
    [[ $here == */slurm_script ]] && here=${SLURM_SUBMIT_DIR:-.}/apptainer/build.sh
    root=$(cd "$(dirname "$here")/.." && pwd)
    [ -f "$root/apptainer/rastervision.def" ] || die "no apptainer/rastervision.def in $root; start this in the checkout"
}

show() { # command... : as one would type it
    printf 'APPTAINER_CACHEDIR=%q APPTAINER_TMPDIR=%q' "$scratch/apptainer-cache" "$scratch/apptainer-tmp"
    printf ' %q' "$@"
    echo
}

private() { # folder: made for you, refused when others can write to it
    mkdir -p "$(dirname "$1")"
    mkdir -m 700 "$1" 2>/dev/null
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && [ -z "$(find "$1" -maxdepth 0 -perm /002)" ] ||
        die "$1 is not a folder that is yours alone; name another place with -t"
}

scratch=${SCRATCH:-} weights=yes mirror='' dry_run=0 arguments=() modules=() binds=()
while getopts ':hnt:w:a:m:d:b:' option; do
    case $option in
    h) usage && exit 0 ;;
    n) dry_run=1 ;;
    t) scratch=$OPTARG ;;
    w) weights=$OPTARG ;;
    m) modules+=("$OPTARG") ;;
    d) mirror=$OPTARG ;;
    b) binds+=(--bind "$OPTARG") ;;
    a) arguments+=(--build-arg "$OPTARG") ;;
    :) usage >&2 && die "option -$OPTARG needs a value" ;;
    *) usage >&2 && die "there is no option -$OPTARG" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -le 1 ] || { usage >&2 && die "one image, not $#: $*"; }
case $weights in
yes | no) ;;
*)
    compgen -G "$weights/*.pth" >/dev/null || compgen -G "$weights/hub/checkpoints/*.pth" >/dev/null ||
        { usage >&2 && die "-w takes yes, no or a folder with weights (*.pth), not '$weights'"; }
    binds+=(--bind "$(cd "$weights" && pwd):/mnt:ro")
    weights=/mnt
    ;;
esac
find_root

image=${1:-rastervision.sif}
[[ $image == /* ]] || image=$PWD/$image
[ -d "$(dirname "$image")" ] || die "no folder for $image"
scratch=${scratch:-$(dirname "$image")}
[[ $scratch == /* ]] || scratch=$PWD/$scratch
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/rvtutorial/__init__.py")

# --fakeroot: an ordinary user may install packages inside the image
build=(apptainer build)
[ "$(id -u)" = 0 ] || build+=(--fakeroot)
base=("${build[@]}" --build-arg "MIRROR=$mirror" "$image.base" apptainer/debian.def)
command=("${build[@]}" "${binds[@]}" --build-arg "VERSION=$version" --build-arg "WEIGHTS=$weights")
[ -z "$mirror" ] || command+=(--build-arg BOOTSTRAP=localimage --build-arg "FROM=$image.base")
command+=("${arguments[@]}" "$image.part" apptainer/rastervision.def)
# the test inside needs what the build was shown
try=(apptainer test "${binds[@]}" "$image.part")

if [ "$dry_run" = 1 ]; then
    for module in "${modules[@]}"; do printf 'module load %q\n' "$module"; done
    printf 'cd %q\n' "$root"
    [ -z "$mirror" ] || show "${base[@]}"
    show "${command[@]}"
    exit 0
fi
for module in "${modules[@]}"; do
    module load "$module" || die "module load $module failed; see: module avail apptainer"
done
command -v apptainer >/dev/null || die "no apptainer on the PATH; on a cluster add -m apptainer"
[ ! -e "$image" ] || die "$image is there already; move it away first (jobs may be using it)"
private "$scratch/apptainer-cache"
APPTAINER_TMPDIR=$(mktemp -d "$scratch/apptainer-tmp.XXXXXX") || exit 1
export APPTAINER_CACHEDIR=$scratch/apptainer-cache APPTAINER_TMPDIR
trap 'rm -rf "$image.part" "$image.base" "$APPTAINER_TMPDIR"' EXIT
cd "$root" || exit 1
[ -z "$mirror" ] || "${base[@]}" || exit
"${command[@]}" || exit
"${try[@]}" || exit
# a name that exists is a whole image: it is moved there when all is done
mv "$image.part" "$image" || exit
sha256sum "$image" | tee "$image.sha256"
