"The settings of the site. Its pages are the executed notebooks; lesson6.book.site prepares them."
from importlib.metadata import metadata

from lesson6.book.site import exported_names, repository

facts = metadata('lesson6')
project = facts['Name']
release = version = facts['Version']
author = copyright = facts['Author']  # noqa: A001
html_title = 'lesson6'
language = 'en'

extensions = ['myst_nb', 'lesson6.book.site']
nb_execution_mode = 'off'  # the notebooks come executed
nb_ipywidgets_js = {}      # nothing from a server
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ['attrs_inline', 'attrs_block', 'colon_fence', 'deflist', 'dollarmath',
                          'strikethrough']
myst_heading_anchors = 3
html_math_renderer = 'mathml'
lesson6_names = exported_names()
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = 'hide'
nitpicky = False
suppress_warnings = ['mystnb.unknown_mime_type', 'misc.highlighting_failure']

html_theme = 'furo'
html_static_path = ['static']
html_css_files = ['lesson6.css']
html_js_files = [('lesson6.js', {'defer': 'defer'})]
html_favicon = 'static/favicon.svg'
html_copy_source = False
html_use_index = html_domain_indices = False  # the reference and the search say more
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # it would be fetched, which a page opened from a file may not do
html_last_updated_fmt = None
pygments_style = 'a11y-high-contrast-light'
pygments_dark_style = 'a11y-high-contrast-dark'
html_theme_options = {
    'navigation_with_keys': True,
    'footer_icons': [{'name': 'Repository', 'url': repository(), 'html': 'Repository', 'class': ''}]
    if repository() else [],
    'light_css_variables': {'color-brand-primary': '#0b5d8a', 'color-brand-content': '#0b5d8a',
                            'color-brand-visited': '#6a3d8f'},
    'dark_css_variables': {'color-brand-primary': '#7cc4ee', 'color-brand-content': '#7cc4ee',
                           'color-brand-visited': '#c3a6e0'},
}
