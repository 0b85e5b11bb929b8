"""What nbval compares of figures and panels: their descriptions, not the bytes of pictures."""

import re
import subprocess
import sys

import nbformat
import pytest

from minids.learn import course
from minids.system import paths

CODE = '''
from minids.show import inference, style
style.use()
style.show(style.plt.figure(), "an empty figure")
box = style.slider_image(lambda width: style.plt.figure(), "another", width=[2, 1])
display(box)
box.sliders["width"].value = 2
inference.Talk(lambda question, mode: ("", "an answer", 2), ("now",), "a question")
'''


def nbval(folder) -> list[str]:
    """What nbval says of each cell of the notebook in a folder: PASSED or FAILED."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--nbval",
               "--nbval-current-env", "--nbval-sanitize-with",
               str(paths.ROOT / "tests" / "nbval.cfg"), str(folder)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    verdicts = re.findall(r"^(PASSED|FAILED) .*?\.ipynb::Cell (\d+)", done.stdout, re.M)
    return [verdict for verdict, _ in sorted(verdicts, key=lambda found: int(found[1]))]


@pytest.mark.slow(12)
def test_nbval_compares_descriptions_and_overlooks_pictures(tmp_path):
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(CODE) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=spec)
    course.execute(notebook, tmp_path)

    def change(cell, *changes: tuple[str, str]) -> None:
        pages = [out for out in cell.outputs if "text/html" in out.data]
        assert len(pages) == 3
        for page in pages:
            for pattern, replacement in changes:
                page.data["text/html"] = re.sub(pattern, replacement, page.data["text/html"])

    pictures, descriptions = notebook.cells
    change(pictures, ("base64,iVBOR[^\"]*", "base64,iVBORother+bytes=="),
           ("an answer", "what another machine's model says"))
    change(descriptions, ("an empty figure", "a full figure"))
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    assert nbval(tmp_path) == ["PASSED", "FAILED"]
