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


def nbval(folder) -> dict[str, str]:
    """What nbval says of the first cell of each notebook in a folder: PASSED or FAILED."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--nbval",
               "--nbval-current-env", "--nbval-sanitize-with",
               str(paths.ROOT / "tests" / "nbval.cfg"), str(folder)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    lines = re.findall(r"^(PASSED|FAILED) .*?(\w+)\.ipynb::Cell 0", done.stdout, re.M)
    return {name: verdict for verdict, name in lines}


@pytest.mark.slow(12)
def test_nbval_compares_descriptions_and_overlooks_pictures(tmp_path):
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)], metadata=spec)
    course.execute(notebook, tmp_path)
    pages = [out.data["text/html"] for out in notebook.cells[0].outputs if "text/html" in out.data]
    assert len(pages) == 3

    def write(name: str, *changes: tuple[str, str]) -> None:
        changed = copy.deepcopy(notebook)
        for out in changed.cells[0].outputs:
            for pattern, replacement in changes if "text/html" in out.data else ():
                out.data["text/html"] = re.sub(pattern, replacement, out.data["text/html"])
        nbformat.write(changed, tmp_path / f"{name}.ipynb")

    write("pictures", ("base64,iVBOR[^\"]*", "base64,iVBORother+bytes=="),
          ("an answer", "what another machine's model says"))
    write("descriptions", ("an empty figure", "a full figure"))
    assert nbval(tmp_path) == {"pictures": "PASSED", "descriptions": "FAILED"}
