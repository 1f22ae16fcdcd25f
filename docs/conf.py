"""The settings of the site: `make docs` builds it from the Markdown of this folder, without the network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

project = "PTMQ suite"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.autodoc", "docstrings", "files", "mathml"]
exclude_patterns = ["_build", "extensions", "demo"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "file-page": "{{path}}"}  # file-page: see extensions/files.py
nb_execution_mode = "off"  # a notebook shows the outputs that are stored in it; the tests execute it
html_math_renderer = "mathml"
default_role = "code"  # what docstrings mean by `single quotes`
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "light"}  # as the results are
html_theme_options = {
    "navbar_end": [],
    "navbar_align": "left",
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
html_sidebars = {"index": [], "results": []}
html_static_path = ["extensions/site.css"]
html_css_files = ["site.css"]
