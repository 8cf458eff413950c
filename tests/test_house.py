"""The house: what stands in which wing, what a student meets first, and that importing changes
nothing.

A section opens with the whole game: a picture, a trained model and what it can do.
"""
import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from conftest import python, root

from lesson6.book.running import find_notebooks, sections, to_store

nbs = root/'nbs'
TRAINS = re.compile(r'\b(fine_tune|fit(_\w+)?|wd_sweep|ratings_sweep|train_on_few_frames)\(')


def cells(name):
    return json.loads((nbs/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])
def lines(text): return [l for l in text.splitlines() if l.strip()]
def folded(cell): return cell['metadata'].get('jupyter', {}).get('source_hidden', False)
def exports(cell): return source(cell).lstrip().startswith('#| export')


# Cells in sight and their lines of code; words of prose before the questionnaire. (Words: what they
# were before the edit of 2026.)
limits = {'01_pet_breeds': (65, 300, 4200), '02_multi_label': (55, 230, 3500),
          '03_head_pose': (45, 210, 3100),
          '04_collab': (65, 270, 4000), '05_regularisation': (50, 220, 3050)}
MACHINERY = re.compile(r'profile\.(drawn|laptop|\w*_size)|not_asked|claim_on|unasked|'
                       r'set_num_threads|LESSON6_|\.exists\(\)|keep_valid|min\(\d+, *len')


def code_lines(cell): return [l for l in lines(source(cell)) if not l.startswith('#|')]
def in_sight(cells):
    return [c for c in cells if c['cell_type'] == 'code' and not folded(c)
            and not (exports(c) and only_machinery(c))]
def words(cells):
    return sum(len(re.findall(r'\S+', source(c))) for c in cells if c['cell_type'] == 'markdown')
def shows(cell, kind):
    return any(m.startswith(kind) for o in cell['outputs'] for m in o.get('data', {}))


def opening(cells):
    """What a student passes up to the first trained model: code cells, their lines, and words;
    cells that are folded don't count."""
    at = next(i for i,c in enumerate(cells) if c['cell_type'] == 'code' and not folded(c)
              and TRAINS.search(source(c)))
    code = in_sight(cells[:at+1])
    return len(code), sum(map(len, map(code_lines, code))), words(cells[:at])


def trainings(cells):
    """How many trainings are shown: the calls in cells in sight below which there is a table of
    losses."""
    def tabled(c):
        return any('train_loss' in ''.join(o.get('data', {}).get('text/html', ''))
                   for o in c['outputs'])
    return sum(len(TRAINS.findall('\n'.join(l for l in code_lines(c) if not l.lstrip()
                                     .startswith('def ')))) for c in in_sight(cells) if tabled(c))


def before_the_first_sentence(cells):
    "The cells between the title and the first text."
    return cells[1:next(i for i,c in enumerate(cells) if i and c['cell_type'] == 'markdown')]


def prose(cells):
    "The words of a section without its questionnaire and its exercises."
    end = next(i for i,c in enumerate(cells)
               if re.match(r'## (Questionnaire|Questions|Exercises)', source(c)))
    return words(cells[:end])


def questions(cells):
    "The folded answers of the questionnaire."
    return sum(source(c).count('<details>') for c in cells if c['cell_type'] == 'markdown')


def without_words(cells):
    "The pictures in the outputs whose metadata have no words."
    return [source(c).split('\n')[0] for c in cells if c['cell_type'] == 'code'
            and not re.search(r'^#\| *hide', source(c), re.M) for o in c['outputs']
            for m in o.get('data', {}) if m.startswith('image/')
            and not o['metadata'].get(m, {}).get('alt')]


def exported_share(cells):
    "The share of the lines of code that are exported."
    code = [c for c in cells if c['cell_type'] == 'code']
    every = sum(len(lines(source(c))) for c in code)
    return sum(len(lines(source(c))) for c in code if exports(c)) / every


def too_wide(cells, most=88):
    return [l for c in cells if c['cell_type'] == 'code' for l in source(c).splitlines()
            if len(l) > most and not l.startswith('#| fig-alt') and not folded(c)]


