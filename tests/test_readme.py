"""Every command in the README is run by a test, and every block of Python too, on a few files of
our own.

What takes a network or minutes is not run here a second time: the table below says where it is.
"""
import re
import shutil

import fastai.callback.schedule  # noqa: F401  gives Learner its fit_one_cycle
import nbformat
import pytest
from conftest import root
from fastai.learner import Learner

from lesson6.claims import statements
from lesson6.collab import read_ratings
from lesson6.data import lesson_path
from lesson6.head_pose import get_ctr

readme = (root/'README.md').read_text(encoding='utf-8')
blocks = re.findall(r'```(\w+)\n(.*?)```', readme, re.S)
written = [c.strip() for kind,text in blocks if kind == 'sh' for line in text.splitlines()
           for c in line.split('&&')]
written += (re.findall(r'^\| `([^`]+)` \|', readme, re.M)
            + re.findall(r'`((?:make|lesson6) [^`]+)`', readme))

# A command, and the place that runs it: a file, and what stands there.
run_by = {
    'make run': ('.github/workflows/docs.yaml', '- run: make run'),
    'make run NB=04_collab': ('tests/test_site.py', "'run', 'NB=book/running'"),
    'make run NB=01_pet_breeds DATA=/path/to/data': ('tests/test_command.py', "make('run', "
                                                     "'NB=04_collab', 'DATA=/my data')"),
    'make run DATA=/path/to/data': ('tests/test_command.py',
                                    "make('run', 'NB=04_collab', 'DATA=/my data')"),
    'make lab': ('tests/test_command.py', "['make', 'lab'"),
    'make test': ('tests/test_command.py', "made('test')"),
    'make test-all': ('.ci/run', 'make test-all'),
    'make check': ('.ci/run', 'make check'),
    'make docs': ('tests/conftest.py', "checkout(folder), 'docs'"),
    'python3 -m venv .venv': ('Makefile', '$(PYTHON) -m venv .venv'),
    ".venv/bin/python -m pip install --constraint constraints.txt --editable "
    "'.[book,dev]'": ('Makefile', 'extras := book,dev'),
    '.venv/bin/lesson6 run': ('Makefile', '$(bin)/lesson6 run'),
    'pip install /path/to/the/clone': ('tests/test_packaging.py', "'pip', '--python'"),
    'lesson6 notebooks': ('tests/test_packaging.py', "lesson6('notebooks', 'my-lesson6')"),
    'lesson6 notebooks my-lesson6': ('tests/test_packaging.py',
                                     "lesson6('notebooks', 'my-lesson6')"),
    'lesson6 data': ('tests/test_packaging.py', "lesson6('data')"),
    'lesson6 data --check /path/to/data': ('tests/test_sets.py', "'data', '--check'"),
    'lesson6 run': ('tests/test_packaging.py', "lesson6('run', 'collab')"),
    'lesson6 run collab': ('tests/test_packaging.py', "lesson6('run', 'collab')"),
    'lesson6 train': ('tests/test_command.py', "name, '--help'"),
    'lesson6 train collab': ('tests/test_train.py', "'lesson6.train', 'collab'"),
    'lesson6 class course': ('tests/test_classroom.py', 'main(str(tmp_path))\n'),
    'lesson6 doctor': ('tests/test_packaging.py', "lesson6('doctor')"),
    'lesson6 train pets --out runs': ('tests/test_train.py', "'lesson6.train', 'collab'"),
    'lesson6 predict runs/pets/learner.pkl holiday.jpg': ('tests/test_predict.py',
                                                          "'predict', pets, *files"),
    'lesson6 run --help': ('tests/test_command.py', "name, '--help'"),
}


@pytest.mark.parametrize('command', dict.fromkeys(written))
def test_command_is_run(command):
    assert command in run_by, f'no test runs `{command}`'
    file, how = run_by[command]
    assert how in (root/file).read_text(encoding='utf-8'), f'{file} no longer runs `{command}`'


def test_nothing_is_listed_that_the_readme_does_not_say():
    assert set(run_by) == set(written)


def test_make_targets_exist():
    targets = set(re.search(r'^\.PHONY: (.*)$', (root/'Makefile').read_text(), re.M)[1].split())
    assert {c.split()[1] for c in written if c.startswith('make ')} <= targets


# Python

def few(name, to, files):
    "The named files of a twin, in a folder with a name from the README."
    path = lesson_path(name)
    for f in files:
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path/f, to/f)
    return path


def my_pets(to):
    path = lesson_path('pets')
    breeds = sorted({p.name.rpartition('_')[0] for p in (path/'images').glob('*.jpg')})[:3]
    few('pets', to, [p.relative_to(path) for b in breeds
                     for p in sorted((path/'images').glob(f'{b}_*.jpg'))[:8]])
    shutil.copyfile(next((to/'images').glob('*.jpg')), to/'images'/'Corgi_1.jpg')


def my_pictures(to):
    path = lesson_path('pascal')
    lines = (path/'train.csv').read_text().splitlines()[:40]
    few('pascal', to, [f"train/{l.split(',')[0]}" for l in lines[1:]])
    first = lines[1].split(',')[0]
    (to/'train'/first).rename(to/'train'/'holiday.jpg')
    (to/'train.csv').write_text('\n'.join(lines).replace(first, 'holiday.jpg') + '\n')


