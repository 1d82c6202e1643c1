"""Fixtures shared by several end-to-end tests."""

import pytest

from tests.e2e.verifying import Verified, verify


@pytest.fixture(scope="package")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Verified:
    """Compare two ranks with one rank; keep the single rank's answers for further comparisons."""
    kept = tmp_path_factory.mktemp("verify") / "one.json"
    flags = ("--ranks", "1,2", "--prompts", "6", "--max-tokens", "24", "--save", str(kept))
    return Verified(verify(*flags), kept)
