"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import index
import manifold


def modules():
    for package in (manifold, index):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield importlib.import_module(found.name)


def test_examples_in_docstrings():
    results = [doctest.testmod(module) for module in modules()]
    assert sum(result.attempted for result in results) > 5
    assert sum(result.failed for result in results) == 0
