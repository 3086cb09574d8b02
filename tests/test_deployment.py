"""headgate-run, the installed library, and the page that explains both."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from native_build import built, run
from numpy.typing import NDArray

import headgate as hg

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "cpp"
PAGE = ROOT / "docs" / "deployment.md"
PUBLIC_HEADERS = {"engine.h", "engine_c.h", "isa.h"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.hgplan"
    hg.export(hg.pretrained("resnet20-cifar10-activation"), path, example_input=torch.zeros(1, 3, 32, 32))
    return path


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((3, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and headgate-run, installed."""
    folder = tmp_path_factory.mktemp("prefix")
    for component in ("development", "runtime"):
        run("cmake", "--install", built("CMakeCache.txt").parent, "--component", component, "--prefix", folder)
    return folder


def headgate_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = Path(sysconfig.get_path("scripts")) / "headgate-run"
    assert program.is_file(), f"{program} is not there: run `make venv`"
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=os.environ | {"LC_ALL": "C"}
    )


def test_it_runs_a_plan(plan: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    expected = hg.Engine(plan, threads=1)(images)
    np.save(tmp_path / "x.npy", images)
    done = headgate_run(plan, tmp_path / "x.npy", "--threads", 2, "--output", tmp_path / "y.npy")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]

    done = headgate_run(plan, tmp_path / "x.npy", "--repeat", 3, "--stats")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for image, line in enumerate(lines[:3]):
        shown = dict(re.findall(r"(\d+): (\S+)", line.removeprefix(f"image {image}:")))
        assert [int(c) for c in shown] == np.argsort(-expected[image])[:5].tolist()
        assert [float(value) for value in shown.values()] == pytest.approx(sorted(expected[image])[:-6:-1], rel=1e-5)
    assert re.match(r"3 runs of 3 images, \d+ threads, \w+: median [\d.]+ ms, least [\d.]+ ms", lines[3])
    assert re.match(r"peak resident memory: [\d.]+ MB", lines[-1])
    assert len(lines) == 6 + len(hg.Engine(plan).stats())


def test_paths(plan: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images)
    for name in ("sparse", "masked"):
        expected = hg.Engine(plan, threads=1, paths=name)(images)
        done = headgate_run(plan, tmp_path / "x.npy", "--paths", name, "--output", tmp_path / "y.npy", "--stats")
        assert np.array_equal(np.load(tmp_path / "y.npy"), expected)
        assert set(re.findall(r"^gated_conv .* (sparse|masked)  ", done.stdout, re.MULTILINE)) == {name}
    done = headgate_run(plan, tmp_path / "x.npy", "--paths", "timed", "--output", tmp_path / "y.npy", "--stats")
    assert (done.returncode, done.stderr) == (0, "")
    gated = [layer.name for layer in hg.Engine(plan).stats() if layer.path]
    assert re.findall(r"^gated_conv .* (?:sparse|masked)  (\S+)$", done.stdout, re.MULTILINE) == gated
    done = headgate_run(plan, tmp_path / "x.npy", "--paths", "fast")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--paths must be one of sparse, masked, timed, got fast" in done.stderr


def test_the_dial(plan: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    engine = hg.Engine(plan, threads=1)
    engine.shift_thresholds(0.5)
    np.save(tmp_path / "x.npy", images)
    assert headgate_run(plan, tmp_path / "x.npy", "--shift", "+0.5", "--output", tmp_path / "y.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), engine(images))


def test_what_it_refuses(plan: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    def save(name: str, array: NDArray[np.generic]) -> Path:
        np.save(tmp_path / name, array)
        return tmp_path / f"{name}.npy"

    good = save("good", images)
    for arguments, status, message in [
        ((plan, save("double", images.astype(float))), 1, r'double.npy: must be float32 \(<f4\), got "<f8"'),
        ((plan, save("order", np.asfortranarray(images))), 1, "order.npy: must be in C order"),
        ((plan, save("shape", images[:, :1])), 1, r"must have shape \(images, 3, 32, 32\), got \(3, 1, 32, 32\)"),
        ((plan, tmp_path / "none.npy"), 1, "none.npy: cannot open: No such file"),
        ((good, good), 1, "good.npy: not a safetensors file"),
        ((plan, good, "--output", tmp_path / "no" / "y.npy"), 1, "cannot write: No such file"),
        ((plan,), 2, "expected a plan and an input, got 1 files"),
        ((plan, good, "--threads", "two"), 2, "--threads must be a number from 1 to 256, got two"),
        ((plan, good, "--repeat", "0"), 2, "--repeat must be a number from 1 to 1000000, got 0"),
        ((plan, good, "--thread"), 2, "requires an argument"),
        ((plan, good, "--loud"), 2, "unrecognized option"),
    ]:
        done = headgate_run(*arguments)
        assert done.returncode == status, (arguments, done)
        assert re.search(message, done.stderr), done.stderr
        assert done.stdout == ""
    assert headgate_run("--help").stdout.startswith("usage: headgate-run")


def test_only_public_headers_are_installed(prefix: Path) -> None:
    assert {path.name for path in (prefix / "include" / "headgate").iterdir()} == PUBLIC_HEADERS
    assert (prefix / "bin" / "headgate-run").is_file()
    version = next(prefix.glob("lib*/**/headgateConfigVersion.cmake")).read_text("utf-8")
    assert f'set(PACKAGE_VERSION "{hg.__version__}")' in version


def test_the_examples_link_against_the_installed_library(prefix: Path, plan: Path, tmp_path: Path) -> None:
    run("cmake", "-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    scores = hg.Engine(plan, threads=1)(np.full((1, 3, 32, 32), 0.5, np.float32))[0]
    expected = f"class {scores.argmax()}, score {scores.max():.4f}"
    assert run(tmp_path / "classify", plan).splitlines()[0] == expected
    assert run(tmp_path / "classify_c", plan).splitlines() == [expected]
    assert all(len(path.read_text("utf-8").splitlines()) <= 30 for path in EXAMPLES.glob("classify.*"))
    for program in ("classify", "classify_c"):
        done = subprocess.run([tmp_path / program, "nowhere"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "nowhere: cannot open: No such file or directory\n")


def test_the_page_runs_as_printed(prefix: Path, tmp_path: Path) -> None:
    """In order. The library's own build, which takes minutes, is the fixture's."""
    (tmp_path / "headgate").symlink_to(prefix)
    shutil.copytree(EXAMPLES, tmp_path / "examples" / "cpp")
    environment = os.environ | {
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    ran = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        if language == "cpp":
            assert block == (EXAMPLES / "classify.cc").read_text("utf-8")
        elif language == "cmake":
            assert block == (EXAMPLES / "CMakeLists.txt").read_text("utf-8")
        elif "cmake --install" in block:
            assert '--prefix "$HOME/headgate"' in block
        else:
            command = {"python": [sys.executable, "-W", "error", "-c"], "sh": ["bash", "-ec"]}[language]
            done = subprocess.run(
                [*command, block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-2000:]
            ran.append(language)
    assert ran == ["python", "sh", "sh"]