def only_machinery(cell):
    """Whether a cell holds nothing but what the machinery needs: installing, imports, the name of
    the module, what a star brings, a filter of warnings."""
    tree = ast.parse(re.sub(r'^(\s*)%pip.*$', r'\1pass', source(cell), flags=re.M))
    def fine(node):
        if isinstance(node, ast.Try):
            return all(map(fine, node.body)) and all(isinstance(o, (ast.Raise, ast.Pass))
                                                     for h in node.handlers for o in h.body)
        said = ast.unparse(node)
        return (isinstance(node, (ast.Import, ast.ImportFrom)) or said.startswith('_all_ = ')
                or 'warnings.filterwarnings' in said)
    return all(map(fine, tree.body))


@pytest.mark.parametrize('name', sections)
class TestSection:
    def test_the_whole_game_comes_first(self, name):
        n, long, said = opening(cells(name))
        assert n <= 6 and long <= 12 and said <= 250, (
            f'{n} code cells, {long} lines and {said} words before the first trained model')

    def test_a_picture_and_a_result_are_shown_in_it(self, name):
        "Something is drawn before the first training, and the table of its losses is shown."
        code = [c for c in cells(name) if c['cell_type'] == 'code']
        at = next(i for i,c in enumerate(code) if not folded(c) and TRAINS.search(source(c)))
        assert any(shows(c, 'image/') for c in code[:at+1]) and shows(code[at], 'text/html')

    def test_it_is_an_evening(self, name):
        code, said = in_sight(cells(name)), prose(cells(name))
        n, long = len(code), sum(map(len, map(code_lines, code)))
        assert all(o <= most for o,most in zip((n, long, said), limits[name])), (
            f'{n} code cells in sight, {long} lines of code, {said} words')

    def test_at_most_eight_trainings_are_shown(self, name):
        assert trainings(cells(name)) <= 8

    def test_nothing_is_on_stage_but_the_lesson(self, name):
        found = [l for c in in_sight(cells(name)) for l in code_lines(c) if MACHINERY.search(l)]
        assert len(found) <= 2, found

    def test_one_folded_cell_at_most_before_the_first_sentence(self, name):
        between = before_the_first_sentence(cells(name))
        assert len(between) <= 1 and all(map(folded, between))

    def test_ten_questions(self, name):
        assert questions(cells(name)) == 10

    def test_engineering_is_elsewhere(self, name):
        assert exported_share(cells(name)) <= .25

    def test_a_star_brings_what_the_readme_and_the_sections_import(self, name):
        asked = re.compile(rf'^ *from lesson6\.{sections[name]} import '
                           r'\(?((?:\w+(?:,\s*)?)+)', re.M)
        code = [(root/'README.md').read_text(encoding='utf-8'),
                *(source(c) for other in sections for c in cells(other))]
        wanted = {n.strip() for text in code for names in asked.findall(text)
                  for n in names.split(',')}
        assert wanted and wanted <= set(import_module(f'lesson6.{sections[name]}').__all__)

    def test_no_line_is_wider_than_the_page(self, name):
        assert not too_wide(cells(name))

    def test_the_machinery_is_folded(self, name):
        "The cells that only the machinery needs, and no others."
        for c in cells(name):
            if c['cell_type'] != 'code': continue
            machine = '#| default_exp' in source(c) or (exports(c) and only_machinery(c))
            if machine: assert folded(c), source(c)
            if folded(c):
                assert only_machinery(c) or source(c).startswith(('#| hide', '#| fig-alt')), (
                    source(c))


def test_the_package_is_at_most_100_characters_wide():
    "But for what nbdev writes by itself: a page's description, and the list of all names."
    wide = []
    for f in (root/'lesson6').rglob('[!_]*.py'):
        first, *cells = f.read_text(encoding='utf-8').split('\n# %% ')
        written = [o for o in cells if not o.startswith('auto')] or [first]
        wide += [(f.name, l) for o in written for l in o.split('\n') if len(l) > 100]
    assert not wide


def test_a_function_has_at_most_40_lines():
    trees = {str(f): ast.parse(f.read_text(encoding='utf-8'))
             for f in (root/'lesson6').rglob('[!_]*.py')}
    assert not [(f, n.name) for f,tree in trees.items() for n in ast.walk(tree)
                if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 40]


