"""From a clone to the first trained section: what `make run` does, which installs with uv, and the
same by hand with pip.

Each time anew, with empty caches, so that a round downloads some 3 GB twice and needs 15 GB of disk
for a while; that is why `make bench` leaves it out.
"""
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import report, side_by_side

root, children = Path(__file__).parent.parent, resource.RUSAGE_CHILDREN
section = '04_collab'
# As README says them, but for the name of the section, and in two steps to see how long each takes
ways = {'by hand, pip': [[[sys.executable, '-m', 'venv', '.venv'],
                          ['.venv/bin/python', '-m', 'pip', 'install', '--quiet', '--constraint',
                           'constraints.txt', '--editable', '.[book,dev]']],
                         [['.venv/bin/lesson6', 'run', section]]],
        '`make run`, uv': [[['make', f'PYTHON={sys.executable}', '.venv/.ready']],
                           [['make', f'PYTHON={sys.executable}', 'run', f'NB={section}']]]}


def cold(folder):
    """This machine's settings, with every cache in a folder, and nothing of the Python or the data
    that are used here"""
    caches = {name: str(folder/'caches')
              for name in ('XDG_CACHE_HOME', 'PIP_CACHE_DIR', 'UV_CACHE_DIR', 'LESSON6_CACHE',
                           'MPLCONFIGDIR')}
    return {k: v for k, v in os.environ.items() if k != 'VIRTUAL_ENV' and 'CACHE' not in k
            and not k.startswith(('LESSON6_', 'PYTHON'))} | caches


def seconds(commands, folder, env):
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_section(steps):
    "Seconds of each step in a fresh clone, and of the processor for all of them"
    with tempfile.TemporaryDirectory() as folder:
        clone, env = Path(folder)/'lesson6', cold(Path(folder))
        get = ['git', 'clone', '--quiet', str(root), str(clone)]
        before = resource.getrusage(children)
        took = [seconds(commands, where, env)
                for commands, where in [([get], folder), *((step, clone) for step in steps)]]
        after = resource.getrusage(children)
    names = ['cloning, s', 'installing, s', 'the section, s']
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {'seconds': sum(took), **dict(zip(names, took, strict=True)),
            'of the processor, s': worked}


def all_ways(rounds=3):
    table = side_by_side({name: lambda steps=steps: first_section(steps)
                          for name, steps in ways.items()}, 'by hand, pip', rounds)
    report('install', 'From a clone to the first trained section', table, 'Cloning, installing '
           f'and `{section}`, run to its end. {rounds} rounds in turn, each with empty caches; '
           'what a step took is the mean. How fast the line is counts as much as the machine.',
           chart=False)


if __name__ == '__main__': all_ways()
