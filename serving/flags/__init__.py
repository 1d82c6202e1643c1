"""Command-line flags: value readers, error messages, and a strict argument parser.

Shared by the commands of ``moe-serving`` (typer), the load generator, and ``python -m`` commands
(argparse).
"""
