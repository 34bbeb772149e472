"""Reading data needs no JAX, and describing content no scikit-learn."""

import pkgutil
import subprocess
import sys

import jaxcold.data


def modules_after(imports):
    """Names of the packages that a fresh interpreter has loaded after the imports."""
    code = (
        f"import sys\n{imports}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(output.stdout.split())


def test_no_module_of_data_imports_jax():
    names = [
        module.name for module in pkgutil.walk_packages(jaxcold.data.__path__, "jaxcold.data.")
    ]
    assert len(names) > 15
    assert "jax" not in modules_after("\n".join(f"import {name}" for name in names))


def test_content_is_light():
    assert not {"jax", "sklearn"} & modules_after("import jaxcold.data.content")
