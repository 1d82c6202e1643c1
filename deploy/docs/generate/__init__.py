"""Generates the reference pages from the code: settings, commands, gRPC, REST, metrics, chart."""
