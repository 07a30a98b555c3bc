#!/bin/sh
# keepalived's `notify` script: writes down an instance's role, and which processes said so, where
# the MTA looks for it after a restart (cluster: state-file). POSIX sh; called by keepalived as
#     notify.sh FILE INSTANCE|GROUP NAME MASTER|BACKUP|FAULT|STOP PRIORITY
# One line, written to a file of its own and moved into place, so that no half of it is ever read:
#     INSTANCE "NAME" ROLE PRIORITY at UPTIME boot BOOT-ID by PID:START PID:START
set -eu
umask 022
read -r at _ </proc/uptime
file=${1:?} kind=${2:?} name=${3:?} role=${4:?} priority=${5:-0}

# Field 22 of /proc/PID/stat is its start, field 4 its parent; the name before them may hold blanks.
life() {
    read -r line <"/proc/$1/stat"
    # shellcheck disable=SC2086 # the fields are to be split
    set -- "$1" ${line##*) }
    parent=$3
    life="$1:${21}"
}
life "$PPID"
child=$life
life "$parent"

# Two scripts of one instance may run at once: the one that began later has the newer word.
exec 9>"$file.lock"
flock 9
if [ -f "$file" ]; then
    newest=$(sed -n "s/^INSTANCE \"$name\" .* at \([0-9.]*\) boot .*/\1/p" "$file")
    boot=$(sed -n 's/.* boot \([^ ]*\) by .*/\1/p' "$file")
    if [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] &&
        [ "$(printf '%s\n%s\n' "$at" "${newest:-0}" | sort -n | tail -n 1)" != "$at" ]; then
        exit 0
    fi
fi
printf '%s "%s" %s %s at %s boot %s by %s %s\n' "$kind" "$name" "$role" "$priority" "$at" \
    "$(cat /proc/sys/kernel/random/boot_id)" "$life" "$child" >"$file.new"
mv "$file.new" "$file"
