"""Annotators' formats: Pascal VOC XML, COCO JSON and YOLO folders say the same of the same
pictures, and what is wrong in them is named."""
import csv
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesson6.engine.annotations import (annotated_labels, annotated_points, annotations_in,
                                        read_annotations)
from lesson6.head_pose import kept_out, points_dls, read_points
from lesson6.multilabel import multilabel_dls, read_labels

FORMS = 'VOC', 'COCO', 'YOLO'


def write(form, folder, pictures, split=True):
    """A set in one of the three formats. `pictures`: {file: (labels, part or None, (width, height),
    boxes in pixels)}; `split`: whether the set says which picture is in which part"""
    names = sorted({l for labels, *_ in pictures.values() for l in labels})
    def put(file, to):
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(file)
    def text(file, said):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said, encoding='utf-8')
    parts = {'train': 'train', 'valid': 'val', 'test': 'test'}
    if form == 'VOC':
        for f, (labels, _, (w, h), boxes) in pictures.items():
            put(f, folder/'JPEGImages'/f.name)
            things = ''.join(f'<object><name>{l}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>'
                             f'<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>'
                             for l, (a, b, c, d) in zip(labels, boxes))
            text(folder/'Annotations'/f'{f.stem}.xml',
                 f'<annotation><filename>{f.name}</filename><size><width>{w}</width><height>{h}</'
                 f'height><depth>3</depth></size>{things}</annotation>')
        for ours, theirs in parts.items() if split else ():
            text(folder/'ImageSets'/'Main'/f'{theirs}.txt',
                 ''.join(f'{f.stem}\n' for f, (_, p, *_) in pictures.items() if p == ours))
    if form == 'COCO':
        for ours, theirs in parts.items() if split else ((None, 'all'),):
            some = [f for f, (_, p, *_) in pictures.items() if not split or p == ours]
            for f in some: put(f, folder/theirs/f.name)
            told = {'categories': [{'id': 7*i+1, 'name': n} for i, n in enumerate(names)],
                    'images': [{'id': i, 'file_name': f.name, 'width': pictures[f][2][0],
                                'height': pictures[f][2][1]} for i, f in enumerate(some)],
                    'annotations': [{'id': k, 'image_id': i, 'category_id': 7*names.index(l)+1,
                                     'bbox': [a, b, c-a, d-b]}
                                    for i, f in enumerate(some)
                                    for k, (l, (a, b, c, d)) in enumerate(zip(pictures[f][0],
                                                                              pictures[f][3]))]}
            text(folder/'annotations'/f'instances_{theirs}2017.json', json.dumps(told))
    if form == 'YOLO':
        for f, (labels, part, (w, h), boxes) in pictures.items():
            inside = parts[part] if split else ''
            put(f, folder/'images'/inside/f.name)
            text(folder/'labels'/inside/f'{f.stem}.txt',
                 ''.join(f'{names.index(l)} {(a+c)/2/w} {(b+d)/2/h} {(c-a)/w} {(d-b)/h}\n'
                         for l, (a, b, c, d) in zip(labels, boxes)))
        text(folder/'data.yaml',
             f'train: images/train\nval: images/val\nnames: {json.dumps(names)}\n' if split
             else f'names: {json.dumps(names)}\n')
    return folder


def made_up(tmp_path, n=24, label=lambda i: [('cat', 'dog', '7')[i % 3]] + ['sky']*(i % 2)):
    "Pictures as `write` takes them"
    r, found = np.random.default_rng(0), {}
    (tmp_path/'pictures').mkdir()
    for i in range(n):
        f, (w, h) = tmp_path/'pictures'/f'thing_{i:02d}.png', (40 + i % 3*10, 32)
        Image.fromarray(r.integers(0, 255, (h, w, 3), np.uint8)).save(f)
        labels = label(i)
        boxes = [(2+k, 3, w/2-k, h/2+i/4) for k in range(len(labels))]
        found[f] = (labels, 'valid' if i % 4 == 1 else 'test' if i % 8 == 0 else 'train',
                    (w, h), boxes)
    return found


