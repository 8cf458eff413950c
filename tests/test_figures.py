"""The figures that a reader can move: in a real browser, from a file, as `make docs` builds them
from the stored notebooks.

Every control is moved by keyboard, and the text that then stands there is compared with the numbers
that the notebook has kept beside its picture.
"""
import json
import re
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest
from conftest import serious
from nbformat.v4 import new_code_cell, new_notebook, new_output

from lesson6.book.figures import figure_file, figure_places, kinds
from lesson6.book.running import notebooks_path, sections
from lesson6.engine.figures import figure_type, most_bytes

pytest.importorskip('altair', reason='the figures of the site take the extra `book`')
where = {'learning_rate': '01_pet_breeds', 'confusion': '01_pet_breeds',
         'threshold': '02_multi_label', 'camera': '03_head_pose', 'map': '04_collab',
         'weight_decay': '05_regularisation'}
every = pytest.mark.parametrize('kind', where)


def kept(kind):
    "What the stored notebook has beside the picture"
    nb = nbformat.read(notebooks_path()/f'{where[kind]}.ipynb', as_version=4)
    return next(d for _, d in figure_places(nb, where[kind]).values() if d['kind'] == kind)


# Without a browser

@every
def test_every_kind_is_in_a_section_and_has_a_picture_too(kind):
    assert set(where) == set(kinds)
    nb = nbformat.read(notebooks_path()/f'{where[kind]}.ipynb', as_version=4)
    i = next(i for i, (_, d) in figure_places(nb, where[kind]).items() if d['kind'] == kind)
    assert any(o.get('data', {}).get('image/png') for o in nb.cells[i].outputs)
    below = ''.join(c.source for c in nb.cells[i+1:i+4] if c.cell_type == 'markdown')
    assert below.count('?*') >= 2, 'two questions are asked and answered under it'


@pytest.mark.parametrize('name', sections)
def test_a_page_has_at_most_300_kB_of_data(name):
    nb = nbformat.read(notebooks_path()/f'{name}.ipynb', as_version=4)
    places = figure_places(nb, name)
    assert places and sum(len(figure_file(*o)) for o in places.values()) <= most_bytes


def test_each_figure_has_a_file_of_its_own():
    "Of several in one cell none can be moved: one picture would make way for all of them"
    def cell(*kinds):
        return new_code_cell(outputs=[new_output('display_data',
                                                 {'image/png': '',
                                                  figure_type: {'kind': k, 'n': i}})
                                      for i, k in enumerate(kinds)])
    places = figure_places(new_notebook(cells=[cell('threshold'), cell('camera'), cell('threshold'),
                                               cell('map', 'map'), cell()]), 'x')
    assert {i: file for i, (file, _) in places.items()} == {0: '_figures/x-threshold.js',
                                                            1: '_figures/x-camera.js',
                                                            2: '_figures/x-threshold-2.js'}


def test_the_numbers_cannot_end_the_script():
    assert '</script' not in figure_file('x', {'kind': 'camera', 'title': '</script><b>'})


# In a browser

@pytest.fixture(scope='session')
def built(made): return made[1]


def ready(tab, built, kind):
    "The page, scrolled to the figure, which has come"
    tab.goto((built/f'{where[kind]}.html').as_uri())
    place = tab.locator(f'.answering[data-kind={kind}]')
    place.scroll_into_view_if_needed()
    tab.wait_for_selector(f'.answering.ready[data-kind={kind}]', timeout=20000)
    return place


def press(control, key, times=1):
    control.focus()
    for _ in range(times): control.press(key)


def numbers(text):
    return [float(o.replace('−', '-')) for o in re.findall(r'-?\d+(?:\.\d+)?(?:e[+-]\d+)?', text)]


@pytest.mark.ci
def test_the_learning_rate(tab, built):
    place, d = ready(tab, built, 'learning_rate'), kept('learning_rate')
    slider = place.get_by_role('slider', name='learning rate')
    for key, times in ('ArrowLeft', 3), ('End', 1), ('Home', 1), ('ArrowRight', 10):
        press(slider, key, times)
        rate, says = 10**float(slider.input_value()), place.locator('.says').inner_text()
        assert numbers(place.locator('output').inner_text())[0] == pytest.approx(rate, rel=.06)
        w = 1.4*(1 - 2*d['steepness']*rate)**8
        assert numbers(says.split('lead to')[1])[0] == pytest.approx(w*w, rel=.06, abs=.006)
        at = int(np.abs(np.log(np.array(d['lrs'])/rate)).argmin())
        if 'has tried no such rate' in says: assert abs(np.log(d['lrs'][at]/rate)) >= .49
        else:
            assert (numbers(says.split('finder:')[1])[:2]
                    == pytest.approx([d['losses'][at], d['lrs'][at]], rel=.06))
    assert place.locator('.chart svg').count() == 2 and not tab.complaints


