"""Sphinx's configuration. The site is whole in itself: nothing is loaded from elsewhere."""

project = "kong-claude"
extensions = ["myst_parser"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
html_theme = "furo"
html_title = "kong-claude"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
html_static_path = ["static"]
html_css_files = ["site.css"]
