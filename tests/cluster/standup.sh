#!/usr/bin/env bash
# A Slurm of one node for the tests, on a Debian machine and as root; it can be run again.
#
#   standup.sh [up]   install what is missing, start it, print the variables to use
#   standup.sh env    print them again; status 1 when nothing answers
#   standup.sh down   stop it, and remove all that it wrote
#
# Everything lies in one folder (RVTUTORIAL_CLUSTER) and listens at three ports of its
# own (RVTUTORIAL_CLUSTER_PORT and the next two), so that a Slurm that is there already
# is not touched: the commands find this one by SLURM_CONF. Of a real cluster it has
# arrays, dependencies, time limits, signals, requeueing, preemption, accounts and
# gres/gpu; it does not kill jobs for their memory (that needs cgroups).
# RVTUTORIAL_ACCOUNTING=no leaves the accounting out, as some sites do.
set -euo pipefail

root=${RVTUTORIAL_CLUSTER:-/srv/rvtutorial-cluster}
port=${RVTUTORIAL_CLUSTER_PORT:-8817}
accounting=${RVTUTORIAL_ACCOUNTING:-yes}
account=geospatialworkshop
users=(root student)
export SLURM_CONF=$root/etc/slurm.conf
export DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/sbin:/sbin
# this job's or kernel's own Slurm variables must not reach the daemons
unset "${!SLURM_JOB@}" "${!SBATCH_@}"

say() { printf 'standup: %s\n' "$*" >&2; }

die() { say "$*"; exit 1; }

wait_for() { # seconds command... : until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

alive() { # name of a daemon: does the process in its pid file live?
    [ -s "$root/run/$1.pid" ] && kill -0 "$(cat "$root/run/$1.pid")" 2>/dev/null
}

# --- packages

need() { # package... : install them; no daemon may start by itself
    local policy=/usr/sbin/policy-rc.d made=0 status=0
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made=1
    fi
    say "installing $*"
    apt-get update -qq &&
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null </dev/null ||
        status=1
    [ $made = 0 ] || rm -f $policy
    return $status
}

install_packages() {
    { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; } >/dev/null ||
        need munge slurmctld slurmd slurm-client || die "the packages of Slurm could not be installed"
    [ "$accounting" = yes ] || return 0
    { command -v slurmdbd && command -v mariadbd; } >/dev/null || need slurmdbd mariadb-server || {
        say "no accounting: slurmdbd and mariadb-server could not be installed"
        accounting=no
    }
}

# --- configuration

write_config() {
    local host i
    host=$(hostname -s)
    install -d "$root" "$root"/{etc,run,log,state,spool,gpu}
    for i in 0 1 2 3; do
        # a GPU is a character device to Slurm; any will do (a plain file only warns)
        [ -e "$root/gpu/gpu$i" ] || mknod "$root/gpu/gpu$i" c 1 3 2>/dev/null || : >"$root/gpu/gpu$i"
    done
    printf 'NodeName=%s Name=gpu Type=a100_1g.10gb File=%s\n' "$host" "$root/gpu/gpu[0-3]" >"$root/etc/gres.conf"
    # slurmd starts its cgroup plugin even when nothing uses it; this one asks for nothing
    echo CgroupPlugin=cgroup/v1 >"$root/etc/cgroup.conf"
    cat >"$SLURM_CONF" <<CONF
ClusterName=tutorial
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start (default: 120 s)
AuthInfo=socket=$root/run/munge/socket,cred_expire=10
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=300
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=1
$(accounting_lines)
GresTypes=gpu
# more cores and memory than there are: the tests' jobs mostly sleep, and sites ask for 16G
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=65536 Gres=gpu:a100_1g.10gb:4 State=UNKNOWN
PartitionName=gpu-a100-mig7 Nodes=ALL Default=YES DefMemPerCPU=256 MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=5 State=UP
PartitionName=urgent Nodes=ALL DefMemPerCPU=256 MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=short Nodes=ALL DefMemPerCPU=256 MaxTime=5 PriorityTier=1 PreemptMode=OFF State=UP
PartitionName=closed Nodes=ALL DefMemPerCPU=256 MaxTime=5 State=INACTIVE
CONF
}

accounting_lines() {
    if [ "$accounting" != yes ]; then
        echo JobAcctGatherType=jobacct_gather/none
        echo AccountingStorageType=accounting_storage/none
        return
    fi
    cat <<CONF
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=30
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))
AccountingStoragePass=$root/run/munge/socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
CONF
}

# --- daemons

start_munge() { # who sent a request: a key and a daemon of our own
    alive munged && return
    install -d -o munge -g munge -m 755 "$root/run/munge"
    install -d -o munge -g munge -m 700 "$root/munge"
    [ -s "$root/munge/key" ] || head -c 1024 /dev/urandom >"$root/munge/key"
    chown munge: "$root/munge/key" && chmod 400 "$root/munge/key"
    runuser -u munge -- "$(command -v munged)" --socket="$root/run/munge/socket" \
        --key-file="$root/munge/key" --pid-file="$root/run/munge/pid" \
        --log-file="$root/munge/log" --seed-file="$root/munge/seed"
    ln -sf munge/pid "$root/run/munged.pid"
    wait_for 10 munge -S "$root/run/munge/socket" -n || die "munged does not answer; see $root/munge/log"
}

