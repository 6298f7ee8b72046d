"""``python -m attnpass``, the same as the command ``attnpass``."""

import sys

from attnpass.cli import main

if __name__ == "__main__":
    sys.exit(main())
