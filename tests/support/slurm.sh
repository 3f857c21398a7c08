#!/bin/sh
# A Slurm cluster that is this machine alone, without systemd or cgroups, for tests/test_slurm.py. On Debian, as root:
#   apt-get install slurm-wlm munge
#   tests/slurm.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf    # FOLDER: an absolute path
#   python -m pytest -m slow tests/test_slurm.py
#   tests/slurm.sh stop FOLDER
set -eu
folder=$2

case $1 in
start)
    mkdir -p "$folder/state" "$folder/spool" /run/munge
    [ -e /etc/munge/munge.key ] || mungekey --create
    chown munge: /run/munge /etc/munge/munge.key
    runuser -u munge -- munged --pid-file=/run/munge/munged.pid
    cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname)
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$(hostname) CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    SLURM_CONF=$folder/slurm.conf slurmctld
    SLURM_CONF=$folder/slurm.conf slurmd
    ;;
stop)
    kill "$(cat "$folder/slurmd.pid")" "$(cat "$folder/slurmctld.pid")" "$(cat /run/munge/munged.pid)"
    ;;
esac
