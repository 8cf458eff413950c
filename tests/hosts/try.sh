#!/usr/bin/env bash
# The five sections and the quick tests with other versions, without the extras, in an environment of its own:
#   bash tests/hosts/try.sh lowest                      the lowest that settings.ini allows
#   bash tests/hosts/try.sh colab-2026-08 python3.13    those of a list in this folder, of which none may be replaced
# Needs uv. The environment is kept in _hosts/ for the next time.
set -euo pipefail
cd "$(dirname "$0")/../.."
host=${1:-lowest} env=$PWD/_hosts/${1:-lowest}
command -v uv > /dev/null || { echo "This needs uv: pip install uv"; exit 1; }
export VIRTUAL_ENV=$env OMP_NUM_THREADS=1
unset PYTHONPATH LESSON6_DATA LESSON6_ARCH
uv venv --quiet --clear --python "${2:-python3}" "$env"
tools="ipykernel nbconvert pytest pytest-xdist hypothesis setuptools"
if [ "$host" = lowest ]; then
  uv pip install --quiet --resolution lowest-direct --editable .
else
  uv pip install --quiet --requirement "tests/hosts/$host.txt"
  uv pip freeze > "$env/before.txt"
  uv pip install --quiet --editable .
  uv pip freeze > "$env/after.txt"
  if comm -23 <(sort "$env/before.txt") <(sort "$env/after.txt") | grep .; then echo "These were replaced."; exit 1; fi
  echo "Nothing was replaced. Added:"
  comm -13 <(sort "$env/before.txt") <(sort "$env/after.txt")
fi
uv pip freeze --exclude-editable > "$env/held.txt"
uv pip install --quiet --constraint "$env/held.txt" $tools
for section in nbs/0*.ipynb; do
  "$env/bin/jupyter" nbconvert --log-level WARN --to notebook --execute --output-dir "$env/run" "$section"
  echo "$section ran to its end"
done
# Those that take an extra are skipped.
"$env/bin/pytest" -p no:cacheprovider -m "not ci and not slow" tests
