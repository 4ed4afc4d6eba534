#!/usr/bin/env bash
# Install what tests need, of "clusters" or of a "browser", where that disturbs nobody: as root in a container of Debian
# or Ubuntu. Elsewhere it says why it does not, and the tests skip with what is missing. It neither fails nor hangs.
case "$1" in
  clusters) programs="slurmctld slurmd munged sshd ip" packages="slurm-wlm munge openssh-server iproute2" ;;
  browser) programs="chromium" packages="chromium fonts-dejavu-core" ;;
  *) echo "give clusters or browser" >&2 && exit 2 ;;
esac
missing="" tests="tests of ${1%s}s"
for program in $programs; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null || missing="$missing $program"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "$tests need$missing, and only root can install them: apt-get install $packages"
elif ! command -v apt-get > /dev/null; then
  echo "$tests need$missing, and there is no apt-get here"
elif [ -d /run/systemd/system ]; then
  echo "$tests need$missing; packages would start services here, so install them yourself: $packages"
else
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # in runlevel 1 a package starts no service
  quick=(-q -y -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=30)
  log=$(mktemp)
  # The lists may be old, or none: they are fetched only where the packages are not found without.
  timeout -k 5 150 apt-get install "${quick[@]}" --no-install-recommends $packages > "$log" 2>&1 < /dev/null ||
    { timeout -k 5 60 apt-get update "${quick[@]}" > "$log" 2>&1 < /dev/null &&
      timeout -k 5 150 apt-get install "${quick[@]}" --no-install-recommends $packages > "$log" 2>&1 < /dev/null; } ||
    echo "$tests need$missing, and apt-get could not install them: $(tail -n 1 "$log")"
  rm -f "$log"
fi
exit 0
