"""What `import lesson6` takes, and what the import of each section adds to the fastai import that
the lesson begins the section with.

Each pair is imported in a process of its own: first fastai's, then ours, so that both meet the same
machine. What counts is the time of the processor: it hardly depends on what else the machine does.
"""
import json
import os
import statistics
import subprocess
import sys

import pandas as pd
from compare import report

vision, collab = 'from fastai.vision.all import *', 'from fastai.collab import *'
sections = {'pets': vision, 'multilabel': vision, 'head_pose': vision, 'collab': collab,
            'regularisation': vision, 'train': vision, 'engine.pictures': vision,
            'engine.ratings_at_scale': collab}


def seconds(first, then):
    "Of the processor, for each of two lines in one fresh process"
    code = (f'import time, json; a = time.process_time()\n{first}\nb = time.process_time()\n'
            f'{then}\nprint(json.dumps([b-a, time.process_time()-b]))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code],
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True,
                          text=True)
    if done.returncode:
        raise RuntimeError(f'{first}; {then} ended with {done.returncode}: {done.stderr[-200:]}')
    return json.loads(done.stdout.splitlines()[-1])


def main(rounds=5):
    pairs = {'import lesson6': 'pass',
             **{f'import lesson6.{name}': base for name, base in sections.items()}}
    took = {code: [] for code in pairs}
    for i in range(rounds):
        for code, base in pairs.items():
            took[code].append(seconds(base, code))
            print(f'round {i+1}/{rounds}  {code:<36} {took[code][-1]}', flush=True)
    rows = []
    for code, base in pairs.items():
        both = [b/(b+more) for b, more in took[code]]
        rows.append({'': f'`{code}`',
                     'adds, processor s': statistics.median(more for _, more in took[code]),
                     'to': 'an empty process' if base == 'pass' else f'`{base}`',
                     'which takes, processor s': statistics.median(b for b, _ in took[code])
                     if base != 'pass' else '',
                     'longer by %': statistics.median(100*more/b for b, more in took[code])
                     if base != 'pass' else '',
                     'times as fast': statistics.median(both) if base != 'pass' else 1.})
    each = f'{rounds} rounds in turn, medians' if rounds > 1 else 'one round'
    report('imports', 'Imports', pd.DataFrame(rows).set_index(''), "Seconds of the processor in a "
           f"fresh process, first for fastai's import, then for ours; {each}.", chart=False)


if __name__ == '__main__': main()