@pytest.mark.ci
def test_the_confusion_matrix(tab, built):
    place, d = ready(tab, built, 'confusion'), kept('confusion')
    select = place.get_by_label('field of the matrix')
    assert (select.locator('option').count() == len(d['fields'])
            == place.locator('svg rect:not(.field)').count())
    for i in 0, 3, len(d['fields'])-1:
        select.select_option(str(i))
        o, says = d['fields'][i], place.locator('.says').inner_text()
        row = sum(other['count'] for other in d['fields'] if other['actual'] == o['actual'])
        assert says.startswith(f"{o['count']} of {row} pictures of {d['vocab'][o['actual']]}")
        assert ((d['vocab'][o['guess']] in says) or o['actual'] == o['guess']
                and 'recognised' in says)
        sure = [numbers(t)[0] for t in place.locator('figcaption').all_inner_texts()]
        assert (sure == pytest.approx([100*p for _, p in o['pictures']], abs=.06)
                and len(sure) == place.locator('.cut').count())
    place.locator('svg rect:not(.field)').nth(1).click()
    assert select.input_value() == '1'
    assert not tab.complaints


@pytest.mark.ci
def test_the_threshold(tab, built):
    place, d = ready(tab, built, 'threshold'), kept('threshold')
    slider = place.get_by_role('slider', name='threshold')
    assert float(slider.input_value()) == pytest.approx(d['best'])
    for key, times in ('ArrowRight', 5), ('Home', 1), ('End', 1), ('ArrowLeft', 9):
        press(slider, key, times)
        thresh = float(slider.input_value())
        i = round(100*thresh)-1
        found = numbers(place.locator('.says').inner_text().replace('none', '-1'))
        assert (found == pytest.approx([thresh, *(100*(d[m][i] if d[m][i] is not None else -.01)
                                            for m in ('accuracy', 'precision', 'recall')),
                                  100*max(d['accuracy']), d['best']], abs=.06))
        for k, o in enumerate(d['pictures']):
            named = {d['vocab'][l]: 'right' if l in o['labels'] else 'wrong' for l, p in o['said']
                     if p > thresh}
            wanted = named | {d['vocab'][l]: 'missed' for l in o['labels']
                              if d['vocab'][l] not in named}
            shown = dict(t.split(': ') for t in place.locator('.cards figure').nth(k).locator('li')
                         .all_inner_texts() if t != 'nothing')
            assert shown == wanted
    assert not tab.complaints


@pytest.mark.ci
def test_the_camera(tab, built):
    place, d = ready(tab, built, 'camera'), kept('camera')
    names = 'to the right, mm', 'down, mm', 'away from the camera, mm'
    x, y, z = d['centre']
    measured = [d['fx']*x/z + d['cx'], d['fy']*y/z + d['cy']]
    assert ([numbers(part.split('=')[1])[0] for part in place.locator('.says').inner_text()
             .split('pixels')[:2]] == pytest.approx(measured, abs=.06))
    for name, key, times in ((names[0], 'ArrowRight', 4), (names[1], 'ArrowLeft', 7),
                             (names[2], 'ArrowRight', 20), (names[0], 'End', 1),
                             (names[2], 'Home', 1)):
        press(place.get_by_label(name), key, times)
        x, y, z = (float(place.get_by_label(n).input_value()) for n in names)
        px, py = d['fx']*x/z + d['cx'], d['fy']*y/z + d['cy']
        says = place.locator('.says').inner_text()
        assert ([numbers(part.split('=')[1])[0] for part in says.split('pixels')[:2]]
                == pytest.approx([px, py], abs=.06))
        assert (('outside the picture' in says)
                == (not (0 <= px <= d['width'] and 0 <= py <= d['height'])))
        spot = place.locator('.frame .hit')
        assert ([float(spot.get_attribute(o)) for o in ('cx', 'cy')]
                == pytest.approx([px, py], abs=.01))
    assert not tab.complaints


@pytest.mark.ci
def test_the_map(tab, built):
    place, d = ready(tab, built, 'map'), kept('map')
    assert f"{len(d['titles'])} titles" in place.locator('.says').inner_text()
    for o in d['titles'][:2] + d['titles'][-1:]:
        place.get_by_label('search a title').fill(o['title'])
        says = place.locator('.says').inner_text()
        assert (says.startswith(o['title']) and numbers(says[len(o['title']):])[:2]
                == pytest.approx([o['mean'], o['ratings']], abs=.006))
        assert [r[0] for r in table_of(place)] == [t for t, _ in o['near']]
    place.get_by_label('search a title').fill('no such title')
    assert 'No title on the map has no such title in it' in place.locator('.says').inner_text()
    users = place.get_by_label('or a user')
    for i in 0, len(d['users'])-1:
        users.select_option(str(i))
        o = d['users'][i]
        assert (f"rated {o['rated']} titles" in place.locator('.says').inner_text()
                and o['shown'][0][0] in place.locator('.says').inner_text())
        assert [r[0] for r in table_of(place)] == [t for t, _ in o['liked'] + o['shown']]
    place.locator('.chart svg .mark-symbol path').first.hover()
    tab.wait_for_selector('#vg-tooltip-element.visible')
    assert any(o['title'] in tab.locator('#vg-tooltip-element').inner_text() for o in d['titles'])
    assert not tab.complaints


