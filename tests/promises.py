"""Keeps what the tests of a promise have seen, and writes it as a page of the site.

Only when LESSON6_PROMISES names a file: `LESSON6_PROMISES=docs/promises.json pytest` rewrites
docs/promises.md too. LESSON6_ROUNDS says how often a fault is tried (default 5); the page's figures
are of LESSON6_ROUNDS=50.
"""
import configparser
import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.version import Version

from lesson6.book.site import prose, table

rounds = int(os.environ.get('LESSON6_ROUNDS') or 5)
parts = ['Interrupted', 'At once', 'No network, bad network', 'Bad input', 'The same twice',
         'Trust', 'Tests that notice', 'Tomorrow']

head = '# Promises\n\n' + ' '.join('''
People run this in classrooms: forty machines, one network share, laptops closed in the middle of a
download. This page says what then holds, how each promise was tried, how often, and what happened.
The tests write it; nothing in it is typed by hand. How often is 0 where something could not be
tried, and what happened then says why. To write the page anew, with fifty rounds of each fault and
five seeds: `LESSON6_ROUNDS=50 LESSON6_PROMISES=docs/promises.json pytest`, and then
`LESSON6_PROMISES=docs/promises.json python tests/seeds.py FOLDER`; the workflow `weekly` does it.
'''.split()) + '\n'


def kept(part, promise, how, times, seen, rows=()):
    """Keeps that a promise of `part` was tried in the way `how`, so many `times`, and what was
    `seen`; `rows`, head first, make a table of their own."""
    assert part in parts and isinstance(times, int)
    if not (store := os.environ.get('LESSON6_PROMISES')): return
    store = Path(store)
    with FileLock(store.with_name(f'.{store.name}.lock')):
        _keep(store, part, promise, how, times, seen, rows)


def _keep(store, part, promise, how, times, seen, rows):
    every = json.loads(store.read_text(encoding='utf-8')) if store.exists() else {}
    every[f'{part}: {promise}'] = dict(part=part, promise=promise, how=how, times=times, seen=seen,
                                       rows=rows, on=date.today().isoformat(),
                                      where=f'{platform.system()}, Python '
                                            f'{platform.python_version()}, fastai '
                                            f'{version("fastai")}, torch {version("torch")}')
    store.write_text(json.dumps(every, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    write_page(every.values(), store.with_suffix('.md'))


def oldest():
    """What is installed, if it is the oldest that settings.ini allows of everything that lesson6
    needs; else None."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    needs = [Requirement(r) for r in settings['DEFAULT']['requirements'].strip().splitlines()]
    lowest = lambda r: Version(next(s.version for s in r.specifier if s.operator == '>='))
    if all(Version(Version(version(r.name)).base_version) == lowest(r) for r in needs):
        return ', '.join(f'{r.name} {version(r.name)}' for r in needs)


def how_it_ended(passed, failed, skipped, again=False):
    """Keeps how a run of the tests ended, where it ran on the oldest versions; `again`: of those
    that had failed before."""
    if not os.environ.get('LESSON6_PROMISES') or not (names := oldest()): return
    kept('Tomorrow', 'The oldest versions that settings.ini allows' + ', what had failed tried '
         'again'*again, f'the tests, on {names}', passed + len(failed),
         f'{passed} passed, {skipped} skipped, '
         + (f'{len(failed)} failed: {", ".join(failed)}' if failed else 'none failed'))


def write_page(rows, path):
    text = head
    for part in parts:
        if not (mine := [r for r in rows if r['part'] == part]): continue
        text += f'\n## {part}\n\n' + table(['Promise', 'How it was tried', 'How often',
                                            'What happened', 'When and where'],
            [[*map(prose, (r['promise'], r['how'])), f"{r['times']:,}", prose(r['seen']),
              prose(f"{r['on']}, {r['where']}")] for r in mine]) + '\n'
        for r in mine:
            if r['rows']:
                text += (f"\n{prose(r['promise'])}:\n\n"
                         f"{table(r['rows'][0], [[*map(prose, row)] for row in r['rows'][1:]])}\n")
    path.write_text(text, encoding='utf-8')
