"The benchmarks' own code, in small: that they measure what they say. No time is tested."
import ast
from importlib import import_module

import pytest
from conftest import python, root


@pytest.fixture(autouse=True)
def there(monkeypatch): monkeypatch.syspath_prepend(str(root/'benchmarks'))


def imported(code):
    "(module, name) of everything that code takes from the package, also inside a function"
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): found = [(a.name, '') for a in node.names]
        elif isinstance(node, ast.ImportFrom): found = [(node.module, a.name) for a in node.names]
        else: continue
        yield from (pair for pair in found if pair[0].startswith('lesson6'))


def missing(code):
    "What code imports from the package and is not there"
    found = []
    for module, name in imported(code):
        try: exec(f'from {module} import {name}' if name else f'import {module}', {})
        except ImportError as e: found.append(str(e))
    return found


scripts = sorted(f for folder in ('benchmarks', 'docs') for f in (root/folder).glob('*.py'))


@pytest.mark.parametrize('file', scripts, ids=lambda f: f'{f.parent.name}/{f.stem}')
def test_what_a_script_imports_is_there(file):
    assert not missing(file.read_text(encoding='utf-8'))
    if file.parent.name == 'benchmarks': import_module(file.stem)


def test_an_import_of_what_is_not_there_is_found():
    assert len(missing('import lesson6.collab, lesson6.moved\n'
                       'def f(): from lesson6.collab import moved')) == 2


def test_what_the_times_of_imports_name_is_there():
    import imports
    for name in imports.sections: import_module(f'lesson6.{name}')


def test_moments_are_counted_once():
    from gpu import covered
    assert covered([]) == 0
    assert covered([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13


@pytest.mark.slow
def test_what_a_gpu_would_run_runs_on_a_processor(tmp_path):
    import torch
    from gpu import get_image_files, measure, ways
    from laptop import draw
    from torchvision.models import squeezenet1_1
    (tmp_path/'pictures').mkdir()
    draw(tmp_path/'pictures', 30)
    files = get_image_files(tmp_path/'pictures').sorted()
    for name in ways:
        found = measure(name, files, torch.device('cpu'), squeezenet1_1, bs=8, skip=1, n=2)
        assert (found['share of the time that the GPU works'] is None
                and found['pictures a second'] > 0)
        most = found['fed from memory, pictures a second']
        assert found['share of that'] == found['pictures a second']/most


def test_without_a_gpu_the_table_says_so(tmp_path, monkeypatch):
    import compare
    import gpu
    monkeypatch.setattr(compare, 'results', tmp_path)
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    gpu.main()
    text = (tmp_path/'gpu.md').read_text()
    assert 'This machine has no GPU.' in text and text.count('| not measured') == 4*5


def test_a_table_and_its_chart(tmp_path, monkeypatch):
    import compare
    import pandas as pd
    monkeypatch.setattr(compare, 'results', tmp_path)
    table = pd.DataFrame({'times as fast': [1, 2.25, None], 'error': [None, .5, 12345.6]},
                         index=['by hand', 'by abacus', 'by heart'])
    def made(**kw):
        compare.report('halving', 'Halving', table, 'Four, halved.', **kw)
        return (tmp_path/'halving.md').read_text()
    text = made()
    assert text.startswith('## Halving\n\nFour, halved.\n\n| what | times as fast | error |\n')
    assert '| by abacus | 2.25 | 0.5 |\n| by heart |  | 1.235e+04 |\n' in text
    assert ('![bar chart, Halving, times as fast as what it is compared with; by hand: 1; '
            'by abacus: 2.25](halving.svg)') in text
    assert (tmp_path/'halving.svg').exists()
    assert '](' not in made(chart=False) and not (tmp_path/'halving.svg').exists()


@pytest.mark.ci
def test_large_ratings_and_a_contender_that_is_broken_off(tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')
    import ratings_large as large
    monkeypatch.setattr(large, 'sizes', {20_000: (200, 150)})
    file = tmp_path/'ratings.parquet'
    large.draw(file, 20_000)
    found = large.ours(file, 20_000)
    assert found['lowest possible'] < found['validation MSE'] < 1.5 and found['peak GB'] > 0
    assert large.stock(file, 20_000, 64)['an epoch s'] > 0
    monkeypatch.setattr(large, 'most_bytes', 1)
    assert 'broken off at 0 GiB' in large.alone('stock', file, 20_000, 64)[1]


def test_an_import_that_fails_is_told():
    import imports
    assert imports.seconds('pass', 'sum(range(10**6))')[1] > 0
    with pytest.raises(RuntimeError, match='import nothing_of_that_name ended with 1'):
        imports.seconds('pass', 'import nothing_of_that_name')


def test_the_package_itself_imports_none_of_the_large_ones():
    code = ("import lesson6, sys; print([m for m in ('torch', 'fastai', 'pandas', 'numpy', "
            "'matplotlib', 'pyarrow', 'sklearn') if m in sys.modules])")
    assert python(code).stdout.strip() == '[]'


@pytest.mark.ci
def test_ratings_need_nothing_of_pictures():
    "As `imports` measures them: fastai's part for pictures takes two seconds."
    import imports
    ours = [f'lesson6.{name}' for name, base in imports.sections.items() if base == imports.collab]
    code = (f"{imports.collab}; import sys, {', '.join(ours)}; "
            "print([m for m in ('fastai.vision.all', 'timm') if m in sys.modules])")
    assert python(code).stdout.strip() == '[]'


def test_installing_meets_empty_caches(tmp_path, monkeypatch):
    import install
    monkeypatch.setenv('UV_CACHE_DIR', '/full')
    monkeypatch.setenv('LESSON6_DATA', 'full')
    env = install.cold(tmp_path)
    assert ({env[k] for k in ('UV_CACHE_DIR', 'PIP_CACHE_DIR')} == {str(tmp_path/'caches')}
            and 'LESSON6_DATA' not in env and env['PATH'])


@pytest.mark.slow
def test_real_pictures_reach_what_is_promised(real, tmp_path):
    """By the sections' own functions, with eight pictures of a breed and 482 pictures of VOC to
    learn from; the lesson's VOC, with 2,501 pictures and a GPU, has 95.5 %. It takes minutes"""
    import pandas as pd
    import real as photos
    from fastai.torch_core import default_device

    from lesson6.engine.networks import efficientnet_lite0
    if default_device().type != 'cpu': pytest.skip('the bounds are those of a laptop')
    path = real/'oxford-iiit-pet'
    error = pd.DataFrame([photos.pets(path, fold) for fold in range(5)]).mean()
    folder = photos.linked(photos.get_image_files(path).sorted(), 0, tmp_path/'images')
    dls = photos.pets_dls(folder, seed=0, by='name')
    random = photos.quiet(photos.pets_learner(dls, efficientnet_lite0, pretrained=False))
    with random.no_logging(): photos.fit_pets(random)
    by_chance = random.validate()[1]
    accuracy, precision = photos.voc(real/'pascal_2007')
    print(f'pets: {error.to_dict()}, with random weights {by_chance:.3f}; VOC: '
          f'{accuracy:.4f} right at the best threshold, mean average precision {precision:.3f}')
    assert error.efficientnet_lite0 <= .14 and error.efficientnet_lite2 <= .11
    assert by_chance > .8 and accuracy >= .963 and precision >= .79
