"""What holds for all tests."""

from hypothesis import settings

# An example that takes long on a busy machine is no finding.
settings.register_profile("tidelog", deadline=None)
settings.load_profile("tidelog")
