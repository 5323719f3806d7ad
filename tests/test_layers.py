"""The architecture: which package may import which, read from the source."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAYERS = (  # a layer imports only those above it in this list; packages of one layer do not import each other
    ("errors", "ray_internals"),
    ("object_store",),
    ("storage",),
    ("config", "raw", "progress", "capacity"),
    ("model", "cluster", "commandline"),
    ("synthesis", "data"),
    ("inference",),
    ("evaluate",),
    ("train",),
    ("sweep",),
    ("benchmark", "api"),
    ("jobs",),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for part in ("lsid_ray", "jobs") for path in sorted((REPOSITORY / part).rglob("*.py"))}


def imports(source: str, modules: set[str]) -> set[str]:
    """What a source imports, wherever it stands: of this project the modules, of others the top name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return {name if name in modules else name.split(".")[0] for name in found}


GRAPH = {name: imports(path.read_text(), set(FILES)) for name, path in FILES.items()}


def package(module: str) -> str:
    """ "data" for lsid_ray.data.index, "storage" for lsid_ray.storage, "jobs" for jobs.train."""
    return module.removeprefix("lsid_ray.").split(".")[0]


def layer(module: str) -> int:
    return next(i for i, packages in enumerate(LAYERS) if package(module) in packages)


def of(prefix: str) -> list[str]:
    return [name for name in FILES if name.startswith(prefix)]


def everything_behind(module: str) -> set[str]:
    """All that is imported with a module, of other projects too."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += GRAPH.get(name, set())
    return found


def test_every_package_has_a_layer():
    assert {package(name) for name in FILES} - {"lsid_ray"} == {name for layer in LAYERS for name in layer}
    assert len(GRAPH) > 25 and "lsid_ray.model.losses" in GRAPH["lsid_ray.train.step"]


def test_an_import_is_seen_in_every_form():
    modules = {"lsid_ray", "lsid_ray.storage", "lsid_ray.data.pack"}
    forms = {
        "import lsid_ray.storage": "lsid_ray.storage",
        "from lsid_ray import storage as s": "lsid_ray.storage",
        "from lsid_ray import __version__": "lsid_ray",
        "from lsid_ray.data.pack import pack_dataset": "lsid_ray.data.pack",
        "def f():\n    import ray.data as rd": "ray",
        "from torch.nn import functional": "torch",
    }
    for source, expected in forms.items():
        assert imports(source, modules) == {expected}


@pytest.mark.parametrize("module", [name for name in FILES if name != "lsid_ray"])
def test_imports_go_one_way(module: str):
    for other in GRAPH[module] & set(FILES) - {"lsid_ray"}:
        assert package(other) == package(module) or layer(other) < layer(module), f"{module} imports {other}"


def test_there_is_no_import_cycle():
    inner = {name: found & set(FILES) for name, found in GRAPH.items()}
    order = list(graphlib.TopologicalSorter(inner).static_order())
    assert set(order) == set(FILES)


@pytest.mark.parametrize("job", of("jobs."))
def test_a_job_stands_alone(job: str):
    assert not any(job in found for found in GRAPH.values())
    assert len(FILES[job].read_text().splitlines()) <= 80


@pytest.mark.parametrize("module", of("lsid_ray.raw"))
def test_raw_files_need_neither_torch_nor_ray(module: str):
    assert not everything_behind(module) & {"torch", "ray"}


def test_the_processes_that_pack_and_read_crops_load_no_torch():
    modules = sorted({*of("lsid_ray.data"), *of("lsid_ray.synthesis")} - {"lsid_ray.data.preprocess"})
    program = "import sys\n" + "".join(f"import {m}\n" for m in modules) + "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


TORCH_ONLY = (*of("lsid_ray.model"), "lsid_ray.train.step", "lsid_ray.inference.bands", "lsid_ray.evaluate.measures")


@pytest.mark.parametrize("module", TORCH_ONLY)
def test_what_is_tuned_on_a_single_gpu_needs_no_ray(module: str):
    assert "ray" not in everything_behind(module)


@pytest.mark.parametrize(
    "modules, missing",
    [(TORCH_ONLY, ["ray"]), (of("lsid_ray.raw"), ["ray", "torch"])],
    ids=["networks without Ray", "cameras without Ray and torch"],
)
def test_modules_load_where_a_package_is_not_installed(modules: tuple[str, ...], missing: list[str]):
    program = f"import sys\nfor name in {missing}: sys.modules[name] = None\n" + "".join(
        f"import {m}\n" for m in modules
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", of("lsid_ray.train"))
def test_training_cannot_name_the_test_split(module: str):
    constants = [
        node.value for node in ast.walk(ast.parse(FILES[module].read_text())) if isinstance(node, ast.Constant)
    ]
    assert not [value for value in constants if value == "test" or value == b"test"]


def test_only_one_module_knows_the_internals_of_ray():
    found = {name for name, path in FILES.items() if re.search(r"\bray(\.\w+)*\.(_[a-z]|v\d)", path.read_text())}
    assert found == {"lsid_ray.ray_internals"}


def test_no_module_is_named_after_nothing():
    nothing = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "core", "base"}
    assert not [name for name in FILES if nothing & set(name.split("."))]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "lsid_ray").rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_packages_export_nothing(path: Path):
    body = ast.parse(path.read_text()).body
    named = {ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)}
    others = [node for node in body if not isinstance(node, ast.Assign | ast.Expr)]
    if path.parent.name == "lsid_ray":  # sets a variable that Ray reads when it is imported, and refuses Windows
        others = [
            node for node in others if not ast.unparse(node).startswith(("import ", "if sys.platform == 'win32'"))
        ]
    assert not others and named <= {"__version__"}
