"""Times a guided row of a plan: python scripts/studies/benchmark/guidance.py [quick=true] [rounds=5] [out=FOLDER]

The same as `dforce benchmark speed parts=[guidance]`; what is measured, and how, is in dforce/bench/guidance.py.
"""

import sys

from dforce.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "speed", "parts=[guidance]", *sys.argv[1:]]))
