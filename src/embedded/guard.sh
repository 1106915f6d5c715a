# Runs "$@" in place of this shell, watched: when the other end of standard input closes without a
# word, which is what the death of Casebook by any means looks like, the watcher shuts it down.
exec 3<&0 </dev/null
# A process is known by its number and its time of birth, so that a reused number is never hit.
born() { read -r stat 2>/dev/null </proc/$$/stat || return 0; set -- $stat; echo "${22}"; }
mine=$(born)
# The inner "&" hands the watcher to init: PostgreSQL would take the violent end of a child that it
# does not know for a crash of its own.
(
  (
    exec >/dev/null 2>&1
    trap '' HUP INT QUIT TERM
    read -r word <&3 && exit 0
    left=30
    [ "$(born)" = "$mine" ] && kill -INT $$
    while [ "$(born)" = "$mine" ]; do
      [ $left -eq 0 ] && kill -QUIT $$ && exit 0
      left=$((left - 1))
      sleep 1
    done
  ) &
)
exec 3<&-
exec "$@"
