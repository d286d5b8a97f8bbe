"""What holds for all tests."""

from hypothesis import settings

# An example that takes long on a busy machine is no finding. `make test` draws the same examples every time, so that
# what it says does not depend on luck; `make properties` draws new ones, and what it finds becomes an `@example`.
settings.register_profile("tidelog", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("tidelog")
