"""Writes the JSON of the dashboards, which Grafana imports.

python deploy/grafana/build.py            # into deploy/grafana
python deploy/grafana/build.py --to DIR
"""

import argparse
from pathlib import Path

import autoscaler
import batches
import cost
import experts
import fleet
from grafana_foundation_sdk.cog.encoder import JSONEncoder

DASHBOARDS = {
    "fleet": fleet.DASHBOARD,
    "experts": experts.DASHBOARD,
    "autoscaler": autoscaler.DASHBOARD,
    "cost": cost.DASHBOARD,
    "batches": batches.DASHBOARD,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Write the Grafana dashboards.", allow_abbrev=False
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path(__file__).parent,
        help="directory (default: that of this file)",
    )
    folder = parser.parse_args().to
    for name, dashboard in DASHBOARDS.items():
        text = JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build())
        (folder / f"{name}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