def test_the_counts_can_fail():
    def cell(text, kind='code', **metadata):
        return {'cell_type': kind, 'source': [text], 'metadata': metadata, 'outputs': []}
    long = [cell('word '*351, 'markdown'), *[cell('a = 1\nb = 2')]*30, cell('learn.fit(1)')]
    assert opening(long) == (31, 61, 351)
    assert (opening([cell('import os', jupyter={'source_hidden': True}),
                     cell('#| fig-alt: x\nlearn.fine_tune(2)')]) == (1, 1, 0))
    table = {'data': {'text/html': 'train_loss'}, 'metadata': {}}
    assert trainings([{**cell('learn.fit(1)\nlearn.fine_tune(2)'), 'outputs': [table]},
                      cell('learn.fit(1)')]) == 2
    assert (before_the_first_sentence([cell('# A', 'markdown'), cell('1'),
                                       cell('Text', 'markdown')]) == [cell('1')])
    assert prose([cell('a b', 'markdown'), cell('## Questions', 'markdown'),
                  cell('c', 'markdown')]) == 2
    assert without_words([{**cell('draw()'),
                           'outputs': [{'data': {'image/png': ''}, 'metadata': {}}]}]) == ['draw()']
    assert not without_words([{**cell('draw()'),
                               'outputs': [{'data': {'image/png': ''},
                                            'metadata': {'image/png': {'alt': 'A cat'}}}]}])
    assert MACHINERY.search('if profile.drawn: pass') and not MACHINERY.search('learn.export(path)')
    assert exported_share([cell('#| export\ndef f(): pass'), cell('f()')]) == 2/3
    assert too_wide([cell('x'*89)]) and not too_wide([cell('#| fig-alt: ' + 'x'*200)])
    assert (only_machinery(cell('#| export\nimport os'))
            and not only_machinery(cell('import os\nx = 1')))
    assert only_machinery(cell('try: import lesson6\nexcept ImportError:\n    %pip install x'))


# The wings

