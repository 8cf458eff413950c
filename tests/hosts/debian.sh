#!/usr/bin/env bash
# Notebooks and quick tests with the Python of another Debian release, in a folder of it:
#   bash tests/hosts/debian.sh trixie    Python 3.13
#   bash tests/hosts/debian.sh forky     Python 3.14
# A second argument is run in make test's place: 'make .venv/.ready && .venv/bin/pytest -m "not ci and not slow"'.
# Needs root, debootstrap and 10 GB. The folder is kept in _hosts/ for the next time; what is committed is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=$1 folder=$PWD/_hosts/debian-$1 what=${2:-make test}
mirror=$(grep -hoE "https?://[^ ]*/debian/?( |$)" /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2> /dev/null | head -1 || true)
if [ ! -x "$folder/usr/bin/python3" ]; then
  mkdir -p "$folder"
  debootstrap --variant=minbase --include=python3,python3-venv,make,git,ca-certificates,libgomp1 \
    "$release" "$folder" "$mirror" /usr/share/debootstrap/scripts/sid > "$folder.log"
fi
# All of the last time goes but the environment, into which make installs again only what has changed.
mkdir -p "$folder/lesson6" && find "$folder/lesson6" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
git archive HEAD | tar -x -C "$folder/lesson6"
# The index, certificates and names that this machine uses are used in there too.
cp --parents -L $(ls -d /etc/resolv.conf /etc/pip.conf "$HOME"/.config/pip/pip.conf ${PIP_CERT:-} ${SSL_CERT_FILE:-} 2> /dev/null | sort -u) "$folder"
mount --bind /proc "$folder/proc" && mount --bind /dev "$folder/dev"
trap 'umount "$folder/proc" "$folder/dev"' EXIT
chroot "$folder" env -u PYTHONPATH -u PYTHONDONTWRITEBYTECODE -u LESSON6_DATA HOME="$HOME" PATH=/usr/bin:/bin LANG=C.UTF-8 \
  sh -c "cd /lesson6 && python3 --version && $what"