@pytest.mark.parametrize('form', FORMS)
def test_the_real_voc_says_what_its_table_says(form, real, tmp_path):
    with open(real/'pascal_2007'/'train.csv', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    pictures = {}
    for row in rows:
        labels = row['labels'].split()
        pictures[real/'pascal_2007'/'train'/row['fname']] = (labels,
                                                             'valid' if row['is_valid'] == 'True'
                                                             else 'train', (500, 375),
                                                             [(10, 10, 60+10*k, 90)
                                                              for k in range(len(labels))])
    table = read_labels(write(form, tmp_path/form, pictures))
    said = {Path(f).name: (sorted(l.split()), v)
            for f, l, v in table[['fname', 'labels', 'is_valid']].itertuples(index=False)}
    assert said == {r['fname']: (sorted(r['labels'].split()), r['is_valid'] == 'True')
                    for r in rows}


@pytest.mark.parametrize('split', [True, False])
@pytest.mark.parametrize('form', FORMS)
def test_a_set_in_each_format_is_read_and_makes_loaders(form, split, tmp_path):
    pictures = made_up(tmp_path)
    folder = write(form, tmp_path/form, pictures, split)
    with warnings.catch_warnings(action='ignore'):
        df, points = read_labels(folder), read_points(folder)
        labels, heads = (multilabel_dls(df, folder, size=16, bs=2),
                         points_dls(folder, (32, 32), bs=2))
    used = {f.name: o for f, o in pictures.items() if not split or o[1] != 'test'}
    assert ({Path(r.fname).name: r.labels.split() for r in df.itertuples()}
            == {n: sorted(o[0]) for n, o in used.items()})
    assert {Path(r.fname).name: (r.x, r.y) for r in points.itertuples()} == {
        n: pytest.approx(((b[0]+b[2])/2, (b[1]+b[3])/2)) for n, (*_, [b, *_]) in used.items()}
    if not split: return
    held = {n for n, o in used.items() if o[1] == 'valid'}
    assert ({Path(f).name for f in df[df.is_valid].fname}
            == {Path(f).name for f in heads.valid_ds.items} == held)
    assert len(labels.valid_ds) == len(held)


def test_lists_of_pictures_are_a_split(tmp_path):
    """As YOLO may have them, in place of folders; and in Pascal VOC names with dots, as Roboflow
    gives them"""
    pictures = made_up(tmp_path)
    folder, held = (write('YOLO', tmp_path/'YOLO', pictures, split=False),
                    {f.name for f, o in pictures.items() if o[1] == 'valid'})
    for part, some in (('train', [f for f in pictures if f.name not in held]),
                       ('val', [f for f in pictures if f.name in held])):
        (folder/f'{part}.txt').write_text(''.join(f'./images/{f.name}\n' for f in some))
    (folder/'data.yaml').write_text('train: train.txt\nval: val.txt\n'
                                    + (folder/'data.yaml').read_text())
    assert {a.file.name for a in read_annotations(folder) if a.part == 'valid'} == held
    assert not [a for a in read_annotations(folder) if a.part not in ('train', 'valid')]
    dotted = {f.rename(f.with_name(f'{f.stem}_png.rf.0a{i}.png')): o
              for i, (f, o) in enumerate(pictures.items())}
    folder = write('VOC', tmp_path/'VOC', dotted)
    read = {a.file.name: a.part for a in read_annotations(folder)}
    assert read == {f.name: o[1] for f, o in dotted.items()}


def test_points_to_test_on_are_held_out_where_there_are_no_others(tmp_path):
    pictures = {f: (o[0], 'test' if o[1] == 'valid' else 'train', *o[2:])
                for f, o in made_up(tmp_path, 12, lambda i: ['nose']).items()}
    frames = read_points(write('YOLO', tmp_path/'set', pictures))
    assert kept_out(frames) == [] and (frames['split'] == 'valid').sum() == 3


def test_what_is_said_of_a_split_names_no_table_and_no_column(tmp_path):
    pictures = {f: (o[0], ('train', 'valid', 'test')[i % 3], *o[2:])
                for i, (f, o) in enumerate(made_up(tmp_path, 12).items())}
    with pytest.warns(UserWarning, match='4 of 12 pictures in .*/COCO are for a test and were'):
        read_labels(write('COCO', tmp_path/'COCO', pictures))
    with pytest.warns(UserWarning, match='YOLO has no split of its own: 2 of its 12 pictures'):
        read_labels(write('YOLO', tmp_path/'YOLO', pictures, split=False))
    pictures = {f: (o[0], 'train', *o[2:]) for f, o in pictures.items()}
    with pytest.raises(ValueError, match='its split leaves nothing to validate on; put some'):
        read_labels(write('COCO', tmp_path/'one part', pictures))


def test_keypoints_and_pictures_without_anything(tmp_path):
    folder = write('COCO', tmp_path/'set', made_up(tmp_path, 8, lambda i: ['nose']), split=False)
    file = folder/'annotations'/'instances_all2017.json'
    told = json.loads(file.read_text())
    for o in told['annotations']:
        o['keypoints'] = [5+o['image_id'], 6, 0 if o['image_id'] == 2 else 2]
    told['annotations'] = [o for o in told['annotations'] if o['image_id'] != 3]
    file.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match='2 of 8 pictures .* have no point'):
        points = annotated_points(folder)
    assert sorted(p[:2] for p in points.values()) == [(5+i, 6) for i in (0, 1, 4, 5, 6, 7)]
    with pytest.warns(UserWarning, match='1 of 8 pictures .* have no label'):
        assert len(annotated_labels(folder)) == 7
    assert len(annotated_labels(folder, empty_ok=True)) == 8


