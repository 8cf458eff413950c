"""`lesson6 run`, notebook by notebook: kernels forked from a warm process, and kernels that import
everything themselves, beside one import of fastai."""
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from compare import report

root = Path(__file__).parent.parent


def seconds(*command):
    "How long a command takes, and what it printed"
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def one_import():
    return seconds(sys.executable, '-W', 'ignore', '-c', 'from fastai.vision.all import *')[0]


def run(*options):
    "Seconds of a whole run, with the site, and of each notebook"
    with tempfile.TemporaryDirectory() as folder:
        whole, said = seconds(str(Path(sys.executable).parent/'lesson6'), 'run', '--out',
                              f'{folder}/_site', *options)
    return {'the whole run, with the site': whole,
            **{name: float(s)
               for name, s in re.findall(r'^\d+/\d+ (\S+) +\d+ cells, (\d+) s$', said, re.M)}}


def main(rounds=1):
    imports, found = [one_import()], {'cold': [], 'warm': []}
    for _ in range(rounds):
        for name, options in ('cold', ['--cold']), ('warm', []):
            found[name].append(run(*options))
            imports.append(one_import())
            print(name, {k: round(v) for k, v in found[name][-1].items()},
                  f'one import {imports[-1]:.1f} s', flush=True)
    unit = statistics.median(imports)
    table = pd.DataFrame({name: pd.DataFrame(rows).median() for name, rows in found.items()})
    table = pd.DataFrame({'cold kernels, s': table.cold, 'warm kernels, s': table.warm,
                          'times as fast': table.cold/table.warm.clip(lower=1),
                          'warm, in imports': table.warm/unit})
    report('notebooks', 'A run of all notebooks', table,
           f'Two notebooks at a time, one thread each; {rounds} round(s), and one import of '
           f'fastai, {unit:.1f} s, measured between the runs. A notebook is timed in whole '
           'seconds, beside another one.', chart=False)


if __name__ == '__main__': main()