def table_of(place):
    return [[c.inner_text() for c in row.locator('td').all()]
            for row in place.locator('tbody tr').all()]


@pytest.mark.ci
def test_the_weight_decay(tab, built):
    place, d = ready(tab, built, 'weight_decay'), kept('weight_decay')
    slider = place.get_by_role('slider', name='weight decay')
    for key in 'Home', 'ArrowRight', 'End':
        press(slider, key)
        i = int(slider.input_value())
        assert (numbers(place.locator('.says').inner_text())
                == pytest.approx([d['wd'][i], d['train_loss'][i], d['valid_loss'][i], d['size'][i],
                                  d['wd'][i]*d['size'][i]**2], rel=.06, abs=6e-4))
        assert float(place.locator('output').inner_text()) == d['wd'][i]
    assert not tab.complaints


@pytest.mark.ci
def test_a_weight_decay_that_diverged_is_told(tab, built):
    ready(tab, built, 'weight_decay')
    began, told = tab.evaluate("""async () => {
        const found = Object.values(lesson6.figures).find(d => d.kind === 'weight_decay')
        const data = structuredClone(found), place = document.createElement('div')
        const last = data.wd.length - 1
        data.valid_loss[last] = data.train_loss[last] = data.size[last] = null
        document.querySelector('article').append(place)
        await lesson6.show(place, data)
        const slider = place.querySelector('input'), says = place.querySelector('.says')
        const began = says.innerText
        slider.value = last
        slider.dispatchEvent(new Event('input'))
        return [began, says.innerText]
    }""")
    d = kept('weight_decay')
    assert (numbers(began)[0] == d['wd'][d['valid_loss'].index(min(d['valid_loss']))]
            and 'NaN' not in began)
    assert told == f"wd {d['wd'][-1]:g}: the training diverged." and not tab.complaints


@pytest.mark.ci
@every
def test_with_the_figure_the_picture_makes_way(kind, tab, built):
    asked = []
    tab.on('request', lambda r: asked.append(urlsplit(r.url).path.rpartition('/')[2]))
    tab.goto((built/f'{where[kind]}.html').as_uri())
    tab.wait_for_load_state()
    tab.wait_for_timeout(300)
    assert not {'figures.js', 'vega.js'} & set(asked)
    assert not [o for o in asked if where[kind] in o and o.endswith('.js')]
    assert (tab.locator(f'.answering[data-kind={kind}]')
            .evaluate('e => e.previousElementSibling.querySelector("img").checkVisibility()'))
    place = ready(tab, built, kind)
    assert not place.evaluate('e => '
                              'e.previousElementSibling.querySelector("img").checkVisibility()')
    assert 'figures.js' in asked


@pytest.mark.ci
@every
def test_without_scripts_the_picture_stays(kind, browser, built):
    page = browser.new_page(java_script_enabled=False)
    page.goto((built/f'{where[kind]}.html').as_uri())
    image = page.locator('.cell:has(+ .answering[data-kind=%s]) img' % kind)
    assert image.is_visible() and image.get_attribute('alt')
    assert not page.locator(f'.answering[data-kind={kind}]').inner_text()
    page.close()


@pytest.mark.ci
@every
def test_when_something_is_missing_the_picture_stays(kind, browser, built):
    page = browser.new_page()
    page.route('**/_figures/*', lambda route: route.abort())
    page.goto((built/f'{where[kind]}.html').as_uri())
    place = page.locator(f'.answering[data-kind={kind}]')
    with page.expect_console_message(lambda m: 'could not be loaded' in m.text):
        place.scroll_into_view_if_needed()
    assert (place.evaluate('e => e.previousElementSibling.querySelector("img").checkVisibility()')
            and not place.inner_text())
    page.close()


@pytest.mark.ci
@every
@pytest.mark.parametrize('width, scheme', [(390, 'dark'), (1400, 'light')])
def test_everybody_can_use_it(kind, width, scheme, tab, built):
    "axe-core finds no barrier, and nothing is wider than a phone."
    tab.emulate_media(color_scheme=scheme, reduced_motion='reduce')
    tab.set_viewport_size({'width': width, 'height': 900})
    place = ready(tab, built, kind)
    assert not serious(tab, f'.answering[data-kind={kind}]')
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    for control in place.locator('input, select').all():
        assert control.evaluate('e => e.labels.length') == 1
    assert place.locator('[aria-live=polite]').count() == 1 and not tab.complaints


@pytest.mark.ci
def test_the_scripts_are_light(built):
    scripts = [*(built/'_static').glob('figures.js'), *(built/'_static').glob('lesson6.js'),
               built/'_figures'/'vega.js']
    assert sum(f.stat().st_size for f in scripts) <= 1_500_000
    for f in (built/'_figures').glob('*.js'):
        assert (f.name == 'vega.js'
                or json.loads(f.read_text(encoding='utf-8').partition('=')[2].rstrip(';\n')))
