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
usage: build.sh [-h] [-n] [-t SCRATCH] [-w yes|no] [-a NAME=VALUE]... [IMAGE]

Build rastervision.def into one image file.

  IMAGE       the file to write (default: rastervision.sif)
  -t SCRATCH  folder for Apptainer's cache and temporary files, 40 GB free
              (default: $SCRATCH, else the folder of IMAGE); not the home folder
  -m MODULE   load this module first, such as apptainer
  -w yes|no   put the ImageNet weights into the image (default: yes)
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

scratch=${SCRATCH:-} weights=yes dry_run=0 arguments=() modules=()
while getopts ':hnt:w:a:m:' option; do
    case $option in
    h) usage && exit 0 ;;
    n) dry_run=1 ;;
    t) scratch=$OPTARG ;;
    w) weights=$OPTARG ;;
    m) modules+=("$OPTARG") ;;
    a) arguments+=(--build-arg "$OPTARG") ;;
    :) usage >&2 && die "option -$OPTARG needs a value" ;;
    *) usage >&2 && die "there is no option -$OPTARG" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -le 1 ] || { usage >&2 && die "one image, not $#: $*"; }
case $weights in yes | no) ;; *) usage >&2 && die "-w takes yes or no, not '$weights'" ;; esac
find_root

image=${1:-rastervision.sif}
[[ $image == /* ]] || image=$PWD/$image
[ -d "$(dirname "$image")" ] || die "no folder for $image"
scratch=${scratch:-$(dirname "$image")}
[[ $scratch == /* ]] || scratch=$PWD/$scratch
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/rvtutorial/__init__.py")

# --fakeroot: an ordinary user may install packages inside the image
command=(apptainer build)
[ "$(id -u)" = 0 ] || command+=(--fakeroot)
command+=(--build-arg "VERSION=$version" --build-arg "WEIGHTS=$weights" "${arguments[@]}")
command+=("$image.part" apptainer/rastervision.def)

if [ "$dry_run" = 1 ]; then
    for module in "${modules[@]}"; do printf 'module load %q\n' "$module"; done
    printf 'cd %q\n' "$root"
    printf 'APPTAINER_CACHEDIR=%q APPTAINER_TMPDIR=%q' "$scratch/apptainer-cache" "$scratch/apptainer-tmp"
    printf ' %q' "${command[@]}"
    echo
    exit 0
fi
for module in "${modules[@]}"; do
    module load "$module" || die "module load $module failed; see: module avail apptainer"
done
command -v apptainer >/dev/null || die "no apptainer on the PATH; on a cluster add -m apptainer"
[ ! -e "$image" ] || die "$image is there already; move it away first (jobs may be using it)"
export APPTAINER_CACHEDIR=$scratch/apptainer-cache APPTAINER_TMPDIR=$scratch/apptainer-tmp
mkdir -p "$APPTAINER_CACHEDIR" "$APPTAINER_TMPDIR" || exit 1
trap 'rm -rf "$image.part" "$APPTAINER_TMPDIR"' EXIT
cd "$root" || exit 1
"${command[@]}" || exit
apptainer test "$image.part" || exit
# a name that exists is a whole image: it is moved there when all is done
mv "$image.part" "$image" || exit
sha256sum "$image" | tee "$image.sha256"