def test_labels_of_two_words_are_joined_and_said(tmp_path):
    folder = write('COCO', tmp_path/'set', made_up(tmp_path, 4, lambda i: ['traffic light', 'car']),
                   split=False)
    with pytest.warns(UserWarning, match="'traffic light' is now 'traffic_light'"):
        assert annotated_labels(folder)[0][1] == 'car traffic_light'
    assert annotated_labels(folder, ',')[0][1] == 'car,traffic light'


def test_a_table_counts_before_annotations(tmp_path):
    folder = write('YOLO', tmp_path/'set', made_up(tmp_path), split=False)
    (folder/'train.csv').write_text('fname,labels,is_valid\nimages/thing_00.png,rain,True\n'
                                    'images/thing_01.png,rain,False\n')
    assert set(read_labels(folder).labels) == {'rain'}


# What is wrong: the file that is changed, how, and what is said of it

def change(old, new): return lambda text: text.replace(old, new, 1)


WRONG = [
    ('VOC', 'Annotations/thing_03.xml', lambda t: t[:60], 'thing_03.xml is no XML'),
    ('VOC', 'Annotations/thing_03.xml', lambda t: '<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b '
                                                  '"&a;&a;">]>' + t, 'thing_03.xml has a DOCTYPE'),
    ('VOC', 'Annotations/thing_03.xml', change('thing_03.png', 'gone.png'), None),
    ('VOC', 'Annotations/gone.xml',
     lambda t: '<annotation><filename>gone.jpg</filename></annotation>',
     "gone.xml: there is no picture 'gone.jpg'"),
    ('VOC', 'Annotations/thing_03.xml', change('<name>cat</name>', '<name></name>'),
     'thing_03.xml, object 1 has no name'),
    ('VOC', 'Annotations/thing_03.xml', change('<xmin>2</xmin>', '<xmin>two</xmin>'),
     "thing_03.xml, object 1: xmin is 'two'"),
    ('VOC', 'Annotations/thing_03.xml', change('<xmin>2</xmin>', '<xmin>900</xmin>'),
     'thing_03.xml, object 1: a box should reach'),
    ('VOC', 'Annotations/other.xml', lambda t: '<rss/>', "other.xml is XML with 'rss' in it"),
    ('COCO', 'annotations/instances_all2017.json', lambda t: t[:-40],
     'instances_all2017.json, line 1, is no JSON'),
    ('COCO', 'annotations/instances_all2017.json', change('"categories"', '"kinds"'),
     "no list of 'categories'"),
    ('COCO', 'annotations/instances_all2017.json',
     change('"category_id": 1,', '"category_id": 99,'), 'annotation 0 is of category 99'),
    ('COCO', 'annotations/instances_all2017.json', change('"image_id": 3', '"image_id": "x"'),
     'annotation 0 is of image x'),
    ('COCO', 'annotations/instances_all2017.json', change('thing_05.png', 'gone.png'),
     "there is no picture 'gone.png'"),
    ('COCO', 'annotations/instances_all2017.json', change('"bbox": [2, 3,', '"bbox": [2, '),
     'its bbox should be four numbers'),
    ('YOLO', 'labels/thing_03.txt', lambda t: '0 .5 .5 .1 .1\n0 .5 .5 .1\n',
     'thing_03.txt, line 2 has 4 numbers'),
    ('YOLO', 'labels/thing_03.txt', lambda t: '9 .5 .5 .1 .1\n',
     'thing_03.txt, line 1 is of class 9'),
    ('YOLO', 'labels/thing_03.txt', lambda t: '0 20 30 5 5\n',
     'thing_03.txt, line 1: places should be shares'),
    ('YOLO', 'labels/thing_03.txt', lambda t: '0 .5 .5 wide .1\n',
     "thing_03.txt, line 1: one of its numbers is 'wide'"),
    ('YOLO', 'data.yaml', lambda t: 'names: [a, b\n', 'data.yaml, line'),
    ('YOLO', 'data.yaml', lambda t: 'names: 3\n', 'data.yaml has no names'),
]


