"""Runs every section from top to bottom with five seeds, and with the first one twice; says which
claims held, and whether the two runs agree.

`python tests/seeds.py FOLDER [04_collab ...]` keeps the executed notebooks in FOLDER and goes on
with what is missing there or has changed since; about five minutes of one thread a seed. The line
`seed = 42` of a section gets the number of the run. What was claimed is kept in
docs/runs/synthetic.json, which the site shows; with LESSON6_PROMISES=docs/promises.json the page of
promises is written too.
"""
import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from promises import kept

from lesson6.claims import HOLDS, read_claims
from lesson6.data import profile
from lesson6.book.command import print_claims
from lesson6.book.kernels import kernel_manager
from lesson6.book.running import find_notebooks, keep_run, sections as modules

SEED = re.compile(r'^seed = 42\b', re.M)
runs = ['42', '42 again', '1', '2', '3', '4']
root = Path(__file__).parent.parent
TIME = re.compile(r'\b\d+(\.\d+)? times as (long|fast)|\b\d+:\d\d\b|\b\d+(\.\d+)? '
                  r'?(s|ms|seconds?|minutes?)\b|0x[0-9a-f]+|\bT_[0-9a-f]{5}(?=_|\b)|\d+\.\d+ ?it/s')


def fingerprint(path):
    """Changes with the cells of a notebook, with its module, and with how the data and the network
    are made."""
    package = path.parent.parent/'lesson6'
    names = modules[path.stem], 'claims', 'data', 'tables', 'files'
    files = [*(package/f'{o}.py' for o in names), *sorted((package/'engine').glob('*.py')),
             *sorted((package/'mini').glob('*.py')), *sorted(package.rglob('*.safetensors'))]
    code = '\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code')
    return hashlib.sha256(code.encode() + b''.join(f.read_bytes() for f in files)).hexdigest()


def execute(path, seed):
    "The executed notebook; a cell that fails doesn't stop it, so that every claim is looked at."
    nb = nbformat.read(path, 4)
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs, c.execution_count = [], None
    found = [c for c in nb.cells if c.cell_type == 'code' and SEED.search(c.source)]
    assert len(found) == 1, f'{path.name} sets its seed in {len(found)} cells'
    found[0].source = SEED.sub(f'seed = {seed}', found[0].source)
    client = NotebookClient(nb, km=kernel_manager(warm=False), allow_errors=True,
                            resources={'metadata': {'path': str(path.parent)}},
                            extra_arguments=['--log-level=ERROR'])
    client.owns_km = True
    client.execute(env={k: v for k, v in os.environ.items() if k != 'MPLBACKEND'})
    return nb


def outputs(nb):
    """What each cell printed and drew, without clock times and progress; in one piece, because what
    is printed may come in several."""
    for c in nb.cells:
        text, drawn = '', []
        for o in c.get('outputs', []):
            data = o.get('data', {})
            new = o.get('text') or data.get('text/html') or data.get('text/plain') or ''
            if '<progress' not in new: text += TIME.sub('', new)
            if 'image/png' in data: drawn.append(data['image/png'])
        if text or drawn: yield c, text, drawn


def failures(nb):
    return [f"{o.ename}: {o.evalue}".split('\n')[0] for c in nb.cells for o in c.get('outputs', [])
            if o.output_type == 'error']


def differences(first, second):
    """The cells whose outputs differ between two runs, but for those that measure time, and how
    many numbers were compared."""
    a, b = list(outputs(first)), list(outputs(second))
    differ = [] if len(a) == len(b) else ['more cells have outputs in one of them']
    numbers = pictures = timed = 0
    for (c, text, drawn), (_, text2, drawn2) in zip(a, b):
        if re.search(r'perf_counter|time\.time|process_time|training_time|timeit|seconds',
                     c.source):
            timed += 1; continue
        numbers += len(re.findall(r'\d+\.\d+', text)) if len(text) < 20000 else 0
        pictures += len(drawn)
        if (text, drawn) != (text2, drawn2): differ.append(c.source.strip().split('\n')[-1])
    return differ, numbers, pictures, timed


