#!/usr/bin/env bash
# A Slurm cluster of one node: this machine, on the loopback interface, for tests only. Debian or Ubuntu, as root.
#   tests/benchmark/slurm_node.sh start|stop
set -euo pipefail
node=$(hostname -s)

start() {
    if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
    fi
    mkdir -p /etc/slurm /var/spool/slurm-test/ctld /var/spool/slurm-test/d /run/munge
    [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
    chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
    chmod 400 /etc/munge/munge.key
    cat > /etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPidFile=/run/slurmctld-test.pid
SlurmdPidFile=/run/slurmd-test.pid
StateSaveLocation=/var/spool/slurm-test/ctld
SlurmdSpoolDir=/var/spool/slurm-test/d
SlurmctldLogFile=/var/log/slurmctld-test.log
SlurmdLogFile=/var/log/slurmd-test.log
MpiDefault=none
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1100)}' /proc/meminfo) State=UNKNOWN
PartitionName=debug Nodes=$node Default=YES MaxTime=01:00:00 State=UP OverSubscribe=NO
CONF
    echo "CgroupAutomount=no" > /etc/slurm/cgroup.conf
    pgrep -x munged >/dev/null || runuser -u munge -- munged
    stop
    pgrep -x slurmctld >/dev/null || slurmctld
    pgrep -x slurmd >/dev/null || slurmd
    for _ in $(seq 60); do
        sinfo -h -o %T 2>/dev/null | grep -qE 'idle|mixed|allocated' && exec sinfo
        sleep 1
    done
    sinfo || true
    tail -n 20 /var/log/slurmctld-test.log /var/log/slurmd-test.log >&2
    exit 1
}

stop() {
    for name in slurmd slurmctld; do
        [ -s /run/$name-test.pid ] && kill "$(cat /run/$name-test.pid)" 2>/dev/null || true
    done
    for _ in $(seq 20); do pgrep -x slurmd >/dev/null || pgrep -x slurmctld >/dev/null || break; sleep 0.5; done
}

"${1:-start}"
