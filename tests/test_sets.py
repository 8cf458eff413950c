"""What is in a set: the report is the same for a section and for the command, for all four kinds of
data."""
import re

import numpy as np
import pytest
from PIL import Image
from test_annotations import made_up, write
from test_command import lesson6

from lesson6.data import folders
from lesson6.engine.ratings import ratings_dls
from lesson6.engine.sets import about, look
from lesson6.tables import short_list


@pytest.fixture
def mine(tmp_path, environment):
    "A folder with all four kinds of data"
    root, r = tmp_path/'mine', np.random.default_rng(0)
    def picture(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(r.integers(0, 255, (24, 32, 3), np.uint8)).save(file)
    for i in range(16):
        picture(root/folders['pets']/('train', 'train', 'valid',
                                      'test')[i%4]/('Corgi', 'Pug')[i//4%2]/f'{i}.png')
    write('COCO', root/folders['pascal'], made_up(tmp_path))
    for i in range(6): picture(root/folders['biwi']/f'{i}.png')
    (root/folders['biwi']/'points.csv').write_text('fname,x,y,group\n'
                                                   + ''.join(f'{i}.png,{i+9},8,{"ab"[i%2]}\n'
                                                             for i in range(5)))
    (root/folders['movielens']).mkdir()
    (root/folders['movielens']/'ratings.csv').write_text('user,title,rating\n'
                                                         + ''.join(f'{i%7},Book {i%11},{i%5*2}\n'
                                                                   for i in range(77)))
    environment.setenv('LESSON6_DATA', str(root))
    return root


SAYS = {'pets': ['12 pictures, 2 breeds', 'the names of the folders',
                 '8 to train on and 4 for validation', 'noticed: 4 pictures'],
        'pascal': ['21 pictures, 4 labels', '15 to train on and 6 for validation',
                   'noticed: 3 of 24'],
        'biwi': ['5 frames|5 pictures, 2 groups', 'points in pixels',
                 'held out are the 2 pictures of b', 'noticed: 1 of 6'],
        'movielens': ['77 ratings, 7 users, 11 titles', '5 values from 0 to 8', 'a random fifth']}


@pytest.mark.parametrize('name', SAYS)
def test_a_section_says_what_was_found_in_five_lines(name, mine):
    said = about(name)
    assert all(re.search(o, said) for o in SAYS[name]), said
    assert len(said.splitlines()) <= 5 and said.startswith(f'{name}: from your own folder')
    fine, lines = look(name)
    assert fine and lines[1:] == [l.strip() for l in said.splitlines()[1:]]


def test_people_held_out_are_counted_and_none_is_cut_in_the_middle(mine):
    folder, names = mine/folders['biwi'], [f'staffordshire bull terrier {i:02}' for i in range(20)]
    for i in range(20): Image.new('RGB', (32, 24)).save(folder/f'{i}.png')
    (folder/'points.csv').write_text('fname,x,y,group\n'
                                     + ''.join(f'{i}.png,9,8,{o}\n' for i,o in enumerate(names)))
    assert (f'held out are the 4 pictures of 4 groups, among them {", ".join(names[-4:-1])}\n'
            in about('biwi')+'\n')
    assert short_list(names) == ', '.join(names[:3]) + ' and 17 more'


def test_a_split_without_people_is_said_as_of_other_pictures(mine):
    (mine/folders['biwi']/'points.csv').write_text(
        'fname,x,y,part,split\n' + ''.join(f'{i}.png,{i+9},8,,{("train", "val")[i%3 == 0]}\n'
                                          for i in range(6)))
    said = about('biwi')
    assert "split: the set's own, 4 to train on and 2 for validation" in said
    assert 'group' not in said


@pytest.mark.parametrize('words, says', [
    (('train', 'test'), "a random fifth is for validation; the column set is only used with valid"),
    (('Lego', 'Duplo'), 'split: the set has none')])
def test_of_ratings_a_split_and_what_may_not_be_rated_are_said(words, says, mine):
    folder = mine/folders['movielens']
    (folder/'ratings.csv').write_text('user,title,rating,set\n' + ''.join(
        f'{i%7},Book {i%11},{i%5+1 if i%10 else -1},{words[i%4 == 0]}\n' for i in range(80)))
    said = about('movielens')
    assert says in said
    with pytest.warns(UserWarning, match='8 of 80 .* are -1') as warned:
        ratings_dls(folder, device='cpu')
    assert f'noticed: {warned[0].message}' in said


def test_the_command_says_the_same(mine, environment, capsys):
    environment.delenv('LESSON6_DATA')
    assert lesson6(environment, 'data', '--check', mine) == 0
    out = capsys.readouterr().out
    assert all(re.search(o, out) for some in SAYS.values() for o in some), out
    assert lesson6(environment, 'data', 'collab', '--check', mine/folders['movielens']) == 0
    assert '77 ratings' in capsys.readouterr().out
    (mine/folders['pets']/'train'/'Pug'/'5.png').write_bytes(b'broken')
    (mine/folders['biwi']/'points.csv').write_text('fname,x,y\n0.png,wide,8\n')
    assert lesson6(environment, 'data', '--check', mine) == 1
    out = capsys.readouterr().out
    assert '5.png is no picture' in out and 'points.csv, line 2' in out and '77 ratings' in out


@pytest.mark.parametrize('where, says',
                         [('nowhere', 'there is no such folder'), ('.', 'it holds none of')])
def test_a_folder_without_a_set(where, says, tmp_path, environment, capsys):
    environment.chdir(tmp_path)
    assert lesson6(environment, 'data', '--check', where) == 1
    assert says in capsys.readouterr().err


def test_without_a_home_folder(mine, environment, capsys):
    "As for a user that a container invents"
    environment.setenv('HOME', '')
    environment.setattr('os.path.expanduser', lambda p: p)
    assert lesson6(environment, 'data', 'collab', '--look') == 0
    assert 'your own folder' in capsys.readouterr().out