def my_heads(to):
    path = lesson_path('biwi')
    frames = [p for person in ('01', '02', '03')
              for p in sorted((path/person).glob('*_rgb.jpg'))[:18]]
    few('biwi', to, [p.relative_to(path) for p in frames])
    rows = [(p.relative_to(path), *get_ctr(p).tolist(), p.parent.name) for p in frames]
    (to/'points.csv').write_text('fname,x,y,group\n'
                                 + ''.join(f'{f},{x},{y},{who}\n' for f,x,y,who in rows))


def my_ratings(to):
    to.mkdir()
    read_ratings(lesson_path('movielens'))[['user', 'title', 'rating']].head(2000).to_csv(
        to/'ratings.csv', index=False)


@pytest.mark.ci
@pytest.mark.parametrize('code', [text for kind,text in blocks if kind == 'python'],
                         ids=lambda c: re.findall(r'from lesson6\.(\w+)', c)[-1])
def test_own_data(code, tmp_path, environment, monkeypatch):
    """The README's own lines. The network is our small one, which needs no download, and one epoch
    is enough to see them run."""
    monkeypatch.delenv('LESSON6_CACHE')
    monkeypatch.setenv('LESSON6_ARCH', 'drawnet10')
    fit = Learner.fit_one_cycle
    monkeypatch.setattr(Learner, 'fit_one_cycle',
                        lambda self, n_epoch, *args, **kwargs: fit(self, 1, *args, **kwargs))
    for name, make in {'my-pets': my_pets, 'my-pictures': my_pictures, 'my-heads': my_heads,
                       'my-ratings': my_ratings}.items():
        if f"'{name}" in code: make(tmp_path/name)
    monkeypatch.chdir(tmp_path)
    heads = re.findall(r'my-heads/01/(frame_\d+_rgb\.jpg)', code)
    if heads and not (tmp_path/'my-heads'/'01'/heads[0]).exists():
        code = code.replace(heads[0],
                            sorted(p.name for p in (tmp_path/'my-heads'/'01').glob('*_rgb.jpg'))[0])
    *lines, last = code.strip().splitlines()
    names = {}
    exec('\n'.join(lines), names)
    assert eval(last, names) is not None


# The table of sections

def test_every_section_is_in_the_table():
    for path in sorted((root/'nbs').glob('0[1-9]_*.ipynb')):
        assert [l for l in readme.splitlines() if f'](nbs/{path.name})' in l and l.startswith('|')]


def test_links_lead_somewhere():
    for target in re.findall(r'\]\(([^)\s]+)\)', readme):
        if not target.startswith('http'): assert (root/target).exists(), target


# The figures

def rows():
    "{file of the section: [what stands on the synthetic data, on real pictures or ratings]}"
    cells = [[c.strip() for c in l.split('|')[1:-1]] for l in readme.splitlines()
             if re.match(r'\| \[.*\]\(nbs/0\d_', l)]
    return {re.search(r'nbs/(\w+)\.ipynb', c[0])[1]: c[1:3] for c in cells}


def numbers(text):
    "Every number in a text, shares also in per cent."
    found = [float(o) for o in re.findall(r'(?<![\w.])\d*\.?\d+(?:e-?\d+)?(?![\w])', text)]
    return [*found, *(100*o for o in found if o <= 1)]


def unsaid(cell, sources):
    "The figures of a cell of the table that no source says: those with a decimal point or a unit."
    said = numbers(sources)
    figures = re.findall(r'(\d+(?:\.(\d+))?)(?= ?%| '
                         r'pixels|(?<=\.\d)|(?<=\.\d\d)|(?<=\.\d\d\d))', cell)
    return [f for f,digits in figures
            if not any(abs(o - float(f)) <= .50001*10**-len(digits) for o in said)]


def outputs(file):
    shown = [o for c in nbformat.read(root/'nbs'/f'{file}.ipynb', 4).cells if c.cell_type == 'code'
             for o in c.outputs]
    texts = [o.get('text', '') or ' '.join(str(v) for m,v in o.get('data', {}).items()
                                           if m.startswith('text/')) for o in shown]
    return re.sub(r'<style.*?</style>|<[^>]+>', ' ', ' '.join(texts), flags=re.S)


@pytest.mark.parametrize('file', rows())
def test_every_figure_was_said_by_a_run(file):
    synthetic, real = rows()[file]
    def kept(name):
        return ' '.join(f.read_text(encoding='utf-8')
                        for f in (root/'docs'/'runs'/f'{name}.json',
                                  root/'benchmarks'/'results'/f'{name}.md') if f.exists())
    assert not unsaid(synthetic, outputs(file) + kept('synthetic')), (
        'README says what neither the stored notebook nor docs/runs/synthetic.json says')
    assert not unsaid(real, kept('real')), (
        'README says what neither docs/runs/real.json nor benchmarks/results/real.md says')


def test_a_figure_that_no_run_said_is_found():
    assert unsaid('13.0 % error, MSE 0.81, 37 breeds, 9.5 pixels',
                  'error .134 and MSE 0.8091, 9.46') == ['13.0']
    assert not unsaid('13.4 % error', 'error_rate 0.134021') and unsaid('5 pixels', '15') == ['5']


def test_the_number_of_claims():
    assert (f'check {len([s for s in statements if not s.startswith("example-")])} '
            'statements' in readme)
