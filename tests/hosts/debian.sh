#!/usr/bin/env bash
# Notebooks and quick tests with the Python of another Debian release, in a folder of it:
#   bash tests/hosts/debian.sh trixie    Python 3.13
#   bash tests/hosts/debian.sh forky     Python 3.14
# Needs root, debootstrap and 10 GB. The folder is kept in _hosts/ for the next time; what is committed is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=$1 folder=$PWD/_hosts/debian-$1
mirror=$(grep -hoE "https?://[^ ]*/debian/?( |$)" /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2> /dev/null | head -1 || true)
if [ ! -x "$folder/usr/bin/python3" ]; then
  mkdir -p "$folder"
  debootstrap --variant=minbase --include=python3,python3-venv,make,git,ca-certificates,libgomp1 \
    "$release" "$folder" "$mirror" /usr/share/debootstrap/scripts/sid > "$folder.log"
fi
rm -rf "$folder/lesson6" && mkdir "$folder/lesson6"
git archive HEAD | tar -x -C "$folder/lesson6"
# The index, certificates and names that this machine uses are used in there too.
cp --parents -L $(ls -d /etc/resolv.conf /etc/pip.conf /root/.config/pip/pip.conf ${PIP_CERT:-} ${SSL_CERT_FILE:-} 2> /dev/null) "$folder"
mount --bind /proc "$folder/proc" && mount --bind /dev "$folder/dev"
trap 'umount "$folder/proc" "$folder/dev"' EXIT
chroot "$folder" env -u PYTHONPATH -u PYTHONDONTWRITEBYTECODE -u LESSON6_DATA HOME=/root PATH=/usr/bin:/bin LANG=C.UTF-8 \
  sh -c 'cd /lesson6 && python3 --version && make test'
