"""Trust: no pickle but `load_learner`, no network, no secret; installed read-only, without a home,
under a strange path. And: the same twice."""
import ast
import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import seeds
from conftest import python, root
from nbformat.v4 import new_code_cell, new_notebook, new_output
from packaging.requirements import Requirement
from promises import kept
from test_faults import read_only

modules = sorted(p.relative_to(root).with_suffix('').as_posix().replace('/', '.')
                 for p in (root/'lesson6').rglob('*.py') if p.stem not in ('__init__', '_modidx'))


def notebooks():
    return [p for p in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]

def code_cells(path):
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']
            if c['cell_type'] == 'code']

def prose(path):
    return ' '.join(''.join(c['source'])
                    for c in json.loads(path.read_text(encoding='utf-8'))['cells']
                    if c['cell_type'] == 'markdown')

def calls(source):
    "The calls in Python source: dotted name and keywords."
    source = re.sub(r'(?m)^(\s*)[%!].*', r'\1pass', source) # a notebook's commands
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}

def unsafe(source):
    "Calls that would run what a file says."
    for name, kw in calls(source):
        last = name.rpartition('.')[2]
        if (last in ('load', 'loads', 'Unpickler')
            and name.partition('.')[0] in ('pickle', 'cPickle', 'dill', 'joblib', 'cloudpickle')):
            yield name
        if last == 'load' and name.startswith('torch') and kw.get('weights_only') != 'True':
            yield f'{name} without weights_only=True'
        if last == 'read_pickle' or kw.get('allow_pickle') == 'True' or name in ('eval', 'exec'):
            yield name


def test_unsafe_is_found():
    for source in ('pickle.load(f)', 'torch.load(p)', 'torch.load(p, weights_only=False)',
                   'np.load(f, allow_pickle=True)', 'eval(s)', 'pd.read_pickle(p)'):
        assert list(unsafe(source)), source
    assert not list(unsafe('torch.load(p, weights_only=True); json.load(f); learn.load("x"); '
                           'load_learner(p)'))


def test_no_pickle_is_loaded_but_by_load_learner():
    """A round trip in memory, `pickle.loads(pickle.dumps(...))`, loads nothing that comes from
    elsewhere."""
    sources = ({p.name: p.read_text(encoding='utf-8') for p in (root/'lesson6').rglob('*.py')}
               | {f'{p.name}, cell {i}': c for p in notebooks() for i, c in enumerate(code_cells(p))
                  if not c.lstrip().startswith('%%')})
    found = {where: bad for where, source in sources.items()
             if (bad := list(unsafe(source.replace('pickle.loads(pickle.dumps(', 'copied((')))) }
    assert not found
    loading = [p for p in notebooks()
               if any(name.rpartition('.')[2] == 'load_learner' for c in code_cells(p)
                      if not c.lstrip().startswith('%%') for name, _ in calls(c))]
    silent = [p.name for p in loading if not re.search('pickle|trust', prose(p), re.IGNORECASE)]
    assert not silent, f'{silent} load a learner and do not say what that means'
    weights = [p.name for p in [*(root/'lesson6').rglob('*'), *(root/'nbs').rglob('*')]
               if p.suffix in ('.pth', '.pt', '.pkl', '.bin', '.npy', '.ckpt')]
    tracked = (subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True,
                              text=True).stdout.split())
    assert not [w for w in weights if any(t.endswith('/' + w) for t in tracked)]
    kept('Trust', 'No pickle is loaded but by `load_learner`',
         'every call in the package and in every cell is looked at: pickle, `torch.load` without '
         '`weights_only=True`, `allow_pickle`, `eval`, `exec`', len(sources),
         f'none; weights are safetensors; {len(loading)} notebooks use `load_learner`, and each '
         'says what that means')


def test_no_secret_is_kept():
    patterns = (r'AKIA[0-9A-Z]{16}', r'gh[pousr]_[A-Za-z0-9]{36}', r'-----BEGIN [A-Z ]*PRIVATE KEY',
                r'xox[baprs]-[0-9A-Za-z-]{10}', r'hf_[A-Za-z0-9]{30}', r'pypi-[A-Za-z0-9_-]{40}',
                r'(?i)(password|secret|api_?key)\s*=\s*["\'][^"\']{8}')
    files = [root/f for f in subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True,
                                            text=True).stdout.splitlines()]
    if not files: pytest.skip('not a git checkout')
    files = [f for f in files if f.is_file() and f.name != Path(__file__).name]
    found = [(f.name, p) for f in files for p in patterns
             if re.search(p, f.read_text(encoding='utf-8', errors='ignore'))]
    assert not found
    kept('Trust', 'No secret in the repository',
         f'{len(patterns)} patterns of keys and passwords, over every tracked file', len(files),
         'none found')