def test_layers_hold():
    "Imports run from the book to the lesson to the engine to the data."
    pytest.importorskip('importlinter')
    done = subprocess.run([Path(sys.executable).parent/'lint-imports'], cwd=root,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.ci
@pytest.mark.parametrize('module, line',
                         [('pets', 'import lesson6.book.running'),
                          ('engine/pictures', 'from lesson6.pets import breed'),
                          ('data', 'from lesson6.engine import pictures')])
def test_a_wrong_import_is_noticed(module, line, tmp_path):
    import shutil
    shutil.copytree(root/'lesson6', tmp_path/'lesson6')
    shutil.copy(root/'pyproject.toml', tmp_path)
    with open(tmp_path/'lesson6'/f'{module}.py', 'a', encoding='utf-8') as f: f.write(f'\n{line}\n')
    done = subprocess.run([Path(sys.executable).parent/'lint-imports'], cwd=tmp_path,
                          env={'PYTHONPATH': str(tmp_path), 'PATH': ''}, capture_output=True,
                          text=True)
    assert done.returncode == 1 and 'is not allowed to import' in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize('wing', ['exercises', 'engine', 'data', 'book'])
def test_the_page_of_a_wing_names_every_notebook_in_it(wing):
    page = ''.join(source(c) for c in cells(f'{wing}/index'))
    for path in sorted((nbs/wing).rglob('*.ipynb')):
        name = path.relative_to(nbs/wing).as_posix()
        if name != 'index.ipynb' and '.ipynb_checkpoints' not in name:
            assert f']({name})' in page, name


def test_the_start_page_leads_to_every_section_and_wing():
    page = ''.join(source(c) for c in cells('index'))
    for name in [*sections, 'claims', 'exercises/index', 'engine/index', 'data/index',
                 'book/index']:
        assert f']({name}.ipynb)' in page, name


def test_every_module_comes_from_a_notebook():
    made = {p.relative_to(root).as_posix() for p in (root/'lesson6').rglob('*.py')
            if 'AUTOGENERATED' in p.read_text(encoding='utf-8')}
    by_hand = {p.relative_to(root).as_posix() for p in (root/'lesson6').rglob('*.py')} - made
    assert (by_hand
            == {'lesson6/train.py',
                *(f'lesson6/{d}__init__.py' for d in ('', 'exercises/', 'engine/', 'mini/',
                                                      'book/'))} | {'lesson6/_modidx.py'})


# Importing

modules = sorted('.'.join(p.relative_to(root).with_suffix('').parts) for p in (root/'lesson6')
                 .rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
LOOK = '''
import copy, json, os, sys, warnings
import fastai.vision.all, fastai.collab, fastai.tabular.all, matplotlib, pandas, torch
from fastcore.basics import defaults
def text(v): return list(map(str, v)) if isinstance(v, list) else str(v)
def state(): return {'defaults': {k: text(v) for k,v in vars(defaults).items()},
    'environ': dict(os.environ), 'filters': [str(f) for f in warnings.filters],
    'matplotlib': matplotlib.rcParams['figure.figsize'],
    'threads': torch.get_num_threads(), 'seed': torch.initial_seed(),
    'path': sys.path[:], 'hook': str(sys.excepthook)}
import importlib
changed = {}
for name in sys.argv[1:]:
    before = copy.deepcopy(state())
    importlib.import_module(name)
    after = state()
    if after != before: changed[name] = [k for k in before if after[k] != before[k]]
print(json.dumps(changed))
'''


def test_importing_changes_nothing():
    "Neither fastai's defaults, nor the environment, nor the filters of warnings."
    assert json.loads(python(LOOK, *modules).stdout) == {}


def test_a_change_is_noticed(tmp_path):
    (tmp_path/'careless.py').write_text('import os, warnings; os.environ["X"] = "1"; '
                                        'warnings.filterwarnings("ignore", "no such"); from '
                                        'fastcore.basics import defaults; '
                                        'defaults.callbacks.append(print)')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', LOOK, 'careless'], cwd=tmp_path,
                          env={'PYTHONPATH': str(tmp_path), 'PATH': ''}, capture_output=True,
                          text=True, check=True)
    assert json.loads(done.stdout) == {'careless': ['defaults', 'environ', 'filters']}


# What could be imported from a section before the engine had a wing of its own, and what the README
# and the notebooks of
# 27 November 2026 (7bbe2e3) import. A name that goes is told in CHANGELOG, with what to use
# instead, and leaves this table.
NAMES = {
    'pets': 'breed is_cat check_picture pet_files pets_dls cross_entropy pets_learner '
            'training_time suggest_lr fit_discriminative fit_head CPUMixedPrecision '
            'mixed_precision',
    'multilabel': 'voc_labels read_labels get_x get_y splitter multilabel_dls one_hot_encode '
                  'decode_one_hot binary_cross_entropy threshold_curve best_threshold '
                  'plot_threshold_curve label_report prediction_table',
    'head_pose': 'img2pose read_centre read_calibration get_ctr sigmoid_range plot_function '
                 'pixel_error pixel_point point_head biwi_dls points_dls',
    'collab': 'read_titles read_ratings Ratings RatingsDL RatingsDataLoaders ratings_dls '
              'LeanLearner DotProduct DotProductBias create_params extreme_items factor_map '
              'similar_items recommend factors_and_biases ratings_learner CollabNN',
    'regularisation': 'l2_penalty weight_decay_step wd_sweep affine_picture affine_points dots '
                      'find_dots point_drift',
    'data': 'folders urls profile full_counts Profile check_dataset cache_path draw_twin '
            'download_real lesson_path',
    'train': 'sections recipe section_learner train_section main',
    'claims': 'claim claims_table statements', 'exercises': 'check hint solution',
    'engine.augmentation': 'affine_picture affine_points dots find_dots point_drift',
    'engine.figures': 'camera_data confusion_data learning_rate_data map_data show_with_data '
                      'threshold_data',
    'engine.frozen_body': 'fit_head',
    'engine.labels': 'get_x get_y label_report multilabel_dls plot_prediction prediction_table '
                     'read_labels splitter voc_labels',
    'engine.networks': 'efficientnet_lite0 lesson_arch',
    'engine.picture_labels': 'LabelledPictures labelled_pictures',
    'engine.picture_loaders': 'KeepBatches KeepItems',
    'engine.pictures': 'UprightImage check_picture composed picture_endings',
    'engine.points': 'biwi_dls fit_size get_ctr img2pose kept_out pixel_point point_errors '
                     'point_of points_dls posed_frames published_frame read_calibration '
                     'read_centre read_points show_points '
                     'HeatCentre TablePoint TwoMaps pixel_error', # which exported learners name
    'engine.rating_learners': 'LeanLearner factors_and_biases fused_learner',
    'engine.ratings': 'RatingModel Ratings RatingsDL RatingsDataLoaders YRange ratings_dls '
                      'read_ratings read_titles',
    'engine.recommending': 'Newcomers extreme_items factor_map recommend similar_items',
    'engine.training': 'CPUMixedPrecision StopAtNaN device_of load_weights '
                       'mixed_precision suggest_lr training_time',
    'mini.movielens': 'best_guess truth',
}


@pytest.mark.parametrize('module', NAMES)
def test_old_names_can_be_imported(module):
    import importlib
    m = importlib.import_module(f'lesson6.{module}')
    assert [n for n in NAMES[module].split() if not hasattr(m, n)] == []


def test_one_set_of_names():
    "Each section goes by the name of its module, everywhere; the name of its file will do too."
    from lesson6.book.running import section_name
    for file,name in sections.items():
        assert ([p.stem for p in find_notebooks([name])] == [p.stem for p in find_notebooks([file])]
                == [file])
        assert (section_name(name) == section_name(file) == section_name(file.partition('_')[2])
                == name)


def test_no_address_is_named_until_one_is_set():
    "A name that nobody has registered could be registered by anybody."
    from lesson6.book.site import repository
    if repository(): pytest.skip(f'the address is {repository()}')
    done = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True)
    files = ([root/f for f in done.stdout.split()] if done.returncode == 0
             else [p for p in root.rglob('*') if p.is_file() and '.venv' not in p.parts])
    for f in files:
        if (f.suffix in ('.py', '.ipynb', '.md', '.toml', '.ini', '.yaml', '.yml', '.cff')
            and f.exists()):
            assert not re.search(r'(github\.com|mybinder\.org/v2/gh|colab\.research\.google\.com/'
                                 r'github|kaggle\.com/kernels/welcome\?src=)/lesson6',
                                 f.read_text(encoding='utf-8')), f


