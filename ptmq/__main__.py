"""python -m ptmq"""

import sys

from ptmq.cli import main

sys.exit(main())
