"Hands the facts in settings.ini to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']
# The notebooks and the settings of the site travel inside the package, each folder as a package of
# data.
shipped = ['.'.join(['lesson6', *p.relative_to(here).parts]) for top in ('nbs', 'docs')
           for p in [here/top, *sorted((here/top).rglob('*'))]
           if p.is_dir() and not any(o.startswith(('.', '_')) for o in p.relative_to(here).parts)]

def lines(key): return settings[key].strip().splitlines()

setup(
    version=settings['version'],
    description=settings['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    license=settings['license'],
    keywords=lines('keywords'),
    classifiers=lines('classifiers'),
    install_requires=lines('requirements'),
    extras_require={'distributed': lines('distributed_requirements'),
                    'book': lines('book_requirements'),
                    'class': lines('class_requirements'), 'dev': lines('dev_requirements'),
                    'mutants': lines('mutants_requirements')},
    entry_points={'console_scripts': lines('console_scripts')},
    packages=[*find_packages(include=['lesson6', 'lesson6.*']), *shipped],
    package_dir={'lesson6.nbs': 'nbs', 'lesson6.docs': 'docs'},
    package_data={'lesson6': ['mini/*.safetensors'], **{p: ['*.ipynb'] for p in shipped},
                  'lesson6.docs': ['*.py', '*.md', '*.png', 'times.json'],
                  'lesson6.docs.static': ['*'], 'lesson6.docs.runs': ['*.json']},
)