def main(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for path in find_notebooks(names or list(modules)):
        for run in runs:
            to, mark = (folder/f'{path.stem} {run}{end}' for end in ('.ipynb', '.mark'))
            if mark.exists() and mark.read_text() == fingerprint(path): continue
            print(f'{path.stem}, seed {run}', flush=True)
            nb = execute(path, run.split()[0])
            nbformat.write(nb, to)
            mark.write_text(fingerprint(path))
            if lost := [v for v in read_claims(nb) if v.verdict != HOLDS]: print_claims(lost)
            for f in failures(nbformat.read(to, 4)): print(' ', f[:300], flush=True)


def tell(folder):
    "Puts what the runs in `folder` have shown onto the page; what has not been run is said."
    seeds = [r for r in runs if r != '42 again']
    done = {(stem, run): nbformat.read(folder/f'{stem} {run}.ipynb', 4) for stem in modules
            for run in runs if (folder/f'{stem} {run}.mark').exists()}
    keep_run(root/'docs'/'runs'/'synthetic.json',
             [nb for (_, run), nb in done.items() if run != '42 again'])
    rows, misses, held, checked = [], [], 0, 0
    for stem in modules:
        row = [stem]
        for run in seeds:
            if (stem, run) not in done: row.append('not run'); continue
            claims = read_claims(done[stem, run])
            failed = [f for f in failures(done[stem, run])
                      if not any(f.startswith(f'AssertionError: {v.id}:') for v in claims)]
            holds = sum(v.verdict == HOLDS for v in claims)
            held += holds
            checked += len(claims)
            misses += ([[stem, run, f'{v.verdict}: {v.says}: {v.measured}'] for v in claims
                        if v.verdict != HOLDS]
                       + [[stem, run, f'a cell failed: {f[:300]}'] for f in failed])
            row.append(f'{holds} of {len(claims)}'
                       + (f', and {len(failed)} cells failed' if failed else ''))
        rows.append(row)
    ran = sum((stem, run) in done for stem in modules for run in seeds)
    kept('The same twice', 'The claims hold with other seeds', 'every section from top to bottom '
         f'on the drawn data ({profile.data}), on a CPU, with the seeds {", ".join(seeds)}', ran,
         f'{held} of {checked} claims held'
         + (f'; {len(misses)} claims or cells did not, as listed below' if misses
            else ', and no cell failed')
         + ('' if ran == len(rows)*len(seeds)
            else f'; {len(rows)*len(seeds) - ran} runs have not been made'),
         rows=[['Claims that held in', *(f'seed {s}' for s in seeds)], *rows])
    kept('The same twice', 'What did not hold with another seed', 'the same runs', ran,
         f'{len(misses)} claims or cells', rows=[['Section', 'Seed', 'What did not hold'], *misses]
         if misses else [])
    pairs = [stem for stem in modules if {(stem, '42'), (stem, '42 again')} <= done.keys()]
    total, twice, unlike = 0, [0, 0, 0], []
    for stem in pairs:
        differ, *seen = differences(done[stem, '42'], done[stem, '42 again'])
        twice = [a + b for a, b in zip(twice, seen)]
        unlike += [f'{stem}: `{d[:80]}`' for d in differ]
        total += len(list(outputs(done[stem, '42'])))
    kept('The same twice', 'A whole notebook, run twice, agrees to the last printed digit',
         f'{", ".join(pairs)}, each in two fresh kernels with the same seed, on a CPU; everything '
         'printed and every figure compared, but for clock times and progress', len(pairs),
         f'the outputs of {total} cells, with {twice[0]:,} decimal numbers and {twice[1]} figures '
         f'compared, the figures byte for byte; {twice[2]} cells that measure time left out; ' +
         (f'{len(unlike)} differ: {"; ".join(unlike)}' if unlike else 'all the same'))
    print(*rows, *misses, f'{held} of {checked} claims held; {len(unlike)} cells differ between '
                          f'two runs of {pairs}', *unlike, sep='\n')


if __name__ == '__main__':
    if len(sys.argv) < 2: sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
    tell(Path(sys.argv[1]))
