"""What nbval compares of figures and panels: their descriptions, not the bytes of pictures."""

import copy
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


def nbval(path) -> bool:
    """Whether nbval finds the outputs stored in the notebook."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval",
               "--nbval-current-env", "--nbval-sanitize-with",
               str(paths.ROOT / "tests" / "nbval.cfg"), str(path)]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True).returncode == 0


@pytest.mark.slow
def test_nbval_compares_descriptions_and_overlooks_pictures(tmp_path):
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)], metadata=spec)
    course.execute(notebook, tmp_path)
    pages = [out.data["text/html"] for out in notebook.cells[0].outputs if "text/html" in out.data]
    assert len(pages) == 3

    def passes(*changes: tuple[str, str]) -> bool:
        changed = copy.deepcopy(notebook)
        for out in changed.cells[0].outputs:
            for pattern, replacement in changes if "text/html" in out.data else ():
                out.data["text/html"] = re.sub(pattern, replacement, out.data["text/html"])
        nbformat.write(changed, tmp_path / "a.ipynb")
        return nbval(tmp_path / "a.ipynb")

    assert passes(("base64,iVBOR[^\"]*", "base64,iVBORother+bytes=="),
                  ("an answer", "what another machine's model says"))
    assert not passes(("an empty figure", "a full figure"))
