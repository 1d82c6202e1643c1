"""The static files: small, complete, without inline scripts or addresses of other sites."""

import gzip
import re

import pytest

from serving.console.assets import INDEX, SECURITY_HEADERS, assets

TEXTS = {path: asset.content.decode() for path, asset in assets().items()}
SCRIPTS = sorted(path for path in TEXTS if path.endswith(".js"))
MOST_BYTES = 400_000
"""Maximum size of all files, compressed."""


def test_all_files_together_are_small():
    assert sum(len(asset.compressed) for asset in assets().values()) < MOST_BYTES
    for asset in assets().values():
        assert gzip.decompress(asset.compressed) == asset.content


def test_the_page_has_no_inline_script_or_style():
    page = TEXTS[INDEX]
    assert re.findall(r"<script\b[^>]*>", page) == ['<script type="module" src="app.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert "unsafe" not in SECURITY_HEADERS["content-security-policy"]


@pytest.mark.parametrize("path", [INDEX, *SCRIPTS])
def test_every_named_file_is_there(path):
    named = re.findall(
        r'(?:from|import\(|href=|src=)\s?"(?:\./)?([\w.]+\.(?:js|css|svg))"', TEXTS[path]
    )
    assert set(named) <= set(TEXTS)


@pytest.mark.parametrize("path", SCRIPTS)
def test_scripts_never_parse_text_as_html_or_code(path):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", TEXTS[path])
    assert not re.search(r"\beval\(|new Function|srcdoc|setTimeout\(\"", TEXTS[path])


@pytest.mark.parametrize("path", sorted(TEXTS))
def test_no_file_names_another_site(path):
    found = set(re.findall(r"https?://[\w.-]+", TEXTS[path]))
    assert found <= {"http://www.w3.org"}


def test_modules_of_the_first_view_are_preloaded():
    loaded, queue = set(), ["app.js"]
    while queue:
        script = queue.pop()
        if script not in loaded:
            loaded.add(script)
            queue += re.findall(r'from "\./([\w.]+)"', TEXTS[script])
    preloaded = set(re.findall(r'modulepreload" href="([\w.]+)"', TEXTS[INDEX]))
    assert loaded - {"app.js"} == preloaded