@pytest.mark.parametrize('form, file, how, says', WRONG)
def test_what_is_wrong_is_named(form, file, how, says, tmp_path):
    folder = write(form, tmp_path/'set', made_up(tmp_path), split=False)
    there = (folder/file).read_text() if (folder/file).exists() else ''
    (folder/file).write_text(how(there))
    if says is None:   # the file's own name will do
        assert len(annotated_labels(folder)) == 24
        return
    with pytest.raises((ValueError, FileNotFoundError)) as e: annotated_labels(folder)
    assert says in str(e.value) and len(str(e.value).replace(str(tmp_path), '')) <= 300


def test_several_keypoints_are_refused(tmp_path):
    folder = write('COCO', tmp_path/'set', made_up(tmp_path, 4), split=False)
    file = folder/'annotations'/'instances_all2017.json'
    told = json.loads(file.read_text())
    for o in told['annotations']: o['keypoints'] = [1, 2, 2]*17
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match='image 0 has 17 keypoints'): annotated_points(folder)


def test_other_files_are_no_annotations(tmp_path):
    (tmp_path/'config.json').write_text('{"a": 1}')
    (tmp_path/'notes.yaml').write_text('title: x\n')
    assert annotations_in(tmp_path) is None


def test_names_that_begin_with_a_slash_are_those_of_the_set(tmp_path):
    "As some exports write them, with pictures of one name in two folders"
    write('COCO', tmp_path/'set', made_up(tmp_path))
    folder, told = tmp_path/'set', {'categories': [{'id': 1, 'name': 'pug'}], 'images': [],
                                    'annotations': []}
    for f in folder.rglob('*.json'): f.unlink()
    for i,part in enumerate(('train', 'val')):
        (folder/part).mkdir(exist_ok=True)
        Image.new('RGB', (20, 20)).save(folder/part/'a.jpg')
        told['images'].append({'id': i, 'file_name': f'/{part}/a.jpg', 'width': 20, 'height': 20})
        told['annotations'].append({'id': i, 'image_id': i, 'category_id': 1, 'bbox': [1, 1, 5, 5]})
    (folder/'annotations'/'instances_all.json').write_text(json.dumps(told))
    with warnings.catch_warnings(action='ignore'): found = read_annotations(folder)
    assert {o.file for o in found} == {folder/p/'a.jpg' for p in ('train', 'val')}


def test_a_picture_in_no_part_of_the_split_is_left_out_and_named(tmp_path):
    pictures = made_up(tmp_path)
    left = min(pictures)
    folder = write('VOC', tmp_path/'VOC', pictures | {left: (*pictures[left][:1], None,
                                                             *pictures[left][2:])})
    with pytest.warns(UserWarning, match=f'^1 of {len(pictures)} .* the first is {left.name}'):
        found = read_annotations(folder)
    assert [a.file.name for a in found] == sorted(f.name for f in pictures if f != left)


def test_a_point_of_a_picture_whose_size_is_not_said_is_in_pixels(tmp_path):
    folder = write('VOC', tmp_path/'VOC', made_up(tmp_path), split=False)
    before = annotated_points(folder)
    for f in folder.glob('Annotations/*.xml'):
        f.write_text(re.sub('<size>.*</size>', '', f.read_text(encoding='utf-8')), encoding='utf-8')
    assert annotated_points(folder) == before