database() { mariadb --socket="$root/db/socket" "$@"; }

start_database() {
    alive mariadb && return
    if [ ! -d "$root/db/mysql" ]; then
        install -d -o mysql -g mysql "$root/db"
        mariadb-install-db --no-defaults --user=mysql --datadir="$root/db" --skip-test-db \
            --auth-root-authentication-method=socket >"$root/log/mariadb.log" 2>&1
    fi
    # keep nothing of the caller open, or whoever reads our output would wait for ever
    setsid mariadbd --no-defaults --user=mysql --datadir="$root/db" --socket="$root/db/socket" \
        --pid-file="$root/db/pid" --skip-networking --innodb-buffer-pool-size=64M \
        --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
        </dev/null >>"$root/log/mariadb.log" 2>&1 &
    ln -sf ../db/pid "$root/run/mariadb.pid"
    wait_for 30 database -e 'select 1' || die "mariadbd does not answer; see $root/log/mariadb.log"
    database -e "create database if not exists slurm_acct_db;
        create user if not exists slurm@localhost identified by 'slurm';
        grant all on slurm_acct_db.* to slurm@localhost"
}

start_accounting() {
    [ "$accounting" = yes ] || return 0
    start_database
    cat >"$root/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$root/run/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
SlurmUser=root
LogFile=$root/log/slurmdbd.log
PidFile=$root/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
    chmod 600 "$root/etc/slurmdbd.conf" # it refuses a file that others can read
    # slurmdbd.conf has no option for the database's socket; this variable is one
    alive slurmdbd || MYSQL_UNIX_PORT=$root/db/socket slurmdbd
    wait_for 30 sacctmgr -n show cluster || die "slurmdbd does not answer; see $root/log/slurmdbd.log"
    [ -n "$(sacctmgr -nP show cluster tutorial)" ] || sacctmgr -iQ add cluster tutorial >/dev/null
    [ -n "$(sacctmgr -nP show account $account)" ] ||
        sacctmgr -iQ add account $account Description=tutorial Organization=tutorial >/dev/null
    local user
    for user in "${users[@]}"; do
        [ -n "$(sacctmgr -nP show assoc where user="$user" account=$account)" ] ||
            sacctmgr -iQ add user "$user" Account=$account DefaultAccount=$account >/dev/null
    done
}

start_slurm() {
    alive slurmctld || slurmctld
    wait_for 30 ping_controller || die "slurmctld does not answer; see $root/log/slurmctld.log"
    alive slurmd || slurmd -N "$(hostname -s)"
    wait_for 30 node_is_up || die "the node does not come up; see $root/log/slurmd.log"
}

ping_controller() { timeout 5 scontrol ping | grep -q UP; }

node_is_up() { sinfo -h -o %t | grep -qE '^(idle|mix|alloc|comp)$'; }

make_student() { # an ordinary user, who has no rights but those that anybody has
    getent passwd student >/dev/null && return
    useradd --create-home --shell /bin/bash student && touch "$root/made-student"
}

# --- commands

up() {
    [ "$(id -u)" = 0 ] || die "needs root"
    command -v apt-get >/dev/null || die "needs apt-get"
    install_packages
    if ! { alive slurmctld && alive slurmd; }; then
        write_config
    fi
    make_student
    start_munge
    start_accounting
    start_slurm
    show_env
}

show_env() {
    ping_controller || return 1
    grep -q slurmdbd "$SLURM_CONF" && accounting=yes || accounting=no
    echo "SLURM_CONF=$SLURM_CONF"
    echo "RVTUTORIAL_TEST_PARTITION=gpu-a100-mig7"
    echo "RVTUTORIAL_TEST_ACCOUNTING=$accounting"
    [ "$accounting" = no ] || echo "RVTUTORIAL_TEST_ACCOUNT=$account"
}

stop() { # name: end a daemon and wait until it is gone
    alive "$1" || return 0
    local pid
    pid=$(cat "$root/run/$1.pid")
    kill "$pid"
    wait_for 15 gone "$pid" || kill -9 "$pid" 2>/dev/null || :
}

gone() { ! kill -0 "$1" 2>/dev/null; }

no_jobs() { [ -z "$(squeue -h)" ]; }

down() {
    [ -d "$root" ] || return 0
    [ "$(id -u)" = 0 ] || die "needs root"
    if ping_controller 2>/dev/null; then
        squeue -h -o %A | sort -u | xargs -r scancel 2>/dev/null || :
        wait_for 20 no_jobs || :
    fi
    local daemon
    for daemon in slurmd slurmctld slurmdbd mariadb munged; do stop $daemon; done
    if [ -e "$root/made-student" ]; then userdel -r student 2>/dev/null || :; fi
    rm -rf "$root"
}

case ${1:-up} in
up) up ;;
env) show_env ;;
down) down ;;
*) die "usage: standup.sh [up|env|down]" ;;
esac
