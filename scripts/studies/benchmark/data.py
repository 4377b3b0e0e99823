"""Times a batch of windows: python scripts/studies/benchmark/data.py [quick=true] [rounds=5] [out=FOLDER]

The same as `dforce benchmark speed parts=[data]`; what is measured, and how, is in dforce/bench/data.py.
"""

import sys

from dforce.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "speed", "parts=[data]", *sys.argv[1:]]))
