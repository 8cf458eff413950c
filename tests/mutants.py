"""Puts small faults into the package, one at a time, and says which of them no test notices.

`python -B tests/mutants.py --sample 200 --seed 1` samples places in the modules of the lesson and
of the engine, makes a mutant of each with an operator of cosmic-ray, and runs the quick tests of
its module, and if they pass, its notebook, which has the same fault in the cell that the module is
exported from, and if that passes too, the tests that only CI runs. Every mutant lives in a copy of
the package, in a process of its own, forked from one that has imported the libraries. What was seen
is kept in FOLDER (--keep), so that a run that was stopped goes on; it counts only while the
package, the notebooks and the tests are what they were.

A survivor that changes nothing that anybody could notice is listed in
tests/equivalent_mutants.json, with the reason; it is found again by the module, the definition and
the two lines, wherever they move.
"""
import argparse
import ast
import hashlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import nbformat
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from promises import kept

from lesson6.book.kernels import Forked
from lesson6.book.testing import test_notebook as run_notebook

root = Path(__file__).parent.parent
equivalents = root/'tests'/'equivalent_mutants.json'
# module: (its notebook, the files of tests that are about it)
modules = {
    'pets': ('01_pet_breeds', 'pets claims_pets picture_labels bad_input'),
    'multilabel': ('02_multi_label', 'multilabel claims_multilabel bad_input'),
    'head_pose': ('03_head_pose', 'head_pose claims_head_pose bad_input'),
    'collab': ('04_collab', 'collab claims_collab bad_input'),
    'regularisation': ('05_regularisation', 'regularisation claims_regularisation bad_input'),
    'tables': ('data/tables', 'bad_input multilabel'),
    'files': ('data/files', 'data bad_input multilabel head_pose'),
    'data': ('data/datasets', 'data movielens'),
    'engine/pictures': ('engine/pictures', 'pictures pets bad_input'),
    'engine/picture_labels': ('engine/picture_labels', 'picture_labels pets bad_input'),
    'engine/label_tables': ('engine/label_tables', 'multilabel bad_input'),
    'engine/rating_tables': ('engine/rating_tables', 'collab own_ratings bad_input'),
    'engine/labels': ('engine/labels', 'multilabel bad_input'),
    'engine/points': ('engine/points', 'head_pose claims_head_pose bad_input'),
    'engine/ratings': ('engine/ratings', 'collab movielens own_ratings bad_input'),
    'engine/rating_learners': ('engine/rating_learners', 'collab ratings_at_scale'),
    'engine/recommending': ('engine/recommending', 'collab'),
    'engine/ratings_at_scale': ('engine/ratings_at_scale', 'ratings_at_scale'),
    'engine/picture_loaders': ('engine/picture_loaders', 'pictures'),
    'engine/training': ('engine/training', 'train pets network bad_input'),
    'engine/frozen_body': ('engine/frozen_body', 'frozen_body'),
    'engine/augmentation': ('engine/augmentation',
                            'regularisation claims_regularisation bad_input'),
    'engine/weight_decay': ('engine/weight_decay',
                            'regularisation claims_regularisation bad_input'),
    'engine/annotations': ('engine/annotations', 'annotations'),
    'engine/sets': ('engine/sets', 'sets command'),
    'engine/figures': ('engine/figures', 'figures'),
    'engine/networks': ('engine/networks', 'efficientnet'),
}
# Names swapped for others tell nothing that running the notebook wouldn't; a bar in a type is no
# operator.
left_out = 'Variable', 'BitOr', 'BitAnd', 'BitXor', 'Shift'


def places(module):
    """Every place of a module where an operator of cosmic-ray applies: [(line, column), [(operator,
    occurrence), ...]]"""
    code = (root/'lesson6'/f'{module}.py').read_text(encoding='utf-8')
    tree, found = get_ast(code), {}
    for name in operator_names():
        if any(o in name for o in left_out): continue
        operator, n = get_operator(name)(), 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                found.setdefault(start, []).append((name, n))
                n += 1
    names = next(n for n in ast.parse(code).body if isinstance(n, ast.Assign)
                 and getattr(n.targets[0], 'id', '') == '__all__')     # which nbdev writes
    return code, [(at, ways) for at, ways in sorted(found.items())
                  if not names.lineno <= at[0] <= names.end_lineno]


