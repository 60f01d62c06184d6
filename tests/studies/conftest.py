"""Weights that studies train are kept in a folder of the tests' own."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitsmith.model.trained.cache_folder", lambda: folder)
        patch.setattr("bitsmith.insight.cells.cache_folder", lambda: folder)
        yield
