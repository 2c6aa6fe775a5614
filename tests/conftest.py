"""What must hold in whatever order and process the tests run, and what several folders share."""

from __future__ import annotations

# It reads HF_HUB_OFFLINE once, when it is imported: never within a test that has set it.
import huggingface_hub.constants  # noqa: F401
import pytest

from tests.javascript.scripts import NoNode, Scripts, installed


@pytest.fixture(scope="session")
def scripts() -> Scripts:
    """The official JavaScript clients; the first use of a checkout installs them."""
    try:
        return installed()
    except NoNode as error:
        pytest.skip(str(error))