def definition(code, line):
    "The function or class that a line is in"
    inside = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
              and n.lineno <= line <= n.end_lineno]
    return '.'.join(n.name for n in sorted(inside, key=lambda n: n.lineno)) or 'the module'


def mutants_of(module, code, found, seed):
    """Yields mutants of a module, each at another place; in an order, and of a kind, that the words
    of its line decide, so that a change elsewhere changes neither"""
    lines, seen, chances = code.split('\n'), Counter(), []
    for at, ways in found:
        words = lines[at[0]-1].strip(), at[1]
        seen[words] += 1
        chances.append((random.Random(f'{seed} {module} {words} {seen[words]}'), at, ways))
    for _, r, at, ways in sorted(((r.random(), r, at, ways) for r, at, ways in chances),
                                 key=lambda o: o[0]):
        family = r.choice(sorted({w.split('_')[0] for w, _ in ways}))
        name, occurrence = r.choice([w for w in ways if w[0].split('_')[0] == family])
        try:
            new = mutate_code(code, get_operator(name)(), occurrence)
            changed = new is not None and ast.dump(ast.parse(new)) != ast.dump(ast.parse(code))
        except SyntaxError: continue      # which every test would notice
        except AttributeError: continue   # cosmic-ray swaps no exception that has a dot in its name
        if not changed: continue
        before, after = next(((a, b) for a, b in zip(code.split('\n'), new.split('\n'),
                                                     strict=False) if a != b), ('', ''))
        if before.split('#')[0] == after.split('#')[0]: continue
        yield {'module': module, 'definition': definition(code, at[0]),
               'operator': name.partition('/')[2], 'before': before.strip(), 'after': after.strip(),
               'code': new}


def sample(n, seed, only=()):
    "The mutants of a seed, of each module its share"
    every = {module: places(module) for module in only or modules}
    of_one = n/sum(len(found) for _, found in every.values())
    share = {module: int(of_one*len(found)) for module, (_, found) in every.items()}
    for module in sorted(every,
                         key=lambda m: share[m] - of_one*len(every[m][1]))[:n-sum(share.values())]:
        share[module] += 1
    return [m for module, (code, found) in every.items()
            for m in islice(mutants_of(module, code, found, seed), share[module])]


def cells_of(code):
    "{id of a cell: what was exported from it}"
    parts = re.split(r'^# %% \S+ #(\w+)\n', code, flags=re.M)
    return {cell: body.strip('\n') for cell, body in zip(parts[1::2], parts[2::2], strict=True)}


def with_fault(notebook, right, wrong):
    """The notebook of a module, whose cell has the fault that the module has: it runs its own
    cells, and would not see the other"""
    nb, before, after = nbformat.read(notebook, as_version=4), cells_of(right), cells_of(wrong)
    # cosmic-ray takes the comment above a decorator away with it
    for cell, next_cell in zip([*before][:-1], [*before][1:], strict=True):
        if next_cell not in after:
            after[next_cell], after[cell] = (after[cell].removeprefix(before[cell]).strip('\n'),
                                             before[cell])
    cell, = [c for c in before if before[c] != after[c]]
    found = next(c for c in nb.cells if c.id == cell)
    if before[cell] in found.source: source = found.source.replace(before[cell], after[cell])
    else: # its imports are written in another way in the module
        old, new = next((a, b) for a, b in zip(before[cell].split('\n'), after[cell].split('\n'),
                                               strict=False) if a != b)
        source = found.source.replace(old, new, 1)
    assert source != found.source, f'{notebook}: the fault is in no line of the cell {cell}'
    found.source = source
    return nb


def key(m): return f"{m['module']} {m['definition']}: {m['before']} -> {m['after']}"


