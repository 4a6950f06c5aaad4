#!/usr/bin/env bash
# A real SLURM with two nodes and accounting on one machine, for tests: no GPU needed (8 pretended ones a node).
#
#   scripts/slurm_testbed.sh install   packages of Debian or Ubuntu (as root)
#   scripts/slurm_testbed.sh start     prints the line that points clients to it: export SLURM_CONF=...
#   scripts/slurm_testbed.sh stop      ends the daemons; all state lies in one folder, which is removed
#
# FLOPSFIT_DS_SLURM_FOLDER chooses the folder. Runs as root; nothing outside the folder is written but device nodes in it.
set -euo pipefail

folder=${FLOPSFIT_DS_SLURM_FOLDER:-${TMPDIR:-/tmp}/flopsfit-ds-slurm}
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf
ctld_port=17000 node_port=17001 dbd_port=17010 sql_port=17011
socket=$folder/mysql/mysqld.sock

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # the packages would start daemons of their own, with settings of their own
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
  apt-get install -y -qq --no-install-recommends \
    slurm-wlm slurm-wlm-basic-plugins slurmdbd slurm-wlm-mysql-plugin munge mariadb-server >/dev/null
  rm -f /usr/sbin/policy-rc.d
}

# cred_expire: a requeued job waits until its credentials have expired, which is two minutes if nothing is said
write_settings() {
  mkdir -p "$folder"/{spool.n1,spool.n2,state,log,munge,mysql,gpus}
  chmod 755 "$folder"
  for i in 0 1 2 3 4 5 6 7; do [ -e "$folder/gpus/nvidia$i" ] || mknod "$folder/gpus/nvidia$i" c 195 "$i"; done
  local cpus memory
  cpus=$(nproc) memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 2048))
  cat >"$SLURM_CONF" <<SETTINGS
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,requeue_delay=1
ReturnToService=2
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
SlurmdTimeout=15
KillWait=5
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd_port
AccountingStoragePass=$folder/munge/socket
JobAcctGatherType=jobacct_gather/linux
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$node_port CPUs=$cpus RealMemory=$memory Gres=gpu:8
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((node_port + 1)) CPUs=$cpus RealMemory=$memory Gres=gpu:8
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 OverSubscribe=FORCE:8
PartitionName=high Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
SETTINGS
  cat >"$folder/gres.conf" <<SETTINGS
AutoDetect=off
NodeName=n1,n2 Name=gpu File=$folder/gpus/nvidia[0-7] Flags=nvidia_gpu_env
SETTINGS
  cat >"$folder/slurmdbd.conf" <<SETTINGS
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$dbd_port
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$sql_port
StorageUser=slurm
StoragePass=testbed
StorageLoc=slurm_accounting
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/slurmdbd.pid
SETTINGS
  chmod 600 "$folder/slurmdbd.conf"
}

wait_for() { # seconds, command...
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "slurm_testbed.sh: gave up on: $*; see $folder/log" >&2
      return 1
    fi
    sleep 0.2
  done
}

start_munge() {
  [ -f "$folder/munge/key" ] || dd if=/dev/urandom of="$folder/munge/key" bs=1 count=1024 status=none
  chmod 400 "$folder/munge/key"
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
}

start_database() {
  chown -R mysql "$folder/mysql"
  if [ ! -d "$folder/mysql/data" ]; then
    mysql_install_db --no-defaults --user=mysql --datadir="$folder/mysql/data" >"$folder/log/mysql_install.log" 2>&1
  fi
  setsid mariadbd --no-defaults --user=mysql --datadir="$folder/mysql/data" --socket="$socket" --port=$sql_port \
    --bind-address=127.0.0.1 --pid-file="$folder/mysql/pid" >"$folder/log/mariadb.log" 2>&1 </dev/null &
  wait_for 30 mysqladmin --no-defaults --socket="$socket" ping
  mysql --no-defaults --socket="$socket" -e "
    create database if not exists slurm_accounting;
    create user if not exists 'slurm'@'127.0.0.1' identified by 'testbed';
    create user if not exists 'slurm'@'localhost' identified by 'testbed';
    grant all on slurm_accounting.* to 'slurm'@'127.0.0.1';
    grant all on slurm_accounting.* to 'slurm'@'localhost';"
}

start_slurm() {
  slurmdbd
  wait_for 30 sacctmgr -n show cluster
  sacctmgr -i -Q add cluster testbed >/dev/null 2>&1 || true
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF" -N n1
  slurmd -f "$SLURM_CONF" -N n2
  wait_for 30 sh -c "test \"\$(sinfo -h -N -p main -t idle,mixed,allocated | wc -l)\" = 2"
  sacctmgr -i -Q add account testbed >/dev/null 2>&1 || true
  sacctmgr -i -Q add user "$(id -un)" account=testbed >/dev/null 2>&1 || true
}

steps_and_jobs() { # pids of this testbed's: of no other SLURM's, and not of a shell that SLURM_CONF was exported in
  local process
  for process in /proc/[0-9]*; do
    grep -zqxF "SLURM_CONF=$SLURM_CONF" "$process/environ" 2>/dev/null || continue
    if grep -qx 'slurm.*' "$process/comm" || grep -zq '^SLURM_JOB_ID=' "$process/environ"; then
      echo "${process#/proc/}"
    fi
  done
}

stop_all() {
  local pids=()
  for file in slurmd.n1.pid slurmd.n2.pid slurmctld.pid slurmdbd.pid mysql/pid munge/pid; do
    if [ -f "$folder/$file" ]; then pids+=("$(cat "$folder/$file")"); fi
  done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
  done
  # a slurmd waits for steps that a job cancelled a moment ago has not ended, and these for the job's own processes
  for pid in "${pids[@]}" $(steps_and_jobs); do kill -9 "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
}

case ${1:-} in
install) install_packages ;;
start)
  if [ -f "$folder/slurmctld.pid" ] && kill -0 "$(cat "$folder/slurmctld.pid")" 2>/dev/null; then
    echo "export SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  write_settings
  start_munge
  start_database
  start_slurm
  echo "export SLURM_CONF=$SLURM_CONF"
  ;;
stop) stop_all ;;
*)
  sed -n '2,9p' "$0"
  exit 2
  ;;
esac
