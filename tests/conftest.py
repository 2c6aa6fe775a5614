from __future__ import annotations

import pytest

from tests.javascript.scripts import NoNode, Scripts, installed


@pytest.fixture(scope="session")
def scripts() -> Scripts:
    """The official JavaScript clients; the first use of a checkout installs them."""
    try:
        return installed()
    except NoNode as error:
        pytest.skip(str(error))