GUARD = '''
import socket, sys
def refuse(*args, **kw): raise AssertionError(f'somebody asks a network: {args}')
def guard():
    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.getaddrinfo = socket.create_connection = refuse
'''


@pytest.mark.ci
def test_nothing_is_asked_of_a_network(environment, tmp_path):
    "Importing everything and drawing every twin, with a network that raises on first use."
    r = python(GUARD + '''
import importlib
guard()
for m in sys.argv[1:]: importlib.import_module(m)
from lesson6.data import folders, lesson_path
from lesson6.engine.networks import lesson_arch
for name in folders: lesson_path(name)
for name in 'resnet34', 'resnet50': lesson_arch(name)()
print('quiet')''', *modules)
    assert r.stdout.split()[-1] == 'quiet', r.stderr
    kept('Trust', 'No telemetry, nothing asked of a network',
         'all modules imported, all twins drawn, both small networks made, with a network that '
         'raises on first use', len(modules), 'no connection was tried')


def test_the_network_guard_notices():
    "Whoever asks a server that answers; without the guard each of them gets through"
    with socket.create_server(('127.0.0.1', 0)) as server:
        r = python(GUARD + '''
there = '127.0.0.1', int(sys.argv[1])
ways = [lambda: socket.socket().connect(there), lambda: socket.socket().connect_ex(there),
        lambda: socket.create_connection(there), lambda: socket.getaddrinfo(*there)]
for ask in ways: ask()
guard()
for ask in ways:
    try: ask()
    except AssertionError as e: print(e)''', server.getsockname()[1])
    assert len(re.findall('^somebody asks a network: ', r.stdout, re.M)) == 4


# Installed read-only, no home folder, a strange path

everything = '''
    import importlib, os, sys
    for m in {modules!r}: importlib.import_module(m)
    import lesson6
    from lesson6.book.command import main
    from lesson6.engine.sets import about
    assert lesson6.__file__.startswith({here!r}), lesson6.__file__
    print(about('movielens'))
    os.chdir({work!r})
    sys.argv = ['lesson6', 'run', 'small']
    sys.exit(main())
'''

def installed(to):
    "The package and a small notebook, as an installation lies: the notebooks beside the modules."
    shutil.copytree(root/'lesson6', to/'lesson6', ignore=shutil.ignore_patterns('__pycache__'))
    (to/'lesson6'/'nbs').mkdir()
    cells = ['from lesson6.data import lesson_path',
             "print(sorted(p.name for p in lesson_path('movielens').iterdir())[0])"]
    nb = dict(cells=[dict(cell_type='code', id=f'c{i}', source=c, metadata={}, outputs=[],
                          execution_count=None) for i, c in enumerate(cells)],
              metadata=dict(kernelspec=dict(name='python3', display_name='python3',
                                            language='python')), nbformat=4, nbformat_minor=5)
    (to/'lesson6'/'nbs'/'01_small.ipynb').write_text(json.dumps(nb))
    return to


@pytest.mark.ci
def test_read_only_no_home_and_a_strange_path(environment, tmp_path):
    """All three at once. A home folder that nobody can make: root would make one that is merely
    missing."""
    to = tmp_path/"Größe 数据 it's (1)"
    to.mkdir()
    installed(to)
    work = tmp_path/'Arbeit ünd Freude'
    work.mkdir()
    env = {k: v for k, v in os.environ.items()
           if k not in ('HOME', 'LESSON6_CACHE', 'XDG_CACHE_HOME')}
    env |= {'PYTHONPATH': str(to), 'HOME': '/dev/null/home', 'TMPDIR': str(work),
            'PYTHONDONTWRITEBYTECODE': '1'}
    code = textwrap.dedent(everything.format(modules=modules, here=str(to), work=str(work)))
    before = {p: p.read_bytes() for p in to.rglob('*') if p.is_file()}
    with read_only(to):
        r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=env,
                           capture_output=True, text=True, timeout=600, cwd=work)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-3000:]
    assert 'movielens: made on this machine' in r.stdout
    assert before == {p: p.read_bytes() for p in to.rglob('*') if p.is_file()}
    assert (work/'_run'/'01_small.html').is_file()
    kept('Trust', 'Installed read-only, without a home folder, under a path with spaces and other '
                  'letters', 'all modules imported, a twin drawn, `lesson6 run` on a small '
                             'notebook, the package lying in a folder that cannot be written, HOME '
                             'naming no folder', 1,
         'the page was made; nothing was written into the package or outside the working and the '
         'temporary folder')


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() != 0,
                    reason='only root may become somebody else')
