"""The page on deployment: its Python runs, word by word."""

import re

from tests.toys import ROOT

PAGE = ROOT / "docs" / "deploy.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["done"].floats == () and names["done"].bytes < names["one"].bytes * 3
    assert "run as integers" in capsys.readouterr().out and len(names["widths"]) == 6
