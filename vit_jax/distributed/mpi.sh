#!/bin/bash
# Written by `vit_jax.main launch`. To start it: bash ~{file} [OPTION OF mpirun...]
# such as --hostfile=FILE, or --host=node1,node2.

cd ~{folder} || exit 2
~{exports}
restarts=~{name}.restarts # Newest saved steps, one line for each restart.
: > "$restarts"
[ "$EUID" -ne 0 ] || set -- --allow-run-as-root "$@"

~{functions}

# After SIGTERM, Ctrl-C or SIGHUP, the processes of the run save their last step and end: mpirun
# passes SIGUSR1 on at once, but SIGTERM only after a delay.
stop=0
set -m # mpirun gets a process group of its own, which Ctrl-C does not reach.
for signal in HUP:129 INT:130 TERM:143; do
  trap "stop=${signal#*:}; kill -USR1 \$! 2> /dev/null" "${signal%:*}"
done

while :; do
  coordinator=$(mpirun "$@" -np 1 hostname):$((20000 + RANDOM % 12000))
  [ $stop -eq 0 ] || exit $stop
  mpirun "$@" ~{mpirun} \
    ~{train} --coordinator="$coordinator" < /dev/null &
  while wait $!; code=$?; kill -0 $! 2> /dev/null; do :; done
  [ $code -ne 0 ] || exit 0
  [ $stop -eq 0 ] || exit $stop
  again $code || exit $code
done
