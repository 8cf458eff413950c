"""How long `import lesson6` and the import of each section take, beside the fastai import that the lesson begins the section with.

Each import runs in a process of its own, in turn. What counts is the time of the processor: it hardly depends on what else the machine does.
"""
import os
import statistics
import subprocess
import sys

import pandas as pd
from compare import report

vision, collab = 'from fastai.vision.all import *', 'from fastai.collab import *'
sections = {'pets': vision, 'multilabel': vision, 'head_pose': vision, 'collab': collab, 'regularisation': vision,
            'train': collab, 'pictures': vision, 'ratings_at_scale': collab}


def seconds(code):
    "Of the processor, for a process that runs this and nothing else"
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], env={**os.environ, 'OMP_NUM_THREADS': '1'})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode: raise RuntimeError(f'{code} ended with {process.returncode}')
    return used.ru_utime + used.ru_stime


def main(rounds=7):
    codes = ['pass', 'import lesson6', vision, collab, *(f'import lesson6.{name}' for name in sections)]
    took = {code: [] for code in codes}
    for code in codes: seconds(code)   # compiled, and in the memory of the system
    for i in range(rounds):
        for code in codes:
            took[code].append(seconds(code))
            print(f'round {i+1}/{rounds}  {code:<36} {took[code][-1]:6.3f} s', flush=True)
    rows = []
    for code, beside in {'import lesson6': 'pass', **{f'import lesson6.{name}': base for name, base in sections.items()}}.items():
        base = took[beside] if beside != 'pass' else took[code]
        ratio = statistics.median(b/t for b, t in zip(base, took[code], strict=True))
        rows.append({'': code, 'processor s': statistics.median(took[code]), 'beside': 'an empty process' if beside == 'pass' else f'`{beside}`',
                     'processor s of that': statistics.median(took[beside]),
                     'longer by s': statistics.median(t - b for t, b in zip(took[code], took[beside], strict=True)), 'times as fast': ratio})
    report('imports', 'Imports', pd.DataFrame(rows).set_index(''),
           f'Seconds of the processor for a process that imports one thing, {rounds} rounds in turn, medians.')


if __name__ == '__main__': main()
