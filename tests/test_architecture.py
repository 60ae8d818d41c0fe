"""The rules of the house, held by reading the source: layers, sizes, what is never imported or called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tunecore

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tunecore"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A module imports its own layer or one below; no cycle anywhere.
LAYERS = (
    {"errors", "batch", "reading", "strategy", "types", "hookspecs", "registry"},
    {"config", "config_diff", "config_io", "config_schema", "config_search", "config_stages", "machine", "ops", "data",
     "config_options", "config_yaml", "durable", "generation", "locks", "spool"},
    {"models", "objectives", "heads", "strategies", "checkpoint", "training", "tracking", "run_folder"},
    {"hook_check", "plugins", "builtin"},
    {"inputs", "saved_tasks", "session", "embedding", "outcome", "runner", "search", "road", "reports", "engine",
     "testing", "tiny", "conformance", "strategy_checks"},
    {"doctor", "demo", "demo_data"},
    {"terminal", "cli_plugins", "cli_templates", "cli", "__main__"},
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
STRANGERS = {"models", "objectives", "heads", "strategies"}
"""Packages that never import one another: they meet in tunecore.types."""
LEAN = ("ops", "models", "objectives", "training")
LEAN_NEEDS = {"torch", "numpy", "transformers", "pluggy", "safetensors"}
"""All that the lean packages need; safetensors comes with transformers."""

MAX_FILE, MAX_FUNCTION, MAX_NATIVE_FILE = 400, 60, 600


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def area_of(module: str) -> str:
    """The part of a module name that has a layer: tunecore.ops.attention -> ops."""
    return module.split(".")[1] if "." in module else ""


def checked_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``, which never run."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports_of(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every imported module name; for ``from tunecore import x`` the submodule where there is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node, full if full in MODULES else str(node.module)


MODULES = {module_of(path): path for path in FILES}


@cache
def runtime_imports(path: Path) -> frozenset[str]:
    tree = tree_of(path)
    skipped = checked_only(tree)
    return frozenset(name for node, name in imports_of(tree) if node not in skipped)


def own(names: frozenset[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "tunecore"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path):
    area = area_of(module_of(path))
    if not area:
        pytest.skip("the package itself loads its names when they are first used")
    assert area in LAYER_OF, f"give {area!r} a layer in LAYERS, above"
    for name in own(runtime_imports(path)) - {"tunecore"}:
        below = area_of(name)
        assert LAYER_OF[below] <= LAYER_OF[area], f"{module_of(path)} imports {name}, which lies above it"
        strangers = {area, below} <= STRANGERS and area != below
        assert not strangers, f"{module_of(path)} imports {name}; they meet in types"


def test_there_is_no_import_cycle():
    graph = {name: own(runtime_imports(path)) & MODULES.keys() - {"tunecore"} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("area", LEAN)
def test_the_lean_packages_need_only_torch_numpy_transformers_pluggy(area):
    waiting = [name for name in MODULES if area_of(name) == area]
    assert waiting
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        for wanted in runtime_imports(MODULES[name]):
            top = wanted.split(".")[0]
            if top == "tunecore":
                waiting.append(wanted)
            else:
                lean = top in LEAN_NEEDS or top in sys.stdlib_module_names
                assert lean, f"{name}, needed by {area}, imports {wanted}"


IMPORT_BY_NAME = {"terminal.py", "_native.py", "doctor.py"}
"""Commands start without torch; the compiled core may be absent; the doctor looks at parts that do not load."""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_function_hides_an_import_of_our_own(path):
    if path == PACKAGE / "__init__.py":
        return
    for function in (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
        for node, name in imports_of(function):
            assert name.split(".")[0] != "tunecore", f"{function.name} imports {name} at line {node.lineno}"
    for call in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).endswith("import_module") and path.name not in IMPORT_BY_NAME:
            name = ast.literal_eval(call.args[0])
            assert name.split(".")[0] != "tunecore", f"import_module({name!r}) at line {call.lineno}"


FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code", "codeop",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    "torch.load", "torch.save", "torch.package", "torch.hub.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "np.fromregex",
}  # fmt: skip
FORBIDDEN_ENDINGS = ("read_pickle", "apply_chat_template", "unsafe_load", "load_module", "exec_module")
FORBIDDEN_VALUES = {"trust_remote_code": "True", "allow_pickle": "True", "shell": "True", "weights_only": "False"}


def executing(tree: ast.AST) -> Iterator[str]:
    """Every import or call that may run what a file holds, or what a file says should be run."""
    for node, name in imports_of(tree):
        if name.split(".")[0] in FORBIDDEN_MODULES:
            yield f"import of {name} at line {node.lineno}"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        forbidden = called in FORBIDDEN_NAMES | FORBIDDEN_CALLS or called.endswith(FORBIDDEN_ENDINGS)
        forbidden |= any(given.get(key) == value for key, value in FORBIDDEN_VALUES.items())
        forbidden |= called.endswith("yaml.load") and not given.get("Loader", "").endswith("SafeLoader")
        forbidden |= called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False"
        forbidden |= None in given and called.startswith("subprocess.")  # **options could hold shell=True
        if forbidden:
            yield f"{ast.unparse(call)} at line {call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_executes_what_it_reads(path):
    assert not list(executing(tree_of(path)))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from marshal import loads", "import shelve", "eval(x)", "exec(x)", "compile(x, '', 'exec')",
        "torch.load(f)", "torch.load(f, weights_only=True)", "yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)",
        "yaml.unsafe_load(f)", "np.load(f)", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)", "os.system(x)",
        "subprocess.run(x, shell=True)", "subprocess.run(x, **options)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "tokenizer.apply_chat_template(x)",
    ],
)  # fmt: skip
def test_the_search_for_what_executes_finds_it(code):
    assert list(executing(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["np.load(f, allow_pickle=False)", "yaml.load(f, Loader=yaml.SafeLoader)", "subprocess.run(x)", "re.compile(s)"],
)
def test_the_search_for_what_executes_lets_the_safe_form_pass(code):
    assert not list(executing(ast.parse(code)))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_fit_on_a_page(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{path.name} has {lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(tree_of(path)), "no module docstring"


def test_native_files_stay_readable():
    for path in (p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".inc", ".cu", ".cuh"}):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_NATIVE_FILE, f"{path.relative_to(ROOT)} has {lines} lines"


def test_subpackages_export_nothing_by_themselves():
    for path in (p for p in FILES if p.name == "__init__.py" and p.parent not in (PACKAGE, PACKAGE / "ops")):
        body = tree_of(path).body
        only_words = [type(statement) for statement in body] in ([], [ast.Expr])
        assert only_words, f"{module_of(path)} holds more than a docstring"


MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|Users|mnt)/\w")
INDEX_HOST = re.compile(r"pypi\.org|files\.pythonhosted|download\.pytorch")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".inc", ".cu", ".yaml", ".yml", ".json", ".cfg", ""}
TEXT_FOLDERS = ("tunecore", "csrc", "tests", "docs", "benchmarks", "plugins", ".ci")


BUILT = re.compile(r"(^|/)(__pycache__|build|dist|[^/]*\.egg-info|\.git)(/|$)")


def written_files() -> Iterator[Path]:
    for path in [*ROOT.iterdir(), *(p for folder in TEXT_FOLDERS for p in (ROOT / folder).rglob("*"))]:
        built = BUILT.search(path.relative_to(ROOT).as_posix())
        if path.is_file() and path.suffix in TEXT_SUFFIXES and not built:
            yield path


def test_no_path_of_a_machine_and_no_package_index_is_named():
    for path in written_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            assert not MACHINE_PATH.search(line), where
            assert not INDEX_HOST.search(line), where


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open('/" + "work/data')", True),
        ("/" + "tmp/x", True),
        ("tmp/x runs/work/x ../home/y", False),
        ("read /proc/cpuinfo", False),
    ],
)
def test_the_search_for_machine_paths_finds_them(line, found):
    assert bool(MACHINE_PATH.search(line)) is found


IMPORT_PROBE = """
import sys, time
before = set(sys.modules)
begun = time.perf_counter()
import tunecore
seconds = time.perf_counter() - begun
print(seconds, *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_tunecore_is_quick_and_brings_in_neither_torch_nor_plugins():
    best = float("inf")
    for _ in range(3):
        words = [sys.executable, "-c", IMPORT_PROBE]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, *modules = done.stdout.split()
        strange = {name for name in modules if name not in sys.stdlib_module_names} - {"tunecore"}
        assert not strange, f"import tunecore brings in {strange}"
        best = min(best, float(seconds))
    assert best < 0.3, f"{best:.3f} s, where 0.1 s is the aim on a quiet machine"


def test_every_public_name_can_be_had():
    for name in tunecore.__all__:
        assert getattr(tunecore, name) is not None
    assert set(tunecore.__all__) <= set(dir(tunecore))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tunecore.nothing
