"""Times a plan, unguided and guided: python scripts/studies/benchmark/planning.py [quick=true] [rounds=5] [out=FOLDER]

The same as `dforce benchmark speed parts=[planning]`; what is measured, and how, is in dforce/bench/planning.py.
"""

import sys

from dforce.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "speed", "parts=[planning]", *sys.argv[1:]]))
