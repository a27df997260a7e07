"""The notebooks' kernels inherit this process's environment: without a key they cannot spend money."""

import os

for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
    del os.environ[name]