def state():
    "A fingerprint of what decides a verdict: the package, the code of the notebooks, the tests"
    parts = [f.read_text(encoding='utf-8') for folder in ('lesson6', 'tests')
             for f in sorted((root/folder).rglob('*.py'))]
    for f in sorted((root/'nbs').rglob('*.ipynb')):
        parts += [c.source for c in nbformat.read(f, as_version=4).cells if c.cell_type == 'code']
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def copy_of_the_package(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for name in 'lesson6', 'tests', 'nbs', 'docs', 'benchmarks':
        shutil.copytree(root/name, folder/name,
                        ignore=shutil.ignore_patterns('__pycache__', '*.safetensors',
                                                      '.ipynb_checkpoints'))
    for f in (root/'lesson6'/'mini').glob('*.safetensors'):
        (folder/'lesson6'/'mini'/f.name).symlink_to(f)
    for name in ('pyproject.toml', 'settings.ini', 'setup.py', 'README.md', 'CONTRIBUTING.md',
                 'constraints.txt', 'Makefile'):
        shutil.copy2(root/name, folder)
    return folder


def pytest_in(log, *words):
    "What a forked process does: `python -m pytest`, its output in a file"
    quiet(log)
    sys.argv = ['pytest', *words]
    try: runpy.run_module('pytest', run_name='__main__', alter_sys=True)
    except SystemExit as e:
        if e.code != 5: raise   # 5: there is no such test


def notebook_in(log, path):
    quiet(log)
    run_notebook(path)


def quiet(log):
    "Whatever the process writes goes into a file"
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in 1, 2: os.dup2(to, fd)


def ended(folder, limit, work, *args):
    "How a process ended: 'passed', 'failed' or 'time'; it and what it started are gone"
    env = {**os.environ, 'PYTHONPATH': str(folder), 'PYTHONDONTWRITEBYTECODE': '1',
           'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}
    for name in 'LESSON6_PROMISES', 'LESSON6_DATA', 'LESSON6_ARCH': env.pop(name, None)
    process = Forked(work, str(folder/'log.txt'), *args, env=env, cwd=str(folder),
                     preload=('pytest', 'hypothesis', 'nbdev.test', 'fastai.vision.all',
                              'fastai.collab')).start()
    end = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < end: time.sleep(.05)
    code = process.poll()
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    process.wait()
    return 'time' if code is None else 'passed' if code == 0 else 'failed'


def words_for(module, which):
    return ['-x', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', '-m', which,
            *(f'tests/test_{t}.py' for t in modules[module][1].split())]


def stages(module):
    "Who may notice: (name, what runs, its arguments), the quickest first"
    return [('tests', pytest_in, words_for(module, 'not ci and not slow')),
            ('notebook', notebook_in, [f'nbs/{modules[module][0]}.ipynb']),
            ("CI's tests", pytest_in, words_for(module, 'ci and not slow'))]


def judge(folder, module, limits):
    "Who notices: the name of a stage, 'time limit' or 'nobody'"
    for (name, work, words), limit in zip(stages(module), limits[module], strict=True):
        how = ended(folder, limit, work, *words)
        if how != 'passed': return name if how == 'failed' else 'time limit'
    return 'nobody'


def main():
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ask.add_argument('--sample', type=int, default=200)
    ask.add_argument('--seed', type=int, default=1)
    ask.add_argument('--workers', type=int, default=2)
    ask.add_argument('--keep', type=Path, default=root/'_mutants')
    ask.add_argument('--only', nargs='*', default=(), help='modules, such as engine/points')
    a = ask.parse_args()
    began, log = time.monotonic(), a.keep/f'seed{a.seed}.jsonl'
    a.keep.mkdir(parents=True, exist_ok=True)
    mutants = sample(a.sample, a.seed, a.only)
    now = state()
    before = map(json.loads, log.read_text(encoding='utf-8').splitlines()) if log.exists() else ()
    seen = {key(r): r for r in before if r['state'] == now}
    folders = SimpleQueue()
    for i in range(a.workers): folders.put(copy_of_the_package(a.keep/f'worker{i}'))
    limits = {}
    with ThreadPoolExecutor(a.workers) as pool, open(log, 'a', encoding='utf-8') as out:
        def unchanged(module):
            folder, took = folders.get(), []
            for _, work, words in stages(module)[:2]:
                start = time.monotonic()
                how = ended(folder, 900, work, *words)
                if how != 'passed':
                    raise SystemExit(f'Without a fault, {words[-1]} {how}: '
                                     f'{(folder/"log.txt").read_text()[-2000:]}')
                took.append(time.monotonic() - start)
            folders.put(folder)
            return module, [*(30 + 4*t for t in took), 600]
        def one(m):
            folder = folders.get()
            file, notebook = (folder/'lesson6'/f"{m['module']}.py",
                              folder/'nbs'/f"{modules[m['module']][0]}.ipynb")
            right, book = file.read_text(encoding='utf-8'), notebook.read_text(encoding='utf-8')
            try:
                file.write_text(m['code'], encoding='utf-8')
                nbformat.write(with_fault(notebook, right, m['code']), notebook)
                noticed = judge(folder, m['module'], limits)
            finally:
                file.write_text(right, encoding='utf-8')
                notebook.write_text(book, encoding='utf-8')
                folders.put(folder)
            return {**{k: v for k, v in m.items() if k != 'code'}, 'noticed': noticed, 'state': now}
        todo = [m for m in mutants if key(m) not in seen]
        limits.update(pool.map(unchanged, dict.fromkeys(m['module'] for m in todo)))
        print(f'{len(mutants)} mutants, {len(todo)} of them to try; without a fault everything '
              f'passed, {time.monotonic()-began:.0f} s', flush=True)
        for r in pool.map(one, todo):
            seen[key(r)] = r
            out.write(json.dumps(r, ensure_ascii=False) + '\n')
            out.flush()
            if r['noticed'] == 'nobody': print(f'SURVIVES  {key(r)}', flush=True)
        def still_right(module):
            folder = folders.get()
            how = ended(folder, 600, *stages(module)[2][1:2], *stages(module)[2][2])
            folders.put(folder)
            if how != 'passed':
                raise SystemExit(f"Without a fault, CI's tests of {module} {how}; what they "
                                 "noticed says nothing.")
        list(pool.map(still_right, {seen[key(m)]['module'] for m in mutants
                                    if seen[key(m)]['noticed'] == "CI's tests"}))
    tell([seen[key(m)] for m in mutants], a.seed, time.monotonic()-began)
    for i in range(a.workers): shutil.rmtree(a.keep/f'worker{i}')


def tell(results, seed, seconds):
    "Prints what came of the sample, and keeps it for the page of promises"
    known = json.loads(equivalents.read_text(encoding='utf-8')) if equivalents.exists() else {}
    survivors = [r for r in results if r['noticed'] == 'nobody']
    unlisted = [r for r in survivors if key(r) not in known]
    caught = len(results) - len(survivors)
    words = (f'{caught} noticed ({caught/len(results):.1%}); of the {len(survivors)} others '
             f'{len(survivors)-len(unlisted)} change nothing that anybody could notice, and are '
             'listed with the reason')
    print(f'{len(results)} mutants, seed {seed}: {words}; {seconds/60:.0f} min')
    for r in unlisted: print('  nobody notices:', key(r))
    rows = [['Module', 'Mutants', 'Noticed by the tests', 'by the notebook', "by CI's tests",
             'by the time limit', 'by nobody']]
    for module in dict.fromkeys(r['module'] for r in results):
        mine = [r['noticed'] for r in results if r['module'] == module]
        rows.append([module.replace('/', '.'), len(mine),
                     *(mine.count(o)
                       for o in ('tests', 'notebook', "CI's tests", 'time limit', 'nobody'))])
    kept('Tests that notice', 'A fault in the code is noticed',
         f'mutants made by cosmic-ray at places sampled with seed {seed}, each against the tests '
         'and the notebook of its module', len(results), words, rows)
    if unlisted: raise SystemExit(1)


if __name__ == '__main__':
    import mutants # a forked process finds what it is to do by the name of its module
    os.environ['PYTHONPATH'] = os.pathsep.join([str(root/'tests'),
                                                *filter(None, [os.environ.get('PYTHONPATH')])])
    mutants.main()