def test_a_user_without_rights_or_home(environment, tmp_path):
    "A user who is not in the password file."
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o777)
        env = {'PATH': os.environ['PATH'], 'TMPDIR': d}
        readable = all(os.stat(p).st_mode & 0o005
                       for p in [root, *root.parents, Path(sys.executable).resolve(),
                                 *Path(sys.executable).resolve().parents][:-1])
        if not readable: pytest.skip('this Python lies where other users may not read')
        r = subprocess.run([sys.executable, '-W', 'ignore', '-c',
                            "from lesson6.engine.sets import about; print(about('movielens'))"],
                           env=env, cwd=d, user=54321, group=54321, capture_output=True, text=True)
        assert r.returncode == 0 and f'in {d}/lesson6-54321' in r.stdout, r.stderr


# The same twice

@pytest.mark.slow
def test_a_notebook_runs_the_same_twice(environment, tmp_path):
    "One section; `python tests/seeds.py` does it for all of them, and with other seeds."
    first, second = (seeds.execute(root/'nbs'/'04_collab.ipynb', '42') for _ in range(2))
    differ, numbers, *_ = seeds.differences(first, second)
    assert not seeds.failures(first) and not differ and numbers > 100, differ[:3]


def test_a_difference_between_two_runs_is_noticed():
    def nb(text, source='loss'):
        return new_notebook(cells=[new_code_cell(source,
                                                 outputs=[new_output('stream', text=text)])])
    assert seeds.differences(nb('0.8123'), nb('0.8124'))[0] == ['loss']
    assert (seeds.differences(nb('0.8123 in 3.2 s 00:03 <table id="T_ab69b">'),
                              nb('0.8123 in 4.1 s 00:04 <table id="T_acf62">')) == ([], 1, 0, 0))
    assert seeds.differences(nb('0.81'), new_notebook())[0]


# Known vulnerabilities

def test_known_vulnerabilities(tmp_path):
    """Only where a list of them can be asked; the workflow `audit` asks each time constraints.txt
    changes, and every week."""
    workflow = (root/'.github'/'workflows'/'audit.yaml').read_text(encoding='utf-8')
    assert ('pip-audit --requirement constraints.txt' in workflow and 'paths: '
            '[constraints.txt' in workflow and 'cron:' in workflow and '--strict' in workflow)
    program = shutil.which('pip-audit')
    if not program or os.environ.get('LESSON6_AUDIT') != '1':
        kept('Trust', 'No known vulnerability in the pinned versions',
             '`pip-audit` on constraints.txt', 0,
             'not tried here: the package index of the machine that made this page offers no list '
             'of vulnerabilities. The workflow `audit` tries it each time constraints.txt changes, '
             'and every week; a finding without a fix would be listed there')
        pytest.skip('LESSON6_AUDIT=1, with pip-audit installed and its list within reach, asks '
                    'for it')
    r = subprocess.run([program, '--requirement', 'constraints.txt', '--no-deps', '--disable-pip',
                        '--strict'], cwd=root, capture_output=True, text=True, timeout=600)
    pinned = len((root/'constraints.txt').read_text(encoding='utf-8').split())
    kept('Trust', 'No known vulnerability in the pinned versions', '`pip-audit` on constraints.txt',
         pinned, r.stderr.strip().splitlines()[-1] if r.returncode else 'none found')
    assert r.returncode == 0, r.stdout + r.stderr


# Tomorrow

def test_the_newest_and_the_oldest_versions_are_tried_every_week():
    "And the lower bounds in settings.ini are all there, or there is no oldest."
    weekly = (root/'.github'/'workflows'/'weekly.yaml').read_text(encoding='utf-8')
    newest, oldest = weekly.partition('\n  newest:')[2].partition('\n  oldest:')[::2]
    assert ('cron:' in weekly and '--upgrade-strategy eager' in newest
            and 'constraint' not in newest and 'make test' in newest)
    assert '--resolution lowest-direct' in oldest and 'make test' in oldest
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(root/'settings.ini', encoding='utf-8')
    needs = [r for key in settings['DEFAULT'] if key.endswith('requirements')
             for r in settings['DEFAULT'][key].strip().splitlines()]
    assert all(any(s.operator == '>=' for s in Requirement(r).specifier) for r in needs)
    kept('Tomorrow', 'The newest of everything, unpinned', 'the workflow `weekly`, every Monday', 0,
         'not tried here: the other rows are of the versions that constraints.txt pins, or of '
         'those they name')