def test_a_run_leaves_nothing_in_the_folder_of_notebooks():
    left = [p for p in nbs.rglob('*') if p.is_dir()
            and p.name in ('models', 'runs', '_run', '_site')]
    assert not left


@pytest.mark.parametrize('path', find_notebooks(), ids=lambda p: p.stem)
def test_what_is_stored_says_nothing_of_this_machine_or_of_bars_that_have_ended(path):
    nb = nbformat.read(path, as_version=4)
    outputs = [c.outputs for c in nb.cells if c.cell_type == 'code']
    assert (outputs == [c.outputs for c in to_store(nb).cells if c.cell_type == 'code']
            and 'site-packages' not in str(outputs))


@pytest.mark.parametrize('path', find_notebooks(), ids=lambda p: p.stem)
def test_every_picture_has_words_where_readers_look_for_them(path):
    assert not without_words(json.loads(path.read_text(encoding='utf-8'))['cells'])


def test_the_notebooks_are_small():
    size = sum(p.stat().st_size for p in find_notebooks())
    assert size <= 8e6, f'{size/1e6:.1f} MB'


def test_mutants_are_made_of_every_module_of_the_lesson_and_of_the_engine():
    value = next(n.value for n in ast.parse((root/'tests'/'mutants.py').read_text(encoding='utf-8'))
                 .body if isinstance(n, ast.Assign) and n.targets[0].id == 'modules')
    modules = ast.literal_eval(value)
    engine = {f'engine/{f.stem}' for f in (root/'lesson6'/'engine').glob('*.py')
              if f.stem != '__init__'}
    assert set(modules) == engine | set(sections.values()) | {'files', 'tables', 'data'}
    for notebook, tests in modules.values():
        assert (nbs/f'{notebook}.ipynb').exists() and all((root/'tests'/f'test_{t}.py').exists()
                                                          for t in tests.split())
