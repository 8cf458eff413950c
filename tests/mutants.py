"""Puts small faults into the package, one at a time, and says which of them no test notices.

`python -B tests/mutants.py --sample 200 --seed 1` samples places in the modules of the lesson and
of the engine, makes a mutant of each with an operator of cosmic-ray, and runs the quick tests of
its module, and if they pass, its notebook, into whose cell nbdev-update has written the same fault,
and if that passes too, the tests that only CI runs. Every mutant lives in a copy of the package, in
a process of its own, forked from one that has imported the libraries.

A survivor that changes nothing that anybody could notice is listed in
tests/equivalent_mutants.json, with the reason; it is found again by the module, the definition and
the two lines, wherever they move.
"""
import argparse
import ast
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

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
    'tables': ('data/tables', 'data bad_input multilabel'),
    'files': ('data/files', 'data bad_input multilabel head_pose'),
    'data': ('data/datasets', 'data movielens'),
    'engine/pictures': ('engine/pictures', 'pictures pets bad_input'),
    'engine/picture_labels': ('engine/picture_labels', 'picture_labels pets bad_input'),
    'engine/breeds': ('engine/breeds', 'pets picture_labels bad_input'),
    'engine/label_tables': ('engine/label_tables', 'multilabel annotations bad_input'),
    'engine/rating_tables': ('engine/rating_tables', 'collab own_ratings bad_input'),
    'engine/labels': ('engine/labels', 'multilabel bad_input'),
    'engine/label_results': ('engine/label_results', 'multilabel bad_input'),
    'engine/poses': ('engine/poses', 'head_pose claims_head_pose bad_input'),
    'engine/point_tables': ('engine/point_tables', 'head_pose bad_input'),
    'engine/points': ('engine/points', 'head_pose bad_input'),
    'engine/point_results': ('engine/point_results', 'head_pose claims_head_pose bad_input'),
    'engine/rating_scales': ('engine/rating_scales', 'collab own_ratings'),
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
    'engine/networks': ('engine/networks', 'efficientnet head_pose'),
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
        new = with_marks(code, new)
        yield {'module': module, 'definition': definition(code, at[0]),
               'operator': name.partition('/')[2], 'before': before.strip(), 'after': after.strip(),
               'code': new}


def with_marks(code, new):
    "With the line that names the cell: cosmic-ray takes what is above a decorator away with it"
    right, wrong = code.split('\n'), new.split('\n')
    at = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
    return '\n'.join([*wrong[:at], *(o for o in right if o.startswith('# %%') and o not in wrong),
                      *wrong[at:]])


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


def key(m): return f"{m['module']} {m['definition']}: {m['before']} -> {m['after']}"


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


def without_a_fault(folder, module, which, limit):
    "Seconds of each stage; SystemExit if one doesn't pass, for then what it notices says nothing"
    took = []
    for name, work, words in stages(module)[which]:
        start = time.monotonic()
        how = ended(folder, limit, work, *words)
        if how != 'passed':
            raise SystemExit(f'Without a fault, the {name} of {module} {how}: '
                             f'{(folder/"log.txt").read_text()[-2000:]}')
        took.append(time.monotonic() - start)
    return took


def tried(folder, m, limits):
    "A mutant, with who notices it; the package and its notebook are then as they were"
    module = m['module']
    files = folder/'lesson6'/f'{module}.py', folder/'nbs'/f'{modules[module][0]}.ipynb'
    before = [f.read_bytes() for f in files]
    try:
        files[0].write_text(m['code'], encoding='utf-8')
        subprocess.run([Path(sys.executable).with_name('nbdev-update'), '--fname', files[0]],
                       cwd=folder, check=True)
        assert files[1].read_bytes() != before[1], f'{module}: the fault is in no cell'
        return {**m, 'noticed': judge(folder, module, limits)}
    finally:
        for f, content in zip(files, before, strict=True): f.write_bytes(content)


def main():
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ask.add_argument('--sample', type=int, default=200)
    ask.add_argument('--seed', type=int, default=1)
    ask.add_argument('--workers', type=int, default=2)
    ask.add_argument('--keep', type=Path, default=root/'_mutants', help='where copies are')
    ask.add_argument('--only', nargs='*', default=(), help='modules, such as engine/points')
    a = ask.parse_args()
    began, mutants = time.monotonic(), sample(a.sample, a.seed, a.only)
    folders = SimpleQueue()
    for i in range(a.workers): folders.put(copy_of_the_package(a.keep/f'worker{i}'))
    with ThreadPoolExecutor(a.workers) as pool:
        def in_a_copy(work, items):
            def one(item):
                folder = folders.get()
                try: return work(folder, item)
                finally: folders.put(folder)
            return pool.map(one, items)
        drawn = [*dict.fromkeys(m['module'] for m in mutants)]
        took = in_a_copy(lambda f, o: without_a_fault(f, o, slice(2), 900), drawn)
        limits = {o: [*(30 + 4*t for t in seconds), 600]
                  for o, seconds in zip(drawn, took, strict=True)}
        print(f'{len(mutants)} mutants; without a fault everything passed, '
              f'{time.monotonic()-began:.0f} s', flush=True)
        results = []
        for r in in_a_copy(lambda f, o: tried(f, o, limits), mutants):
            results.append(r)
            if r['noticed'] == 'nobody': print(f'SURVIVES  {key(r)}', flush=True)
        slow = {r['module'] for r in results if r['noticed'] == "CI's tests"}
        [*in_a_copy(lambda f, o: without_a_fault(f, o, slice(2, None), 600), slow)]
    tell(results, a.seed, time.monotonic()-began)
    shutil.rmtree(a.keep)


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
