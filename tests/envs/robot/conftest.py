import pytest

from dforce.envs.robot.rendering import choose_backend


@pytest.fixture
def pictures() -> None:
    """Skips what draws on a machine without EGL and OSMesa."""
    try:
        choose_backend()
    except RuntimeError as error:
        pytest.skip(str(error))
