again() { # Returns 0 if the run continues after exit code $1; the file $restarts counts.
  case $1 in
    ~{again}) ;;
    *) return 1 ;; # Done, or an error that would only be repeated (docs/runs.md).
  esac
  local saved
  saved="saved: $(~{inspect} | tr '\n' ' ')"
  echo "$saved" >> "$restarts"
  if [ "$(grep -cFx -- "$saved" "$restarts")" -gt ~{max_restarts} ]; then
    echo "~{name}: ~{max_restarts} restarts have saved no step; not restarted." >&2
    return 1
  fi
}
