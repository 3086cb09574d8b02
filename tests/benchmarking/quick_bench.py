"""A benchmark in this process, against libraries that are torch in disguise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from headgate.benchmarking import Request
from headgate.benchmarking import work as works
from headgate.benchmarking.libraries.library import Images, Library, Runner, Work
from headgate.benchmarking.request import Dtype

QUICK = ["--batches", "1", "--threads", "one", "--repeats", "2"]


def bench(request: Request, folder: Path) -> works.Bench:
    return works.Bench(request, 1, folder)


def computing(name: str, change: Any) -> Library:
    """A library that runs the network in torch and changes its output."""

    def build(work: Work) -> Runner:
        def run(images: Images) -> Images:
            with torch.no_grad():
                output: Images = change(work.module(torch.from_numpy(images)).numpy())
                return output

        return run

    dtypes = get_args(Dtype)
    return Library(name=name, title=name, packages=(), build=build, dense=dtypes, pruned=dtypes)
