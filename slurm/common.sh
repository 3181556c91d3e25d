# Shared by run_model1.sh and run_model2.sh; sourced, not run. They set me, root, site,
# output, dry_run and inside_job; read_settings sets what begins with site_.
# shellcheck shell=bash
# shellcheck disable=SC2154

die() { # message: say it on standard error and stop with 2
    printf '%s: %s\n' "${me:-rvtutorial}" "$1" >&2
    exit 2
}

find_python() { # print the first Python that is new enough to read site files
    local candidate
    for candidate in "${RVTUTORIAL_PYTHON:-}" "$root/.venv/bin/python" python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import tomllib' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found; name one in RVTUTORIAL_PYTHON"
}

read_settings() { # site preset output [name value ...]: check, set the variables below
    local text
    text=$(PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" - "$@" <<'PY'
import os
import shlex
import sys
from pathlib import Path

from rvtutorial import runs
from rvtutorial.hpc import sites

site_name, preset, output, *pairs = sys.argv[1:]
given = dict(zip(pairs[::2], pairs[1::2]))
try:
    site = sites.Site.read(site_name)
    asked = runs.Hyperparams.of(preset, **given).asdict()
    old = runs.Run(Path(output)).manifest.get("asked", {}).get("hyperparams", {})
    changes = runs.differences(old, asked) if old else {}
    if changes:
        words = [f"{key} is {a} there, {b} here" for key, (a, b) in changes.items()]
        raise ValueError(f"{output} holds another run: {'; '.join(words)}")
except (ValueError, FileNotFoundError) as err:
    sys.exit(str(err))
for name in "account partition qos gres mem time cpus image data scratch".split():
    value = getattr(site, name)
    if value is not None and name in ("image", "data", "scratch"):
        value = os.path.expanduser(os.path.expandvars(value))
        if "$" in value:
            sys.exit(f"site field {name} names a variable that is not set: {value}")
    print(f"site_{name}={shlex.quote('' if value is None else str(value))}")
for name in ("modules", "binds", "extra"):
    print(f"site_{name}=({shlex.join(getattr(site, name))})")
print(f"site_queue={site.queue} site_nodes={site.nodes} site_nv={int(site.nv)}")
print(f"home={shlex.quote(str(runs.Workspace().home))}")
PY
    ) || exit 2
    eval "$text"
}

job_text() { # print the job: a script in which every value is quoted
    local word line='' module
    echo '#!/bin/bash -l'
    for module in "${site_modules[@]}"; do printf 'module load %q || exit 1\n' "$module"; done
    echo 'set -eu'
    [ -z "$site_cpus" ] || printf 'export OMP_NUM_THREADS=%q\n' "$site_cpus"
    # shellcheck disable=SC2016  # expanded when the job runs
    printf 'scratch=$(mktemp -d %s/rvtutorial.XXXXXX)\n' "$(quoted_scratch)"
    # shellcheck disable=SC2016
    printf '%s\n' 'trap '\''rm -rf "$scratch"'\'' EXIT' 'mkdir "$scratch/home"'
    # scenes that are made on first use lie in the course's folder, for a job too
    [ -n "$data" ] || printf 'export {,APPTAINERENV_}RVTUTORIAL_HOME=%q\n' "$home"
    for word in "${run[@]}"; do line+=$(printf ' %q' "$word"); done
    if [ -z "$site_image" ]; then
        # shellcheck disable=SC2016
        printf 'TMPDIR="$scratch"%s\n' "$line"
        return
    fi
    # shellcheck disable=SC2016
    printf '%s \\\n    ' 'apptainer exec --no-eval --cleanenv --contain' \
        '--workdir "$scratch" --home "$scratch/home"'
    bind_options
    printf '%q \\\n   %s\n' "$site_image" "$line"
}

quoted_scratch() { # the folder for temporary files, as it stands in the job
    # shellcheck disable=SC2016
    if [ -n "$site_scratch" ]; then printf '%q' "$site_scratch"; else echo '"${TMPDIR:-/tmp}"'; fi
}

bind_options() { # what the container shows: this run's folder, the data, the site's binds
    local bind
    printf -- '--pwd %q --bind %q \\\n    ' "$output" "$output"
    if [ -n "$data" ]; then bind=$data:$data:ro; else bind=$home; fi
    printf -- '--bind %q \\\n    ' "$bind"
    for bind in "${site_binds[@]}"; do printf -- '--bind %q \\\n    ' "$bind"; done
    [ "$site_nv" = 0 ] || printf -- '--nv \\\n    '
}

sbatch_options() { # set the array `asked`: what the site wants to hear
    local name value
    asked=(--parsable "--job-name=$(basename "$output")" --nodes="$site_nodes" --ntasks=1
        --export=NONE "--chdir=$output" "--output=$output/slurm-%j.out")
    for name in account partition qos gres mem time; do
        value=site_$name
        [ -z "${!value}" ] || asked+=("--$name=${!value}")
    done
    [ -z "$site_cpus" ] || asked+=("--cpus-per-task=$site_cpus")
    asked+=("${site_extra[@]}")
}

launch() { # run the job here, queue it, or only show it
    local name
    if [ "$dry_run" = 1 ]; then
        if [ "$site_queue" = slurm ]; then
            sbatch_options
            printf 'sbatch'
            printf ' %q' "${asked[@]}"
            echo
        fi
        job_text
        return
    fi
    mkdir -p "$output" || die "cannot make the folder $output"
    if [ "$site_queue" = local ] || [ "$inside_job" = 1 ]; then
        bash -c "$(job_text)"
        return
    fi
    sbatch_options
    # a job asked for from within a job (a notebook session) must not inherit its limits
    for name in "${!SLURM_@}" "${!SBATCH_@}"; do
        [ "$name" = SLURM_CONF ] || unset "$name"
    done
    local job
    job=$(job_text | sbatch "${asked[@]}") || exit 1
    echo "job ${job%%;*} for $output; squeue --me shows it, its log is slurm-${job%%;*}.out there"
}

absolute() { # path: the same from the root, refused when it holds what would be split
    case $1 in '' | *[,:%\\\"\']* | *[[:cntrl:]]*)
        die "folder '$1' is empty or holds one of , : % \\ \" ' or a line break; rename it" ;;
    esac
    case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac
}

start() { # preset [name value ...]: everything after the command line has been read
    local preset=$1 name=''
    shift
    output=$(absolute "$output") || exit 2
    python=$(find_python) || exit 2
    read_settings "$site" "$preset" "$output" "$@"
    data=${RVTUTORIAL_DATA:-$site_data}
    local program=rastervision
    [ -n "$site_image" ] || program=$(find_rastervision)
    run=("$program" run inprocess rvtutorial.config -a output_uri "$output" -a preset "$preset")
    if [ -n "$data" ]; then
        data=$(absolute "$data") || exit 2
        run+=(-a data "$data")
    fi
    for name; do
        shift
        [ $(($# % 2)) = 0 ] || run+=(-a "$name" "$1")
    done
    launch
}

find_rastervision() { # the program, as a path that a job finds too
    command -v rastervision || {
        local beside
        beside=$(dirname "$(command -v "$python")")/rastervision
        [ -x "$beside" ] || die "no rastervision on the PATH or beside $python, and the site names no image"
        echo "$beside"
    }
}
