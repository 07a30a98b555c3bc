#!/bin/sh
# What a node of the Pacemaker rig does as the first process of its own mount, UTS, IPC and PID
# namespaces: a file tree of its own where corosync and Pacemaker write, then both, then reaping.
#
#   pacemaker_node.sh NAME DIRECTORY ROOT
#
# DIRECTORY holds corosync.conf, cib.xml and fence_rig, and gets the logs; ROOT is the checkout.
set -eu
name=$1 directory=$2 root=$3
hostname "$name"
for place in /run /dev/shm /var/log /etc/corosync /var/lib/corosync /var/lib/pacemaker; do
  mount -t tmpfs tmpfs "$place"
done
cp "$directory/corosync.conf" /etc/corosync/
for place in blackbox cib cores pengine; do
  install -d -o hacluster -g haclient -m 0750 "/var/lib/pacemaker/$place"
done
install -d -o hacluster -g haclient -m 0750 /run/crm /var/log/pacemaker
install -o hacluster -g haclient -m 0600 "$directory/cib.xml" /var/lib/pacemaker/cib/cib.xml
install -d -m 0755 /run/resource-agents /run/mta
cp "$directory/$name/mta.yaml" /run/mta.yaml
# The agent and the fence agent where Pacemaker looks for them.
for place in /usr/lib/ocf/resource.d /usr/sbin; do
  install -d "/run/over$place" "/run/work$place"
  mount -t overlay overlay \
    -o "lowerdir=$place,upperdir=/run/over$place,workdir=/run/work$place" "$place"
done
install -D -m 0755 "$root/etc/ocf/mta" /usr/lib/ocf/resource.d/mta/mta
install -m 0755 "$directory/fence_rig" /usr/sbin/fence_rig
corosync -f >"$directory/$name/corosync.log" 2>&1 &
echo $! >/run/rig-corosync.pid
PCMK_logfile="$directory/$name/pacemaker.log" PCMK_logpriority=info
export PCMK_logfile PCMK_logpriority
until corosync-quorumtool -s >/dev/null 2>&1 || [ $? = 2 ]; do sleep 0.1; done
pacemakerd -f >"$directory/$name/pacemakerd.log" 2>&1 &
# The first process reaps whatever loses its parent: the shell does so while it waits.
while :; do sleep 1; done
